"""Rating a range again: the differences are booked, once, and the books stay provable."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from deploy.cli.books import prove
from shared.contract import events, topics
from tests.support.gateway import MODEL, PROVIDER, Gateway, Sent, body
from tests.support.world import Mesh


def new_price(gateway: Gateway, **prices: str) -> Sent:
    data = {
        "provider": PROVIDER, "model": MODEL, "prices": prices, "valid_from": "2020-01-01T00:00:00Z", "source": "test",
    }  # fmt: skip
    return gateway.event(topics.PRICES, events.PricePublished, data, key=f"{PROVIDER}/{MODEL}")


def order(gateway: Gateway, start: datetime, end: datetime, **more: str) -> Sent:
    data = {
        "service": "metering", "action": "rerate", "target": "usage", "actor": "op-ines", "ticket": "OPS-1",
        "arguments": {"start": start.isoformat(), "end": end.isoformat(), **more},
    }  # fmt: skip
    return gateway.event(topics.COMMANDS, events.OperatorCommand, data, key="metering")


async def test_the_differences_of_a_range_are_booked_once(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    now = datetime.now(UTC)
    hours = [1, 1, 1, 30, 30, 80]
    sent = [gateway.generation(at_ms=int((now - timedelta(hours=ago)).timestamp() * 1000)) for ago in hours]
    unlogged = gateway.generation(log_retention_days=0)
    await gateway.send(mesh.env, [gateway.price(), *sent, unlogged])
    await mesh.start("metering")
    await mesh.start("billing")
    await mesh.owned()
    await mesh.idle()
    charged = await mesh.value("billing", "SELECT sum(amount_pico) FROM charge_line")
    # Output costs twice as much as was said before. Only what is rated again costs more.
    await gateway.send(mesh.env, [new_price(gateway, input="0.000001", output="0.000006")])
    await mesh.idle()
    start, end = now - timedelta(hours=48), now - timedelta(minutes=30)
    dry, wet = order(gateway, start, end, dry_run="yes", provider=PROVIDER), order(gateway, start, end, model=MODEL)
    await gateway.send(mesh.env, [dry])
    await mesh.idle()
    assert await mesh.value("billing", "SELECT sum(amount_pico) FROM charge_line") == charged
    await gateway.send(mesh.env, [wet, wet])
    await mesh.idle()
    inside = [body(record)["data"] for record, ago in zip(sent, hours, strict=True) if ago < 48]
    more = sum(3_000_000 * data["output_tokens"] for data in inside)
    assert more > 0 and await mesh.value("billing", "SELECT sum(amount_pico) FROM charge_line") == charged + more
    orders = await mesh.fetch("metering", "SELECT * FROM rerating ORDER BY ordered_at, id")
    assert [(row["changed"], row["after_pico"] - row["before_pico"], row["unpriced"]) for row in orders] == [
        (len(inside), more, 0)
    ] * 2
    assert all(row["ended_at"] is not None for row in orders)
    # The row says what is charged now, and by which version; the sums say it too; nothing is there twice.
    rows = {str(row["generation_id"]): row for row in await mesh.fetch("metering", "SELECT * FROM request_log")}
    assert len(rows) == len(sent)
    versions = set()
    for record, ago in zip(sent, hours, strict=True):
        row, data = rows[body(record)["id"]], body(record)["data"]
        output = 6_000_000 if ago < 48 else 3_000_000
        assert row["amount_pico"] == 1_000_000 * data["input_tokens"] + output * data["output_tokens"]
        assert json.loads(row["quantities"]) == {u: n for u, n in data["tokens"].items() if n}
        versions.add((ago < 48, row["price_version"]))
    assert len(versions) == 2
    rolled = await mesh.fetch(
        "metering", "SELECT sum(generations) AS n, sum(amount_pico) AS pico FROM rollup_hourly WHERE key_id <> ''"
    )
    assert dict(rolled[0]) == {"n": len(sent), "pico": sum(row["amount_pico"] for row in rows.values())}
    said = await prove(mesh.env)
    assert said["ok"], said
    assert said["rerated_lines"] == 2 * len(inside) and said["rated"] == len(sent) + 1


async def test_an_order_without_a_range_is_a_dead_letter(mesh: Mesh, seed: int) -> None:
    gateway = Gateway(seed)
    now = datetime.now(UTC)
    await gateway.send(mesh.env, [order(gateway, now, now)])
    await mesh.start("metering")
    await mesh.owned()
    await mesh.idle()
    assert await mesh.value("metering", "SELECT reason FROM mesh_dead_letter") == "invalid_command"
    assert not await mesh.fetch("metering", "SELECT * FROM rerating")
