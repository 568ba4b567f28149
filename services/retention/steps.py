"""The machine of a case, by what it is about: a deletion, or anything else that people may ask for."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime

from services.retention import case as deletion
from services.retention import right
from services.retention.case import DELETIONS, Case, Timing, World


def is_deletion(case: Case) -> bool:
    """Whether a case goes a deletion's way. One that is denied is answered like everything else."""
    return case.kind in DELETIONS and case.state not in ("answering", "fulfilled", "denied")


def step(case: Case, what: right.Happening, world: World) -> tuple[Case, list[right.RightDeed]]:
    """The case after `what`, and what is to be done about it, in that order."""
    if not is_deletion(case):
        after, deeds = right.step(case, what, world)
    elif isinstance(what, right.Begin | right.Proved | right.Packed | right.Torn | right.Settled | right.Gone):
        return case, []
    else:
        after, found = deletion.step(case, what, world)
        deeds = list(found)
    return (after if after.state == case.state else replace(after, state_at=world.now)), deeds


def next_at(case: Case, timing: Timing) -> datetime | None:
    """When time alone changes something; None = never."""
    return deletion.next_at(case, timing) if is_deletion(case) else right.next_at(case, timing)
