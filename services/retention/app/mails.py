"""Mails that people are owed about their cases."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime

from services.retention import store
from shared.contract import events, topics
from shared.contract.ids import derived_id
from shared.mesh import Transaction
from shared.mesh.transaction import rfc3339

_PICO_CENT = 10**10
_LONGEST = 200


def ms(instant: datetime) -> int:
    """Milliseconds since 1970, as ids have them."""
    return int(instant.timestamp() * 1000)


async def mail(
    tx: Transaction,
    row: store.Row,
    cause: str,
    template: str,
    *,
    facts: Mapping[str, str],
    account: str | None = None,
    address: str | None = None,
    link: str | None = None,
    request: str | None = None,
    code_until: datetime | None = None,
) -> None:
    """One mail of a case: to the account's address, to `address` (sealed), or, with neither, to the case's envelope.

    `request`: with this mail it is acknowledged; `code_until`: notifications put a code in, which is good until then.
    """
    case = row.case
    await store.ask_mail(tx.db, cause, case.id, template, tx.now, request)
    proof = None if code_until is None else {"request": request or case.id, "until": rfc3339(code_until)}
    tx.publish(
        topics.MESSAGES, events.MessageRequested,
        id=derived_id(ms(case.requested_at), "message", cause), subject=case.id, key=case.id,
        data={
            "cause": cause, "kind": "privacy", "template": template, "account": account, "case": case.id,
            "address": address, "proof": proof, "link": link,
            "facts": {name: value for name, value in facts.items() if value},
        },
    )  # fmt: skip


def dollars(pico: int) -> str:
    """An amount for a mail, to the cent, rounded down: US dollars."""
    cents = pico // _PICO_CENT
    return f"{cents // 100}.{cents % 100:02d} USD"


def listed(names: Collection[str]) -> str:
    """Names for a mail; many are counted."""
    shown = ", ".join(sorted(names))
    return shown if len(shown) <= _LONGEST else f"{len(names)} workspaces"
