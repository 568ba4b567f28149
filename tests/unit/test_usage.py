"""What a batch becomes: the quick way equals the long one, lines are in hash order, sums are exact."""

from __future__ import annotations

import hashlib
import random
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from services.metering import charged
from services.metering.identity import day_bound, digest_of, hidden, identities, reversal_of
from services.metering.price_book import PriceBook
from services.metering.price_version import ContextTier, PriceVersion
from services.metering.pricing import AMOUNT_PICO_MAX, Unpriced
from services.metering.usage import Effects, Known, Place, Way, price, target_partition
from shared.contract import events
from shared.contract.base import twin
from shared.contract.ids import uuid7

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOW_MS = 1_795_521_600_000
DAY_KEYS = {(NOW - timedelta(days=n)).date().toordinal(): bytes([n]) * 32 for n in range(7)}
PRICES = {"input": Decimal("0.0000025"), "output": Decimal("0.00001"), "web_search": Decimal("0.01")}
BOOK = PriceBook(
    [
        PriceVersion("pv_plain", "p", "plain", "standard", PRICES, "test"),
        PriceVersion("pv_fine", "p", "fine", "standard", {"input": Decimal("0.0000000000004"), "output": Decimal(0)}, "test"),
        PriceVersion(
            "pv_tiers", "p", "tiers", "standard", PRICES, "test",
            context_tiers=(ContextTier(1000, {"input": Decimal("0.000005")}),),
        ),
    ]
)  # fmt: skip
Usage = twin(events.Usage)

quantities = st.integers(0, 5000)
usages = st.builds(
    lambda model, read, generated, cached, searches, **more: msgspec.convert(
        {
            "account": "a", "workspace": more.pop("workspace"), "key": "k", "model": model, "provider": "p",
            "input_tokens": read + cached, "output_tokens": generated,
            "tokens": {"input": read, "output": generated} | ({"cache_read": cached} if cached else {}),
            "counts": {"web_search": searches} if searches else {}, **more,
        },
        Usage,
    ),
    model=st.sampled_from(["plain", "fine", "tiers", "unknown"]),
    read=quantities,
    generated=quantities,
    cached=st.sampled_from([0, 0, 0, 7]),
    searches=st.sampled_from([0, 0, 1]),
    workspace=st.sampled_from(["w1", "w2", "w3"]),
    outcome=st.sampled_from(["completed", "completed", "failed", "cancelled", "cache_hit"]),
    finish_reason=st.sampled_from(["stop", "length", "error", "", None]),
    byok=st.booleans(),
    data_sharing=st.booleans(),
    log_retention_days=st.sampled_from([0, 1, 30, 90]),
)  # fmt: skip


BEFORE = st.integers(0, 5 * 86_400_000_000)


class Event(msgspec.Struct):
    data: Any
    time: datetime


class Record(msgspec.Struct):
    timestamp: int = NOW_MS


def arrivals(rows: list[tuple[Any, int]]) -> dict[bytes, Any]:
    """As metering gathers them: (usage, microseconds before now) by line id."""
    made = {}
    for number, (usage, before) in enumerate(rows):
        uuid = bytes.fromhex(uuid7(NOW_MS - before // 1000, random.Random(number).getrandbits).replace("-", ""))
        key = uuid[:6] + hashlib.sha256(uuid).digest()[:10]
        at = NOW - timedelta(microseconds=before)
        made[key] = (Event(usage, at), Record(), NOW_MS * 1000 - before, number, uuid)
    return made


def long_way(effects: Effects, rows: Any) -> None:
    for key, (event, _, at_us, _, uuid) in rows:
        priced = price(BOOK, event.data, event.time, NOW)
        if not isinstance(priced, Unpriced):
            effects.add(event.data, uuid, key, at_us, priced, NOW_MS * 1000)


def decoded(effects: Effects) -> Any:
    """Records with their lines read, and log rows in order."""
    records = [
        (part, record, [unit | {"lines": msgspec.json.decode(unit["lines"])} for unit in units])
        for part, record, units in effects.records()
    ]
    return records, sorted(effects.rows), effects.rated, effects.versions, sorted(effects.charges)


def totals(effects: Effects) -> dict[Any, list[int]]:
    """What the rollups add."""
    found: dict[Any, list[int]] = {}
    for *place, n, read, generated, amount in zip(*effects.totals(), strict=True):
        before = found.get(tuple(place), [0, 0, 0, 0])
        found[tuple(place)] = [a + b for a, b in zip(before, (n, read, generated, amount), strict=True)]
    return found


@given(st.lists(st.tuples(usages, BEFORE), max_size=30))
def test_the_quick_way_is_the_long_way(rows: list[tuple[Any, int]]) -> None:
    made = arrivals(rows)
    quick, long = Effects(6, 0, DAY_KEYS), Effects(6, 0, DAY_KEYS)
    known = Known(BOOK)
    for some in (list(made.items())[::2], list(made.items())[1::2]):  # the second time the known are there
        long_way(quick, quick.add_plain(known, some, NOW_MS * 1000))
    long_way(long, made.items())
    assert decoded(quick) == decoded(long)
    assert totals(quick) == totals(long)


@given(st.lists(st.tuples(usages, BEFORE), min_size=1, max_size=30))
def test_what_its_log_does_not_outlive_the_window_with_leaves_a_charge_without_a_name(
    rows: list[tuple[Any, int]],
) -> None:
    made = arrivals(rows)
    effects = Effects(6, 0, DAY_KEYS)
    long_way(effects, made.items())
    by_key = {row[6:22]: row for row in effects.charges}
    rated = {key: arrival for key, arrival in made.items() if not isinstance(_priced(arrival), Unpriced)}
    assert len(by_key) == len(effects.charges) and len(rated) == effects.rated
    assert by_key.keys() == {key for key, (event, *_) in rated.items() if event.data.log_retention_days < 30}
    for key, row in by_key.items():
        usage, uuid = made[key][0].data, made[key][4]
        assert row[26:34] == charged.owner(key, usage.workspace, DAY_KEYS) != charged.owner(key, "w", DAY_KEYS)
        assert uuid[6:] not in row and usage.workspace.encode() not in row
        assert msgspec.json.decode(row[row.rindex(b"{") :]) == {**usage.tokens, **usage.counts}
    # Without the key of its day nothing is left, and nothing told.
    effects = Effects(6)
    long_way(effects, made.items())
    assert effects.charges == [] and {charged.owner(key, "w", {}) for key in made} == {None}


def test_the_owners_of_two_charges_are_told_apart_by_nothing() -> None:
    """The same workspace reads differently in each charge, and under each day's key."""
    key, other = bytes(6) + b"a" * 10, bytes(6) + b"b" * 10
    day = date(1970, 1, 1).toordinal()
    one, two = {day: b"1" * 32}, {day: b"2" * 32}
    assert len({charged.owner(key, "w", one), charged.owner(other, "w", one), charged.owner(key, "w", two)}) == 3


def _priced(arrival: Any) -> Any:
    return price(BOOK, arrival[0].data, arrival[0].time, NOW)


def test_a_price_that_depends_on_the_time_is_asked_for_each_time() -> None:
    noon = NOW - timedelta(hours=1)
    dear = {unit: price * 2 for unit, price in PRICES.items()}
    book = PriceBook(
        [
            PriceVersion("pv_old", "p", "m", "standard", PRICES, "test", valid_to=noon),
            PriceVersion("pv_new", "p", "m", "standard", dear, "test", valid_from=noon),
        ]
    )
    usage = msgspec.convert(
        {
            "account": "a", "workspace": "w", "key": "k", "model": "m", "provider": "p", "finish_reason": "stop",
            "input_tokens": 5, "output_tokens": 0, "tokens": {"input": 5},
        },
        Usage,
    )  # fmt: skip
    effects = Effects(6)
    hour_us = 3_600_000_000
    made = arrivals([(usage, before) for before in (hour_us + 1, hour_us, 0, 2 * hour_us)])
    assert effects.add_plain(Known(book), made.items(), NOW_MS * 1000) == []
    ((_, _, [unit]),) = effects.records()
    by_id = {bytes.fromhex(line[0]): line[2] for line in msgspec.json.decode(unit["lines"])}
    assert [by_id[key] for key in made] == ["pv_old", "pv_new", "pv_new", "pv_old"]


@given(st.lists(st.tuples(usages, BEFORE), min_size=1, max_size=40))
def test_records_hold_every_line_once_and_in_no_time_order(rows: list[tuple[Any, int]]) -> None:
    effects = Effects(6)
    long_way(effects, arrivals(rows).items())
    records, log, rated, *_ = decoded(effects)
    places = set()
    lines = 0
    for partition, record, units in records:
        for unit in units:
            assert target_partition(unit["workspace"], 6) == partition
            hashes = [line[0][12:] for line in unit["lines"]]
            assert hashes == sorted(hashes)
            lines += len(hashes)
        places |= {(record, n) for n in range(sum(len(u["lines"]) for u in units))}
    assert lines == rated == len(places)
    # A logged row points at its own line, and at nobody else's.
    pointers = [(str(UUID(bytes=row[-24:-8])), int.from_bytes(row[-4:], "big")) for row in log]
    assert len(set(pointers)) == len(pointers) and set(pointers) <= places
    assert sum(sums[0] for sums in totals(effects).values()) == rated


def test_a_sum_too_great_for_its_column_comes_in_parts() -> None:
    usage = msgspec.convert(
        {
            "account": "a", "workspace": "w", "key": "k", "model": "m", "provider": "p", "input_tokens": 0,
            "output_tokens": 0, "tokens": {},
        },
        Usage,
    )  # fmt: skip
    place, way = Place(usage), Way(usage, "pv", "standard", "list", "list")
    effects = Effects(6)
    for _ in range(5):
        effects.sum(place, way, 7, 1, 2, 3, AMOUNT_PICO_MAX)
    assert totals(effects) == {("w", "k", "m", 7): [5, 10, 15, 5 * AMOUNT_PICO_MAX]}
    assert max(effects.totals()[-1]) <= AMOUNT_PICO_MAX


KEYS = {date(2026, 11, 23 + n).toordinal(): bytes([n]) * 32 for n in range(3)}
MIDNIGHT = 1_795_478_400_000


@given(
    st.lists(st.integers(MIDNIGHT - 2 * 86_400_000, MIDNIGHT + 3 * 86_400_000), max_size=20),
    st.randoms(use_true_random=False),
)
def test_an_identity_keeps_time_order_and_names_nobody(instants: list[int], chance: Any) -> None:
    """Alone or among others of whatever days, an id is remembered by the same key; without the day's key by none."""
    ids = [uuid7(ms, chance.getrandbits) for ms in instants]
    found = list(identities(ids, KEYS))
    assert [who.made_ms for who in found] == instants
    for event_id, ms, who in zip(ids, instants, found, strict=True):
        assert who.uuid.hex() == event_id.replace("-", "")
        assert [who] == list(identities([event_id], KEYS))
        day_key = KEYS.get(datetime.fromtimestamp(ms / 1000, UTC).toordinal())
        if day_key is None:
            assert who.key == b""
            continue
        assert len(who.key) == 16 and who.key[:6] == ms.to_bytes(6, "big") and who.key[6:] == hidden(event_id, day_key)
        (other,) = identities([event_id], {day: b"other" + key[5:] for day, key in KEYS.items()})
        assert other.key[:6] == who.key[:6] and other.key[6:] != who.key[6:] and other.seed != who.seed
        assert who.uuid[6:] not in who.key


def test_identities_differ_and_so_do_digests() -> None:
    ids = [uuid7(MIDNIGHT, random.Random(n).getrandbits) for n in range(1000)]
    found = list(identities(ids, KEYS))
    assert len({who.key for who in found}) == 1000 == len({who.seed for who in found})
    assert digest_of(b"one", found[0].seed) != digest_of(b"two", found[0].seed)
    assert len({reversal_of(who.key) for who in found} | {who.key for who in found}) == 2000


def test_days_of_identities_begin_where_the_day_begins() -> None:
    bound = bytes.fromhex(day_bound(date(2026, 11, 24))[3:-1])
    last, first = identities([uuid7(ms, lambda bits: 0) for ms in (MIDNIGHT - 1, MIDNIGHT)], KEYS)
    assert last.key < bound <= first.key
