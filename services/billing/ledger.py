"""The rules of the books, and nothing but rules: no I/O, no clock, no chance.

Amounts are whole pico-dollars. In entries a debit is positive and a credit negative; every journal sums to zero.
`Balances` holds what a workspace has in natural signs: credit it may use, and what it owes.

A rule takes the balances before and gives a `Movement`: the legs to book and the balances after. What a workspace
has is always the replay of its entries: purchased and granted are owed to it (credit balances), receivable is owed
by it (a debit balance).
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from functools import lru_cache
from typing import Literal, NamedTuple

import msgspec

from shared.contract.money import pico

AccountKind = Literal[
    "purchased",  # credit that was bought and is not used yet
    "granted",  # promotional credit that is not used yet
    "held",  # reserved for a request under way
    "receivable",  # what a workspace owes beyond its credit
    "revenue",  # usage that was charged; a correction takes from it
    "payment_clearing",  # money at the payment processor
    "fees",  # fees of purchases
    "breakage",  # credit that ended unused: a grant that expired, what an erased workspace had left
    "promotions",  # granted credit, by what it costs us: debited when it is granted
    "suspense",  # money that nobody can match
    "suspense_erased",  # usage and money of those who are erased, and to whom nothing leads any more
    "opening",  # where opening balances come from, and through which a workspace changes its legal class
]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_LAST = datetime.max.replace(tzinfo=UTC)
GENESIS = bytes(32)
"""What the first block of a chain names as its predecessor."""

_json = msgspec.json.Encoder().encode


class Unbalanced(AssertionError):
    """A journal whose entries do not sum to zero: a bug of ours, never the customer's."""


# --- configuration -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BillingConfig:
    """The numbers of billing.toml. Rates are exact fractions; money is in pico-dollars."""

    purchase_fee_rate: Fraction
    purchase_fee_min_pico: int
    byok_fee_rate: Fraction
    byok_allowance_pico: int
    close_after: timedelta
    wait: timedelta
    default_jurisdiction: str
    class_of_jurisdiction: Mapping[str, str] = field(default_factory=dict)

    OTHER = "OTHER"

    def __post_init__(self) -> None:
        if not (0 <= self.purchase_fee_rate < 1 and 0 <= self.byok_fee_rate < 1):
            raise ValueError("billing.toml: a fee is a share of an amount, from 0 to below 1")
        if self.purchase_fee_min_pico < 0 or self.byok_allowance_pico < 0:
            raise ValueError("billing.toml: amounts of money are not negative")
        if self.close_after < timedelta(0) or self.wait <= timedelta(0):
            raise ValueError("billing.toml: a period closes after its end, and waiting takes time")

    @classmethod
    def parse(cls, text: str) -> BillingConfig:
        """The configuration in `text` (TOML). Raises KeyError for what is missing, ValueError for what cannot be."""
        raw = tomllib.loads(text)
        classes = dict(raw["classes"])
        default = classes.pop("default_jurisdiction")
        by_jurisdiction = {place: name for name, places in classes.items() for place in places}
        if len(by_jurisdiction) != sum(map(len, classes.values())):
            raise ValueError("billing.toml: a jurisdiction has one legal class")
        return cls(
            purchase_fee_rate=Fraction(raw["purchase"]["fee_rate"]),
            purchase_fee_min_pico=pico(raw["purchase"]["fee_min_usd"]),
            byok_fee_rate=Fraction(raw["byok"]["fee_rate"]),
            byok_allowance_pico=pico(raw["byok"]["allowance_usd"]),
            close_after=timedelta(hours=raw["periods"]["close_after_hours"]),
            wait=timedelta(hours=raw["waiting"]["hours"]),
            default_jurisdiction=default,
            class_of_jurisdiction=by_jurisdiction,
        )

    def legal_class(self, jurisdiction: str | None = None) -> str:
        """The legal class of a jurisdiction (None: nobody has said, so the default)."""
        return self.class_of_jurisdiction.get(jurisdiction or self.default_jurisdiction, self.OTHER)


# --- what a workspace has ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Grant:
    """Promotional credit that is open: not used up, not expired."""

    grant: str
    remaining_pico: int
    priority: int
    expires_at: datetime | None
    granted_at: datetime

    @property
    def turn(self) -> tuple[int, datetime, datetime, str]:
        """Who burns first: lower priority number, then earlier expiry, then earlier creation."""
        return self.priority, self.expires_at or _LAST, self.granted_at, self.grant


class Balances(NamedTuple):
    """What a workspace has. `grants` are open and in the order in which they burn."""

    purchased_pico: int = 0
    receivable_pico: int = 0
    grants: tuple[Grant, ...] = ()

    @property
    def granted_pico(self) -> int:
        """Granted credit that is left."""
        return sum(grant.remaining_pico for grant in self.grants)

    @property
    def balance_pico(self) -> int:
        """What is left to use; negative if it owes more than it has."""
        return self.purchased_pico + self.granted_pico - self.receivable_pico


class Leg(NamedTuple):
    """One side of a movement; a debit is positive, a credit negative."""

    kind: AccountKind
    amount_pico: int


class Movement(NamedTuple):
    """What a rule books, and what the workspace has afterwards. No leg is zero, no kind occurs twice."""

    legs: tuple[Leg, ...]
    balances: Balances


def _movement(balances: Balances, *legs: Leg) -> Movement:
    return Movement(tuple(leg for leg in legs if leg.amount_pico), balances)


def charge(balances: Balances, amount_pico: int) -> Movement:
    """Usage of `amount_pico`; negative when corrections outweigh the usage, which then comes back as credit."""
    if amount_pico > 0:
        return burn(balances, amount_pico)
    return credit(balances, -amount_pico, Leg("revenue", -amount_pico))


def burn(balances: Balances, amount_pico: int) -> Movement:
    """Takes `amount_pico` from granted credit, in turn, then from purchased credit, then as a debt."""
    assert amount_pico >= 0
    purchased, receivable, grants = balances
    if not grants and amount_pico:  # almost always, and then one of two
        if amount_pico <= purchased:
            after = Balances(purchased - amount_pico, receivable)
            return Movement((Leg("purchased", amount_pico), Leg("revenue", -amount_pico)), after)
        if not purchased:
            after = Balances(0, receivable + amount_pico)
            return Movement((Leg("receivable", amount_pico), Leg("revenue", -amount_pico)), after)
    left = amount_pico
    if grants:
        kept = []
        for grant in grants:
            used = min(left, grant.remaining_pico)
            left -= used
            if used < grant.remaining_pico:
                kept.append(grant if not used else _with_remaining(grant, grant.remaining_pico - used))
        grants = tuple(kept)
    from_granted = amount_pico - left
    from_purchased = min(left, balances.purchased_pico)
    left -= from_purchased
    return _movement(
        Balances(balances.purchased_pico - from_purchased, balances.receivable_pico + left, grants),
        Leg("granted", from_granted),
        Leg("purchased", from_purchased),
        Leg("receivable", left),
        Leg("revenue", -amount_pico),
    )


def _with_remaining(grant: Grant, remaining_pico: int) -> Grant:
    return Grant(grant.grant, remaining_pico, grant.priority, grant.expires_at, grant.granted_at)


def credit(balances: Balances, amount_pico: int, *sources: Leg) -> Movement:
    """Credit from `sources` (which sum to the amount): it pays what is owed first, the rest is purchased credit."""
    assert amount_pico >= 0
    paid = min(amount_pico, balances.receivable_pico)
    return _movement(
        Balances(balances.purchased_pico + amount_pico - paid, balances.receivable_pico - paid, balances.grants),
        *sources,
        Leg("receivable", -paid),
        Leg("purchased", paid - amount_pico),
    )


def settle(balances: Balances, credit_pico: int, fee_pico: int) -> Movement:
    """A purchase: the money that came is the credit and, on top of it, the fee."""
    return credit(balances, credit_pico, Leg("payment_clearing", credit_pico + fee_pico), Leg("fees", -fee_pico))


def grant(balances: Balances, granted: Grant, now: datetime) -> Movement:
    """Promotional credit: it pays what is owed first. Credit that is over when it comes is left for `expire`."""
    amount = granted.remaining_pico
    over = granted.expires_at is not None and granted.expires_at <= now
    paid = 0 if over else min(amount, balances.receivable_pico)
    grants = balances.grants
    if paid < amount:
        grants = tuple(sorted((*grants, _with_remaining(granted, amount - paid)), key=lambda g: g.turn))
    return _movement(
        Balances(balances.purchased_pico, balances.receivable_pico - paid, grants),
        Leg("promotions", amount),
        Leg("receivable", -paid),
        Leg("granted", paid - amount),
    )


def expire(balances: Balances, now: datetime) -> tuple[Grant, Movement] | None:
    """The next grant that is over at `now`, and what books its rest as breakage; None if there is none."""
    for due in balances.grants:
        if due.expires_at is not None and due.expires_at <= now:
            rest = tuple(g for g in balances.grants if g is not due)
            return due, _movement(
                Balances(balances.purchased_pico, balances.receivable_pico, rest),
                Leg("granted", due.remaining_pico),
                Leg("breakage", -due.remaining_pico),
            )
    return None


def lapse(balances: Balances, to: AccountKind = "breakage") -> Movement:
    """Ends all credit of somebody who is erased. What is owed stays owed.

    A debt is a claim, and erasure is no waiver: the payments that it can be collected by are kept as long as the books.
    """
    purchased, granted_ = balances.purchased_pico, balances.granted_pico
    return _movement(
        Balances(0, balances.receivable_pico),
        Leg("granted", granted_),
        Leg("purchased", purchased),
        Leg(to, -purchased - granted_),
    )


def take_back(
    balances: Balances, amount_pico: int, left_pico: int, *, source: AccountKind = "payment_clearing"
) -> tuple[int, Movement]:
    """A refund or a dispute of a purchase of which `left_pico` was not taken back yet; how much the workspace bears.

    Purchased credit goes first, the rest becomes a debt. What exceeds the purchase is not the workspace's: suspense.
    `source` is where the money went from; suspense when it had been booked there because the purchase was not known.
    """
    assert amount_pico >= 0 and left_pico >= 0
    taken = min(amount_pico, left_pico)
    from_purchased = min(taken, balances.purchased_pico)
    after = Balances(
        balances.purchased_pico - from_purchased, balances.receivable_pico + taken - from_purchased, balances.grants
    )
    legs = [Leg("purchased", from_purchased), Leg("receivable", taken - from_purchased)]
    if source == "suspense":
        legs.append(Leg("suspense", -taken))
    else:
        legs += [Leg("suspense", amount_pico - taken), Leg(source, -amount_pico)]
    return taken, _movement(after, *legs)


def unmatched(balances: Balances, amount_pico: int) -> Movement:
    """A refund or dispute whose purchase never came: the money is gone and nobody can be named."""
    return _movement(balances, Leg("suspense", amount_pico), Leg("payment_clearing", -amount_pico))


def give_back(balances: Balances, taken_pico: int, suspense_pico: int) -> Movement:
    """A dispute that was won: the money is back, and so is what it had taken from the workspace and from suspense."""
    return credit(
        balances,
        taken_pico,
        Leg("payment_clearing", taken_pico + suspense_pico),
        Leg("suspense", -suspense_pico),
    )


def open_balance(balances: Balances, amount_pico: int) -> Movement:
    """What a workspace had elsewhere; negative if it owed."""
    if amount_pico >= 0:
        return credit(balances, amount_pico, Leg("opening", amount_pico))
    from_purchased = min(-amount_pico, balances.purchased_pico)
    debt = -amount_pico - from_purchased
    return _movement(
        Balances(balances.purchased_pico - from_purchased, balances.receivable_pico + debt, balances.grants),
        Leg("purchased", from_purchased),
        Leg("receivable", debt),
        Leg("opening", amount_pico),
    )


def leave_class(balances: Balances) -> tuple[Leg, ...]:
    """Closes a workspace's accounts in one legal class; the negated legs open them in another."""
    legs = (
        Leg("purchased", balances.purchased_pico),
        Leg("granted", balances.granted_pico),
        Leg("receivable", -balances.receivable_pico),
        Leg("opening", -balances.balance_pico),
    )
    return tuple(leg for leg in legs if leg.amount_pico)


# --- fees --------------------------------------------------------------------------------------------------------


def round_half_even(numerator: int, denominator: int) -> int:
    """`numerator` / `denominator` as a whole number; a tie goes to the even one. `denominator` is positive."""
    quotient, rest = divmod(numerator, denominator)
    if 2 * rest > denominator or (2 * rest == denominator and quotient % 2):
        quotient += 1
    return quotient


def purchase_fee(credit_pico: int, config: BillingConfig) -> int:
    """The fee on top of a purchase of `credit_pico`: a share of it, with a minimum."""
    rate = config.purchase_fee_rate
    return max(config.purchase_fee_min_pico, round_half_even(credit_pico * rate.numerator, rate.denominator))


def byok_fee(before_pico: int, listed_pico: int, config: BillingConfig) -> int:
    """The fee of usage at list price `listed_pico`, after `before_pico` in the same month.

    It is the difference of two totals, so the fees of a month add up to the fee of its total, whatever the order and
    wherever the batches were cut. Negative for a reversal.
    """
    return byok_total(before_pico + listed_pico, config) - byok_total(before_pico, config)


def byok_total(listed_pico: int, config: BillingConfig) -> int:
    """The fee of a month in which usage at list price `listed_pico` was made with the customer's own key."""
    above = listed_pico - config.byok_allowance_pico
    if above <= 0:
        return 0
    rate = config.byok_fee_rate
    return round_half_even(above * rate.numerator, rate.denominator)


# --- periods -----------------------------------------------------------------------------------------------------


def period_of(instant: datetime) -> str:
    """The period (UTC month, `YYYY-MM`) that an instant lies in."""
    utc = instant.astimezone(UTC)
    return f"{utc.year:04d}-{utc.month:02d}"


@lru_cache(maxsize=4096)
def period_of_hour(hour: int) -> str:
    """The period of an hour counted from 1970."""
    return period_of(hour_start(hour))


@lru_cache(maxsize=4096)
def hour_start(hour: int) -> datetime:
    """The first instant of an hour counted from 1970; the same object each time."""
    return _EPOCH + timedelta(hours=hour)


def period_start(period: str) -> datetime:
    """The first instant of a period."""
    return datetime(int(period[:4]), int(period[5:]), 1, tzinfo=UTC)


def period_end(period: str) -> datetime:
    """The first instant after a period."""
    year, month = int(period[:4]), int(period[5:])
    return datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC)


def closes_at(period: str, config: BillingConfig) -> datetime:
    """When a period may be closed."""
    return period_end(period) + config.close_after


# --- journals and the chain --------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One line of a journal: a ledger account and a debit (positive) or credit (negative)."""

    account: int
    amount_pico: int


class Journal(NamedTuple):
    """Something that happened to money, once. `id` is 0 until it is numbered."""

    id: int
    legal_class: str
    booking_year: int
    cause: str
    kind: str
    workspace_id: int | None
    period: str
    booked_at: datetime
    event_at: datetime
    adjusts_period: str | None
    lines_digest: bytes | None
    entries: tuple[Entry, ...]
    digest: bytes
    """Of the content: tells a repeat from another content under the same cause. Not part of the chain."""


def balanced(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    """The entries of one journal, by account. Raises `Unbalanced` unless they sum to zero."""
    found = tuple(sorted(entries))
    if sum([entry[1] for entry in found]):
        raise Unbalanced("the entries of a journal do not sum to zero")
    return found


def microseconds(instant: datetime) -> int:
    """Microseconds since 1970 (UTC)."""
    return (instant - _EPOCH) // _MICROSECOND


def block_hash(
    legal_class: str, block: int, previous: bytes, booked_at: datetime, journals: Sequence[Journal]
) -> bytes:
    """The hash of a block: SHA-256 of its canonical bytes, which name the hash of the block before it."""
    return hashlib.sha256(block_bytes(legal_class, block, previous, booked_at, journals)).digest()


def block_bytes(
    legal_class: str, block: int, previous: bytes, booked_at: datetime, journals: Sequence[Journal]
) -> bytes:
    """The canonical bytes of a block: compact JSON, instants as microseconds since 1970, bytes as hex.

    [class, block, previous, booked_at, [journal, ...] by id]
    journal: [id, booking_year, cause, kind, workspace_id, period, booked_at, event_at, adjusts_period,
              lines_digest, [[account, "amount"], ...] by account]
    """
    booked = microseconds(booked_at)
    event_at, event = booked_at, booked
    listed = []
    for j in journals:
        if j.event_at is not event_at:  # usage of one hour shares its instant
            event_at, event = j.event_at, microseconds(j.event_at)
        listed.append(
            (
                j.id, j.booking_year, j.cause, j.kind, j.workspace_id, j.period,
                booked if j.booked_at is booked_at else microseconds(j.booked_at), event, j.adjusts_period,
                None if j.lines_digest is None else j.lines_digest.hex(),
                [(account, str(amount)) for account, amount in j.entries],
            )
        )  # fmt: skip
    return _json((legal_class, block, previous.hex(), booked, listed))
