"""A workspace that keeps no log is charged like one that does, to the pico-dollar, and leaves no row that names it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.books import assert_balances
from tests.support.gateway import Gateway
from tests.support.world import Mesh

# Every table of metering and billing that holds a row per request, with what would tell whose it is.
PER_REQUEST = {
    "metering": ("request_log", "quarantine", "seen", "charged"),
    "billing": ("charge_line", "line_seen", "line_late"),
}


@pytest.mark.promise(3, 7)
async def test_twins_at_zero_and_ninety(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    await gateway.send(mesh.env, [gateway.price()])
    for number in range(40):
        tokens = {"input": 100 + number, "output": 7 * number}
        for workspace, days in (("ws-zero", 0), ("ws-ninety", 90)):
            usage: dict[str, Any] = {"tokens": tokens, "input_tokens": 100 + number, "output_tokens": 7 * number}
            event = gateway.generation(workspace, log_retention_days=days, **usage)
            await gateway.send(mesh.env, [event, event])
    unpriced = gateway.generation("ws-zero", log_retention_days=0, model="nobody-knows", counted=False)
    await gateway.send(mesh.env, [unpriced])
    metering = await mesh.start("metering")
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    await assert_balances(mesh, gateway)
    assert gateway.charges["ws-zero"] == gateway.charges["ws-ninety"]
    rows = await mesh.fetch("metering", "SELECT * FROM request_log")
    assert {row["workspace"] for row in rows} == {"ws-ninety"} and len(rows) == 40
    for name in ("model", "input_tokens", "output_tokens", "provider", "occurred_at", "key_id"):
        assert all(row[name] is not None for row in rows)
    waiting = (await mesh.fetch("metering", "SELECT * FROM quarantine"))[0]
    assert waiting["event_id"] is None and "key-ws-zero" not in str(waiting["usage"])
    assert waiting["event_at"].minute == waiting["event_at"].second == 0
    # No table holds the generation's id or key in the clear beside (or without) the workspace.
    for room, tables in PER_REQUEST.items():
        for table in tables:
            text = str([tuple(row.values()) for row in await mesh.fetch(room, f"SELECT * FROM {table}")])
            assert "key-ws-zero" not in text, f"{room}.{table} names a key of a workspace that keeps no log"
    hourly = await mesh.fetch("metering", "SELECT DISTINCT workspace FROM rollup_hourly")
    daily = await mesh.fetch("metering", "SELECT workspace, generations FROM rollup_daily")
    assert [row["workspace"] for row in hourly] == ["ws-ninety"]
    assert [(row["workspace"], row["generations"]) for row in daily] == [("ws-zero", 40)]
    assert metering.troubles() == []
