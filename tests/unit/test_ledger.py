"""The rules of the books, by example and by any sequence of events."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import ROUND_HALF_EVEN, Decimal
from fractions import Fraction
from importlib.resources import files
from itertools import count
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.billing import charges, ledger
from services.billing.books import Books, Standing, numbered
from services.billing.ledger import Balances, BillingConfig, Entry, Grant, Journal, Leg, Unbalanced
from services.billing.payments import Payments, causes
from shared.contract import topics
from shared.contract.codec import Codec, encode_json
from shared.contract.ids import derived_id
from shared.contract.money import PICO, pico

CONFIG = BillingConfig.parse(files("services.billing").joinpath("billing.toml").read_text(encoding="utf-8"))
NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
AMOUNTS = st.integers(1, 400 * PICO)
DECODE = Codec(topics.PAYMENTS).decode
SYSTEM = ("revenue", "payment_clearing", "fees", "breakage", "promotions", "suspense", "suspense_erased", "opening")


def granted(name: str, amount: int, *, priority: int = 100, expires: int | None = None, made: int = 0) -> Grant:
    return Grant(
        name, amount, priority, None if expires is None else NOW + timedelta(hours=expires), NOW + timedelta(hours=made)
    )


def ordered(*grants: Grant) -> tuple[Grant, ...]:
    return tuple(sorted(grants, key=lambda g: g.turn))


# --- burning -----------------------------------------------------------------------------------------------------


def test_burn_order_is_priority_then_expiry_then_creation_then_purchased_then_debt() -> None:
    grants = ordered(
        granted("late-made", 10, expires=5, made=2),
        granted("never-ends", 10),
        granted("first", 10, priority=1),
        granted("early-made", 10, expires=5, made=1),
        granted("ends-first", 10, expires=1),
    )
    assert [g.grant for g in grants] == ["first", "ends-first", "early-made", "late-made", "never-ends"]
    legs, after = ledger.burn(Balances(7, 0, grants), 45)
    assert legs == (Leg("granted", 45), Leg("revenue", -45))
    assert [(g.grant, g.remaining_pico) for g in after.grants] == [("never-ends", 5)]
    legs, after = ledger.burn(after, 20)
    assert legs == (Leg("granted", 5), Leg("purchased", 7), Leg("receivable", 8), Leg("revenue", -20))
    assert after == Balances(0, 8, ())


def test_nothing_used_books_nothing() -> None:
    assert ledger.charge(Balances(5), 0) == ((), Balances(5))


def test_corrections_that_outweigh_usage_pay_the_debt_first() -> None:
    legs, after = ledger.charge(Balances(0, 4), -10)
    assert legs == (Leg("revenue", 10), Leg("receivable", -4), Leg("purchased", -6))
    assert after == Balances(6, 0)


@given(
    st.integers(0, 10**15),
    st.lists(st.tuples(st.integers(1, 10**13), st.integers(0, 3), st.integers(1, 4) | st.none(), st.integers(0, 3))),
    st.lists(st.integers(0, 10**14), max_size=8),
)
def test_burning_in_steps_is_burning_at_once(
    purchased: int, grants: list[tuple[int, int, int | None, int]], amounts: list[int]
) -> None:
    start = Balances(
        purchased,
        0,
        ordered(
            *(granted(f"g{n}", amount, priority=p, expires=e, made=m) for n, (amount, p, e, m) in enumerate(grants))
        ),
    )
    at_once = ledger.burn(start, sum(amounts))
    balances, booked = start, Counter[str]()
    for amount in amounts:
        legs, balances = ledger.burn(balances, amount)
        assert sum(leg.amount_pico for leg in legs) == 0
        booked.update({leg.kind: leg.amount_pico for leg in legs})
    assert balances == at_once.balances
    assert {k: v for k, v in booked.items() if v} == dict(at_once.legs)
    # A grant is touched only when those before it are gone.
    left = {g.grant: g.remaining_pico for g in balances.grants}
    used = [left.get(g.grant, 0) < g.remaining_pico for g in start.grants]
    gone = [left.get(g.grant, 0) == 0 for g in start.grants]
    assert all(g or not u for g, u in zip(gone, used[1:], strict=False))


# --- fees --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("credit", "fee"),
    [("100", "5.5"), ("10", "0.80"), ("14.545454545454", "0.80"), ("20", "1.1"), ("0.000000000001", "0.80")],
)
def test_the_fee_of_a_purchase(credit: str, fee: str) -> None:
    assert ledger.purchase_fee(pico(credit), CONFIG) == pico(fee)


def test_the_fee_is_on_top_of_the_credit() -> None:
    legs, after = ledger.settle(Balances(0, 30), 100, 7)
    assert dict(legs) == {"payment_clearing": 107, "fees": -7, "receivable": -30, "purchased": -70}
    assert after == Balances(70, 0)


@given(st.integers(-(10**30), 10**30), st.integers(1, 10**9))
def test_rounding_is_half_even(numerator: int, denominator: int) -> None:
    assert ledger.round_half_even(numerator, denominator) == round(Fraction(numerator, denominator))


@given(st.integers(0, 10**20))
def test_the_purchase_fee_is_the_exact_share_rounded_once(credit: int) -> None:
    exact = (Decimal(credit) * Decimal("0.055")).quantize(Decimal(1), ROUND_HALF_EVEN)
    assert ledger.purchase_fee(credit, CONFIG) == max(pico("0.80"), int(exact))


@given(st.lists(st.integers(-(10**12), 30_000 * PICO), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_own_key_fees_add_up_to_the_fee_of_the_total_in_any_order(amounts: list[int], random: Any) -> None:
    expected = ledger.byok_total(sum(amounts), CONFIG)
    for _ in range(3):
        random.shuffle(amounts)
        before = fees = 0
        for amount in amounts:
            fees += ledger.byok_fee(before, amount, CONFIG)
            before += amount
        assert fees == expected


def test_the_own_key_fee_starts_in_the_middle_of_a_generation() -> None:
    assert ledger.byok_fee(24_999 * PICO, 2 * PICO, CONFIG) == PICO // 20
    assert ledger.byok_fee(25_001 * PICO, -2 * PICO, CONFIG) == -PICO // 20


# --- periods and configuration -----------------------------------------------------------------------------------


def test_periods_are_half_open_months_in_utc() -> None:
    assert ledger.period_of(datetime.fromisoformat("2026-12-31T23:30:00-01:00")) == "2027-01"
    assert ledger.period_of_hour(int(datetime(2026, 12, 31, 23, tzinfo=UTC).timestamp()) // 3600) == "2026-12"
    assert ledger.period_start("2026-12") == datetime(2026, 12, 1, tzinfo=UTC)
    assert ledger.period_end("2026-12") == datetime(2027, 1, 1, tzinfo=UTC)
    assert ledger.closes_at("2026-12", CONFIG) == datetime(2027, 1, 4, tzinfo=UTC)
    assert charges.booking_years("2026-12", NOW) == [2025, 2026]


def test_the_configuration_is_what_the_policy_page_says() -> None:
    assert CONFIG.purchase_fee_rate == Fraction(55, 1000)
    assert CONFIG.byok_allowance_pico == 25_000 * PICO
    assert (CONFIG.legal_class("US"), CONFIG.legal_class("DE"), CONFIG.legal_class("JP")) == ("US", "EU", "OTHER")
    assert CONFIG.legal_class() == "US"


def test_a_jurisdiction_has_one_class() -> None:
    text = files("services.billing").joinpath("billing.toml").read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="one legal class"):
        BillingConfig.parse(text.replace('US = ["US"]', 'US = ["US", "DE"]'))


# --- the chain ---------------------------------------------------------------------------------------------------


def journal(**changes: Any) -> Journal:
    usual = Journal(
        7, "EU", 2026, "payment:p1", "purchase", 3, "2026-11", NOW, NOW, None, None,
        (Entry(1, 100), Entry(2, -100)), b"",
    )  # fmt: skip
    return usual._replace(**changes)


def test_the_canonical_bytes_of_a_block() -> None:
    usage = journal(id=8, kind="usage", cause="usage:r", lines_digest=b"\xab" * 32, entries=())
    raw = ledger.block_bytes("EU", 5, ledger.GENESIS, NOW, [journal(), usage])
    at = int(NOW.timestamp()) * 1_000_000
    assert json.loads(raw) == [
        "EU", 5, "00" * 32, at,
        [
            [7, 2026, "payment:p1", "purchase", 3, "2026-11", at, at, None, None, [[1, "100"], [2, "-100"]]],
            [8, 2026, "usage:r", "usage", 3, "2026-11", at, at, None, "ab" * 32, []],
        ],
    ]  # fmt: skip
    assert raw == json.dumps(json.loads(raw), separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "change",
    [
        {"workspace_id": 4},
        {"entries": (Entry(1, 101), Entry(2, -101))},
        {"event_at": NOW + timedelta(microseconds=1)},
        {"booked_at": NOW + timedelta(microseconds=1)},
        {"adjusts_period": "2026-11"},
        {"lines_digest": bytes(32)},
    ],
)
def test_any_change_changes_the_hash(change: dict[str, Any]) -> None:
    before = ledger.block_hash("EU", 1, ledger.GENESIS, NOW, [journal()])
    assert ledger.block_hash("EU", 1, ledger.GENESIS, NOW, [journal(**change)]) != before


def test_an_unbalanced_journal_is_a_bug() -> None:
    with pytest.raises(Unbalanced):
        ledger.balanced([Entry(1, 5), Entry(2, -4)])


# --- any sequence of events --------------------------------------------------------------------------------------


@dataclass
class Ledger:
    """What a database would keep, without one: causes, balances and entries of two workspaces."""

    now: datetime = NOW
    standings: dict[str, Standing] = field(default_factory=dict)
    payments: Payments | None = None
    entries: Counter[int] = field(default_factory=Counter)
    journals: list[Journal] = field(default_factory=list)
    gone: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for number, name in enumerate(("ws-a", "ws-b"), 1):
            accounts = (number * 10 + 1, number * 10 + 2, number * 10 + 3)
            self.standings[name] = Standing(name, number, "US", False, 0, Balances(), accounts)

    def books(self) -> Books:
        """New books over the same standings: one transaction."""
        system = {
            (c, kind): 100 * n + i for n, c in enumerate(("US", "EU", "OTHER"), 1) for i, kind in enumerate(SYSTEM)
        }
        moved = {(s.workspace_id, "EU"): tuple(a + 1000 for a in s.accounts) for s in self.standings.values()}
        books = Books(self.now, CONFIG, system, self.standings, moved)  # type: ignore[arg-type]
        books.expire_due()
        if self.gone:
            books.admit_nobody()
        return books

    def erase(self, workspace: str) -> None:
        """As billing does: its credit lapses, and from then on it has no name."""
        books = self.books()
        standing = self.standings.pop(workspace)
        movement = ledger.lapse(standing.balances)
        if movement.legs:
            cause = f"erasure:{standing.workspace_id}"
            books.post(standing, "erasure", cause, movement, event_at=self.now, digest=b"")
        self.close(books)
        standing.workspace, standing.nameless = numbered(standing.workspace_id), True
        self.standings[standing.workspace] = standing
        self.gone.add(workspace)

    def close(self, books: Books) -> None:
        for booked in books.journals:
            assert sum(entry.amount_pico for entry in booked.entries) == 0
            self.entries.update({entry.account: entry.amount_pico for entry in booked.entries})
        self.journals += books.journals

    def take(self, *events: Any) -> list[str]:
        books = self.books()
        known = self.payments or Payments(books)
        known.books, known.erased = books, self.gone
        self.payments = known
        assert len(causes(books, events)) == len(events)
        outcomes = [known.take(event) for event in events]
        self.close(books)
        return list(outcomes)

    def give_up(self) -> None:
        books = self.books()
        known = self.payments or Payments(books)
        known.books, known.erased = books, self.gone
        names = {s.workspace_id: s for s in self.standings.values()}
        for item in sorted(known.waiting.values(), key=lambda w: (w.arrived_at, w.position)):
            if item.state == "waiting" and item.arrived_at <= self.now - CONFIG.wait and item.cause in known.waiting:
                known.give_up(item.cause, names[item.workspace_id])
        self.close(books)

    def charge(self, workspace: str, amount: int) -> None:
        books = self.books()
        standing = books.nobody("US") if workspace in self.gone else books.standings[workspace]
        books.post(
            standing, "usage", f"usage:{len(self.journals)}", ledger.charge(standing.balances, amount),
            event_at=self.now, digest=b"", lines_digest=b"",
        )  # fmt: skip
        self.close(books)

    def check(self) -> None:
        assert len({j.cause for j in self.journals}) == len(self.journals)
        assert sum(self.entries.values()) == 0
        for standing in self.standings.values():
            if standing.nobody:
                assert standing not in Books(self.now, CONFIG, {}, self.standings).changed()
                continue
            has, (purchased, granted_, receivable) = standing.balances, standing.accounts
            assert not standing.nameless or (has.purchased_pico, has.grants) == (0, ()), "credit that nobody can use"
            assert min(has.purchased_pico, has.receivable_pico) >= 0
            assert has.purchased_pico == -self.entries[purchased]
            assert has.granted_pico == -self.entries[granted_]
            assert has.receivable_pico == self.entries[receivable]
            assert all(g.remaining_pico > 0 for g in has.grants)
            assert list(has.grants) == sorted(has.grants, key=lambda g: g.turn)
        if self.payments is None:
            return
        unmatched = 0
        for purchase in self.payments.purchases.values():
            assert 0 <= purchase.taken_pico <= purchase.credit_pico
        for item in self.payments.waiting.values():
            if item.state == "suspense" and item.kind == "refund":
                unmatched += item.credit_pico or 0
        for dispute in self.payments.disputes.values():
            assert min(dispute.taken_pico, dispute.suspense_pico) >= 0


IDS = count(1)


def event(kind: str, workspace: str, at: datetime, **data: Any) -> Any:
    number = next(IDS)
    return DECODE(
        encode_json(
            {
                "specversion": "1.0",
                "id": derived_id(number, "test", str(number)),
                "source": "gateway",
                "type": kind,
                "subject": workspace,
                "time": at.isoformat().replace("+00:00", "Z"),
                "data": {"account": "acc", "workspace": workspace, **data},
            }
        )
    )


def settled(payment: str, amount: int, workspace: str = "ws-a", at: datetime = NOW, place: str = "US") -> Any:
    return event("payment.settled.v1", workspace, at, payment=payment, credit_pico=str(amount), jurisdiction=place)


def refunded(refund: str, payment: str, amount: int, workspace: str = "ws-a") -> Any:
    return event("payment.refunded.v1", workspace, NOW, refund=refund, payment=payment, credit_pico=str(amount))


def disputed(dispute: str, payment: str, amount: int, workspace: str = "ws-a") -> Any:
    return event("payment.disputed.v1", workspace, NOW, dispute=dispute, payment=payment, credit_pico=str(amount))


def closed(dispute: str, payment: str, outcome: str, workspace: str = "ws-a") -> Any:
    return event("payment.dispute_closed.v1", workspace, NOW, dispute=dispute, payment=payment, outcome=outcome)


def promised(grant: str, amount: int, at: datetime = NOW, hours: int | None = None, workspace: str = "ws-a") -> Any:
    data: dict[str, Any] = {"grant": grant, "credit_pico": str(amount)}
    if hours is not None:
        data["expires_at"] = (at + timedelta(hours=hours)).isoformat().replace("+00:00", "Z")
    return event("credit.granted.v1", workspace, at, **data)


def opened(amount: int, workspace: str = "ws-a", place: str = "US") -> Any:
    return event("balance.opened.v1", workspace, NOW, credit_pico=str(amount), jurisdiction=place)


ids = st.sampled_from(("1", "2", "3"))
spaces = st.sampled_from(("ws-a", "ws-b"))
steps = st.lists(
    st.one_of(
        st.tuples(st.just("settled"), ids, spaces, AMOUNTS, st.sampled_from(("US", "DE"))),
        st.tuples(st.just("refunded"), ids, ids, AMOUNTS, spaces),
        st.tuples(st.just("disputed"), ids, ids, AMOUNTS, spaces),
        st.tuples(st.just("closed"), ids, ids, st.sampled_from(("won", "lost")), spaces),
        st.tuples(st.just("granted"), ids, AMOUNTS, st.integers(-2, 40) | st.none(), spaces),
        st.tuples(st.just("opened"), st.integers(-100 * PICO, 100 * PICO), spaces),
        st.tuples(st.just("charge"), st.integers(-20 * PICO, 300 * PICO), spaces),
        st.tuples(st.just("later"), st.integers(1, 30)),
        st.tuples(st.just("erased"), spaces),
    ),
    max_size=30,
)


@given(steps)
def test_whatever_happens_the_books_balance_and_balances_are_their_replay(plan: list[tuple[Any, ...]]) -> None:
    books = Ledger()
    for step in plan:
        match step:
            case ("settled", payment, workspace, amount, place):
                books.take(settled(payment, amount, workspace, books.now, place))
            case ("refunded", refund, payment, amount, workspace):
                books.take(refunded(refund, payment, amount, workspace))
            case ("disputed", dispute, payment, amount, workspace):
                books.take(disputed(dispute, payment, amount, workspace))
            case ("closed", dispute, payment, outcome, workspace):
                books.take(closed(dispute, payment, outcome, workspace))
            case ("granted", grant, amount, hours, workspace):
                books.take(promised(grant, amount, books.now, hours, workspace))
            case ("opened", amount, workspace):
                books.take(opened(amount, workspace))
            case ("charge", amount, workspace):
                books.charge(workspace, amount)
            case ("later", hours):
                books.now += timedelta(hours=hours)
                books.give_up()
            case ("erased", workspace) if workspace not in books.gone:
                books.erase(workspace)
        books.check()
    # Time passes: every grant with an end has ended, nothing waits any more.
    books.now += timedelta(days=10)
    books.give_up()
    books.check()
    assert all(g.expires_at is None for s in books.standings.values() for g in s.balances.grants)
    assert books.payments is None or all(w.state == "suspense" for w in books.payments.waiting.values())


@given(steps)
def test_a_repeat_of_everything_changes_nothing(plan: list[tuple[Any, ...]]) -> None:
    books = Ledger()
    events: list[Any] = []
    for step in plan:
        if step[0] == "settled":
            events.append(settled(step[1], step[3], step[2], NOW, step[4]))
        elif step[0] == "refunded":
            events.append(refunded(step[1], step[2], step[3], step[4]))
        elif step[0] == "granted":
            events.append(promised(step[1], step[2], NOW, None, step[4]))
    first = books.take(*events)
    before = {name: s.balances for name, s in books.standings.items()}
    again = books.take(*events)
    assert {name: s.balances for name, s in books.standings.items()} == before
    # What was booked or waits is known; what was refused is refused again.
    assert ["exists" if x in ("created", "waiting") else x for x in first] == again
    books.check()


def test_a_refund_before_its_purchase_waits_and_is_booked_with_it() -> None:
    books = Ledger()
    assert books.take(refunded("r", "p", 30)) == ["waiting"]
    assert books.take(refunded("r", "p", 30), refunded("r", "p", 31)) == ["exists", "conflict"]
    assert books.take(settled("p", 100)) == ["created"]
    assert books.standings["ws-a"].balances == Balances(70)
    assert books.take(refunded("r", "p", 30)) == ["exists"]
    assert [j.kind for j in books.journals] == ["purchase", "refund"]


def test_a_refund_whose_purchase_never_comes_is_suspense_and_still_matched_when_it_does() -> None:
    books = Ledger()
    books.take(refunded("r", "p", 30))
    books.now += timedelta(hours=23, minutes=59)
    books.give_up()
    assert not books.journals
    books.now += timedelta(minutes=1)
    books.give_up()
    assert [(j.kind, j.cause) for j in books.journals] == [("suspense", "refund:r")]
    assert books.take(refunded("r", "p", 30)) == ["exists"]
    books.take(settled("p", 100))
    assert books.standings["ws-a"].balances == Balances(70)
    assert books.entries[100 + SYSTEM.index("suspense")] == 0
    assert books.entries[100 + SYSTEM.index("payment_clearing")] == 100 + ledger.purchase_fee(100, CONFIG) - 30


def test_what_exceeds_a_purchase_is_suspense_not_debt() -> None:
    books = Ledger()
    books.take(settled("p", 100), refunded("r1", "p", 80), refunded("r2", "p", 50))
    assert books.standings["ws-a"].balances == Balances()
    assert books.entries[100 + SYSTEM.index("suspense")] == 30


def test_a_dispute_takes_and_gives_back_only_if_won() -> None:
    books = Ledger()
    books.take(settled("p", 100))
    books.charge("ws-a", 40)
    books.take(disputed("d", "p", 100))
    assert books.standings["ws-a"].balances == Balances(0, 40)
    books.take(closed("d", "p", "won"))
    assert books.standings["ws-a"].balances == Balances(60, 0)
    assert books.take(closed("d", "p", "lost")) == ["conflict"]
    books.take(disputed("d2", "p", 100), closed("d2", "p", "lost"))
    assert books.standings["ws-a"].balances == Balances(0, 40)
    assert books.take(closed("d2", "p", "lost")) == ["exists"]


def test_the_end_of_a_dispute_may_come_first_of_all() -> None:
    books = Ledger()
    assert books.take(closed("d", "p", "won"), disputed("d", "p", 10)) == ["waiting", "waiting"]
    books.take(settled("p", 100))
    assert books.standings["ws-a"].balances == Balances(100)
    assert [j.kind for j in books.journals] == ["purchase", "dispute", "dispute_won"]


def test_a_dispute_and_its_end_that_waited_too_long_settle_between_them() -> None:
    books = Ledger()
    books.take(closed("d", "p", "won"))
    books.take(disputed("d", "p", 10))
    books.now += timedelta(days=2)
    books.give_up()
    assert [j.kind for j in books.journals] == ["suspense", "dispute_won"]
    assert books.entries[100 + SYSTEM.index("suspense")] == 0
    assert books.payments is not None
    assert not books.payments.waiting


def test_a_dispute_that_was_suspense_and_won_leaves_nothing_behind() -> None:
    books = Ledger()
    books.take(disputed("d", "p", 10))
    books.now += timedelta(days=2)
    books.give_up()
    assert books.take(closed("d", "p", "won")) == ["created"]
    assert books.entries[100 + SYSTEM.index("suspense")] == 0
    books.take(settled("p", 100))
    assert books.standings["ws-a"].balances == Balances(100)


def test_another_workspace_cannot_be_refunded() -> None:
    books = Ledger()
    books.take(settled("p", 100))
    assert books.take(refunded("r", "p", 50, "ws-b")) == ["waiting"]
    assert books.standings["ws-a"].balances == Balances(100)


def test_a_grant_pays_a_debt_first_and_its_rest_expires_as_breakage() -> None:
    books = Ledger()
    books.charge("ws-a", 30)
    books.take(promised("g", 100, hours=5))
    assert books.standings["ws-a"].balances.granted_pico == 70
    books.now += timedelta(hours=5)
    books.close(books.books())
    assert books.standings["ws-a"].balances == Balances()
    assert books.entries[100 + SYSTEM.index("breakage")] == -70
    assert books.entries[100 + SYSTEM.index("promotions")] == 100


def test_a_grant_that_is_over_when_it_comes_pays_nothing() -> None:
    books = Ledger()
    books.charge("ws-a", 30)
    books.take(promised("g", 100, hours=-1))
    books.close(books.books())
    assert books.standings["ws-a"].balances == Balances(0, 30)


def test_an_opening_balance_comes_once_and_may_be_negative() -> None:
    books = Ledger()
    assert books.take(opened(-50), opened(-50), opened(20)) == ["created", "exists", "conflict"]
    assert books.standings["ws-a"].balances == Balances(0, 50)
    books.take(settled("p", 80))
    assert books.standings["ws-a"].balances == Balances(30)


def test_a_workspace_goes_to_its_stated_class_with_all_it_has() -> None:
    books = Ledger()
    books.charge("ws-a", 30)
    books.take(promised("g", 100))
    books.take(settled("p", 80, place="DE"))
    standing = books.standings["ws-a"]
    assert (standing.legal_class, standing.class_stated, standing.accounts) == ("EU", True, (1011, 1012, 1013))
    assert (standing.balances.purchased_pico, standing.balances.granted_pico) == (80, 70)
    for legal_class in ("US", "EU"):
        assert sum(e.amount_pico for j in books.journals if j.legal_class == legal_class for e in j.entries) == 0
    assert [books.entries[a] for a in (11, 12, 13)] == [0, 0, 0]
    books.take(settled("p2", 5, place="US"))
    assert (standing.legal_class, standing.balances.purchased_pico) == ("EU", 85)
    assert books.payments is not None
    assert books.payments.jurisdiction_conflicts == 1


# --- erasure -----------------------------------------------------------------------------------------------------


def of_kind(books: Ledger, kind: str, class_number: int = 1) -> int:
    return books.entries[100 * class_number + SYSTEM.index(kind)]


def test_the_credit_of_the_erased_lapses_and_their_debt_stays() -> None:
    legs, after = ledger.lapse(Balances(7, 0, (granted("g", 5),)))
    assert (legs, after) == ((Leg("granted", 5), Leg("purchased", 7), Leg("breakage", -12)), Balances())
    assert ledger.lapse(Balances(0, 9)) == ((), Balances(0, 9))


def test_usage_and_money_of_nobody_are_one_account_of_the_house() -> None:
    books = Ledger()
    books.gone = {"ws-x"}
    books.charge("ws-x", 30)
    books.charge("ws-x", -10)
    assert books.take(settled("p", 100, "ws-x", place="DE"), refunded("r", "p", 40, "ws-x")) == ["created", "created"]
    assert (of_kind(books, "suspense_erased"), of_kind(books, "suspense_erased", 2)) == (20, -60)
    assert of_kind(books, "payment_clearing", 2) == 60 + pico("0.80")
    assert {j.workspace_id for j in books.journals} == {None}
    assert all(len({entry.account for entry in j.entries}) == len(j.entries) for j in books.journals)
    books.check()


def test_what_is_no_money_of_the_erased_is_dropped() -> None:
    books = Ledger()
    books.erase("ws-a")
    assert books.take(promised("g", 5), opened(5)) == ["erased", "erased"]
    note = event("billing.note_added.v1", "ws-a", NOW, note="n", text="sealed:v1:k:" + "A" * 43 + ":" + "B" * 30)
    assert books.payments is not None
    assert books.payments.take(note) == "erased"
    assert (books.journals, books.payments.new_notes) == ([], [])


def test_a_refund_of_an_erased_payer_is_booked_on_the_number_that_paid() -> None:
    books = Ledger()
    books.take(settled("p", 100))
    books.erase("ws-a")
    assert of_kind(books, "breakage") == -100
    assert books.take(refunded("r", "p", 40)) == ["created"]
    standing = books.standings[numbered(1)]
    assert (standing.balances, of_kind(books, "suspense_erased")) == (Balances(0, 40), 0)
    assert books.take(refunded("r", "p", 40), settled("p", 100), refunded("r", "p", 41)) == [
        "exists",
        "exists",
        "conflict",
    ]
    # Somebody else's payment is nobody's business, whoever asks: it waits like any refund that fits nothing.
    books.take(settled("q", 100, "ws-b"))
    assert books.take(refunded("r2", "q", 40)) == ["waiting"]
    books.check()


def test_credit_that_comes_back_to_the_erased_is_suspense() -> None:
    books = Ledger()
    books.take(settled("p", 100), disputed("d", "p", 60))
    books.charge("ws-a", 50)
    books.erase("ws-a")
    assert books.standings[numbered(1)].balances == Balances(0, 10)
    books.take(closed("d", "p", "won"))
    assert books.standings[numbered(1)].balances == Balances()
    assert (of_kind(books, "suspense_erased"), of_kind(books, "breakage")) == (-50, 0)
    books.check()


def test_lines_of_erased_workspaces_share_one_bill() -> None:
    record = derived_id(1, "a"), derived_id(2, "b")
    usages = [
        Usage(record[0], Data([Unit("w1", [line(1, 5)]), Unit("w2", [line(2, 6)]), Unit("w3", [line(3, 7)])])),
        Usage(record[1], Data([Unit("w3", [line(4, 8)], "gone")])),
    ]
    todo = charges.sheets(usages)
    owned = charges.owners(todo)
    gone = charges.erased_workspaces(owned, {("workspace", "w1"), ("account", "gone"), ("account", "w2")})
    assert gone == {"w1", "w3"}
    bills = charges.bills(charges.nameless(todo, gone, numbered(0)))
    assert [(b.workspace, b.record, b.runs) for b in bills] == [
        (numbered(0), record[0], [slice(0, 1), slice(2, 3), slice(3, 4)]),
        ("w2", record[0], [slice(1, 2)]),
    ]


# --- lines -------------------------------------------------------------------------------------------------------


@dataclass
class Unit:
    workspace: str
    lines: list[tuple[Any, ...]]
    account: str = "acc"


@dataclass
class Data:
    units: list[Unit]


@dataclass
class Usage:
    id: str
    data: Data


def line(line_id: int, amount: int, hour: int = 490_000, terms: str = "list") -> tuple[Any, ...]:
    return (f"{line_id:032x}", hour, "v1", "standard", terms, {"input": 1}, str(amount))


def test_lines_are_numbered_through_their_record_and_counted_once() -> None:
    record = derived_id(1, "a"), derived_id(2, "b")
    first = Usage(record[0], Data([Unit("w1", [line(1, 5), line(2, 6)]), Unit("w2", [line(3, 7)])]))
    second = Usage(record[1], Data([Unit("w2", [line(3, 7), line(2, 9)])]))
    todo = charges.sheets([second, first])
    assert [(sheet.record, list(sheet.numbers), list(sheet.amounts)) for sheet in todo] == [
        (record[0], [0, 1, 2], [5, 6, 7]),
        (record[1], [0, 1], [7, 9]),
    ]
    found = charges.Sifted.of(todo)
    assert [found.position(line_id) for line_id in found.fresh] == [(record[0], n) for n in range(3)]
    rows = found.seen_rows()
    found.drop_seen([rows[0], (rows[1][0], rows[1][1] + 1)])
    found.settle_repeats()
    # Line 1 is booked as it comes, line 2 with another amount than both its copies, line 3 comes twice alike.
    assert (len(found.fresh), found.duplicates, found.conflicts) == (1, 4, 2)
    (rest,) = found.rest()
    assert (rest.record, rest.units, rest.numbers, rest.amounts) == (record[0], [("w2", "acc", 1)], (2,), (7,))


def test_bills_are_by_workspace_and_period() -> None:
    hour = int(datetime(2026, 12, 1, tzinfo=UTC).timestamp()) // 3600
    usage = Usage(derived_id(1), Data([Unit("w", [line(1, 1, hour - 1), line(2, 2, hour), line(3, 3, hour - 1)])]))
    todo = charges.sheets([usage])
    amounts = [amount for sheet in todo for amount in sheet.amounts]
    assert [(b.workspace, b.period, [amounts[run] for run in b.runs]) for b in charges.bills(todo)] == [
        ("w", "2026-11", [[1, 3]]),
        ("w", "2026-12", [[2]]),
    ]


def test_ids_are_looked_up_by_day() -> None:
    day = 86_400_000
    ids_ = [((ms << 80) | 7).to_bytes(16, "big") for ms in (3, day - 1, day, day + 5, 9 * day)]
    low = charges.low_water(datetime(1970, 1, 1, tzinfo=UTC) + timedelta(days=1, hours=5), timedelta(0))
    assert charges.by_day(ids_, low) == (ids_[:2], [ids_[2:4], ids_[4:]])
    assert charges.by_day([], low) == ([], [])
    assert charges.day_bound(datetime(1970, 1, 2, tzinfo=UTC).date()) == "'\\x" + low.hex() + "'"
