"""What a process of notifications does: learns addresses, takes orders for mails, has them sent, says what became of them."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import timedelta
from typing import Any

from services.notifications import store
from services.notifications.app.postman import CONVERSATION_SECONDS, Answer, Postman
from services.notifications.app.seals import Seals
from services.notifications.data_map import ENVELOPE_LIFE
from services.notifications.mail import GIVE_UP, TEMPLATES, Outbound, allowed, compose, mailbox, retry_at
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.contract.units import Subject
from shared.mesh import Batch, Done, Later, Received, Task, Transaction
from shared.mesh.settings import Misconfigured
from shared.mesh.store import Pool
from shared.privacy.tombstones import Tombstones

log = logging.getLogger("steward.notifications")

SEND = "send"
# Beside the conversation: what the database may take for the rest of the transaction.
_PATIENCE_SECONDS = int(CONVERSATION_SECONDS) + 60

Fault = Callable[[str], Awaitable[None]]


async def _no_fault(point: str) -> None:
    return None


class Office:
    """`fault` is called at the points at which a process can die with a mail in its hand (tests only)."""

    def __init__(self, fault: Fault = _no_fault) -> None:
        self._fault = fault
        self._pool: Pool
        self._sender = ""
        self._heard: dict[tuple[str, int], Answer] = {}
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
        self.seals = await Seals.open(runtime)

    # --- addresses -----------------------------------------------------------------------------------------------

    async def learn(self, batch: Batch, tx: Transaction) -> None:
        """The addresses of new accounts, each under a key of its own. What else happens to accounts is not for us."""
        opened: dict[str, Received] = {}
        for received in batch.events:
            if received.event.type == events.AccountOpened.TYPE:
                opened.setdefault(received.event.data.account, received)
        known = await store.known_accounts(tx.db, list(opened))
        for account, received in opened.items():
            if account in known:
                continue
            text = await self.seals.arrived(received.event.data.address)
            recipient = None if text is None else mailbox(text)
            if recipient is None:
                why = "cannot be opened" if text is None else "is no mail address"
                tx.refuse(received.record, "address", f"the sealed address {why}")
                continue
            sealed = await self.seals.seal_address(account, recipient, tx.now)
            if await store.add_address(tx.db, account, sealed, tx.now):
                tx.count("addresses")

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
        template = TEMPLATES[order.template]
        if template.kind != order.kind:
            tx.refuse(received.record, "kind", "the mail is of another class than its template")
            return
        if template.needs_code and (order.code is None or order.account is None):
            tx.refuse(received.record, "code", "the mail needs a code and an account")
            return
        if order.account is None and order.case is None:
            tx.refuse(received.record, "recipient", "neither an account nor a case: nobody to write to")
            return
        # Of somebody who is erased nothing is kept but that the mail is refused: as if it had been asked for before.
        code = order.code if template.needs_code and not erased else None
        mail = store.Mail(
            cause=order.cause, kind=order.kind, template=order.template, account=None if erased else order.account,
            case_id=order.case, by_envelope=order.account is None, code_sealed=code,
            facts={} if erased else allowed(order.template, order.facts), state="waiting", attempts=0,
            requested_at=tx.now, next_attempt_at=tx.now, give_up_at=tx.now + GIVE_UP,
        )  # fmt: skip
        if await store.add_mail(tx.db, mail):
            tx.count("mails_asked")
            await tx.enqueue(SEND, mail.cause, {"cause": mail.cause})

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
        if mail.by_envelope:
            case_id = mail.case_id or ""
            sealed = await store.envelope(tx.db, case_id, tx.now)
            recipient = None if sealed is None else await self.seals.open_envelope(case_id, sealed)
        elif mail.account is None:
            return Answer("refused", "erased")
        else:
            sealed = await store.address(tx.db, mail.account)
            if sealed is None:
                return Answer("later", "no_address")  # its event may still be on its way
            recipient = await self.seals.open_address(mail.account, sealed)
        if recipient is None:
            return Answer("refused", "no_address")
        code = None if mail.code_sealed is None else await self.seals.arrived(mail.code_sealed)
        if code is None and TEMPLATES[mail.template].needs_code:
            return Answer("refused", "no_code")
        case = {"case": mail.case_id} if mail.case_id else {}
        return compose(
            mail.template, cause=mail.cause, sender=self._sender, recipient=recipient,
            facts={**(mail.facts or {}), **case}, code=code, requested_at=mail.requested_at,
        )  # fmt: skip

    async def _deliver(self, mail: store.Mail, outbound: Outbound, tx: Transaction) -> Answer:
        async def before_text() -> bool:
            await self._fault("unmarked")
            ours = await store.mark_sending(self._pool, mail.cause, mail.attempts)
            await self._fault("marked")
            return ours

        await store.stay_patient(tx.db, _PATIENCE_SECONDS)
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
        if await store.settle(tx.db, mail.cause, answer.outcome, answer.reason, attempts, tx.now):
            if mail.by_envelope and mail.case_id is not None:
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
        return Done()
