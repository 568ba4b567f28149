"""The addresses: how they come to be known, change, are put aside for a case, and are barred."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from services.notifications import store
from services.notifications.app.seals import Seals
from services.notifications.data_map import BAR_LIFE, ENVELOPE_LIFE, MAIL_LIFE, SECRET_LIFE
from services.notifications.mail import mailbox
from services.notifications.proofs import SETTLE, settling
from shared.contract import events, topics
from shared.contract.ids import derived_id, id_ms
from shared.contract.units import Subject
from shared.mesh import Batch, Received, Transaction
from shared.mesh.transaction import rfc3339


class Addresses:
    """The address book of one process."""

    def __init__(self) -> None:
        self.seals: Seals

    async def learn(self, batch: Batch, tx: Transaction) -> None:
        """The addresses of new accounts, each under a key of its own. What else happens to accounts is not for us."""
        opened: dict[str, Received] = {}
        for received in batch.events:
            if received.event.type == events.AccountOpened.TYPE:
                opened.setdefault(received.event.data.account, received)
        known = await store.known_accounts(tx.db, list(opened))
        found: dict[str, str] = {}
        for account, received in opened.items():
            if account in known:
                continue
            text = await self.seals.arrived(received.event.data.address)
            recipient = None if text is None else mailbox(text)
            if recipient is None:
                why = "cannot be opened" if text is None else "is no mail address"
                tx.refuse(received.record, "address", f"the sealed address {why}")
            else:
                found[account] = recipient
        barred = await self._barred(found.values(), tx)
        for account, recipient in found.items():
            if recipient in barred:
                self._turn_away(account, opened[account], barred[recipient], tx)
                continue
            sealed = await self.seals.seal_address(account, recipient, tx.now)
            if await store.add_address(tx.db, account, sealed, tx.now):
                tx.count("addresses")

    async def of_account(self, account: str, *, code: bool, tx: Transaction) -> tuple[bool, str | None]:
        """(whether an address is known, it, unless it cannot be opened). `code`: for a mail with a code, which goes to the
        address before a change until that has settled."""
        row = await store.address(tx.db, account)
        if row is None:
            return False, None
        if code and row.previous is not None and settling(row.changed_at, tx.now):
            return True, await self.seals.open_previous(account, row.previous)
        return True, await self.seals.open_address(account, row.sealed)

    async def change(self, account: str, new: str, tx: Transaction) -> str | None:
        """Puts a new address that has proved itself in place of the old one; returns the old one. None: nothing is
        changed, since there is none, or the new one is barred by now."""
        row = await store.lock_address(tx.db, account)
        old = None if row is None else await self.seals.open_address(account, row.sealed)
        if row is None or old is None or await self.is_barred(new, tx):
            return None
        # Two changes in a row must not push out the address that codes go to: the first one stays.
        kept = row.previous if settling(row.changed_at, tx.now) else None
        previous = kept or await self.seals.seal_previous(account, old, tx.now)
        await store.change_address(
            tx.db, account, await self.seals.seal_address(account, new, tx.now), previous, tx.now
        )
        tx.count("addresses_changed")
        return old

    # --- put aside for a case ------------------------------------------------------------------------------------

    async def keep_envelopes(self, cases: Mapping[str, Collection[Subject]], tx: Transaction) -> None:
        """For the transaction that begins an erasure, before any row goes: keeps the addresses of accounts that are about
        to be erased, each under its case's key, for the case's last mail.

        Again and again is once. A case without an account, or one that is over, has no envelope.
        """
        accounts = {case: sorted(value for kind, value in who if kind == "account") for case, who in cases.items()}
        found = await store.addresses(tx.db, [account for of_case in accounts.values() for account in of_case])
        known = {case: next((a for a in of_case if a in found), None) for case, of_case in accounts.items()}
        recipients = await self.seals.open_addresses(found)
        wanted = {case: recipients[who] for case, who in known.items() if who is not None and who in recipients}
        sealed = await self.seals.seal_envelopes(wanted)
        if sealed:
            await store.add_envelopes(tx.db, sealed, tx.now, tx.now + ENVELOPE_LIFE)

    async def obey(self, order: Any, tx: Transaction) -> None:
        """Orders about the address of a case: `envelope` (keep it for a notice that may not be given yet) and `bar` (no
        account with it any more). Both find nothing where no address is known, or it is erased."""
        if order.sealed is None or order.action not in ("envelope", "bar"):
            return
        not_after = _instant(order.arguments.get("not_after", ""))
        if (
            order.action == "envelope"
            and not_after is not None
            and await store.keep_longer(tx.db, order.case, not_after)
        ):
            return  # it is there, and its account may be gone by now
        account = await self.seals.account_of(order.case, order.sealed)
        recipient = None if account is None else (await self.of_account(account, code=False, tx=tx))[1]
        if account is None or recipient is None:
            tx.count(f"{order.action}s_empty")
        elif order.action == "bar":
            hashed = self.seals.address_hash(recipient)
            await store.bar(tx.db, [hashed], tx.now, tx.now + BAR_LIFE)
            tx.count("addresses_barred")
        else:
            await self._keep(order, recipient, not_after, tx)

    async def kept(self, subjects: Collection[Subject], tx: Transaction) -> list[dict[str, Any]]:
        """What the law keeps of subjects that are about to be erased, and until when: tables of a receipt."""
        accounts = [subject for subject in subjects if subject[0] == "account"]
        treated = []
        # An address that is kept for a notice that may not be given yet is left out: its end would tell of the gag.
        if await store.any_barred(tx.db):
            found = await self.seals.open_addresses(await store.addresses(tx.db, [account for _, account in accounts]))
            theirs = [self.seals.address_hash(address) for address in found.values()]
            if barred := await store.barred(tx.db, theirs, tx.now):
                treated.append(_retained("barred", ["hash"], max(bar.expires_at for bar in barred.values())))
        return treated

    async def _keep(self, order: Any, recipient: str, not_after: datetime | None, tx: Transaction) -> None:
        sealed = await self.seals.seal_envelopes({order.case: recipient})
        if not_after is None or not_after <= tx.now or not sealed:
            tx.count("envelopes_empty")
            return
        await store.keep_address(tx.db, order.case, sealed[order.case], tx.now, not_after)

    # --- barred --------------------------------------------------------------------------------------------------

    async def is_barred(self, address: str, tx: Transaction) -> bool:
        """Whether an address may have no account."""
        return bool(await self._barred([address], tx))

    async def _barred(self, addresses: Collection[str], tx: Transaction) -> dict[str, store.Bar]:
        """Those of the addresses that may have no account."""
        hashes = {address: self.seals.address_hash(address) for address in addresses}
        found = await store.barred(tx.db, list(hashes.values()), tx.now) if hashes else {}
        return {address: found[digest] for address, digest in hashes.items() if digest in found}

    @staticmethod
    def _turn_away(account: str, received: Received, bar: store.Bar, tx: Transaction) -> None:
        if received.event.time < bar.barred_at:
            # An old copy, of the owner's own opening perhaps: nothing is learned from it, and nobody is ended.
            tx.count("accounts_before_bar")
            return
        tx.count("accounts_barred")
        tx.publish(
            topics.MESSAGE_OUTCOMES,
            events.AccountBarred,
            id=derived_id(id_ms(received.event.id), "account barred", received.event.id),
            subject=account,
            key=account,
            data={"account": account},
        )

    # --- what time brings ----------------------------------------------------------------------------------------

    async def forget(self, now: datetime, tx: Transaction) -> None:
        """Ends previous addresses whose change has settled, secrets that nobody asks for any more, and the keys of days."""
        tx.count("addresses_settled", await store.forget_previous(tx.db, now - SETTLE))
        await store.forget_secrets(tx.db, now - SECRET_LIFE)
        await self.seals.end_days((now - MAIL_LIFE).astimezone(UTC).date() - timedelta(days=1))


def _retained(table: str, columns: list[str], until: datetime) -> dict[str, Any]:
    retained = {"ground": "legal_obligation", "until": rfc3339(until)}
    return {"table": table, "action": "retain", "columns": columns, "rows": 1, "retained": retained}


def _instant(text: str) -> datetime | None:
    """An instant of an order's arguments, with its zone; None for what is none."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo is not None else None
