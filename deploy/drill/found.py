"""What a drill finds: the mesh before and after a restore, pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

# Counts of the proof that say how far the mesh has come, not what its books say.
_OF_THE_MOMENT = ("seconds", "as_of", "blocks", "journals", "in_flight")

# Within the life of a topic: personal topics are cut an hour behind their slowest reader.
COMES_BACK: Mapping[str, str] = {
    "metering": (
        "Generations since the copy are read again and rated again under the same line ids, within the life of their "
        "topic; what an erased customer used since the copy is dropped and counted, while its charges stay in the ledger. "
        "Rollups of days of which the log, and the topic, are over are as the copy has them: final."
    ),
    "billing": (
        "Rated usage and payments since the copy are booked again, within the life of their topics, under the same lines and "
        "amounts; journals get other numbers, and the chain other blocks from the copy's end on. Of somebody whose deletion is "
        "completed and not yet certified it books first what its order names, and erases then: seconds. Usage since the copy "
        "of somebody whose deletion is certified is booked on nobody, since no key opens the name: charges are as before, "
        "lapsed credit is as of the copy, and the difference stands in the suspense of the erased."
    ),
    "security": "Connections since the copy are read again, within the life of their topic; addresses under their day's key.",
    "retention": (
        "The directory and requests since the copy are read again. A case that was confirmed after the copy is not: the "
        "code of its mail was the lost database's. Its tombstones hold, so that its request opens no case again, and its "
        "certificate is with whoever was given it."
    ),
    "notifications": (
        "Addresses since the copy are learned again; one that was changed since the copy is the old one. A mail that was sent "
        "since the copy is sent a second time, with another code, if its account still has an address: the first code is not "
        "known any more."
    ),
    "insights": "Activity and settings since the copy are read again, within the life of their topics.",
}
"""What becomes of what a service did between the copy and the restore."""


@dataclass(frozen=True, slots=True)
class Seen:
    """The mesh at one moment. `verdicts`: (holder.store -> the auditor's verdict) on the erased; `stays`: rows of the
    customer who stays, by table, of the restored service."""

    verdicts: Mapping[str, str]
    books: Mapping[str, Any]
    ledger: Mapping[str, int]
    stays: Mapping[str, int]

    def sums(self) -> dict[str, Any]:
        """What the books say, whenever they are asked."""
        return {k: v for k, v in self.books.items() if k not in _OF_THE_MOMENT}


@dataclass(slots=True)
class Result:
    """One service's restore. Rows of the erased customer: `in_copy`; more than before the restore `at_ready` and at the
    end; seconds until it was ready, and until nothing was left to do."""

    service: str
    copy_age_seconds: float
    in_copy: int
    reapplied: int
    at_ready: int
    at_end: int
    ready_seconds: float
    settled_seconds: float
    verdicts: Mapping[str, str]
    books_ok: bool
    differences: Sequence[str] = field(default_factory=tuple)

    @property
    def as_before(self) -> bool:
        """Nobody is back, and everything else is as it was."""
        return not self.at_ready and not self.at_end and self.books_ok and not self.differences

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return asdict(self) | {"as_before": self.as_before, "comes_back": COMES_BACK[self.service]}


def differences(before: Seen, after: Seen) -> tuple[str, ...]:
    """What is not as before, a sentence each. Names stores and sums, nobody."""
    found = [
        f"{store} is {after.verdicts.get(store, 'not scanned')}, and was {verdict}"
        for store, verdict in before.verdicts.items()
        # What was `expiring` may have ended by its own clock meanwhile: that is no work of the restore.
        if after.verdicts.get(store) not in ((verdict, "clean") if verdict == "expiring" else (verdict,))
    ]
    sums = after.sums()
    found += [f"the books say {name} {sums.get(name)!r}, and said {value!r}" for name, value in before.sums().items()
              if sums.get(name) != value]  # fmt: skip
    kinds = sorted({*before.ledger, *after.ledger})
    found += [f"the ledger's {kind} is {after.ledger.get(kind, 0)}, and was {before.ledger.get(kind, 0)}"
              for kind in kinds if after.ledger.get(kind, 0) != before.ledger.get(kind, 0)]  # fmt: skip
    tables = sorted({*before.stays, *after.stays})
    found += [f"{table} has {after.stays.get(table, 0)} rows of who stays, and had {before.stays.get(table, 0)}"
              for table in tables if after.stays.get(table, 0) != before.stays.get(table, 0)]  # fmt: skip
    return tuple(found)
