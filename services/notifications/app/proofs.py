"""Codes: made with the mail that they go out with, judged when they come back, ended with their case, and what follows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from services.notifications import codes, store
from services.notifications.app.addresses import Addresses
from services.notifications.app.seals import Seals
from services.notifications.data_map import CODE_LIFE
from services.notifications.mail import GIVE_UP
from services.notifications.proofs import NEW, OLD, Proof, change_of, judge
from shared.contract import events, topics
from shared.contract.ids import derived_id, id_ms
from shared.mesh import Batch, Received, Transaction
from shared.mesh.transaction import rfc3339
from shared.privacy.tombstones import Tombstones

Owe = Callable[[store.Mail, Transaction], Awaitable[bool]]
_RIGHT = ("account", "other")


class Proofs:
    """The codes of one process. `owe` has a mail sent; `random_bits(n)` gives n random bits."""

    def __init__(self, addresses: Addresses, owe: Owe, random_bits: Callable[[int], int]) -> None:
        self._addresses, self._owe, self._random_bits = addresses, owe, random_bits
        self.seals: Seals
        self.tombstones: Tombstones

    # --- made ----------------------------------------------------------------------------------------------------

    async def good_until(self, order: Any, tx: Transaction) -> datetime:
        """Until when the code of a mail is good: as ordered, and not longer than the data map says. Of a case that is over
        it never is."""
        if await self._ended([order.case, order.proof.request], order.account, tx):
            return tx.now
        until: datetime = order.proof.until
        return min(until, tx.now + CODE_LIFE)

    async def mint(self, order: Any, recipient: str | None, tx: Transaction) -> tuple[str, Proof]:
        """A new code for a mail, sealed for it, and its row. `recipient`: the mail's own address, if it has one.

        A code is drawn once the mail is known to be new. A transaction that is run again draws another one: nobody has
        seen the first.
        """
        code = codes.draw(self._random_bits)
        address = None
        if order.template == NEW and recipient is not None:
            address = await self.seals.seal_for(order.account, recipient, _where(order.cause), tx.now)
        proof = Proof(
            cause=order.cause, case_id=order.case, request=order.proof.request, account=order.account,
            template=order.template, proves="account" if recipient is None else "other",
            code_hash=self.seals.code_hash(order.case, code), address_sealed=address,
            until=await self.good_until(order, tx),
        )  # fmt: skip
        sealed = await self.seals.seal_in_mail(order.account, "code_sealed", order.cause, code, tx.now)
        return sealed, proof

    # --- judged --------------------------------------------------------------------------------------------------

    async def heard(self, batch: Batch, tx: Transaction) -> None:
        """Says what each code is worth that came back (a repeat is told what the first was told), and ends the codes of what
        is taken back."""
        for received in batch.events:
            if received.event.type not in (events.PrivacyConfirmed.TYPE, events.PrivacyWithdrawn.TYPE):
                continue
            if await self.tombstones.erased([("account", received.event.data.account)], tx):
                tx.count("requests_of_erased")
            elif received.event.type == events.PrivacyConfirmed.TYPE:
                await self._confirmed(received, tx)
            else:
                await self._withdrawn(received.event.data, tx)

    async def _confirmed(self, received: Received, tx: Transaction) -> None:
        event, data = received.event, received.event.data
        told = await store.verdict(tx.db, event.id)
        if told is not None:
            self._say(event, *told, tx)
            return
        proofs = await store.lock_proofs(tx.db, data.case, data.account)
        if not proofs:
            # Nobody learns whether a case of somebody else's is there, and no attempt of theirs counts against it.
            tx.refuse(received.record, "unknown_case", "no case of this account waits under that id")
            return
        case_id = proofs[0].case_id
        if await self._ended({name for p in proofs for name in (p.case_id, p.request)}, data.account, tx):
            # Those too that were made in the same moment, when neither transaction saw the other.
            proofs = [replace(proof, until=min(proof.until, tx.now)) for proof in proofs]
        said = self.seals.code_hash(case_id, data.code)
        verdict, proof = judge(proofs, said, await store.wrong_codes(tx.db, case_id), tx.now)
        if proof is not None:
            await store.use_proof(tx.db, proof.cause, tx.now)
            new = change_of(proofs, proof)
            if new is not None and not await self._change(new, tx):
                verdict = "wrong"  # it proves nothing: whoever waits for the change must not hear that it was made
        await store.add_verdict(tx.db, event.id, case_id, verdict, tx.now)
        tx.count("codes_right" if verdict in _RIGHT else f"codes_{verdict}")
        self._say(event, case_id, verdict, tx)

    def _say(self, event: Any, case_id: str, verdict: str, tx: Transaction) -> None:
        """The verdict, with what the confirmation says besides: if it is right, that is meant. Of a code that is used that
        was said already, and `wrong` would count against its owner."""
        if verdict == "used":
            return
        data = event.data
        right = verdict in _RIGHT
        more = {
            "of": verdict, "successors": dict(data.successors), "passphrase": data.passphrase, "recipient": data.recipient,
        }  # fmt: skip
        tx.publish(
            topics.MESSAGE_OUTCOMES,
            events.ProofJudged,
            id=derived_id(id_ms(event.id), "proof judged", event.id),
            subject=case_id,
            key=case_id,
            data={"case": case_id, "account": data.account, "right": right, **(more if right else {})},
        )

    # --- ended ---------------------------------------------------------------------------------------------------

    async def end(self, order: Any, tx: Transaction) -> None:
        """The order `end_proofs`: no code of its case does anything any more."""
        await self._end({order.case}, None, tx)

    async def _withdrawn(self, data: Any, tx: Transaction) -> None:
        """The same, for the account's own case, which it names by any of its requests. Nobody else's codes end by that."""
        proofs = await store.lock_proofs(tx.db, data.case, data.account)
        await self._end({data.case, *(proof.case_id for proof in proofs)}, data.account, tx)

    async def _end(self, cases: Collection[str], account: str | None, tx: Transaction) -> None:
        await store.end_case(tx.db, list(cases), account, tx.now)
        # Mails with codes come by another topic, and may be asked for later.
        await store.mark_ended(tx.db, [self.seals.ended_hash(case, account) for case in cases], tx.now)
        tx.count("proofs_ended")

    async def _ended(self, names: Iterable[str], account: str, tx: Transaction) -> bool:
        """Whether a case of this account is over; `names`: its id, and those of its requests."""
        return await store.any_ended(
            tx.db, [self.seals.ended_hash(name, who) for name in names for who in (None, account)]
        )

    # --- a change of address -------------------------------------------------------------------------------------

    async def _change(self, new: Proof, tx: Transaction) -> bool:
        """Both codes are here: the address changes now, and the old one is told. Whatever other changes were under way for
        the account are over: they were to replace an address that is not there any more."""
        account, case_id = new.account, new.case_id
        sealed = new.address_sealed
        address = None if sealed is None else await self.seals.open_for(account, sealed, _where(new.cause))
        old = None if address is None else await self._addresses.change(account, address, tx)
        if old is None:
            return False
        await store.end_proofs(tx.db, account, (OLD, NEW), tx.now)
        cause = f"address-changed-{case_id}"
        mail = store.Mail(
            cause=cause, kind="privacy", template="address_changed", account=account, case_id=case_id,
            facts={"changed": rfc3339(tx.now)}, by_address=True,
            address_sealed=await self.seals.seal_in_mail(account, "address_sealed", cause, old, tx.now),
            requested_at=tx.now, next_attempt_at=tx.now, give_up_at=tx.now + GIVE_UP,
        )  # fmt: skip
        await self._owe(mail, tx)
        return True


def _where(cause: str) -> str:
    return f"proof.address_sealed:{cause}"
