"""The demo's gateway: repeatable, true to its traces, and its account is what a reader of its records would count."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy.demo import arrivals
from deploy.demo.gateway import Gateway
from deploy.demo.records import SOURCES, Record
from deploy.demo.trace import BadTrace, examine, read
from deploy.demo.world import LATER_PRICED, NEVER_PRICED, offered
from services.metering.price_book import PriceBook
from services.metering.price_version import from_event
from services.metering.pricing import Unpriced
from services.metering.seed import GenaiPrices
from services.metering.usage import price
from shared.contract import events, topics
from shared.contract.base import Refused, twin
from shared.contract.codec import Codec
from shared.contract.ids import id_ms
from shared.policy import policy

NOW = datetime(2026, 11, 24, 12, 0, tzinfo=UTC)
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"


class Still:
    """A clock that stands."""

    def now(self) -> datetime:
        return NOW


@pytest.fixture(scope="module")
def book() -> PriceBook:
    return PriceBook(catalogue=GenaiPrices())


def gateway(book: PriceBook, seed: int = 1, count: int = 2_000, given: arrivals.Arrivals | None = None) -> Gateway:
    return Gateway(
        seed=seed,
        clock=Still(),
        book=book,
        arrivals=given or arrivals.seeded(seed, count, NOW),
        workspace_count=20,
    )


def everything(made: Gateway) -> list[Record]:
    return [*made.opening(), *made.play()]


def trace_file(folder: Path, *rows: str, name: str = "trace.csv", end: str = "\n") -> Path:
    path = folder / name
    path.write_bytes((end.join([HEADER, *rows]) + end).encode())
    return path


# --- repeatable --------------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(book: PriceBook) -> None:
    first, again, other = (everything(gateway(book, seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_the_account_is_what_a_reader_of_the_records_counts(book: PriceBook, seed: int) -> None:
    made = gateway(book, seed)
    records = everything(made)
    account = made.account
    published = [Codec(topics.PRICES).decode(r.value) for r in records if r.topic is topics.PRICES]
    known = PriceBook(catalogue=GenaiPrices())
    for event in published:
        stated = event.data
        data = msgspec.to_builtins(stated) | {"tier": stated.tier, "source": stated.source}
        known.add(from_event(data, NOW, "pv_demo"))

    generations = [r for r in records if r.topic is topics.GENERATIONS]
    seen: dict[str, bytes] = {}
    counted: Counter[str] = Counter()
    letters: Counter[str] = Counter()
    waiting: Counter[str] = Counter()
    use: Counter[tuple[str, str]] = Counter()
    codec = Codec(topics.GENERATIONS)
    content: dict[str, Any] = {}
    leaving = 0
    for record in generations:
        try:
            event = codec.decode(record.value)
        except Refused as refusal:
            letters[refusal.reason] += 1
            continue
        assert record.key.decode() == topics.GENERATIONS.key_of(event)  # type: ignore[misc]
        assert record.value is not None
        if event.id in seen:
            counted["duplicates"] += 1
            counted["conflicts"] += seen[event.id] != record.value
            continue
        seen[event.id] = record.value
        data = event.data
        if id_ms(event.id) < (NOW - policy().window).timestamp() * 1000:
            waiting["stale"] += 1
            continue
        priced = price(known, data, event.time, NOW)
        if isinstance(priced, Unpriced):
            waiting[priced.reason] += 1
            continue
        counted["rated"] += 1
        if event.type == events.UsageCorrected.TYPE:
            before = content[data.original]
            assert data.log_retention_days and event.time == before.time
            use["generations", data.model] -= 1
            use["input", data.model] -= before.data.input_tokens
            use["output", data.model] -= before.data.output_tokens
        content[event.id] = event
        leaving += data.account == made.leaver
        if data.log_retention_days and data.account != made.leaver:
            use["generations", data.model] += 1
            use["input", data.model] += data.input_tokens
            use["output", data.model] += data.output_tokens

    assert account.emitted == len(generations)
    assert account.emitted == counted["rated"] + counted["duplicates"] + letters.total() + waiting.total()
    assert (account.rated, account.duplicates) == (counted["rated"], counted["duplicates"])
    assert account.conflicts == counted["conflicts"] == 1
    assert account.leaving == leaving > 0
    assert account.dead_lettered == letters
    assert set(letters) == {"malformed", "undeclared_field", "invalid", "unknown_type", "empty"}
    assert account.quarantined == waiting
    assert set(waiting) == {"unknown_model", "stale"}
    assert waiting["stale"] == 1
    assert account.corrections >= 1
    assert account.late >= 1 and account.odd_headers == 1
    for model, figures in account.by_model.items():
        found = tuple(use[what, model] for what in ("generations", "input", "output"))
        assert found == (figures.generations, figures.input_tokens, figures.output_tokens)
    assert account.records == len(records)


def test_usage_of_the_new_model_waits_until_its_price_comes(book: PriceBook) -> None:
    made = gateway(book)
    records = everything(made)
    at = next(n for n, r in enumerate(records) if r.topic is topics.PRICES)
    name = LATER_PRICED.name.encode()
    before = sum(name in (r.value or b"") for r in records[:at])
    after = sum(name in (r.value or b"") for r in records[at + 1 :])
    assert before >= made.account.awaited_price >= 2
    assert after >= 1
    for model in (LATER_PRICED, NEVER_PRICED):
        assert isinstance(book.card(model.provider, model.name, "standard", NOW, NOW), Unpriced)


def test_each_instance_numbers_its_events_without_gaps(book: PriceBook) -> None:
    numbers: dict[tuple[str, str], list[int]] = {}
    for record in everything(gateway(book)):
        headers = dict(record.headers)
        source, sequence = headers["ce_source"], headers["ce_sequence"]
        assert source is not None and sequence is not None
        numbers.setdefault((record.topic.name, source.decode()), []).append(int(sequence))
    for topic in (topics.GENERATIONS, topics.PAYMENTS):
        for instance in SOURCES:
            found = sorted(set(numbers[topic.name, instance]))
            assert found == list(range(1, len(found) + 1))


def test_payments_come_before_usage_and_add_up(book: PriceBook) -> None:
    made = gateway(book)
    opening = list(made.opening())
    played = list(made.play())
    assert all(record.topic is topics.PAYMENTS for record in opening)
    codec = Codec(topics.PAYMENTS)
    distinct = {
        record.value: codec.decode(record.value) for record in (*opening, *played) if record.topic is topics.PAYMENTS
    }
    kinds = Counter(event.type for event in distinct.values())
    assert set(kinds) == {model.TYPE for model in topics.PAYMENTS.events} - {
        events.NoteAdded.TYPE,
        events.PaymentMethodSaved.TYPE,
    }
    bought = [event.data for event in distinct.values() if event.type == events.PaymentSettled.TYPE]
    assert made.account.purchases_pico == sum(int(data.credit_pico) for data in bought)
    assert made.account.purchases == len({data.payment for data in bought}) == len(bought)
    assert made.account.payments == len(distinct) < made.account.payments_sent
    first = [codec.decode(record.value) for record in opening]
    early = [n for n, event in enumerate(first) if event.type == events.PaymentRefunded.TYPE]
    settled = {
        event.data.payment: n
        for n, event in reversed(list(enumerate(first)))
        if event.type == events.PaymentSettled.TYPE
    }
    assert any(settled[first[n].data.payment] > n for n in early), "a refund overtakes its purchase"


def test_headers_that_no_parser_likes_are_there_on_good_events(book: PriceBook) -> None:
    odd = [r for r in gateway(book).play() if any(value is None for _, value in r.headers)]
    assert len(odd) == 1
    assert Codec(topics.GENERATIONS).decode(odd[0].value).type == events.GenerationCompleted.TYPE


@pytest.mark.parametrize("count", [1, 2, 30])
def test_a_small_run_still_has_every_fault(book: PriceBook, count: int) -> None:
    made = gateway(book, count=count)
    records = everything(made)
    account = made.account
    classes = (account.rated, account.duplicates, account.dead_lettered.total(), account.quarantined.total())
    assert account.emitted == sum(classes) == sum(r.topic is topics.GENERATIONS for r in records)
    assert min(classes) >= 1


def test_a_tier_is_offered_only_where_it_had_a_price_all_the_time(book: PriceBook) -> None:
    since = NOW - timedelta(days=10)
    assert any(len(model.tiers) > 1 for model in offered(book, since, NOW))
    early = datetime(2026, 3, 1, tzinfo=UTC)
    for model in offered(book, early - timedelta(days=10), early):
        for tier in model.tiers:
            assert not isinstance(book.card(model.provider, model.name, tier, early, early), Unpriced)


# --- traces ------------------------------------------------------------------------------------------------------


def test_a_trace_keeps_distances_and_tokens_and_ends_a_minute_ago(book: PriceBook, tmp_path: Path) -> None:
    path = trace_file(
        tmp_path,
        "2023-11-16 18:17:03.9799600,4808,10",
        "2023-11-16 18:17:04.0319609,3180,8",
        "2023-11-16 18:17:04.0319609,0,0",
        "2023-11-16 18:20:00,110,27",
    )
    made = gateway(book, given=arrivals.traced([examine(path)], NOW))
    given = {("4808", "10"), ("3180", "8"), ("0", "0"), ("110", "27")}
    codec = Codec(topics.GENERATIONS)
    found = []
    for record in made.play():
        if record.topic is not topics.GENERATIONS:
            continue
        try:
            event = codec.decode(record.value)
        except Refused:
            continue
        figures = (str(event.data.input_tokens), str(event.data.output_tokens))
        if figures in given and event.type == events.GenerationCompleted.TYPE:
            given.discard(figures)
            found.append((event.time, record.due))
    assert not given
    last = NOW - arrivals.QUIET
    assert [time for time, _ in found] == [
        last - timedelta(minutes=2, seconds=56, microseconds=20_040),
        last - timedelta(minutes=2, seconds=55, microseconds=968_040),
        last - timedelta(minutes=2, seconds=55, microseconds=968_040),
        last,
    ]
    assert [due for _, due in found] == pytest.approx([0, 0.052, 0.052, 176.02004])


def test_every_row_of_a_trace_is_a_generation_and_faults_come_on_top(
    book: PriceBook, tmp_path: Path, seed: int
) -> None:
    rows = [f"2023-11-16 18:{n // 60:02}:{n % 60:02}.{n:07},{1000 + n},{n}" for n in range(1, 300)]
    path = trace_file(tmp_path, *rows)
    made = gateway(book, seed, given=arrivals.traced([examine(path)], NOW))
    codec = Codec(topics.GENERATIONS)
    left = Counter((1000 + n, n) for n in range(1, 300))
    more = 0
    for record in made.play():
        try:
            event = codec.decode(record.value) if record.topic is topics.GENERATIONS else None
        except Refused:
            event = None
        figures = event and (event.data.input_tokens, event.data.output_tokens)
        if figures and left[figures]:
            left[figures] -= 1
        else:
            more += 1
    assert not +left
    assert more > 10


def test_two_traces_are_played_side_by_side(tmp_path: Path) -> None:
    code = trace_file(tmp_path, "2023-11-16 18:00:00,1,1", "2023-11-16 18:10:00,2,2", name="code.csv")
    talk = trace_file(tmp_path, "2024-05-01 00:00:00+02:00,3,3", "2024-05-01 00:04:00+02:00,4,4", name="talk.csv")
    both = arrivals.traced([examine(code), examine(talk)], NOW)
    played = list(both.play())
    assert (both.count, both.first_us) == (4, played[0].at_us)
    assert [arrival.tokens for arrival in played] == [(1, 1), (3, 3), (2, 2), (4, 4)]
    assert all(a.at_us <= b.at_us for a, b in pairwise(played))
    assert list(both.play()) == played


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_do_not_matter(tmp_path: Path, end: str, last: bool) -> None:
    path = tmp_path / "trace.csv"
    text = end.join([HEADER, "2023-11-16 18:17:03.9799600,4808,10", "2023-11-16T18:17:04Z,3180,8"]) + (
        end if last else ""
    )
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    rows = list(read(path))
    assert [(row.context_tokens, row.generated_tokens) for row in rows] == [(4808, 10), (3180, 8)]
    assert rows[0].at == datetime(2023, 11, 16, 18, 17, 3, 979960, tzinfo=UTC)
    assert rows[1].at == datetime(2023, 11, 16, 18, 17, 4, tzinfo=UTC)


def test_columns_may_lie_in_any_order_among_others(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("GeneratedTokens,Region,TIMESTAMP,ContextTokens\n8,eu,2023-11-16 18:17:03,3180\n\n")
    assert list(read(path)) == [(datetime(2023, 11, 16, 18, 17, 3, tzinfo=UTC), 3180, 8)]


def bad_rows() -> Sequence[tuple[str, str]]:
    return (
        ("2023-11-16 18:17:03,4808", "2 columns"),
        ("2023-11-16 18:17:03,4808,ten", "GeneratedTokens"),
        ("2023-11-16 18:17:03,-1,10", "ContextTokens"),
        ("2023-11-16 18:17:03,1.5,10", "ContextTokens"),
        ("2023-11-16 18:17:03,,10", "ContextTokens"),
        ("2023-11-16 18:17:03,99999999999,10", "ContextTokens"),
        ("2023-11-16,4808,10", "TIMESTAMP"),
        ("2023-13-16 18:17:03,4808,10", "TIMESTAMP"),
        ("yesterday,4808,10", "TIMESTAMP"),
        ("1700158623,4808,10", "TIMESTAMP"),
        ('2023-11-16 18:17:03,"4808,10', "line"),
    )


@pytest.mark.parametrize(("row", "said"), bad_rows())
def test_a_bad_row_refuses_the_file_and_names_its_line(tmp_path: Path, row: str, said: str) -> None:
    path = trace_file(tmp_path, "2023-11-16 18:17:02,1,1", row, "2023-11-16 18:17:04,1,1")
    with pytest.raises(BadTrace, match=said) as caught:
        examine(path, limit=1)
    assert "trace.csv, line " in str(caught.value)
    if not row.endswith('"4808,10'):
        assert "line 3:" in str(caught.value)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(HEADER.encode() + b"\n2023-11-16 18:17:03,1,1\n2023-11-16 18:17:03,\xff\xfe,1\n")
    with pytest.raises(BadTrace, match="line 3: ContextTokens"):
        examine(path)


@pytest.mark.parametrize("content", [b"", b"\n", b"a,b,c\n1,2,3\n", HEADER.encode(), HEADER.encode() + b"\r\n\r\n"])
def test_a_file_without_columns_or_rows_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    with pytest.raises(BadTrace):
        examine(path)
    with pytest.raises(BadTrace, match="cannot be read"):
        examine(tmp_path / "nowhere.csv")


def test_the_first_rows_only(tmp_path: Path) -> None:
    path = trace_file(tmp_path, *(f"2023-11-16 18:17:0{n},{n},1" for n in range(9)))
    seen = examine(path, limit=3)
    assert (seen.rows, seen.span) == (3, timedelta(seconds=2))
    assert [row.context_tokens for row in seen.played(NOW)] == [0, 1, 2]
    assert [row.at for row in seen.played(NOW)][-1] == NOW


def test_the_seeded_hour_ends_a_minute_ago() -> None:
    made = arrivals.seeded(3, 500, NOW)
    times = [arrival.at_us for arrival in made.play()]
    assert times == sorted(times) and len(times) == 500
    assert made.first_us <= times[0]
    assert timedelta(microseconds=times[-1]) <= NOW - arrivals.QUIET - datetime(1970, 1, 1, tzinfo=UTC)


def test_every_good_event_is_accepted_by_the_contract_itself(book: PriceBook) -> None:
    """Not by the fast twin alone: by the pydantic model, which is the contract."""
    made = gateway(book, count=150)
    models = {model.TYPE: model for model in chain(*(topic.events for topic in topics.TOPICS))}
    refused = 0
    for record in everything(made):
        codec = Codec(record.topic)
        try:
            event = codec.decode(record.value)
        except Refused:
            refused += 1
            continue
        assert record.value is not None
        model = models[event.type]
        model.model_validate_json(record.value)
        assert isinstance(event, twin(model))
    assert refused == made.account.dead_lettered.total()
