"""What stands beside the case's machine: its clocks, whom it is about, its codes, and holds."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from services.notifications.codes import ALPHABET, draw
from services.retention import hold as holds
from services.retention.case import Asked, Case, Confirmed, Progress, Timing, World, closure, step
from services.retention.clocks import at_risk, clocks, closes_at, due_at
from services.retention.hold import Hold
from services.retention.speed import Speeds
from services.retention.subjects import Known, circle, left_alone, lost_pico, stranger
from shared.policy import policy

START = datetime(2026, 3, 1, tzinfo=UTC)
HOUR, DAY = timedelta(hours=1), timedelta(days=1)
HOLDERS = ("metering", "billing")


# --- clocks -------------------------------------------------------------------------------------------------------


def confirmed(after: timedelta) -> Case:
    return step(Case("c", "account", START), Confirmed(True), World(START + after, HOLDERS))[0]


def test_the_earliest_open_clock_is_the_due_date() -> None:
    case = replace(confirmed(5 * DAY), requests=(Asked("c", START),))
    ends = {name: policy().clock(name, START).ends_at for name in ("acknowledgement", "answer", "ccpa")}
    assert due_at(case, policy()) == ends["acknowledgement"]
    heard = replace(case, requests=(Asked("c", START, START + HOUR),))
    assert due_at(heard, policy()) == ends["answer"] < ends["ccpa"] == START + 45 * DAY
    # Answered, though not certified: what is left is the deletion's own clock.
    assert due_at(replace(heard, answered_at=START + 6 * DAY), policy()) == START + 35 * DAY
    assert due_at(replace(heard, state="withdrawn", ended_at=START + DAY), policy()) is None


def test_each_request_of_a_wish_has_clocks_of_its_own() -> None:
    later = START + 3 * DAY
    case = replace(confirmed(5 * DAY), requests=(Asked("c", START, START + HOUR), Asked("d", later)))
    found = [(one.name, one.starts_at) for one in clocks(case, policy()) if one.name != "erasure"]
    assert found == [(name, at) for at in (START, later) for name in ("acknowledgement", "answer", "ccpa")]
    # The second request is not acknowledged yet, and that is due before the first one's answer.
    assert due_at(case, policy()) == policy().clock("acknowledgement", later).ends_at


def test_a_breach_is_forecast_before_it_happens() -> None:
    case = replace(confirmed(timedelta(0)), requests=(Asked("c", START, START + HOUR),), state_at=START)

    def risks(case: Case, n: int) -> tuple[str, ...]:
        return at_risk(case, START + n * DAY, Timing(), policy(), Speeds())

    at = [n for n in range(40) if "erasure" in risks(case, n)]
    # A holder that has been silent for eleven days is expected back after eleven more; then come the eight until
    # compacted topics have forgotten.
    assert at and 9 <= at[0] <= 12 and at == list(range(at[0], 40))
    assert min(n for n in range(40) if (due_at(case, policy()) or START) <= START + n * DAY) > min(
        n for n in range(40) if risks(case, n)
    )
    answers = replace(case, moved_at=START + 20 * DAY, completed_at=START + 20 * DAY, state="completed",
                      answered_at=START + 9 * DAY,
                      holders={name: Progress(name, 1, 1) for name in HOLDERS})  # fmt: skip
    assert not risks(answers, 21)


def test_a_closed_accounts_clock_runs_from_its_closing() -> None:
    opens = closes_at(START, policy())
    assert opens == START + 28 * DAY
    case = replace(closure("c", START, World(opens, HOLDERS))[0], state_at=opens)
    assert due_at(case, policy()) == START + 30 * DAY
    assert {one.name: one.promise for one in clocks(case, policy())} == {"closure": 33, "erasure": 45}
    assert not at_risk(case, opens + HOUR, Timing(), policy(), Speeds())
    assert at_risk(case, opens + DAY, Timing(), policy(), Speeds())


# --- whom it is about ---------------------------------------------------------------------------------------------

KNOWN = Known(
    identity="id-1",
    workspaces={"ws-1": "acc-1", "ws-2": "acc-1", "ws-9": "acc-9"},
    roles={
        ("ws-1", "kim"): "administrator", ("ws-1", "lee"): "member", ("ws-2", "kim"): "administrator",
        ("ws-2", "lee"): "administrator", ("ws-9", "kim"): "member",
    },
    keys={"key-1": ("ws-1", "kim"), "key-2": ("ws-2", "lee"), "key-3": ("ws-9", "kim"), "key-4": ("ws-9", None)},
    credit_pico={"ws-1": 5, "ws-2": -7},
)  # fmt: skip


def test_an_account_takes_all_that_is_its_own() -> None:
    everybody = circle("account", "acc-1", KNOWN, {"ws-1": "lee"})
    assert everybody.subjects == (
        ("account", "acc-1"), ("identity", "id-1"), ("workspace", "ws-1"), ("workspace", "ws-2"), ("key", "key-1"),
        ("key", "key-2"),
    )  # fmt: skip
    assert lost_pico(everybody, KNOWN) == 5


def test_a_member_takes_what_nobody_else_administers() -> None:
    assert left_alone("member", "kim", KNOWN) == ("ws-1",)
    alone = circle("member", "kim", KNOWN, {})
    assert set(alone.subjects) == {("member", "kim"), ("workspace", "ws-1"), ("key", "key-1"), ("key", "key-3")}
    for nobody in ("kim", "mallory"):
        assert circle("member", "kim", KNOWN, {"ws-1": nobody}) == alone
    handed = circle("member", "kim", KNOWN, {"ws-1": "lee", "ws-2": "lee"})
    assert handed.of("workspace") == () and handed.handed_over == {"ws-1": "lee"}
    assert circle("workspace", "ws-9", KNOWN, {}).subjects == (
        ("workspace", "ws-9"),
        ("key", "key-3"),
        ("key", "key-4"),
    )


@pytest.mark.parametrize(
    ("scope", "account", "target", "expected"),
    [
        ("account", "acc-1", "acc-1", False), ("account", "acc-1", "acc-2", True),
        ("workspace", "acc-1", "ws-1", False), ("workspace", "acc-1", "ws-9", True),
        ("workspace", "acc-1", "unknown", False), ("member", "acc-9", "kim", False), ("member", "acc-9", "lee", True),
        ("member", "acc-9", "unknown", False),
    ],
)  # fmt: skip
def test_nobody_erases_what_is_known_to_be_somebody_elses(
    scope: str, account: str, target: str, expected: bool
) -> None:
    assert stranger(scope, account, target, KNOWN) is expected


# --- codes --------------------------------------------------------------------------------------------------------


def test_codes_have_no_look_alikes_and_no_favourites() -> None:
    bits = random.Random(1).getrandbits
    drawn = [draw(bits) for _ in range(4_000)]
    assert all(len(code) == 8 for code in drawn) and len(set(drawn)) == 4_000
    counts = Counter("".join(drawn))
    assert set(counts) == set(ALPHABET) and not set("01ILO") & set(counts)
    assert max(counts.values()) < 1.15 * min(counts.values())


# --- holds --------------------------------------------------------------------------------------------------------


def test_a_hold_ends_with_its_time_and_what_it_kept_is_destroyed() -> None:
    now, timing = START, Timing()
    hold = Hold("h", "security", START + 90 * DAY, due_at=START)
    hold, order, _ = holds.tick(hold, now, timing)
    assert order == "hold" and holds.tick(hold, now, timing)[1] is None
    assert holds.receipt(hold, "release", 1, now) is hold and holds.receipt(hold, "hold", 2, now) is hold
    hold = holds.receipt(hold, "hold", 1, now)
    assert hold.state == "held" and holds.tick(hold, now + 89 * DAY, timing)[0] is hold
    hold, order, _ = holds.tick(hold, now + 90 * DAY, timing)
    assert (hold.state, order, hold.epoch) == ("releasing", "release", 2)
    hold, order, _ = holds.tick(hold, now + 91 * DAY, timing)
    assert order == "release" and hold.sends == 2
    assert hold.silent(now + 92 * DAY, timing)
    hold = holds.receipt(hold, "release", 2, now + 92 * DAY)
    hold, order, key_over = holds.tick(hold, now + 92 * DAY, timing)
    assert (hold.state, order, key_over) == ("released", None, True)
    assert holds.tick(hold, now + 93 * DAY, timing)[2] is False and holds.released(hold, now) is hold
