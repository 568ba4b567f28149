"""What a code is worth that comes back, pure: the codes of a case, and what was said, give the verdict.

A code is good once, until its time is over, and for its own case. After some wrong ones every code of the case is dead:
39 bits stand a few guesses, not many.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from shared.policy import policy

Proves = Literal["account", "other"]
Verdict = Literal["account", "other", "wrong", "used"]

ATTEMPTS = policy().code_attempts
"""Wrong codes that a case stands."""
SETTLE = timedelta(days=policy().address_settle_days)
"""How long after a change of address codes still go to the previous one: whoever took an account over, and changed its
address, does not get them."""
OLD, NEW = "address_old", "address_new"
"""The mails whose codes prove a change of address, together."""


@dataclass(frozen=True, slots=True)
class Proof:
    """A code that went out, as its row has it. `address_sealed`: the new address that it proves."""

    cause: str
    case_id: str
    request: str
    account: str
    template: str
    proves: Proves
    code_hash: bytes
    address_sealed: str | None
    until: datetime
    used_at: datetime | None = None


def judge(proofs: Iterable[Proof], said: bytes, wrong: int, now: datetime) -> tuple[Verdict, Proof | None]:
    """The verdict on a code with the hash `said`, and what it proves, if it is right.

    `proofs`: all of the case; `wrong`: wrong codes that came before. A code that was right once is `used`: that is no
    guess, no attempt, and nothing that anybody is told.
    """
    found = None
    for proof in proofs:
        # All of them, in constant time: how long it takes tells nobody how near a guess was.
        if hmac.compare_digest(proof.code_hash, said):
            found = proof
    if found is not None and found.used_at is not None:
        return "used", None
    if found is None or wrong >= ATTEMPTS or now >= found.until:
        return "wrong", None
    return found.proves, found


def change_of(proofs: Sequence[Proof], right: Proof) -> Proof | None:
    """The proof of the new address, if with `right` both codes of one change have come back; else None.

    `proofs`: all of the case. A case is one change, to one address, however often it was asked for: whoever has given one
    code back and asks again, because the other mail is lost, gets that one alone.
    """
    pair = {proof.template: proof for proof in proofs if proof.used_at is not None} | {right.template: right}
    return pair[NEW] if right.template in (OLD, NEW) and OLD in pair and NEW in pair else None


def settling(changed_at: datetime | None, now: datetime) -> bool:
    """Whether an address was changed so recently that codes do not go there yet."""
    return changed_at is not None and now < changed_at + SETTLE
