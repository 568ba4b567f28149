"""How long a connection is kept: a maximum, so rounded down; and what its row says of whom."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.security.access import (
    IP_LIFE,
    ROW_LIFE,
    address,
    first_day,
    judged,
    keeps_address,
    last_day,
    row,
)  # fmt: skip

DAY = timedelta(days=1)
NOON = datetime(2026, 12, 1, 12, tzinfo=UTC)
INSTANTS = st.datetimes(timezones=st.timezones(), allow_imaginary=False).filter(lambda at: 1970 < at.year < 9000)


def midnight(day: date) -> datetime:
    return datetime.combine(day, time(), UTC)


@pytest.mark.promise(15, 35)
@given(at=INSTANTS, life=st.sampled_from([IP_LIFE, ROW_LIFE]))
def test_a_maximum_is_rounded_down(at: datetime, life: timedelta) -> None:
    gone = midnight(last_day(at, life) + DAY)
    assert life - DAY < gone - at <= life
    day = at.astimezone(UTC).date()
    # The first day of which something may be there is the one whose last day is today.
    assert first_day(last_day(at, life), life) == day
    assert (IP_LIFE, ROW_LIFE) == (30 * DAY, 90 * DAY)


@pytest.mark.parametrize(
    ("age", "verdict", "addressed"),
    [
        (timedelta(0), "kept", True),
        (-timedelta(minutes=5), "kept", True),
        (-timedelta(minutes=5, microseconds=1), "future", True),
        (29.5 * DAY, "kept", True),
        (29.5 * DAY + timedelta(microseconds=1), "kept", False),
        (30 * DAY, "kept", False),
        (89.5 * DAY, "kept", False),
        (89.5 * DAY + timedelta(microseconds=1), "expired", False),
        (400 * DAY, "expired", False),
    ],
)
def test_what_is_kept_of_a_connection_of_some_age(age: timedelta, verdict: str, addressed: bool) -> None:
    assert judged(NOON - age, NOON) == verdict
    assert keeps_address(NOON - age, NOON) == addressed


def access(**changes: Any) -> Any:
    data = dict.fromkeys(("account", "workspace", "member", "key", "identity", "session")) | {
        "kind": "dashboard", "outcome": "ok", "agent": "browser",
    }  # fmt: skip
    return SimpleNamespace(id="an-id", time=NOON, data=SimpleNamespace(**(data | changes)))


def test_where_a_key_speaks_nothing_else_says_who() -> None:
    person = row(access(member="m", identity="i", session="s"))
    assert (person.member, person.identity, person.session, person.key_id) == ("m", "i", "s", None)
    key = row(access(member="m", identity="i", session="s", key="k", kind="api"))
    assert (key.member, key.identity, key.session, key.key_id) == ("m", None, None, "k")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("203.0.113.7", "203.0.113.7"),
        (" 203.0.113.7 ", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:DB8:0:0::7", "2001:db8::7"),
        ("fe80::1%eth0", "fe80::1"),
    ],
)
def test_an_address_has_one_form(text: str, canonical: str) -> None:
    assert address(text) == canonical


@pytest.mark.parametrize("text", ["", "203.0.113.777", "somebody@example.org", "203.0.113.7:443"])
def test_what_is_no_address_is_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not an IP address$"):
        address(text)
