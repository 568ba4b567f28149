"""What rules and dashboards ask for is what running services say: every room a process, scraped by a real Prometheus."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families

from deploy.local.probe import get
from deploy.observe.alerts import GROUPS, RECORDINGS
from deploy.observe.rules import groups_of, to_yaml
from deploy.rooms import ROOMS
from tests.k8s import promql
from tests.support.gateway import Gateway
from tests.support.processes import processes
from tests.support.prometheus import Prometheus, prometheus
from tests.support.world import Mesh

pytestmark = pytest.mark.timeout(240)

# Only something that is wrong, or that providers say, gives these a value.
_ONLY_AFTER = {
    "steward_dead_letters_total", "steward_metering_cost_reported_pico", "steward_metering_cost_drift_pico",
}  # fmt: skip


async def _types(port: int) -> set[str]:
    """The series that a process's HELP and TYPE lines speak of, and those that it has."""
    _, body = await get(port, "/metrics")
    named: set[str] = set()
    for family in text_string_to_metric_families(body.decode()):
        named.update(sample.name for sample in family.samples)
        ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        named.update(family.name + end for end in ends)
    return named


class Waiting:
    """The dashboards' queries, and what rules select, that have come to nothing yet."""

    def __init__(self, server: Prometheus) -> None:
        self._server = server
        # An alert has no value on a mesh that is well, but what it selects is there: a label's value is not misspelt.
        self.left = {
            part: where
            for where, query in promql.queries()
            for part in ([promql.plain(query)] if where.startswith("steward-") else promql.each(query))
            if not _ONLY_AFTER & {asked.metric for asked in promql.asked(part)}
        }

    async def over(self) -> bool:
        """Whether all have had data by now."""
        if await self._server.query("steward_audit_ok == 1"):
            self.left = {part: where for part, where in self.left.items() if not await self._server.query(part)}
        return not self.left


async def test_running_services_say_what_is_asked_for(mesh: Mesh, seed: int) -> None:
    rules = to_yaml(groups_of(GROUPS))
    gateway = Gateway(seed)
    async with processes(mesh) as run:
        # Before anybody starts: audit looks at topics once, and then for minutes no more.
        await gateway.send(mesh.env, [gateway.price()])
        await gateway.send(mesh.env, [gateway.payment(f"ws-{n}", 10) for n in range(gateway.workspaces)])
        await gateway.send(mesh.env, gateway.some(300))
        served = await asyncio.gather(*(run.start(room) for room in ROOMS))
        async with prometheus({one.name: one.port for one in served}, rules) as server:
            # Names, by what the processes themselves say.
            said = set().union(*await asyncio.gather(*(_types(one.port) for one in served)))
            said |= promql.OWN | {recording.name for recording in RECORDINGS}
            wanted = {asked.metric for _, query in promql.queries() for asked in promql.asked(query)}
            assert sorted(wanted - said) == []

            # Labels and values, by what Prometheus makes of it: the labels that series have in the cluster.
            waiting = Waiting(server)
            try:
                await mesh.until(waiting.over, 90, "every query of the dashboards has data")
            except TimeoutError:
                pytest.fail(f"without data: {waiting.left}")
            assert len(await server.query('up{namespace="steward", job="steward/audit", pod="audit-0"} == 1')) == 1

            # At rest every partition is read, also one that is empty.
            async def all_read() -> bool:
                return not await server.query('ALERTS{alertname="PartitionsUnread"}')

            await mesh.until(all_read, 30, "every partition has an offset")

            # Each rule can be evaluated, and on a mesh that is well none fires.
            judged = await server.rules()
            assert [rule["name"] for rule in judged if rule["health"] != "ok"] == []
            assert [rule["name"] for rule in judged if rule["type"] == "alerting" and rule["state"] == "firing"] == []
