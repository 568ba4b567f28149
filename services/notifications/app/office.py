"""What a process of notifications does with mails: takes orders for them, has them sent, says what became of them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

from services.notifications import store
from services.notifications.app.addresses import Addresses
from services.notifications.app.postman import CONVERSATION_SECONDS, Answer, Postman
from services.notifications.app.proofs import Proofs
from services.notifications.app.seals import Seals
from services.notifications.mail import (
    GIVE_UP,
    TEMPLATES,
    Outbound,
    allowed,
    compose,
    linkable,
    mailbox,
    retry_at,
    unfit,
)
from services.notifications.proofs import NEW, Proof
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Batch, Done, Later, Received, Task, Transaction
from shared.mesh.settings import Misconfigured
from shared.mesh.store import Pool, stay_patient
from shared.mesh.transaction import rfc3339
from shared.privacy.tombstones import Tombstones

log = logging.getLogger("steward.notifications")

SEND = "send"
# Beside the conversation: what the database may take for the rest of the transaction.
_PATIENCE_SECONDS = int(CONVERSATION_SECONDS) + 60

Fault = Callable[[str], Awaitable[None]]


async def _no_fault(point: str) -> None:
    return None


class Office:
    """`fault` is called at the points at which a process can die with a mail in its hand (tests only); `random_bits(n)`
    gives n random bits, for codes."""

    def __init__(self, fault: Fault = _no_fault, random_bits: Callable[[int], int] = secrets.randbits) -> None:
        self._fault = fault
        self._pool: Pool
        self._sender = ""
        self._heard: dict[tuple[str, int], Answer] = {}
        self.addresses = Addresses()
        self.proofs = Proofs(self.addresses, self.owe, random_bits)
        self.seals: Seals
        self.postman: Postman
        self.tombstones: Tombstones

    async def open(self, runtime: Any) -> None:
        """Opens the vault and finds the mail server's address. Raises Misconfigured without one."""
        settings = runtime.settings
        if not settings.smtp_url or not settings.mail_from:
            raise Misconfigured("notifications needs STEWARD_SMTP_URL and STEWARD_MAIL_FROM (an address)")
        sender = mailbox(settings.mail_from)
        if sender is None:
            raise Misconfigured("STEWARD_MAIL_FROM must be a mail address, without a name")
        self._sender = sender
        self._pool = runtime.pool
        self.postman = Postman(settings.smtp_url, sender=sender, production=settings.environment == "production")
        runtime.on_close(self.postman.close)
        self.seals = self.addresses.seals = self.proofs.seals = await Seals.open(runtime)

    def suppress(self, tombstones: Tombstones) -> None:
        """Who is erased."""
        self.tombstones = self.proofs.tombstones = tombstones

    # --- orders --------------------------------------------------------------------------------------------------

    async def take(self, batch: Batch, tx: Transaction) -> None:
        """Each mail once per cause."""
        asked: dict[str, Received] = {}
        for received in batch.events:
            asked.setdefault(received.event.data.cause, received)
        known = await store.known_causes(tx.db, list(asked))
        tx.count("mails_repeated", len(batch.events) - len(asked) + len(known))
        new = [received for cause, received in asked.items() if cause not in known]
        erased = await self.tombstones.erased(
            {("account", x.event.data.account) for x in new if x.event.data.account is not None}, tx
        )
        for received in new:
            await self._take(received, ("account", received.event.data.account) in erased, tx)

    async def _take(self, received: Received, erased: bool, tx: Transaction) -> None:
        order = received.event.data
        if (why := unfit(order)) is not None:
            tx.refuse(received.record, *why)
            return
        mail = store.Mail(
            cause=order.cause, kind=order.kind, template=order.template, account=None if erased else order.account,
            case_id=order.case, facts={} if erased else allowed(order.template, order.facts),
            by_envelope=order.account is None and order.address is None, by_address=order.address is not None,
            requested_at=tx.now, next_attempt_at=tx.now, give_up_at=tx.now + GIVE_UP,
        )  # fmt: skip
        # Of somebody who is erased nothing is kept but that the mail is refused: as if it had been asked for before.
        proof, refusal = None, None
        if not erased:
            mail, proof, refusal = await self._with_secrets(mail, order, tx)
        if not await self.owe(mail, tx, waits=refusal is None):
            return
        if proof is not None:
            await store.add_proof(tx.db, proof)
        if refusal is not None:
            await self._settle(mail, Answer("refused", refusal), 0, tx)

    async def _with_secrets(
        self, mail: store.Mail, order: Any, tx: Transaction
    ) -> tuple[store.Mail, Proof | None, str | None]:
        """The mail with what it says in secret, each under the key that it ends with; the row of its code; and why it is
        not sent at all, if that is so: then nothing of it is kept."""
        recipient = await self._other(order)
        if order.address is not None and recipient is None:
            return mail, None, "address"
        if order.template == NEW and recipient is not None and await self.addresses.is_barred(recipient, tx):
            return mail, None, "barred"
        template, sealed = TEMPLATES[order.template], mail
        if recipient is not None:
            kept = await self.seals.seal_in_mail(order.account, "address_sealed", order.cause, recipient, tx.now)
            sealed = replace(sealed, address_sealed=kept)
        if template.needs_link:
            link = await self.seals.arrived(order.link)
            if link is None or not linkable(link):
                return mail, None, "no_link"
            kept = await self.seals.seal_in_mail(order.account, "link_sealed", order.cause, link, tx.now)
            sealed = replace(sealed, link_sealed=kept)
        if not template.needs_code:
            return sealed, None, None
        code, proof = await self.proofs.mint(order, recipient, tx)
        # What the mail says is what will be judged, whatever was asked for.
        facts = {**(sealed.facts or {}), "until": rfc3339(proof.until)}
        return replace(sealed, code_sealed=code, facts=facts), proof, None

    async def _other(self, order: Any) -> str | None:
        """The mail's own address, if it has one that can be written to."""
        text = None if order.address is None else await self.seals.arrived(order.address)
        return None if text is None else mailbox(text)

    async def owe(self, mail: store.Mail, tx: Transaction, *, waits: bool = True) -> bool:
        """Keeps a mail and, if it `waits` for that, has it sent. False if its cause has one already."""
        if not await store.add_mail(tx.db, mail):
            return False
        tx.count("mails_asked")
        if waits:
            await tx.enqueue(SEND, mail.cause, {"cause": mail.cause})
        return True

    async def obey(self, order: Any, tx: Transaction) -> None:
        """Orders of retention's to this room alone."""
        if order.action == "end_proofs":
            await self.proofs.end(order, tx)
        else:
            await self.addresses.obey(order, tx)

    async def resend(self, received: Received, tx: Transaction) -> None:
        """A person has looked and wants a mail sent (again) whose outcome is unknown, or that was refused."""
        command = received.event.data
        if await store.send_again(tx.db, command.target, command.actor, command.ticket, tx.now, tx.now + GIVE_UP):
            tx.count("mails_resent")
            await tx.enqueue(SEND, command.target, {"cause": command.target})
        else:
            tx.count("resends_refused")
            log.warning("a resend names no mail that is unknown or refused: nothing is sent")

    # --- sending -------------------------------------------------------------------------------------------------

    async def send(self, task: Task, tx: Transaction) -> Done | Later:
        """One attempt at one mail. The lock on the task is the right to do so: it ends with whoever holds it."""
        mail = await store.mail(tx.db, task.payload["cause"])
        if mail is None or mail.state in store.SETTLED:
            return Done()
        if mail.state == "sending":
            # Somebody said that the text goes out and then did not say what became of it, and is gone: we hold the lock.
            answer = self._heard.get((mail.cause, mail.attempts), Answer("unknown", "interrupted"))
            return await self._end(mail, answer, mail.attempts, tx)
        if (wait := (mail.next_attempt_at - tx.now).total_seconds()) > 0:
            return Later(None, wait)
        outbound = await self._write(mail, tx)
        answer = outbound if isinstance(outbound, Answer) else await self._deliver(mail, outbound, tx)
        return await self._end(mail, answer, mail.attempts + 1, tx)

    async def _write(self, mail: store.Mail, tx: Transaction) -> Outbound | Answer:
        """The mail as it is to go out, or why it cannot."""
        template = TEMPLATES[mail.template]
        recipient = await self._recipient(mail, template.needs_code, tx)
        if isinstance(recipient, Answer):
            return recipient
        code = await self._secret(mail, "code_sealed", mail.code_sealed)
        if template.needs_code:
            until = await store.good_until(tx.db, mail.cause)
            if code is None or until is None or tx.now >= until:
                return Answer("refused", "no_code")
        link = await self._secret(mail, "link_sealed", mail.link_sealed)
        if template.needs_link and link is None:
            return Answer("refused", "no_link")
        case = {"case": mail.case_id} if mail.case_id else {}
        return compose(
            mail.template, cause=mail.cause, sender=self._sender, recipient=recipient,
            facts={**(mail.facts or {}), **case}, code=code, link=link, requested_at=mail.requested_at,
        )  # fmt: skip

    async def _recipient(self, mail: store.Mail, code: bool, tx: Transaction) -> str | Answer:
        """Where the mail goes now, or why nowhere. `code`: it holds a code."""
        found: str | None = None
        if mail.by_envelope:
            case_id = mail.case_id or ""
            sealed = await store.envelope(tx.db, case_id, tx.now)
            found = None if sealed is None else await self.seals.open_envelope(case_id, sealed)
        elif mail.by_address:
            # Never to the account's address in its place: it would be a letter to somebody else.
            found = await self._secret(mail, "address_sealed", mail.address_sealed)
        elif mail.account is None:
            return Answer("refused", "erased")
        else:
            known, found = await self.addresses.of_account(mail.account, code=code, tx=tx)
            if not known:
                return Answer("later", "no_address")  # its event may still be on its way
        return found if found is not None else Answer("refused", "no_address")

    async def _secret(self, mail: store.Mail, column: str, sealed: str | None) -> str | None:
        if sealed is None:
            return None
        return await self.seals.open_in_mail(mail.account, column, mail.cause, sealed, mail.requested_at)

    async def _deliver(self, mail: store.Mail, outbound: Outbound, tx: Transaction) -> Answer:
        async def before_text() -> bool:
            await self._fault("unmarked")
            ours = await store.mark_sending(self._pool, mail.cause, mail.attempts)
            await self._fault("marked")
            return ours

        await stay_patient(tx.db, _PATIENCE_SECONDS)
        answer = await self.postman.deliver(outbound, before_text)
        # If this transaction does not end well, the next one of this process knows better than `unknown`.
        self._heard[mail.cause, mail.attempts + 1] = answer
        await self._fault("answered")
        return answer

    async def _end(self, mail: store.Mail, answer: Answer, attempts: int, tx: Transaction) -> Done | Later:
        """Writes down what became of an attempt, and says it if it was the last."""
        tx.after_commit(lambda: self._heard.pop((mail.cause, attempts), None))
        if answer.outcome == "later" and tx.now >= mail.give_up_at:
            answer = Answer("refused", "gave_up")
        if answer.outcome == "later":
            again = min(retry_at(attempts, tx.now), max(mail.give_up_at, tx.now + timedelta(seconds=1)))
            await store.put_back(tx.db, mail.cause, attempts, answer.reason, again)
            tx.count("mails_deferred")
            return Later(None, (again - tx.now).total_seconds())
        await self._settle(mail, answer, attempts, tx)
        return Done()

    async def _settle(self, mail: store.Mail, answer: Answer, attempts: int, tx: Transaction) -> None:
        """Ends a mail, once, and says so."""
        if await store.settle(tx.db, mail.cause, answer.outcome, answer.reason, attempts, tx.now):
            if mail.by_envelope and mail.case_id is not None and answer.outcome == "accepted":
                await store.destroy_envelope(tx.db, mail.case_id)
            tx.count(f"mails_{answer.outcome}")
            tx.publish(
                topics.MESSAGE_OUTCOMES,
                events.MessageSettled,
                id=derived_id(int(tx.now.timestamp() * 1000), "message settled", mail.cause, str(attempts)),
                subject=mail.case_id or mail.cause,
                key=mail.case_id or mail.cause,
                data={"cause": mail.cause, "case": mail.case_id, "outcome": answer.outcome, "at": tx.now},
            )
