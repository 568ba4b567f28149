"""Whether the books say what the gateway's own account says; a failure prints both."""

from __future__ import annotations

from tests.support.gateway import Gateway
from tests.support.world import Mesh


async def assert_books(mesh: Mesh, *gateways: Gateway) -> None:
    """Nothing lost, nothing doubled: counts, charges and balances equal what the gateways sent."""
    counters = await mesh.counters()
    generations = sum(g.generations for g in gateways)
    said = {
        "records": counters.get("records:gateway.generations", 0),
        "rated": counters.get("rated", 0),
        "lines": await mesh.value("billing", "SELECT count(*) FROM charge_line"),
        "charged": int(await mesh.value("billing", "SELECT coalesce(sum(amount_pico), 0) FROM charge_line")),
        "logged": await mesh.value("metering", "SELECT count(*) FROM request_log"),
        "rolled_up": int(await mesh.value("metering", "SELECT coalesce(sum(generations), 0) FROM rollup_hourly")),
        "ledger": int(await mesh.value("billing", "SELECT coalesce(sum(amount_pico), 0) FROM entry")),
    }
    expected = {
        "records": sum(g.records for g in gateways),
        "rated": generations,
        "lines": generations,
        "charged": sum(sum(g.charges.values()) for g in gateways),
        "logged": generations,
        "rolled_up": generations,
        "ledger": 0,
    }
    assert said == expected, f"books {said}, sent {expected}, counters {counters}"
    await assert_balances(mesh, *gateways)


async def assert_balances(mesh: Mesh, *gateways: Gateway) -> None:
    """Every workspace has what the gateways' own account says."""
    rows = await mesh.fetch(
        "billing",
        """SELECT r.workspace, b.purchased_pico + b.granted_pico - b.receivable_pico AS pico
           FROM balance b JOIN workspace_ref r ON r.id = b.workspace_id""",
    )
    balances = {row["workspace"]: int(row["pico"]) for row in rows}
    workspaces = {w for g in gateways for w in (*g.charges, *g.credits)}
    owed = {w: sum(g.balance(w) for g in gateways) for w in workspaces}
    assert balances == owed, f"balances {balances}, sent {owed}"
