"""Who got an account's content: the providers of its requests, and nobody else."""

from __future__ import annotations

from collections import defaultdict

import pytest

from tests.support.gateway import Gateway, body
from tests.support.world import Mesh


@pytest.mark.promise(25)
async def test_the_recipients_of_an_account_are_the_providers_of_its_rows(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed, workspaces=3)
    providers = ("alpha", "beta", "gamma")
    sent = [gateway.generation(f"ws-{n % 3}", provider=providers[n // 3 % (1 + n % 3)]) for n in range(30)]
    unlogged = gateway.generation("ws-none", provider="gamma", log_retention_days=0)
    prices = [gateway.price(provider=provider) for provider in providers]
    metering = await mesh.start("metering")
    await mesh.owned()
    await gateway.send(mesh.env, prices)
    await mesh.idle()
    await gateway.send(mesh.env, [*sent, unlogged])
    await mesh.idle()
    served: dict[str, set[str]] = defaultdict(set)
    for record in sent:
        data = body(record)["data"]
        served[data["account"]].add(data["provider"])
    assert sorted(map(len, served.values())) == [1, 2, 3]
    for account, whose in served.items():
        said = await metering.answer("recipients", {"account": account}, "tester", "operator", "test")
        assert said == {"providers": sorted(whose), "reason": None}
        rows = await mesh.fetch("metering", "SELECT DISTINCT provider FROM request_log WHERE account = $1", account)
        assert {row["provider"] for row in rows} == whose
    said = await metering.answer("recipients", {"account": "acc-ws-none"}, "tester", "operator", "test")
    assert said["providers"] == [] and "log retention is 0" in said["reason"]
