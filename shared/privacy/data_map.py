"""The data map: what every column holds, why, for how long, and what an erasure does to it.

Each service has a `data_map.py` with `DATA_MAP: DataMap`, one entry for every column of its migrations. The
words are those of fideslang 3.1; what may never be stored (card numbers, passwords) or never be a purpose
(marketing, sale, model training) is left out of the vocabulary, so it cannot be declared.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import groupby
from typing import Literal, get_args

from shared.policy import Policy, policy

DataMap = tuple["Column", ...]

# fideslang data categories; "none" is for what is about nobody, such as a price.
Category = Literal[
    "none",
    "system.operations",
    "user.account.settings",
    "user.authorization.credentials",
    "user.behavior",
    "user.behavior.purchase_history",
    "user.childrens",
    "user.contact.email",
    "user.contact.organization",
    "user.content.private",
    "user.device.cookie_id",
    "user.device.ip_address",
    "user.name",
    "user.payment",
    "user.privacy_preferences",
    "user.telemetry",
    "user.unique_id",
    "user.unique_id.pseudonymous",
    "user.workplace",
]
# fideslang data uses: to provide, to secure and to improve the service, and nothing else.
DataUse = Literal[
    "none",
    "analytics.reporting.system.performance",
    "essential.fraud_detection",
    "essential.legal_obligation",
    "essential.service",
    "essential.service.authentication",
    "essential.service.notifications.email",
    "essential.service.operations",
    "essential.service.operations.improve",
    "essential.service.operations.support",
    "essential.service.payment_processing",
    "essential.service.security",
    "finance",
    "functional.service.improve",
    "third_party_sharing.legal_obligation",
]
# The instant from which the period runs.
ClockStart = Literal[
    "none",
    "account_closed",  # of the account or workspace that the row belongs to
    "arrival",  # the row's own creation
    "booking_year_end",
    "connection",
    "erasure_confirmed",
    "event",  # the event's own time
    "hour",  # start of the hour that a rollup counts
    "id_day",  # the day in the event's id
    "request",  # the request, or its receipt if that was earlier
    "transaction",
]
# A period that the policy or a setting decides. Everything else is a timedelta.
NamedPeriod = Literal[
    "account_closure",  # the cap between closing an account and its end
    "billing_record",  # the account's life, then the years that its legal class demands
    "deduplication_window",  # W
    "legal_hold",  # until a named person releases it
    "tombstone",  # as long as a copy could bring the subject back
    "request_log",  # the workspace's own setting, 0 days to the policy's maximum
    "usage_rollup",
]
OnErasure = Literal[
    "none",
    "clear",  # the column becomes NULL, the row stays
    "delete_row",
    "expire",  # left to its own clock, which ends before the erasure's does
    "pseudonymise",  # replaced by a value that leads to nobody
    "retain",  # the law wants it; the receipt says until when
    "shred",  # its key is destroyed
]
# Legal bases, as fideslang names them.
Ground = Literal["none", "consent", "contract", "legal_obligation", "legitimate_interests"]

_NAME = re.compile(r"[a-z_][a-z0-9_]*")
_VOCABULARIES: Mapping[str, tuple[str, ...]] = {
    "category": get_args(Category),
    "use": get_args(DataUse),
    "clock_start": get_args(ClockStart),
    "on_erasure": get_args(OnErasure),
    "ground": get_args(Ground),
}


@dataclass(frozen=True, slots=True)
class Column:
    """What one column of one table holds.

    `period` runs from `clock_start`; None is for what is kept without end, so only for what is about nobody.
    `note` is for the reader: how a value is made, why a period is as it is.
    """

    table: str
    column: str
    category: Category
    use: DataUse
    clock_start: ClockStart
    period: timedelta | NamedPeriod | None
    on_erasure: OnErasure
    ground: Ground
    note: str = ""

    @property
    def personal(self) -> bool:
        """True when the column says something about a person."""
        return self.category.startswith("user.")

    def __str__(self) -> str:
        return f"{self.table}.{self.column}"


def plain(table: str, *columns: str, category: Literal["none", "system.operations"] = "none") -> DataMap:
    """Entries for the columns of `table` that hold nothing personal."""
    return tuple(Column(table, column, category, "none", "none", None, "none", "none") for column in columns)


def personal(
    table: str,
    *columns: str,
    category: Category,
    use: DataUse,
    clock_start: ClockStart,
    period: timedelta | NamedPeriod,
    on_erasure: OnErasure,
    ground: Ground,
    note: str = "",
) -> DataMap:
    """Entries for columns of `table` that share one classification."""
    return tuple(
        Column(table, column, category, use, clock_start, period, on_erasure, ground, note) for column in columns
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """How the rows of a table lead to subjects.

    `owners`: subject kind -> the column (or SQL expression over the row) that holds its id. A row of an erased owner is
    treated as its columns' `on_erasure` says. `traces`: subject kind -> the column that names it in rows which belong to
    somebody else: an erasure replaces the value by a pseudonym, and the row stays.

    `through`: this table has no id of its own; its rows are those whose column `through[0]` is the `through[2]` of a row
    in table `through[1]` that has owners. `expires`: SQL expression over the row, a timestamptz or date: the row's time is
    over when it is not after now; None for what has no clock of its own, or is dropped by partition. `ends`: what ends the
    rows instead, in words. `moves`: (from, to) counters: a row that is erased or expires moves between these classes of the
    conservation sum; `{column}` in a name stands for the row's value.

    `sealed`: columns whose value is sealed -> where it was sealed for (`seal_value`; `{column}` stands for the row's
    value), or "" for what a platform has sealed: so that a copy for its person can be opened. `corrects`: columns that a
    correction may change. `when`: SQL expression over the row, a timestamptz: the instant of what the row records. A copy of
    a span of time has the rows of it; tables without `when` say how things are, and are in no such copy.

    A map lists its `Rows` in the order in which an erasure treats them: what others are made from first, what leads to
    other rows (`through`) last.
    """

    table: str
    owners: Mapping[str, str] = field(default_factory=dict)
    traces: Mapping[str, str] = field(default_factory=dict)
    through: tuple[str, str, str] | None = None
    expires: str | None = None
    moves: tuple[str, str] | None = None
    ends: str | None = None
    sealed: Mapping[str, str] = field(default_factory=dict)
    corrects: tuple[str, ...] = ()
    when: str | None = None


@dataclass(frozen=True, slots=True)
class Holding:
    """All that a service holds: its columns, and how their rows lead to subjects.

    `kept`: what an erasure leaves to the law and takes the name from, for as long as the name is there: a copy has it.
    """

    holder: str
    columns: DataMap
    rows: tuple[Rows, ...] = ()
    kept: tuple[Rows, ...] = ()

    @property
    def version(self) -> str:
        """Digest of the map: a receipt says by which one it was made."""
        content = repr((self.columns, self.rows, self.kept))
        return hashlib.sha256(content.encode()).hexdigest()[:16]


def by_column(data_map: Iterable[Column]) -> dict[tuple[str, str], Column]:
    """The map by (table, column). Raises ValueError when a column has two entries."""
    found: dict[tuple[str, str], Column] = {}
    for column in data_map:
        key = (column.table, column.column)
        if key in found:
            raise ValueError(f"data map: {column} is declared twice")
        found[key] = column
    return found


def longest(period: timedelta | NamedPeriod | None, numbers: Policy | None = None) -> timedelta | None:
    """The longest that `period` can be; None where only an account's life or a law ends it."""
    if isinstance(period, timedelta):
        return period
    numbers = numbers or policy()
    match period:
        case "account_closure":
            return timedelta(days=numbers.closure_cap_days)
        case "deduplication_window":
            return numbers.window
        case "tombstone":
            return numbers.tombstone_life
        case "request_log":
            return timedelta(days=numbers.request_log_max_days)
        case "usage_rollup":
            return timedelta(days=31 * numbers.rollup_months)
        case _:
            return None


def contradictions(data_map: Iterable[Column], numbers: Policy | None = None) -> tuple[str, ...]:
    """Everything in the map that cannot be true at once, a sentence each; empty when it is sound."""
    columns = tuple(data_map)
    return (
        *(f"{column}: {why}" for column in columns for why in _column(column, numbers or policy())),
        *_duplicates(columns),
        *_tables(columns),
    )


def foreign_uses(reader: str, data_map: Iterable[Column], numbers: Policy | None = None) -> tuple[str, ...]:
    """Why the service `reader` may not hold this map, a sentence each: the policy does not know it, or not for this use."""
    return (numbers or policy()).uses.reader_troubles(reader, {column.use for column in data_map if column.personal})


def _column(column: Column, numbers: Policy) -> Iterator[str]:
    if not (_NAME.fullmatch(column.table) and _NAME.fullmatch(column.column)):
        yield "names are those of PostgreSQL: lower case, no schema, no quotes"
    unknown = [field for field, words in _VOCABULARIES.items() if getattr(column, field) not in words]
    if unknown:
        yield f"{', '.join(unknown)}: not in the vocabulary"
    elif isinstance(column.period, str) and column.period not in get_args(NamedPeriod):
        yield "period: not in the vocabulary"
    elif column.personal:
        yield from _personal(column, numbers)
    else:
        yield from _plain(column)


def _plain(column: Column) -> Iterator[str]:
    if (column.use, column.clock_start, column.on_erasure, column.ground) != ("none",) * 4 or column.period:
        yield "a use, a clock, an erasure or a ground, yet nothing personal"


def _personal(column: Column, numbers: Policy) -> Iterator[str]:
    if column.use == "none":
        yield "personal, but no use"
    if column.ground == "none":
        yield "personal, but no legal ground"
    if column.on_erasure == "none":
        yield "personal, but an erasure would not touch it"
    if column.clock_start == "none" or column.period is None:
        yield "personal, but no clock that ends it"
        return
    if isinstance(column.period, timedelta) and column.period <= timedelta(0):
        yield "the period is not positive"
    end = longest(column.period, numbers)
    # Maxima that the policy states for a kind of data or for a use of it, whatever a service would like.
    for what, days in (
        (column.category, numbers.ip_max_days if column.category == "user.device.ip_address" else None),
        (column.use, numbers.security_max_days if column.use == "essential.service.security" else None),
    ):
        if days is not None and (end is None or end > timedelta(days=days)):
            yield f"the period can be longer than the {days} days of {what}"
    if column.on_erasure == "expire" and (end is None or end > timedelta(days=numbers.erasure_cap_days)):
        yield f"an erasure waits for its clock, which can run longer than {numbers.erasure_cap_days} days"
    if column.on_erasure == "retain" and column.ground != "legal_obligation":
        yield "retained at erasure, but no law demands it"


def _duplicates(columns: Iterable[Column]) -> Iterator[str]:
    for (table, name), group in groupby(sorted((c.table, c.column) for c in columns)):
        if len(tuple(group)) > 1:
            yield f"{table}.{name}: declared twice"


def _tables(columns: Iterable[Column]) -> Iterator[str]:
    ordered = sorted(columns, key=lambda column: column.table)
    for table, group in groupby(ordered, key=lambda column: column.table):
        actions = {column.on_erasure for column in group}
        if "delete_row" in actions and actions & {"clear", "pseudonymise", "retain"}:
            yield f"{table}: an erasure deletes the row and keeps some of its columns"
