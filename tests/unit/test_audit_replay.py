"""The replay: what billing's own code seals is accepted, and every change to it is found."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.audit import app as audit
from services.audit import chain, replay
from services.audit.replay import Chain, Chart, Findings, Lines, Part, Replay
from services.billing import app, charges, ledger
from services.billing.books import Books, Standing
from services.billing.ledger import Entry, Journal
from services.metering.price_version import to_json
from tests.unit.test_pricing import version

AT = datetime(2026, 11, 24, 21, 0, 0, 123456, tzinfo=UTC)
ACCOUNTS = [
    {"id": 1, "class": "US", "kind": "revenue", "workspace_id": None},
    {"id": 2, "class": "US", "kind": "payment_clearing", "workspace_id": None},
    {"id": 3, "class": "US", "kind": "purchased", "workspace_id": 7},
    {"id": 4, "class": "US", "kind": "receivable", "workspace_id": 7},
    {"id": 9, "class": "EU", "kind": "revenue", "workspace_id": None},
]
PRICES = {"pv_test": to_json(version())}

TEXTS = st.text(max_size=20)
JOURNALS = st.builds(
    lambda number, cause, kind, who, pico, late, adjusts: Journal(
        number, "US", 2026, cause, kind, who, "2026-11", AT, AT - late, "2026-11" if adjusts else None,
        b"\x01" * 32 if kind == "usage" else None, (Entry(1, pico), Entry(3, -pico)), b"",
    ),
    st.integers(1, 10**12), TEXTS, st.sampled_from(["usage", "purchase"]), st.none() | st.integers(1, 10**9),
    st.integers(1, 10**25), st.timedeltas(timedelta(0), timedelta(days=400)), st.booleans(),
)  # fmt: skip


def rows_of(journals: list[Journal], block: int, previous: bytes) -> tuple[list[dict[str, Any]], bytes]:
    """Journals as the tables have them once billing's code has sealed them, and the block's hash."""
    ordered = sorted(journals)
    sealed = ledger.block_hash("US", block, previous, AT, ordered)
    rows = [
        {
            "id": j.id, "booking_year": j.booking_year, "cause": j.cause, "kind": j.kind, "workspace_id": j.workspace_id,
            "period": j.period, "booked_at": j.booked_at, "event_at": j.event_at, "adjusts_period": j.adjusts_period,
            "lines_digest": j.lines_digest, "block": block, "prev": previous, "hash": sealed, "journals": len(journals),
            "sealed_at": AT, "accounts": [e.account for e in reversed(j.entries)],
            "amounts": [str(e.amount_pico) for e in reversed(j.entries)],
        }
        for j in ordered
    ]  # fmt: skip
    return rows, sealed


def journal(number: int, *entries: tuple[int, int], **changes: Any) -> Journal:
    """A journal of a purchase."""
    made = Journal(
        number, "US", 2026, f"payment:{number}", "purchase", 7, "2026-11", AT, AT, None, None,
        ledger.balanced([Entry(*e) for e in entries]), b"",
    )  # fmt: skip
    return made._replace(**changes)


def chart() -> Chart:
    made = Chart()
    made.learn(ACCOUNTS)
    return made


def sent(at: datetime) -> bytes:
    """An instant in PostgreSQL's binary form."""
    return ((at - datetime(2000, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)).to_bytes(8, "big", signed=True)


def part(rows: Sequence[dict[str, Any]], *, packed: bytes = b"", stray: Sequence[tuple[int, int, int]] = ()) -> Part:
    """A slice as the store reads it. `stray`: entries (journal, account, amount) of no journal."""
    entries = [
        (row["id"], account, str(amount))
        for row in rows
        for account, amount in zip(row["accounts"], row["amounts"], strict=True)
    ]
    entries += [(number, account, str(amount)) for number, account, amount in stray]
    blocks = {row["block"]: row for row in rows if row["prev"] is not None}
    return Part(
        "US",
        [tuple(sent(row[c]) if c.endswith("_at") else row[c] for c in replay.JOURNAL_COLUMNS) for row in rows],
        "\n".join(f"{journal}\t{account}\t{amount}" for journal, account, amount in sorted(entries)),
        chain.columns(packed, "US"),
        [(n, row["prev"], row["hash"], row["journals"], sent(row["sealed_at"])) for n, row in blocks.items()],
    )


@given(st.lists(JOURNALS, min_size=1, max_size=5, unique_by=lambda j: j.id))
def test_blocks_that_billing_seals_have_the_hash_that_audit_computes(journals: list[Journal]) -> None:
    rows, sealed = rows_of(journals, 1, chain.GENESIS)
    made, found = Chain("US"), Findings()
    made.take(part(rows), chart(), found)
    made.finish(1, (1, sealed), found)
    assert made.ok and made.hash == sealed


BIGINTS = st.integers(-(2**63), 2**63 - 1)
QUANTITIES = st.dictionaries(TEXTS, st.integers(-(10**12), 10**12), max_size=3).map(json.dumps)
LINES = st.lists(
    st.tuples(st.integers(0, 4000), st.integers(0, 10**6), TEXTS, TEXTS, QUANTITIES, BIGINTS), min_size=1, max_size=5
)


@given(st.uuids(version=4).map(str), LINES)
def test_lines_that_billing_seals_have_the_digest_that_audit_computes(
    record: str, lines: list[tuple[int, int, str, str, str, int]]
) -> None:
    numbers, hours, versions, tiers, quantities, amounts = zip(*lines, strict=True)
    sheet = charges.Sheet(
        record, "2026-11", [("w", "a", len(lines))], numbers, ["00" * 16] * len(lines), hours, versions, tiers,
        ["list"] * len(lines), [text.encode() for text in quantities], amounts,
    )  # fmt: skip
    books = Books(AT, app.CONFIG, {("US", "revenue"): 1}, {"w": standing(7)})
    of_class = charges.bills([sheet])
    priced = charges.priced([sheet], {}, app.CONFIG)
    (packed,) = charges.post(books, of_class, priced, iter([5]), ())
    assert books.journals[0].lines_digest == charges.lines_digest(packed)
    read = chain.columns(packed, "US")
    assert read.digest(0, len(lines)) == books.journals[0].lines_digest
    assert read.numbers == numbers and read.amounts == read.listed == amounts
    assert [text.decode() for text in read.quantities] == list(quantities)
    assert set(read.records) == {UUID(record).bytes} and set(read.workspaces) == {7} and set(read.journals) == {5}
    assert [read.kinds[key] for key in read.rated] == [
        (hour, version, tier, "list") for hour, version, tier in zip(hours, versions, tiers, strict=True)
    ]
    assert chain._one_by_one(packed) == read, "the long way comes to the same"


def standing(number: int) -> Standing:
    return Standing("w", number, "US", True, 0, ledger.Balances(), (2, 3, 4))


def two_blocks() -> list[dict[str, Any]]:
    first, head = rows_of([journal(11, (2, 500), (3, -500)), journal(12, (2, 70), (3, -70))], 1, chain.GENESIS)
    second, _ = rows_of([journal(13, (3, 100), (1, -100))], 2, head)
    return first + second


def replayed(
    rows: list[dict[str, Any]], head: tuple[int, bytes] | None = None, newest: int = 2
) -> tuple[Chain, Chart, Findings]:
    found, made, accounts = Findings(), Chain("US"), chart()
    # One row at a time: where the batches were cut must not matter.
    for row in rows:
        made.take(part([row]), accounts, found)
    made.finish(newest, head, found)
    return made, accounts, found


def test_a_chain_is_replayed() -> None:
    rows = two_blocks()
    made, accounts, found = replayed(rows, (2, rows[-1]["hash"]))
    assert made.ok and found.sentences() == []
    assert (made.block, made.journals, made.entries, made.sum_pico, made.newest_journal) == (2, 3, 6, 0, 13)
    assert accounts.standing(7) == (470, 0, 0, 0)
    assert accounts.numbers() == {7}


def _set(n: int, **changes: Any) -> Any:
    return lambda rows: rows[n].update(changes)


CHAIN_TOUCHED: dict[str, tuple[Any, str]] = {
    "a cause": (_set(0, cause="payment:x"), "block 1 does not have the content"),
    "an instant": (_set(2, event_at=AT + timedelta(microseconds=1)), "block 2 does not have the content"),
    "an amount": (_set(0, amounts=["-501", "501"]), "block 1 does not have the content"),
    "an account": (_set(0, accounts=[4, 2]), "block 1 does not have the content"),
    "a journal gone": (lambda rows: rows.pop(1), "block 1 has 1 journals, 2 were sealed in it"),
    "a block gone": (lambda rows: rows.__delitem__(slice(0, 2)), "block 2 follows block 0"),
    "the last block gone": (lambda rows: rows.pop(2), "block 2 exists, but journals only up to block 1"),
    "a predecessor": (_set(2, prev=b"\x05" * 32), "block 2 does not name the hash"),
    "no row in the chain": (_set(2, prev=None, hash=None, journals=None, sealed_at=None), "no row in the chain"),
}


@pytest.mark.parametrize("what", CHAIN_TOUCHED)
def test_a_chain_that_was_touched(what: str) -> None:
    touch, words = CHAIN_TOUCHED[what]
    rows = two_blocks()
    touch(rows)
    made, _, found = replayed(rows)
    assert not made.ok
    assert any(words in sentence for sentence in found.sentences()), found.sentences()


def test_a_head_that_names_another_block() -> None:
    rows = two_blocks()
    for head in ((1, rows[0]["hash"]), (2, b"\x00" * 32)):
        made, _, found = replayed(rows, head)
        assert not made.ok and "the head names" in found.sentences()[0]


def test_a_chain_that_is_shorter_than_it_was() -> None:
    made, _, found = replayed(two_blocks())
    made.finish(1, None, found)
    assert found.sentences() == ["chain of class US: ends at block 1, but was proved up to 2: an older copy?"]


def test_a_journal_that_does_not_balance_and_an_account_that_does_not_exist() -> None:
    unbalanced = journal(11, (2, 500), (3, -500))._replace(entries=(Entry(2, 500), Entry(3, -499)))
    foreign = journal(12, (2, 5), (3, -5))._replace(entries=(Entry(9, 5), Entry(77, -5)))
    rows, _ = rows_of([unbalanced, foreign], 1, chain.GENESIS)
    made, _, found = replayed(rows, newest=1)
    assert made.ok, "sealed as it is"
    assert found.sentences() == [
        "journal 11 of class US sums to 1, not to 0",
        "journal 12: class US has no account 9",
        "journal 12: class US has no account 77",
    ]


def interleaved() -> list[dict[str, Any]]:
    """Four blocks whose journals' numbers lie between each other, by number: 11 and 14, 12 and 19, 13, 15 and 20."""
    rows, head = [], chain.GENESIS
    for n, numbers in enumerate(((11, 14), (12, 19), (13,), (15, 20)), 1):
        sealed, head = rows_of([journal(i, (2, i), (3, -i)) for i in numbers], n, head)
        rows += sealed
    return sorted(rows, key=lambda row: int(row["id"]))


def slices(rows: Sequence[dict[str, Any]], cuts: Sequence[int]) -> Iterator[Sequence[dict[str, Any]]]:
    """`rows`, cut before these positions."""
    bounds = [0, *sorted(cuts), len(rows)]
    return (rows[a:b] for a, b in pairwise(bounds))


FAULTS: dict[str, Any] = {
    "nothing": lambda rows: None,
    "a cause": _set(3, cause="x"),
    "an amount": _set(1, amounts=["-7", "7"]),
    "a journal that is gone": lambda rows: rows.pop(4),
    "a block's row that is gone": lambda rows: [r.update(prev=None) for r in rows if r["block"] == 3],
    "a block that is gone": lambda rows: rows.__setitem__(slice(None), [r for r in rows if r["block"] != 2]),
    "a journal that does not balance": _set(2, amounts=["-13", "14"]),
}


@pytest.mark.parametrize("what", FAULTS)
@given(cuts=st.lists(st.integers(0, 7), max_size=7))
def test_wherever_slices_are_cut_the_same_is_proved_and_the_same_is_found(what: str, cuts: list[int]) -> None:
    """Down to slices of one journal, and of none; numbers of neighbouring blocks interleave."""
    outcomes = []
    for at in ([], cuts):
        rows = interleaved()
        FAULTS[what](rows)
        made, accounts, found = Chain("US"), chart(), Findings()
        for some in slices(rows, [min(cut, len(rows)) for cut in at]):
            made.take(part(some), accounts, found)
        head = (4, interleaved()[-1]["hash"])
        made.finish(4, head, found)
        outcomes.append((made.block, made.hash, made.journals, made.entries, made.sum_pico, made.ok, accounts.standing(7),
                         sorted(found.sentences())))  # fmt: skip
        assert not made.waiting()
    assert outcomes[0] == outcomes[1]
    assert bool(outcomes[0][-1]) == (what != "nothing"), outcomes[0]


def test_a_journal_waits_until_its_block_is_complete() -> None:
    made, accounts, found = Chain("US"), chart(), Findings()
    rows = {row["id"]: row for row in interleaved()}
    standing = []
    # The transaction of 13 ends late: what lies above is there before.
    for number in (11, 12, 14, 15, 19, 20, 13):
        made.take(part([rows[number]]), accounts, found)
        standing.append((made.block, made.waiting()))
    assert standing == [
        (0, [11]), (0, [11, 12]), (1, [12]), (1, [12, 15]), (2, [15]), (2, [15, 20]), (4, []),
    ]  # fmt: skip
    assert made.newest_journal == 20
    made.finish(4, (4, rows[20]["hash"]), found)
    assert made.ok and found.sentences() == []


def test_a_journal_that_names_a_block_without_having_been_sealed_in_it() -> None:
    rows = interleaved()
    extra, _ = rows_of([journal(30, (2, 1), (3, -1))], 1, chain.GENESIS)
    extra[0] |= {"prev": None}
    made, _, found = replayed([*rows, *extra], newest=4)
    assert not made.ok
    assert found.sentences() == ["chain of class US: journal 30 names block 1, which was sealed without it"]


def test_entries_that_name_no_journal() -> None:
    made, accounts, found = Chain("US"), chart(), Findings()
    made.take(part(two_blocks(), stray=[(12, 4, 1), (10, 2, 5), (10, 3, -5)]), accounts, found)
    assert accounts.standing(7) == (470, 0, 0, 1), "what its journal has, the balance has"
    assert found.sentences() == [
        "2 entries of class US name journal 10, which does not exist",
        "journal 12 of class US sums to 1, not to 0",
        "chain of class US: block 1 does not have the content that was sealed in it",
    ]
    assert (made.entries, made.sum_pico) == (7, 1)


def test_blocks_that_never_become_complete_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "_WAITING", 3)
    made, accounts, found = Chain("US"), chart(), Findings()
    rows = [row for row in interleaved() if row["id"] != 14]
    for row in rows:
        made.take(part([row]), accounts, found)
    assert made.block > 0 and not made.ok
    assert "chain of class US: block 1 has 1 journals, 2 were sealed in it" in found.sentences()


Row = dict[str, Any]


def packed(rows: Sequence[Row]) -> bytes:
    """Charge lines as COPY writes them in binary."""
    form = {"record": "16s", "amount_pico": "q", "list_pico": "q", "workspace_id": "q", "journal": "q"}
    found = b""
    for row in rows:
        found += struct.pack(">h", len(chain.LINE_COLUMNS))
        for name in chain.LINE_COLUMNS:
            value = row[name]
            if value is None:
                found += b"\xff\xff\xff\xff"
                continue
            value = UUID(value).bytes if name == "record" else value
            raw = value.encode() if isinstance(value, str) else struct.pack(">" + form.get(name, "i"), value)
            found += len(raw).to_bytes(4, "big") + raw
    return found


def columns(rows: Sequence[Row]) -> chain.Columns:
    return chain.columns(packed(rows), "US")


def line_row(number: int, used: dict[str, int], amount: int, **changes: Any) -> Row:
    """A charge line of journal 5, used in November 2026."""
    row = {
        "record": "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b", "line": number, "class": "US", "booking_year": 2026,
        "workspace_id": 7, "hour": 498_800, "price_version": "pv_test", "tier": "standard", "terms": "list",
        "quantities": json.dumps(used), "amount_pico": amount, "list_pico": amount, "journal": 5,
    }  # fmt: skip
    return row | changes


RIGHT = [line_row(0, {"input": 3}, 6_000_000), line_row(1, {"output": -1}, -8_000_000), line_row(2, {}, 0)]


def take(rows: list[Row], **expected: Any) -> tuple[Lines, list[str]]:
    """The lines of journal 5, which says of them what is right but for `expected`."""
    found, lines = Findings(), Lines(prices=dict(PRICES))
    said: dict[str, Any] = {
        "lines_digest": columns(rows).digest(0, len(rows)), "period": "2026-11",
        "charged_pico": sum(row["amount_pico"] for row in rows),
    }  # fmt: skip
    digest, period, charged = (said | expected).values()
    lines.take({5: (digest, period, charged)}, columns(rows), found)
    return lines, found.sentences()


def test_lines_are_recomputed() -> None:
    lines, said = take(RIGHT)
    assert said == []
    assert (lines.count, lines.charges_pico, lines.recomputed_pico) == (3, -2_000_000, -2_000_000)


LINES_TOUCHED: dict[str, tuple[dict[str, Any], str]] = {
    "another amount": ({"amount_pico": 6_000_001, "list_pico": 6_000_001}, "listed at 6000001, recomputed 6000000"),
    "a discount nobody gave": ({"amount_pico": 5}, "charged 5, recomputed 6000000"),
    "other terms": ({"terms": "sharing"}, "listed at 6000000, recomputed 5940000"),
    "another version": ({"price_version": "pv_gone"}, "price version pv_gone is not known"),
    "another tier": ({"tier": "batch"}, "tier 'batch'"),
    "a unit without a price": ({"quantities": '{"image": 1}'}, "says nothing about 'image'"),
    "quantities that are none": ({"quantities": '{"input": 0.5}'}, "Expected `int`"),
    "another month": ({"hour": 498_800 + 30 * 24}, "used in 2026-12, booked for 2026-11"),
}


@pytest.mark.parametrize("what", LINES_TOUCHED)
def test_a_line_that_is_wrong_from_the_start(what: str) -> None:
    """Sealed as it is, so only recomputing it finds it."""
    changes, words = LINES_TOUCHED[what]
    _, said = take([line_row(0, {"input": 3}, 6_000_000, **changes)])
    assert len(said) == 1 and words in said[0], said


def test_lines_that_were_touched_after_they_were_sealed() -> None:
    sealed = columns(RIGHT).digest(0, 3)
    _, said = take(RIGHT[:2], lines_digest=sealed, charged_pico=-2_000_000)
    assert said == ["the lines of journal 5 are not those that were sealed with it"]
    _, said = take(RIGHT[:1], charged_pico=-2_000_000)
    assert said == ["journal 5 charges -2000000, its lines sum to 6000000"]
    found, lines = Findings(), Lines(prices=dict(PRICES))
    lines.take({6: (b"", "2026-11", 0)}, columns(RIGHT), found)
    assert found.sentences() == [
        "3 charge lines name journal 5, which does not exist",
        "usage journal 6 has no charge lines",
    ]


def test_own_key_lines_are_kept_by_workspace_and_month() -> None:
    lines, said = take([line_row(0, {"input": 3}, 1, terms="byok", list_pico=6_000_000)])
    assert said == []
    assert (lines.charges_pico, lines.recomputed_pico) == (1, 0)
    assert {key: (m.list_pico, m.fee_pico) for key, m in lines.byok.items()} == {(7, "2026-11"): (6_000_000, 1)}


def test_own_key_lines_among_others() -> None:
    own = line_row(1, {"input": 3}, 1, terms="byok", list_pico=6_000_000)
    lines, said = take([RIGHT[0], own, *RIGHT[1:]])
    assert said == []
    assert (lines.charges_pico, lines.recomputed_pico) == (-1_999_999, -2_000_000)
    assert {key: (m.list_pico, m.fee_pico) for key, m in lines.byok.items()} == {(7, "2026-11"): (6_000_000, 1)}
    lines, said = take([RIGHT[0] | {"amount_pico": 1}, own])
    assert len(said) == 1 and said[0].endswith("charged 1, recomputed 6000000")
    assert len(lines.byok) == 1 and lines.byok[7, "2026-11"].list_pico == 6_000_000, "taken once"


ODD = [
    line_row(0, {"input": 3}, 6_000_000, workspace_id=None),
    line_row(1, {"input": 3}, 6_000_000, booking_year=2027),
    line_row(2, {"input": 3}, 6_000_000, **{"class": "EU"}),
]


@pytest.mark.parametrize("rows", [[odd] for odd in ODD] + [[*RIGHT, odd, *RIGHT] for odd in ODD])
def test_lines_that_have_not_all_in_common_are_taken_one_by_one(rows: list[Row]) -> None:
    read = columns(rows)
    assert read.numbers == tuple(row["line"] for row in rows)
    assert read.workspaces == tuple(row["workspace_id"] for row in rows)
    lines, said = take(rows)
    assert said == [] and lines.recomputed_pico == sum(row["amount_pico"] for row in rows)


@given(st.binary(max_size=80), st.integers(0, 400), st.integers(1, 40))
def test_rows_that_are_torn_are_refused_or_have_another_digest(noise: bytes, at: int, size: int) -> None:
    """Nothing that is read differs from what is hashed."""
    whole = packed(RIGHT)
    torn = whole[:at] + noise + whole[at + size :]
    try:
        read = chain.columns(torn, "US")
    except chain.Malformed:
        return
    if torn:
        assert read.starts[-1] == len(torn)
        assert read == chain._one_by_one(torn)


def test_prices_that_are_no_whole_pico_dollars_are_rounded_line_by_line() -> None:
    third = {**PRICES["pv_test"], "prices": {"second": "0.04"}, "per": {"second": 3600}, "not_billed": []}
    lines, found = Lines(prices={**PRICES, "pv_third": third}), Findings()
    rows = [line_row(n, {"second": n}, round(n * 4 * 10**10 / 3600), price_version="pv_third") for n in range(1, 9)]
    said = (columns(rows).digest(0, 8), "2026-11", sum(row["amount_pico"] for row in rows))
    lines.take({5: said}, columns(rows), found)
    assert found.sentences() == [] and lines.recomputed_pico == said[2]


def test_unknown_price_versions_are_named() -> None:
    assert Lines(prices=dict(PRICES)).unknown_versions(columns([RIGHT[0] | {"price_version": "pv_new"}, RIGHT[1]])) == {
        "pv_new"
    }


def test_many_findings_of_a_kind_are_counted_and_a_few_are_told() -> None:
    found = Findings()
    for n in range(12):
        found.add("line", f"line {n}")
    assert found.sentences() == ["line 0", "line 1", "line 2", "line 3", "line 4", "... and 7 more like it (line)"]


def test_balances_are_compared_with_the_replay() -> None:
    made = Replay(AT)
    made.chart.learn(ACCOUNTS)
    found = Findings()
    made.take(part(two_blocks()))
    made.chain("US").finish(2, None, found)
    row = {"workspace_id": 7, "purchased_pico": "470", "granted_pico": "0", "receivable_pico": "0"}
    known: set[int] = set()
    assert made.unequal_balances([row], known, found) == 0
    assert known == {7}
    assert made.unequal_balances([row | {"purchased_pico": "471"}], known, found) == 1
    assert found.sentences() == ["ledger workspace 7: balance (471, 0, 0), replay (470, 0, 0)"]


@pytest.mark.parametrize(
    ("worked", "journals", "slept"),
    [(0.1, 6_000, 0.15), (0.01, 8_000, 0.015), (0.2, 3_000, 0.3), (0.5, 2_000, 0.75), (9.0, 66, 13.5)],
)
async def test_slices_fit_their_time_and_rests_are_in_proportion_to_work(
    worked: float, journals: int, slept: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    rests: list[float] = []

    async def sleep(seconds: float) -> None:
        rests.append(round(seconds, 6))

    monkeypatch.setattr("asyncio.sleep", sleep)
    manners = audit.Manners(share=0.4, journals=4_000)
    await manners.rest(worked)
    assert (manners.journals, rests) == (journals, [slept])
