"""What a batch becomes: the quick way equals the long one, lines are in hash order, sums are exact."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metering.price_book import PriceBook
from services.metering.price_version import ContextTier, PriceVersion
from services.metering.pricing import Card, Unpriced
from services.metering.usage import (
    Effects,
    day_bound,
    digest_of,
    expiry_day,
    identity,
    merge_pending,
    price,
    target_partition,
)
from shared.contract import events
from shared.contract.base import twin
from shared.contract.ids import id_ms, uuid7

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
NOW_MS = 1_795_521_600_000
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


@given(st.lists(st.tuples(usages, st.integers(NOW_MS - 5 * 86_400_000, NOW_MS)), max_size=30))
def test_the_quick_way_is_the_long_way(rows: list[tuple[Any, int]]) -> None:
    quick, long = Effects(6), Effects(6)
    for number, (usage, ms) in enumerate(rows):
        event_at = datetime.fromtimestamp(ms / 1000, UTC)
        key = identity(f"id-{number}", ms, b"k" * 32)
        card = BOOK.card(usage.provider, usage.model, usage.tier, event_at, NOW)
        priced = price(BOOK, usage, event_at, NOW)
        taken = isinstance(card, Card) and quick.add_plain(card, usage, f"id-{number}", key, ms, event_at, NOW_MS)
        if isinstance(priced, Unpriced):
            assert not taken
            continue
        if not taken:
            quick.add(usage, f"id-{number}", key, ms, event_at, priced, NOW_MS)
        long.add(usage, f"id-{number}", key, ms, event_at, priced, NOW_MS)
    assert list(quick.records()) == list(long.records())
    assert (quick.log, quick.hourly, quick.daily) == (long.log, long.hourly, long.daily)
    assert (quick.versions, quick.rated) == (long.versions, long.rated)


@given(st.lists(st.tuples(usages, st.integers(NOW_MS - 86_400_000, NOW_MS)), min_size=1, max_size=40))
def test_records_hold_every_line_once_and_in_no_time_order(rows: list[tuple[Any, int]]) -> None:
    effects = Effects(6)
    for number, (usage, ms) in enumerate(rows):
        event_at = datetime.fromtimestamp(ms / 1000, UTC)
        priced = price(BOOK, usage, event_at, NOW)
        if not isinstance(priced, Unpriced):
            effects.add(usage, f"id-{number}", identity(f"id-{number}", ms, b"k" * 32), ms, event_at, priced, NOW_MS)
    places = set()
    lines = 0
    for partition, record, units in effects.records():
        for unit in units:
            assert target_partition(unit["workspace"], 6) == partition
            hashes = [line[0][12:] for line in unit["lines"]]
            assert hashes == sorted(hashes)
            lines += len(hashes)
        places |= {(record, n) for n in range(sum(len(u["lines"]) for u in units))}
    assert lines == effects.rated == len(places)
    # A logged row points at its own line, and at nobody else's.
    pointers = [(row[-2], row[-1]) for row in effects.log]
    assert len(set(pointers)) == len(pointers) and set(pointers) <= places
    payload = effects.pending()
    hourly, daily = merge_pending([payload, payload] if payload else [])
    assert sum(row[4] for row in hourly) + sum(row[2] for row in daily) == 2 * effects.rated


@given(st.integers(0, (1 << 48) - 1), st.randoms(use_true_random=False))
def test_an_identity_keeps_time_order_and_names_nobody(ms: int, random: Any) -> None:
    event_id = uuid7(ms, random.getrandbits)
    assert id_ms(event_id) == ms
    key, other = identity(event_id, ms, b"a" * 32), identity(event_id, ms, b"b" * 32)
    assert key[:6] == other[:6] == ms.to_bytes(6, "big") and key[6:] != other[6:] and len(key) == 16
    assert digest_of(b"one", b"a" * 32) != digest_of(b"two", b"a" * 32)


@pytest.mark.parametrize(
    ("days", "expected"), [(1, date(2026, 11, 25)), (30, date(2026, 12, 24)), (90, date(2027, 2, 22))]
)
def test_a_row_expires_on_the_day_of_its_last_instant(days: int, expected: date) -> None:
    assert expiry_day(NOW_MS, days) == expected


def test_days_of_identities_begin_where_the_day_begins() -> None:
    bound = bytes.fromhex(day_bound(date(2026, 11, 24))[3:-1])
    midnight = 1_795_478_400_000
    assert identity("x", midnight - 1, b"k" * 32) < bound <= identity("x", midnight, b"k" * 32)
