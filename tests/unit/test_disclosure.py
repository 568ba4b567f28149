"""The machine of a disclosure: every step, and that its person is told once, and never before the gag ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.retention import disclosure as machine
from services.retention.case import Timing
from services.retention.disclosure import (
    COPY_LIFE,
    ENVELOPE_AFTER,
    EXTRACTABLE,
    PATIENCE,
    DestroyKey,
    Disclosure,
    Export,
    KeepEnvelope,
    Notice,
    Scope,
)

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
TIMING = Timing()


def tick(one: Disclosure, at: datetime) -> tuple[Disclosure, list[Any]]:
    return machine.tick(one, at, TIMING)


def gagged(days: int = 100) -> Disclosure:
    """An entry with a gag whose envelope was ordered."""
    return tick(machine.entered("d", START, START + days * DAY), START)[0]


def told_of(one: Disclosure, at: datetime) -> Disclosure:
    """The notice was accepted."""
    return machine.mailed(one, "accepted", at)


# --- the scope ----------------------------------------------------------------------------------------------------

WHOLE = Scope({"metering": ("request_log", "usage_rollup"), "billing": ("note",)}, START, START + 10 * DAY)


@pytest.mark.promise(30)
@pytest.mark.parametrize(
    ("asked", "beyond"),
    [
        (WHOLE, ()),
        (replace(WHOLE, tables={"metering": ("request_log",)}, since=START + DAY), ()),
        (replace(WHOLE, tables={"metering": ("request_log", "late_usage")}), ("metering.late_usage",)),
        (replace(WHOLE, tables={"security": ("access_row",)}), ("security",)),
        (replace(WHOLE, since=START - timedelta(milliseconds=1)), ("since",)),
        (replace(WHOLE, until=START + 10 * DAY + timedelta(milliseconds=1)), ("until",)),
        (replace(WHOLE, since=None, until=None), ("since", "until")),
    ],
)
def test_what_is_asked_for_lies_within_the_entry_or_is_named(asked: Scope, beyond: tuple[str, ...]) -> None:
    assert asked.beyond(WHOLE) == beyond


def test_an_entry_without_a_range_allows_all_of_the_time() -> None:
    assert WHOLE.beyond(replace(WHOLE, since=None, until=None)) == ()


# --- the notice ---------------------------------------------------------------------------------------------------


@pytest.mark.promise(31)
def test_without_a_gag_the_notice_goes_out_at_once() -> None:
    one, deeds = tick(machine.entered("d", START, None), START)
    assert (one.state, deeds) == ("asked", [Notice(enveloped=False)])
    assert tick(one, START + DAY)[1] == []
    assert told_of(one, START + DAY).told_at == START + DAY


@pytest.mark.promise(31)
def test_a_gag_keeps_the_address_and_says_nothing_until_its_end() -> None:
    entry = machine.entered("d", START, START + 100 * DAY)
    one, deeds = tick(entry, START)
    assert deeds == [KeepEnvelope(1, START + 100 * DAY + ENVELOPE_AFTER)] and one.enveloping
    again = START + TIMING.backoff(1)
    assert tick(one, again - timedelta(seconds=1))[1] == []
    one, deeds = tick(one, again)
    assert [type(deed) for deed in deeds] == [KeepEnvelope], "an order without a receipt is sent again"
    one = machine.enveloped(one, 1)
    assert not one.enveloping and machine.next_at(one, again) == START + 100 * DAY
    last = START + 100 * DAY - timedelta(milliseconds=1)
    assert tick(one, last) == (one, [])
    one, deeds = tick(one, START + 100 * DAY)
    assert (one.state, deeds) == ("asked", [Notice(enveloped=True)])


@pytest.mark.promise(31)
def test_a_gag_that_ends_before_its_envelope_is_known_waits_for_it() -> None:
    one, deeds = tick(machine.gag_ended(gagged(), START + DAY), START + DAY)
    assert one.state == "owed" and [type(deed) for deed in deeds] == [KeepEnvelope]
    one, deeds = tick(machine.enveloped(one, 1), START + DAY)
    assert (one.state, deeds) == ("asked", [Notice(enveloped=True)])


def test_a_gag_lasts_longer_only_while_it_lasts_and_so_does_the_envelope() -> None:
    one = machine.enveloped(gagged(), 1)
    until = START + 300 * DAY
    assert machine.gag_extended(one, START + 100 * DAY, START) is one, "it is no extension"
    assert machine.gag_extended(one, until, START + 100 * DAY) is one, "its review has passed"
    longer, deeds = tick(machine.gag_extended(one, until, START + DAY), START + DAY)
    assert deeds == [KeepEnvelope(2, until + ENVELOPE_AFTER)] and longer.gag_until == until
    assert not longer.enveloping, "the first envelope is there"
    assert machine.enveloped(longer, 1) is longer and machine.enveloped(longer, 3) is longer
    assert machine.enveloped(longer, 2).kept == 2
    assert tick(machine.enveloped(longer, 2), START + 100 * DAY)[1] == []
    asked = tick(longer, until)[0]
    assert asked.state == "asked" and machine.gag_extended(asked, until + DAY, until) is asked
    assert machine.gag_ended(asked, until) is asked


@pytest.mark.parametrize("outcome", ["refused", "unknown"])
def test_a_notice_that_does_not_arrive_needs_a_person(outcome: str) -> None:
    one = tick(machine.entered("d", START, None), START)[0]
    assert one.needs_person(START + PATIENCE, TIMING) == ("notice",) and one.needs_person(START, TIMING) == ()
    assert machine.next_at(one, START) == START + PATIENCE
    unheard = machine.mailed(one, outcome, START)
    assert (unheard.state, unheard.needs_person(START, TIMING)) == ("unheard", ("notice",))
    assert told_of(unheard, START + DAY).state == "told", "a person had it sent again"
    settled = machine.settled(unheard, START + DAY)
    assert (settled.state, settled.needs_person(START + 90 * DAY, TIMING)) == ("told", ())
    assert machine.settled(one, START) is one and machine.mailed(settled, outcome, START) is settled


def test_a_silent_postman_or_holder_needs_a_person() -> None:
    one = tick(machine.extracted(gagged(), ["billing"], START), START)[0]
    late = START + TIMING.silence
    assert one.needs_person(late - timedelta(seconds=1), TIMING) == ()
    assert one.needs_person(late, TIMING) == ("envelope", "extract")
    one = machine.copied(machine.enveloped(one, 1), 1, "billing", late)
    assert one.needs_person(late, TIMING) == ()


# --- extracts and the key -----------------------------------------------------------------------------------------


def test_each_holder_is_asked_until_it_has_copied() -> None:
    one = machine.extracted(told_of(tick(machine.entered("d", START, None), START)[0], START), ["b", "a"], START)
    one, deeds = tick(one, START)
    assert deeds == [Export(1, "a"), Export(1, "b")]
    one = machine.copied(one, 1, "a", START)
    assert machine.copied(one, 1, "a", START + DAY) is one and machine.copied(one, 2, "a", START) is one
    one, deeds = tick(one, START + TIMING.backoff(1))
    assert deeds == [Export(1, "b")]
    one, deeds = tick(machine.extracted(one, ["a"], START + DAY), START + DAY)
    assert Export(2, "a") in deeds and one.copies_until == START + DAY + COPY_LIFE


def test_an_order_that_was_not_sent_has_no_receipt() -> None:
    one = machine.entered("d", START, START + DAY)
    assert machine.enveloped(one, 1) is one
    asked = machine.extracted(one, ["a"], START)
    assert machine.copied(asked, 1, "a", START) is asked


def test_the_key_ends_when_the_notice_is_settled_and_the_extract_is_over() -> None:
    one = told_of(tick(machine.entered("d", START, None), START)[0], START)
    assert machine.next_at(one, START) == START + EXTRACTABLE
    extracted = tick(machine.extracted(one, ["a"], START), START)[0]
    assert tick(extracted, START + COPY_LIFE - timedelta(seconds=1))[0].key_destroyed is False
    over, deeds = tick(extracted, START + COPY_LIFE)
    assert deeds == [DestroyKey()] and over.key_destroyed and machine.over(over, START)
    assert machine.next_at(over, START + COPY_LIFE) is None and tick(over, START + 90 * DAY) == (over, [])
    assert tick(one, START + EXTRACTABLE)[1] == [DestroyKey()]
    # While a gag lasts there is somebody to tell yet; but nothing is extracted after the entry's time.
    waits = machine.enveloped(gagged(), 1)
    assert tick(waits, START + 99 * DAY) == (waits, [])
    assert machine.over(waits, START + EXTRACTABLE) and not machine.over(waits, START + EXTRACTABLE - DAY)
    # Nobody is told, and the envelope's time is over: what is sealed ends, and a person still has to answer for it.
    unheard = machine.mailed(tick(machine.entered("d", START, None), START)[0], "refused", START)
    assert tick(unheard, START + ENVELOPE_AFTER - timedelta(seconds=1))[1] == []
    unheard, deeds = tick(unheard, START + ENVELOPE_AFTER)
    assert deeds == [DestroyKey()] and unheard.needs_person(START + 400 * DAY, TIMING) == ("notice",)


# --- whatever the order of events ---------------------------------------------------------------------------------

Step = Callable[[Disclosure, datetime], Disclosure]
STEPS: dict[str, Step] = {
    "nothing": lambda one, at: one,
    "end": machine.gag_ended,
    "extend": lambda one, at: machine.gag_extended(one, at + 50 * DAY, at),
    "extend a day": lambda one, at: machine.gag_extended(one, (one.gag_until or at) + DAY, at),
    "envelope 1": lambda one, at: machine.enveloped(one, 1),
    "envelope 2": lambda one, at: machine.enveloped(one, 2),
    "envelope": lambda one, at: machine.enveloped(one, one.epoch),
    "accepted": told_of,
    "refused": lambda one, at: machine.mailed(one, "refused", at),
    "unknown": lambda one, at: machine.mailed(one, "unknown", at),
    "settle": machine.settled,
    "extract": lambda one, at: one if machine.over(one, at) else machine.extracted(one, ["a"], at),
    "copied": lambda one, at: machine.copied(one, 1, "a", at),
}


@pytest.mark.promise(31)
@given(
    gag=st.none() | st.integers(1, 200),
    steps=st.lists(st.tuples(st.sampled_from(sorted(STEPS)), st.integers(0, 40)), max_size=40),
)
def test_a_person_is_told_once_and_never_before_the_gag_ends(gag: int | None, steps: list[tuple[str, int]]) -> None:
    one = machine.entered("d", START, None if gag is None else START + gag * DAY)
    at, notices, keys = START, 0, 0
    for name, days in [("nothing", 0), *steps]:
        at += days * DAY
        barred_until = one.gag_until if one.state == "gagged" else None
        ended = name == "end"
        if barred_until is not None and name.startswith("extend"):
            extended = STEPS[name](one, at)
            barred_until = extended.gag_until
        one = STEPS[name](one, at)
        one, deeds = tick(one, at)
        for deed in deeds:
            if isinstance(deed, Notice):
                assert barred_until is None or ended or at >= barred_until
                assert deed.enveloped is (gag is not None)
                assert not deed.enveloped or one.kept > 0, "nobody knows whether there is an envelope"
                notices += 1
            elif isinstance(deed, KeepEnvelope):
                assert notices == 0 and one.gag_until is not None and deed.not_after > one.gag_until
            elif isinstance(deed, DestroyKey):
                assert one.state in ("told", "unheard") and (one.copies_until is None or at >= one.copies_until)
                keys += 1
            else:
                assert not keys, "nobody can open what is copied now"
        assert notices <= 1 and keys <= 1
        assert (notices == 1) == (one.state in ("asked", "told", "unheard"))
        again, none = tick(one, at)
        assert (again, none) == (one, []), "time alone does nothing twice"
    # However it went: with its envelope, and at the end of its gag, it is told.
    end = max(at, one.gag_until or at)
    one, deeds = tick(machine.enveloped(tick(one, end)[0], one.epoch), end)
    assert one.state in ("asked", "told", "unheard")
