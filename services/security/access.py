"""What of a connection is kept, and until when. A maximum is rounded down: whole days that end no later than it."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from ipaddress import IPv6Address, ip_address
from typing import Any, Literal, NamedTuple

from shared.policy import policy

ROW_LIFE = timedelta(days=policy().security_max_days)
IP_LIFE = timedelta(days=policy().ip_max_days)
_DAY = timedelta(days=1)

Verdict = Literal["kept", "expired", "future"]


class Row(NamedTuple):
    """One row of `access_row`, in the order of its columns."""

    expires_on: date
    event_id: str
    occurred_at: datetime
    account: str | None
    workspace: str | None
    member: str | None
    key_id: str | None
    identity: str | None
    session: str | None
    kind: str
    outcome: str
    agent: str


def last_day(at: datetime, life: timedelta) -> date:
    """The last day (UTC) on which what began at `at` may be there: it ends no later than `life` after `at`."""
    return (at.astimezone(UTC) + life).date() - _DAY


def first_day(today: date, life: timedelta) -> date:
    """The first day (UTC) of whose connections something may be there `today`."""
    return today - life + _DAY


def judged(at: datetime, now: datetime) -> Verdict:
    """Whether a connection at `at` may leave a row, or why not."""
    if last_day(at, ROW_LIFE) < now.astimezone(UTC).date():
        return "expired"
    return "future" if at > now + policy().future else "kept"


def keeps_address(at: datetime, now: datetime) -> bool:
    """Whether the address of a connection at `at` may still be there."""
    return last_day(at, IP_LIFE) >= now.astimezone(UTC).date()


def row(event: Any) -> Row:
    """The connection as a row. Where an API key speaks, nothing else says who: the row is the workspace's."""
    data = event.data
    identity, session = (None, None) if data.key is not None else (data.identity, data.session)
    return Row(
        last_day(event.time, ROW_LIFE), event.id, event.time, data.account, data.workspace, data.member, data.key,
        identity, session, data.kind, data.outcome, data.agent,
    )  # fmt: skip


def address(text: str) -> str:
    """An IP address in its one canonical form; IPv4 in IPv6 is IPv4. Raises ValueError, without the text."""
    try:
        found = ip_address(text.strip())
    except ValueError:
        raise ValueError("not an IP address") from None
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return found.compressed.partition("%")[0]


def place(event_id: str) -> str:
    """Where a connection's sealed address stands: it opens nowhere else."""
    return f"access_ip.address:{event_id}"
