"""The verdict: from counts and sums to what is wrong, what is noteworthy, and whether the books are proved.

Three equations carry it. Every record that metering passed is in one class: emitted = rated + duplicates + quarantined
+ dead-lettered + erased. Every rated line is booked or on its way: rated lines - booked lines lies between 0 and what
is in flight (a correction is one rated record and two lines: what it takes back, and what it charges instead). Every
payment that billing passed is booked, known already, waiting, parked, a dead letter, or no money and of somebody erased.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Usage:
    """What metering says, at one instant. `waiting` and `letters` are rows that exist, by reason; the rest counts."""

    emitted: int
    rated: int
    reversed: int
    rerated_lines: int
    duplicates: int
    conflicts: int
    quarantined: int
    dead_lettered: int
    erased: int
    waiting: Mapping[str, int] = field(default_factory=dict)
    letters: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, int] = field(default_factory=dict)
    outbox_lines: int = 0

    @classmethod
    def of(
        cls,
        counters: Mapping[str, int],
        topic: str,
        *,
        waiting: Mapping[str, int],
        letters: Mapping[str, int],
        missing: Mapping[str, int],
        outbox_lines: int,
    ) -> Usage:
        """From metering's durable counters; `topic` is the one that generations come from."""
        return cls(
            emitted=counters.get(f"records:{topic}", 0),
            rated=counters.get("rated", 0),
            reversed=counters.get("reversed", 0),
            rerated_lines=counters.get("rerated_lines", 0),
            duplicates=counters.get("duplicates", 0),
            conflicts=counters.get("conflicts", 0),
            quarantined=counters.get("quarantined", 0),
            dead_lettered=counters.get(f"dead_lettered:{topic}", 0),
            erased=counters.get("erased", 0),
            waiting=waiting,
            letters=letters,
            missing=missing,
            outbox_lines=outbox_lines,
        )

    @property
    def classes(self) -> int:
        """The records that are in a class."""
        return self.rated + self.duplicates + self.quarantined + self.dead_lettered + self.erased

    @property
    def not_come(self) -> dict[str, int]:
        """How many numbered events have not come, by source. A source that numbers twice covers up for no other one."""
        return {source: n for source, n in self.missing.items() if n > 0}

    @property
    def lines(self) -> int:
        """The lines that were rated."""
        return self.rated + self.reversed + self.rerated_lines


@dataclass(frozen=True, slots=True)
class Payments:
    """What became of the records of the payments topic, by billing's counters; `parked_rows` exist."""

    records: int = 0
    created: int = 0
    exists: int = 0
    conflict: int = 0
    waiting: int = 0
    dead_lettered: int = 0
    parked: int = 0
    parked_rows: int = 0
    erased: int = 0

    @classmethod
    def of(cls, counters: Mapping[str, int], topic: str, parked_rows: int) -> Payments:
        """From billing's durable counters; `topic` is the one that payments come from."""
        return cls(
            records=counters.get(f"records:{topic}", 0),
            created=counters.get("payments_created", 0),
            exists=counters.get("payments_exists", 0),
            conflict=counters.get("payments_conflict", 0),
            waiting=counters.get("payments_waiting", 0),
            dead_lettered=counters.get(f"dead_lettered:{topic}", 0),
            parked=counters.get(f"parked:{topic}", 0),
            parked_rows=parked_rows,
            erased=counters.get("payments_erased", 0) + counters.get(f"erased:{topic}", 0),
        )

    @property
    def classes(self) -> int:
        """The records that are in a class."""
        booked = self.created + self.exists + self.conflict + self.waiting
        return booked + self.dead_lettered + self.parked + self.erased


@dataclass(frozen=True, slots=True)
class Books:
    """What billing's ledger says, at an instant before metering's. `findings`: what the replay found, in words."""

    lines: int
    charges_pico: int
    recomputed_pico: int
    ledger_sum_pico: Mapping[str, int]
    balances_equal_replay: bool
    chain_ok: bool
    blocks: Mapping[str, int]
    journals: int
    findings: Sequence[str] = ()
    refused_lines: int = 0
    conflicts: int = 0
    payments: Payments = Payments()
    checkpoints: Mapping[str, int] = field(default_factory=dict)
    """Legal class to the year through which its books were dropped; what stands before is a checkpoint's word."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """Rated lines found on their way to billing. `complete`: all of them were counted, not just enough of them."""

    lines: int
    complete: bool = True


@dataclass(frozen=True, slots=True)
class Verdict:
    """`ok`: proved. Neither `ok` nor `errors`: it could not be determined, for the reasons in `undetermined`."""

    errors: tuple[str, ...]
    warnings: tuple[str, ...]
    undetermined: tuple[str, ...]
    figures: Mapping[str, Any]

    @property
    def ok(self) -> bool:
        return not self.errors and not self.undetermined

    @property
    def exit_code(self) -> int:
        """0 proved, 1 the books are wrong, 2 could not be determined."""
        return 1 if self.errors else 2 if self.undetermined else 0

    def as_dict(self) -> dict[str, Any]:
        """For programs: whole numbers of records and lines, money as decimal strings."""
        return {
            **self.figures,
            "errors": list(self.errors),
            "warnings": list(self.warnings),
            "undetermined": list(self.undetermined),
            "ok": self.ok,
        }


def undetermined(*reasons: str) -> Verdict:
    """No verdict, since something could not be asked."""
    return Verdict((), (), reasons, {})


def unbooked(usage: Usage, books: Books) -> int:
    """Rated lines that billing has not booked yet."""
    return usage.lines - books.lines


def judge(usage: Usage, books: Books, in_flight: InFlight) -> Verdict:
    """Holds the equations against what was counted."""
    return Verdict(
        errors=(
            *_records(usage),
            *_lines(usage, books, in_flight),
            *_payments(books.payments),
            *_money(books),
            *books.findings,
        ),
        warnings=tuple(_noteworthy(usage, books)),
        undetermined=tuple(_unknown(usage, books, in_flight)),
        figures=_figures(usage, books, in_flight),
    )


def _records(usage: Usage) -> Iterable[str]:
    if usage.emitted != usage.classes:
        yield (
            f"emitted {usage.emitted}, but rated {usage.rated} + duplicates {usage.duplicates} + quarantined "
            f"{usage.quarantined} + dead-lettered {usage.dead_lettered} + erased {usage.erased} = {usage.classes}: "
            + _off(usage.emitted - usage.classes, "records are in no class", "records are in more than one class")
        )
    waiting, letters = sum(usage.waiting.values()), sum(usage.letters.values())
    if waiting != usage.quarantined:
        yield f"quarantined counts {usage.quarantined}, but {waiting} rows wait in the quarantine"
    if letters > usage.dead_lettered:
        # Fewer letters than counted are no wonder: a letter expires after a week.
        yield f"dead-lettered counts {usage.dead_lettered}, but there are {letters} letters"
    for name in (
        "emitted",
        "rated",
        "reversed",
        "rerated_lines",
        "duplicates",
        "quarantined",
        "dead_lettered",
        "erased",
    ):
        if getattr(usage, name) < 0:
            yield f"{name} is {getattr(usage, name)}, which nothing can be"
    if usage.conflicts > usage.duplicates:
        yield f"conflicts {usage.conflicts} are more than the duplicates {usage.duplicates} that they are part of"


def _lines(usage: Usage, books: Books, in_flight: InFlight) -> Iterable[str]:
    difference = unbooked(usage, books)
    if difference < 0:
        yield f"rated {usage.lines} lines, but {books.lines} are booked: {-difference} were booked twice or never rated"
    elif difference > in_flight.lines and in_flight.complete:
        lost = difference - in_flight.lines
        refused = f"; {books.refused_lines} are in dead letters of billing" if books.refused_lines else ""
        yield (
            f"rated {usage.lines} lines, booked {books.lines}, in flight {in_flight.lines}: "
            f"{lost} rated lines are nowhere{refused}"
        )


def _payments(payments: Payments) -> Iterable[str]:
    if payments.records != payments.classes:
        yield (
            f"{payments.records} payments came, but booked {payments.created} + repeated {payments.exists} + in conflict "
            f"{payments.conflict} + waiting {payments.waiting} + dead-lettered {payments.dead_lettered} + parked "
            f"{payments.parked} + erased {payments.erased} = {payments.classes}"
        )
    if payments.parked != payments.parked_rows:
        yield f"parked payments count {payments.parked}, but {payments.parked_rows} records are parked"


def _money(books: Books) -> Iterable[str]:
    if books.charges_pico != books.recomputed_pico:
        yield (
            f"charged {books.charges_pico} pico-dollars, recomputed {books.recomputed_pico}: "
            f"a difference of {books.charges_pico - books.recomputed_pico}"
        )
    for legal_class, total in books.ledger_sum_pico.items():
        if total:
            yield f"the ledger of class {legal_class} sums to {total}, not to 0"
    if not books.balances_equal_replay:
        yield "balances are not what the replay of their entries gives"
    if not books.chain_ok:
        yield "the ledger's hash chain is broken"


def _noteworthy(usage: Usage, books: Books) -> Iterable[str]:
    if missing := usage.not_come:
        sources = f"{len(missing)} source{'s' if len(missing) > 1 else ''}"
        yield (
            f"{sum(missing.values())} events were numbered by {sources} and have not come "
            "(lost before the mesh, or on their way)"
        )
    if twice := [source for source, n in usage.missing.items() if n < 0]:
        yield (
            f"numbers were given twice by {len(twice)} source{'s' if len(twice) > 1 else ''} (two processes under one "
            "name, or one that counts anew): of these nobody can tell what is missing"
        )
    if usage.conflicts:
        yield f"{usage.conflicts} events came again under their id with another content; the first one counts"
    if books.conflicts:
        yield f"{books.conflicts} lines came again with another amount; the first one counts"
    if books.refused_lines:
        yield f"{books.refused_lines} rated lines are in dead letters of billing, not in the books"
    payments = books.payments
    if payments.parked or payments.dead_lettered:
        yield (
            f"{payments.parked} payments are parked and {payments.dead_lettered} are dead letters: "
            "what they say is not in the books"
        )
    if payments.conflict:
        yield f"{payments.conflict} payments came again under their id with another content; the first one counts"


def _unknown(usage: Usage, books: Books, in_flight: InFlight) -> Iterable[str]:
    difference = unbooked(usage, books)
    if difference > in_flight.lines and not in_flight.complete:
        yield (
            f"{difference} rated lines are not booked and only {in_flight.lines} of those on their way were counted: "
            "wait until the mesh is idle (`steward wait --idle`)"
        )


def _off(difference: int, too_few: str, too_many: str) -> str:
    return f"{difference} {too_few}" if difference > 0 else f"{-difference} {too_many}"


def _figures(usage: Usage, books: Books, in_flight: InFlight) -> dict[str, Any]:
    return {
        "emitted": usage.emitted,
        "missing": sum(usage.not_come.values()),
        "rated": usage.rated,
        "duplicates": usage.duplicates,
        "conflicts": usage.conflicts,
        "quarantined": usage.quarantined,
        "dead_lettered": usage.dead_lettered,
        "erased": usage.erased,
        "by_reason": {"quarantined": dict(usage.waiting), "dead_lettered": dict(usage.letters)},
        "missing_by_source": dict(usage.missing),
        "rated_lines": usage.lines,
        "reversed_lines": usage.reversed,
        "rerated_lines": usage.rerated_lines,
        "booked_lines": books.lines,
        "in_flight": in_flight.lines,
        "refused_lines": books.refused_lines,
        "payments": {
            "records": books.payments.records,
            "booked": books.payments.created,
            "repeated": books.payments.exists,
            "conflicts": books.payments.conflict,
            "waiting": books.payments.waiting,
            "dead_lettered": books.payments.dead_lettered,
            "parked": books.payments.parked,
            "erased": books.payments.erased,
        },
        "charges_pico": str(books.charges_pico),
        "recomputed_pico": str(books.recomputed_pico),
        "ledger_sum_pico": str(sum(books.ledger_sum_pico.values())),
        "ledger_sum_by_class_pico": {name: str(total) for name, total in books.ledger_sum_pico.items()},
        "journals": books.journals,
        "blocks": dict(books.blocks),
        "dropped_through_year": dict(books.checkpoints),
        "chain_ok": books.chain_ok,
        "balances_equal_replay": books.balances_equal_replay,
    }
