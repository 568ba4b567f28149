"""When time is over: the day of a row's partition, what is made and what is dropped, and maps that promise an end."""

from __future__ import annotations

import importlib
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.rooms import ROOMS, load
from shared.contract.topics import HOLDERS
from shared.mesh import Partitioned
from shared.mesh.partitions import day_of, last_day, mark_of, over_at, read_mark, span_of, wanted
from shared.mesh.runtime import MESH_PARTITIONED
from shared.privacy import Holding, Rows, personal, plain
from shared.privacy.expiry import unending
from shared.privacy.mesh_map import HOLDER_MAP, HOLDER_ROWS, MESH_MAP, MESH_ROWS

DAY = timedelta(days=1)
LOG = Partitioned("log", ahead=93, keeps=timedelta(0))
INSTANTS = st.datetimes(datetime(2024, 1, 1), datetime(2040, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001
TABLES = st.builds(
    Partitioned,
    st.just("log"),
    ahead=st.integers(0, 100),
    back=st.integers(0, 400),
    monthly=st.booleans(),
    keeps=st.one_of(st.none(), st.timedeltas(timedelta(0), timedelta(days=400))),
)


def dropped_at(day: date) -> datetime:
    """When the partition of an expiry day goes."""
    end = over_at(LOG, day + DAY)
    assert end is not None
    return end


@given(INSTANTS)
def test_a_service_rounds_up_and_a_maximum_rounds_down(end: datetime) -> None:
    assert end < dropped_at(day_of(end)) <= end + DAY
    assert end - DAY < dropped_at(last_day(end)) <= end


@given(TABLES, INSTANTS)
def test_no_partition_is_made_whose_time_is_over(table: Partitioned, now: datetime) -> None:
    spans = wanted(table, now)
    for first, after in spans:
        end = over_at(table, after)
        assert end is None or end > now
        assert span_of(table, f"log_{first:%Y%m%d}") == (first, after)
        assert read_mark(mark_of(table, after)) == ("log", end)
    # None is left out in which something may still be kept, and one follows the other.
    assert [first for first, _ in spans[1:]] == [after for _, after in spans[:-1]]
    ends = [over_at(table, after) for _, after in table.spans(now.date())]
    assert len(spans) == sum(1 for end in ends if end is None or end > now)


@given(st.integers(0, 90), INSTANTS, st.timedeltas(timedelta(0), timedelta(days=100)))
def test_what_is_visible_has_a_partition(days: int, occurred_at: datetime, later: timedelta) -> None:
    """A log row is there as long as it may be read, whenever partitions are made and dropped."""
    end = occurred_at + days * DAY
    now = occurred_at + later
    kept = {first for first, _ in wanted(LOG, now)}
    if now < end:
        assert day_of(end) in kept
    if now >= end + DAY:
        assert day_of(end) not in kept


def test_names_of_others_are_no_partitions() -> None:
    assert span_of(LOG, "log_20261128") == (date(2026, 11, 28), date(2026, 11, 29))
    assert span_of(replace(LOG, monthly=True), "log_20261101") == (date(2026, 11, 1), date(2026, 12, 1))
    for name in ("log", "log_2026112", "logs_20261128", "log_20261128_copy"):
        assert span_of(LOG, name) is None
    for mark in (None, "", "partition of log", "over at never"):
        assert read_mark(mark) is None
    assert over_at(replace(LOG, keeps=None), date(2026, 1, 1)) is None
    assert over_at(LOG, date(2026, 1, 2)) == datetime.combine(date(2026, 1, 2), time(), UTC)


# --- maps that promise an end --------------------------------------------------------------------------------------


VISIT = personal(
    "visit", "who",
    category="user.unique_id", use="essential.service", clock_start="arrival", period=timedelta(days=30),
    on_erasure="delete_row", ground="contract",
)  # fmt: skip


def test_a_promised_end_that_nothing_brings_about_is_named() -> None:
    (sentence,) = unending(VISIT, (), ())
    assert sentence.startswith("visit: who has a period")
    assert unending(VISIT, (Rows("visit", {"account": "who"}),), (Partitioned("visit", ahead=1),)) != ()
    for rows, parts in (
        ((Rows("visit", expires="at + interval '30 days'"),), ()),
        ((Rows("visit", ends="gone with the batch"),), ()),
        ((), (Partitioned("visit", ahead=31, keeps=timedelta(0)),)),
    ):
        assert unending(VISIT, rows, parts) == ()
    (sentence,) = unending(VISIT, (), (Partitioned("visit", ahead=1, keeps=timedelta(days=31)),))
    assert "kept 31 days, and the map promises 30" in sentence


def test_what_an_event_or_a_law_ends_needs_no_clock() -> None:
    closed = tuple(replace(c, clock_start="account_closed", period="account_closure") for c in VISIT)
    books = tuple(replace(c, clock_start="booking_year_end", period="billing_record") for c in VISIT)
    assert unending((*closed, *plain("visit", "n")), (), ()) == () == unending(books, (), ())
    # A row's own clock is another matter, whatever the number is called.
    assert unending([replace(c, period="account_closure") for c in VISIT], (), ()) != ()


@pytest.mark.parametrize("room", ROOMS)
def test_every_room_ends_what_its_map_says_that_it_ends(room: str) -> None:
    module = importlib.import_module(f"services.{room}.data_map")
    holding = getattr(module, "HOLDING", Holding(room, module.DATA_MAP))
    columns, rows = (*holding.columns, *MESH_MAP), (*holding.rows, *MESH_ROWS)
    if room in HOLDERS:
        columns, rows = (*columns, *HOLDER_MAP), (*rows, *HOLDER_ROWS)
    assert unending(columns, rows, (*MESH_PARTITIONED, *load(room).partitioned)) == ()
