"""A legal hold on a subject's records in one table of one holder, pure.

It is never weakened: only its end, or a named person, releases it; and what it kept is destroyed then, unprompted.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Literal

from services.retention.case import Timing

State = Literal["placing", "held", "releasing", "released"]
Action = Literal["hold", "release"]


@dataclass(frozen=True, slots=True)
class Hold:
    """One hold: `epoch` 1 places it, 2 releases it."""

    id: str
    holder: str
    until: datetime
    state: State = "placing"
    epoch: int = 1
    sends: int = 0
    first_sent_at: datetime | None = None
    due_at: datetime | None = None  # of its next order, or of its end
    released_at: datetime | None = None
    ended_at: datetime | None = None
    key_destroyed: bool = False

    @property
    def action(self) -> Action | None:
        """What its holder owes."""
        return {"placing": "hold", "releasing": "release"}.get(self.state)  # type: ignore[return-value]

    def silent(self, now: datetime, timing: Timing) -> bool:
        """Whether its holder owes an answer for too long."""
        return self.action is not None and self.first_sent_at is not None and now - self.first_sent_at >= timing.silence


def released(hold: Hold, now: datetime) -> Hold:
    """The hold is to end: by a person, or because its time has come."""
    if hold.state not in ("placing", "held"):
        return hold
    return replace(hold, state="releasing", epoch=2, sends=0, first_sent_at=None, due_at=now, released_at=now)


def receipt(hold: Hold, action: str, epoch: int, now: datetime) -> Hold:
    """Its holder has done what was ordered."""
    if action != hold.action or epoch != hold.epoch or hold.sends == 0:
        return hold
    if action == "hold":
        return replace(hold, state="held", due_at=hold.until)
    return replace(hold, state="released", due_at=now, ended_at=now)


def tick(hold: Hold, now: datetime, timing: Timing) -> tuple[Hold, Action | None, bool]:
    """(the hold after this instant, the order that goes out now, whether its key is destroyed now)."""
    if hold.state in ("placing", "held") and now >= hold.until:
        hold = released(hold, now)
    if hold.state == "released":
        return replace(hold, key_destroyed=True, due_at=None), None, not hold.key_destroyed
    if hold.action is None or hold.due_at is None or hold.due_at > now:
        return hold, None, False
    sends = hold.sends + 1
    sent = replace(hold, sends=sends, first_sent_at=hold.first_sent_at or now, due_at=now + timing.backoff(sends))
    return sent, hold.action, False
