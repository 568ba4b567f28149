"""The token by which a payment method is charged again: sealed, no card number, and gone with its workspace."""

from __future__ import annotations

import time
from typing import Any

import pytest

from shared.contract import events, topics
from shared.contract.sealing import seal
from shared.contract.units import Subject
from shared.privacy.vault import Shredded, Vault, open_value
from tests.support.coordinator import Coordinator, new_case
from tests.support.gateway import Gateway, Sent
from tests.support.raw_files import holding, raw_folders
from tests.support.world import Mesh

TOKEN = "pm-canary-91x7f"
CARD = "4111 1111 1111 1111"
PLACE = "payment_method.token"
WHO: list[Subject] = [("workspace", "ws-gone"), ("account", "acc-ws-gone")]
EVERYTHING = """SELECT c.oid::regclass::text FROM pg_class c WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition
                AND c.relnamespace = 'public'::regnamespace"""


class Shop:
    """A gateway that saves payment methods, and whoever orders erasures of billing."""

    def __init__(self, mesh: Mesh, gateway: Gateway, retention: Coordinator, key: tuple[str, bytes]) -> None:
        self.mesh, self.gateway, self.retention, self.key = mesh, gateway, retention, key

    @property
    def vault(self) -> Vault:
        return self.retention.vault

    def saved(self, workspace: str, token: str = TOKEN, method: str = "pm-1", later_ms: int = 0) -> Sent:
        data = {
            "account": f"acc-{workspace}", "workspace": workspace, "method": method, "token": seal(token, *self.key),
        }  # fmt: skip
        return self.gateway.event(
            topics.PAYMENTS, events.PaymentMethodSaved, data, key=workspace, subject=workspace,
            at_ms=int(time.time() * 1000) + later_ms,
        )  # fmt: skip

    async def send(self, *records: Sent) -> None:
        await self.gateway.send(self.mesh.env, records)
        await self.mesh.idle()

    async def rows(self) -> list[Any]:
        return await self.mesh.fetch("billing", "SELECT * FROM payment_method ORDER BY workspace, method")

    async def tables_with(self, text: str) -> list[str]:
        """Tables of billing's database in whose rows the text stands."""
        return [
            table
            for (table,) in await self.mesh.fetch("billing", EVERYTHING)
            if await self.mesh.value("billing", f"SELECT count(*) FROM {table} t WHERE strpos(t::text, $1) > 0", text)
        ]

    async def counters(self) -> dict[str, int]:
        rows = await self.mesh.fetch("billing", "SELECT name, sum(value)::bigint AS n FROM mesh_counter GROUP BY name")
        return {row["name"]: row["n"] for row in rows}


@pytest.fixture
async def shop(mesh: Mesh, seed: int) -> Shop:
    gateway = Gateway(seed)
    retention = Coordinator(mesh, gateway, await mesh.start("billing"))
    await mesh.owned()
    now = retention.runtime.clock.now()  # type: ignore[union-attr]
    await retention.vault.make_ingress([now.date()], now)
    return Shop(mesh, gateway, retention, await retention.vault.ingress(now.date()))


@pytest.mark.promise(10)
async def test_a_token_is_sealed_replaced_and_ends_with_its_workspace(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    first, other = shop.saved("ws-gone"), shop.saved("ws-stays")
    await shop.send(first, first, other, shop.saved("ws-gone", f"{TOKEN}-newer", later_ms=1))
    gone, stays = await shop.rows()
    for row, token in ((gone, f"{TOKEN}-newer"), (stays, TOKEN)):
        key = (await shop.vault.subject_keys([("workspace", row["workspace"])]))["workspace", row["workspace"]]
        assert open_value(key, row["token"], where=PLACE) == token
    copy = gone["token"]
    assert await shop.tables_with(TOKEN) == [] and TOKEN not in caplog.text
    for name, folder in (await raw_folders(shop.mesh)).items():
        assert not holding(folder, TOKEN), f"the token lies in {name}"

    case = new_case()
    await shop.send(*shop.retention.tombstones(case, WHO))
    await shop.gateway.send(shop.mesh.env, [await shop.retention.order(case, WHO, ["billing"])])
    (receipt,) = await shop.retention.receipts(case, 1)
    (treated,) = [each for each in receipt.treated if each.table == "payment_method"]
    assert (treated.action, treated.rows, treated.remaining) == ("delete_row", 1, 0)
    assert [row["workspace"] for row in await shop.rows()] == ["ws-stays"]
    # What comes late is dropped and counted; nobody gets a new key.
    before = await shop.counters()
    await shop.send(shop.saved("ws-gone"), shop.saved("ws-new", method="pm-9"))
    assert [row["workspace"] for row in await shop.rows()] == ["ws-new", "ws-stays"]
    after = await shop.counters()
    changed = {name for name in after if name.startswith("payments_") and after[name] != before.get(name, 0)}
    assert changed == {"payments_erased", "payments_created"}
    # A copy from before (a backup) dies with the key.
    await shop.vault.destroy_subjects([("workspace", "ws-gone")])
    with pytest.raises(Shredded):
        await shop.vault.key("subject", shop.vault.hasher.hashes([("workspace", "ws-gone")])[0].hex())
    stays_key = (await shop.vault.subject_keys([("workspace", "ws-stays")]))["workspace", "ws-stays"]
    with pytest.raises((Shredded, ValueError)):
        open_value(stays_key, copy, where=PLACE)


@pytest.mark.promise(9)
@pytest.mark.promise(10)
async def test_a_token_of_a_cards_shape_is_refused_and_kept_nowhere(
    shop: Shop, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG")
    bad = [shop.saved("ws-a", CARD), shop.saved("ws-a", CARD.replace(" ", "")), shop.saved("ws-a", f"tok_{CARD}")]
    await shop.send(*bad, shop.saved("ws-a", "tok-4111"))
    (row,) = await shop.rows()
    letters = await shop.mesh.fetch("billing", "SELECT reason, stage, detail, payload FROM mesh_dead_letter")
    assert [(x["reason"], x["stage"], x["payload"]) for x in letters] == [("card", "handler", None)] * 3
    for record in bad:
        token = str(record.value).partition('"token":"')[2].partition('"')[0]
        assert token.startswith("sealed:") and await shop.tables_with(token) == [], "not even sealed"
    assert "4111" not in caplog.text and "1111" not in repr(letters)
    assert row["method"] == "pm-1"
