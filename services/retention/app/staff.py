"""What named persons do about cases, each in a role that the policy lets do it, with a reason."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, get_args

from services.retention import case as machine
from services.retention import right, store
from services.retention.app import cases, requests, rights
from services.retention.app.cases import By
from services.retention.app.room import Room
from shared.contract import events
from shared.mesh import Received, Transaction
from shared.policy import policy
from shared.policy.roles import ROLES

Deed: TypeAlias = Callable[[Room, Received, store.Row, By, Transaction], Awaitable[str | None]]


def may(action: str, received: Received, tx: Transaction) -> bool:
    """Whether the policy lets the role of a command do that; it is refused, and said why, if not."""
    why = policy().refusal(received.event.data.role, action)
    if why is not None:
        tx.refuse(received.record, "role", why)
    return why is None


async def act(room: Room, received: Received, tx: Transaction, action: str, deed: Deed) -> None:
    """One person's deed on one case; what cannot be done is refused, with the reason."""
    command = received.event.data
    if not may(action, received, tx):
        return
    case_id = await store.case_of_request(tx.db, command.target)
    row = None if case_id is None else await store.lock_case(tx.db, case_id)
    if row is None:
        tx.refuse(received.record, "unknown_case", "no such case is known here")
        return
    why = await deed(room, received, row, By(command.actor, command.role, command.ticket), tx)
    if why is not None:
        tx.refuse(received.record, "refused", why)


async def deny(room: Room, received: Received, row: store.Row, by: By, tx: Transaction) -> str | None:
    """Says no, with one of the reasons that the Data Rights Protocol knows."""
    reason = received.event.data.arguments.get("reason", "")
    if reason not in get_args(events.DenialReason):
        return f"a reason is one of {', '.join(get_args(events.DenialReason))}"
    if row.case.state not in right.OPEN:
        return f"the case is {row.case.state}: it cannot be denied any more"
    await cases.happen(room, tx, row, machine.Denied(reason), by=by)
    return None


async def extend(room: Room, received: Received, row: store.Row, by: By, tx: Transaction) -> str | None:
    """Takes the longer time, if the policy grants it; the person is told."""
    case = row.case
    if not case.open or case.answered_at is not None or case.extended_at is not None or row.account is None:
        return "there is nothing to extend, or nobody to tell"
    if await rights.recipient(room, row, await room.open_details(case.id, row.details), tx) == (None, None):
        return "there is nobody to tell"
    why = policy().deadlines["ccpa"].no_extension(case.requested_at, tx.now, policy().calendar)
    if why is not None:
        return why
    await cases.happen(room, tx, row, machine.Extended(), by=by)
    await cases.tell_extended(room, tx, row)
    return None


async def escalate(room: Room, received: Received, row: store.Row, by: By, tx: Transaction) -> str | None:
    """Hands a case to somebody of another role."""
    role = received.event.data.arguments.get("to", "")
    if role not in ROLES:
        return f"a case goes to one of {', '.join(ROLES)}"
    if not row.case.open:
        return f"the case is {row.case.state}"
    await cases.happen(room, tx, row, machine.Escalated(role), by=by)
    return None


async def answer(room: Room, received: Received, row: store.Row, by: By, tx: Transaction) -> str | None:
    """Says that a person has answered: under the ticket, outside of the mesh."""
    if row.case.state not in ("triage", "answering"):
        return f"the case is {row.case.state}: it answers itself"
    await cases.happen(room, tx, row, right.Settled(), by=by)
    return None


async def triage(room: Room, received: Received, row: store.Row, by: By, tx: Transaction) -> str | None:
    """Says what a mail to support is about."""
    told = received.event.data.arguments
    kind, scope = told.get("kind", ""), told.get("scope", "account")
    if row.case.state != "triage":
        return f"the case is {row.case.state}: what it is about is clear"
    if kind not in ("erasure", "access", "portability", "access:categories", "sale:opt-out", "child_report"):
        return "a mail can be about an erasure, access, portability, access:categories, sale:opt-out or a child_report"
    if scope not in get_args(events.Scope):
        return "scope: account, workspace or member"
    return await requests.triage(room, tx, row, kind, told.get("account"), scope, told.get("subject"), by)


async def decide_child(room: Room, received: Received, row: store.Row, by: By, tx: Transaction) -> str | None:
    """A person has looked: the account is a child's and goes, or it is not."""
    decision = received.event.data.arguments.get("decision", "")
    if row.case.kind != "child_report" or row.case.state != "requested":
        return "the case waits for no decision about a child"
    if row.target is None:
        return "whom it is about is erased"
    if decision == "delete":
        await cases.confirm(room, tx, row, {}, received.record, by=by)
    elif decision == "dismiss":
        await cases.happen(room, tx, row, machine.Denied("no_match"), by=by)
    else:
        return "a decision is delete or dismiss"
    return None


def step(make: Callable[[Any], right.Happening]) -> Deed:
    """A deed that is one step of the machine, made of the command."""

    async def deed(room: Room, received: Received, row: store.Row, by: By, tx: Transaction) -> str | None:
        await cases.happen(room, tx, row, make(received.event.data), by=by)
        return None

    return deed
