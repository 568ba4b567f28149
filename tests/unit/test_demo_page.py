"""The demo's last page: it fits, it degrades, and it does not say that all is well when something is not."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from deploy.demo.account import Account, Found, ModelUse, compare
from deploy.demo.copy import Copy
from deploy.demo.deletion import Story
from deploy.demo.progress import Progress
from deploy.demo.run import choose
from deploy.demo.show import Page, bars, show

PICO = 10**12
BOOKS: dict[str, Any] = {
    "emitted": 110, "missing": 0, "rated": 92, "duplicates": 4, "conflicts": 1, "quarantined": 3, "dead_lettered": 3,
    "erased": 8, "charges_pico": str(30 * PICO), "recomputed_pico": str(30 * PICO), "ledger_sum_pico": "0", "journals": 12,
    "chain_ok": True, "balances_equal_replay": True, "errors": [], "warnings": [], "undetermined": [], "ok": True,
    "payments": {"records": 3, "repeated": 1},
}  # fmt: skip


def account() -> Account:
    return Account(
        emitted=110,
        rated=100,
        leaving=20,
        leaving_late=5,
        duplicates=4,
        conflicts=1,
        dead_lettered=Counter(malformed=2, empty=1),
        quarantined=Counter(unknown_model=3),
        by_model={"gpt-4o": ModelUse(90, 1_000, 200)},
        payments_sent=3,
        payments=2,
        purchases_pico=100 * PICO,
        refunds_pico=20 * PICO,
        grants_pico=5 * PICO,
        openings_pico=-PICO,
        credited=Counter({"amber-otter": 60 * PICO, "blue-heron": 24 * PICO, "fern-raven": 10 * PICO}),
    )


def found(**changes: Any) -> Found:
    right = Found(
        books=BOOKS,
        dead_letters={"malformed": 2, "empty": 1},
        quarantine={"unknown_model": 3},
        by_model={"gpt-4o": ModelUse(90, 1_000, 200)},
        ledger={
            "payment_clearing": 85 * PICO,
            "fees": -5 * PICO,
            "promotions": 5 * PICO,
            "opening": -PICO,
            "revenue": -30 * PICO,
            "breakage": -10 * PICO,
        },
        published={"amber-otter": 40 * PICO, "blue-heron": 14 * PICO},
        balances={"amber-otter": 40 * PICO, "blue-heron": 14 * PICO},
    )
    return replace(right, **changes)


def case(**changes: Any) -> dict[str, Any]:
    """A certified case, as retention's read tells it."""
    done = {"state": "done", "epoch": 1, "sends": 1}
    treated = {"columns": [], "remaining": 0, "retained": None, "not_after": None}
    gone = [
        treated | {"table": "request_log", "action": "delete_row", "rows": 429},
        treated | {"table": "rollup_daily", "action": "delete_row", "rows": 0},
        treated | {"table": "seen", "action": "expire", "rows": 0, "not_after": "2026-12-08T00:00:00Z"},
    ]
    law = {"ground": "legal_obligation", "until": "2034-01-01T00:00:00.000Z"}
    kept = [treated | {"table": f"entry_{n}", "action": "retain", "rows": 0, "retained": law} for n in range(9)]
    return {
        "id": "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b", "state": "certified", "subjects": 10,
        "requested_at": "2026-11-28T17:01:32.029Z", "confirmed_at": "2026-11-28T17:01:32.230Z",
        "completed_at": "2026-11-28T17:01:37.155Z", "ended_at": "2026-11-28T17:02:06.986Z",
        "holders": {"metering": done, "billing": done}, "auditor": done,
        "receipts": [
            {"holder": name, "action": "erase", "epoch": 1, "arrived_at": "2026-11-28T17:01:35Z", "body": {"treated": what}}
            for name, what in (("metering", gone), ("insights", []), ("billing", kept))
        ],
        "scans": [{"action": "sweep", "epoch": 2, "stores": [
            {"holder": "metering", "store": f"table-{n}", "verdict": "clean", "count": 0} for n in range(191)
        ]}],
        "mails": [
            {"template": "erasure_requested", "at": "2026-11-28T17:01:32.100Z"},
            {"template": "erasure_completed", "at": "2026-11-28T17:01:37.300Z"},
        ],
    } | changes  # fmt: skip


def story(**changes: Any) -> Story:
    sums = {"US": 0, "EU": 0}
    made = Story(
        account="acct-fern-raven", workspaces=["fern-raven", "rose-tern"], case=case(), sums_before=sums, sums_after=sums,
        mails=["Please confirm your deletion", "Your deletion is done"], credit_pico=75 * PICO, ended_pico=71 * PICO,
        sent=20, late=5, erased=8, dropped={"security": 4, "insights": 4}, certificate=Path("build/demo/certificate.json"),
        key=Path("build/demo/certificate.pem"), verdict="valid", copy=taken_along(),
    )  # fmt: skip
    return replace(made, **changes)


def taken_along(**changes: Any) -> Copy:
    made = Copy(
        "01a2", seconds=2.5, size=110_000, rows={"metering": 80, "retention": 9}, tables=7, logged=70, missing=12, whole=True,
        link="http://h/packages/1", link_afterwards=410,
    )  # fmt: skip
    return replace(made, **changes)


def page(**changes: Any) -> Page:
    lines = [
        {"unit": "input", "quantity": 1000, "billed": 1000, "unit_price_usd": "0.0000025", "exact_pico": "2500000000"},
        {"unit": "cache_read", "quantity": 7, "billed": 0, "unit_price_usd": "0.00000125", "exact_pico": "0"},
    ]
    explained: dict[str, Any] = {
        "generation_id": "01a20fae-aeaf-7b81-8799-5276a016baf1", "workspace": "amber-otter", "model": "gpt-4o",
        "provider": "openai", "outcome": "completed", "rule": "data_sharing", "tier": "batch>200000",
        "occurred_at": "2026-11-24T22:30:35.123456Z", "lines": lines, "exact_list_pico": "2500000000",
        "exact_pico": "4949999999/2", "amount_pico": "2475000000", "price_version": "pv_1", "price_source": "genai-prices 1",
        "line": 3, "booked": {
            "line": {"amount_pico": "2475000000"}, "journal": {"id": 7, "period": "2026-11"},
            "block": {"block": 2, "class": "US"},
        },
    }  # fmt: skip
    row = {"generations": 90, "input_tokens": 1_000, "output_tokens": 200, "amount_pico": "3.0E+13"}
    made = Page(
        seed=1,
        traces=(),
        usage=[row | {"model": "gpt-4o"}, *(row | {"model": f"model-with-a-rather-long-name-{n}"} for n in range(20))],
        spend={f"workspace-{n:02}": (50 - n) * PICO for n in range(30)},
        balances={f"workspace-{n:02}": (n - 3) * PICO for n in range(30)},
        letters=[{"reason": "malformed", "detail": "not a JSON document"}] * 2 + [{"reason": "empty", "detail": None}],
        quarantine=[{"reason": "unknown_model", "model": "lumen-3-preview", "n": 3}],
        waited=9,
        waited_model="lumen-2-large",
        books=BOOKS,
        deletion=story(),
        comparisons=compare(account(), found()),
        explains=[explained, explained | {"rule": "byok", "booked": None, "tier": "standard"}],
        records=113,
        flow_seconds=2.0,
        seconds=14.2,
        report=None,
    )
    return replace(made, **changes)


def printed(shown: Page, width: int, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    text = io.TextIOWrapper(raw, encoding=encoding, errors="strict", newline="")
    show(Console(file=text, width=width, highlight=False), shown)
    text.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("width", [50, 80, 100, 120, 200])
def test_every_line_fits(width: int) -> None:
    lines = printed(page(), width).splitlines()
    assert max(map(len, lines)) <= min(width, 120)
    assert "\x1b" not in "".join(lines), "no colours where no terminal is"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_output_that_is_not_utf_8_gets_plain_letters(encoding: str) -> None:
    text = printed(page(), 80, encoding)
    assert "yes" in text and "####" in text


def test_a_good_page_says_so() -> None:
    text = printed(page(report=Path("proof.json")), 100)
    assert page().holds
    assert "✗" not in text
    said = " ".join(text.split())
    assert "The books balance, and who left is forgotten. 113 events in 2.0 s" in said and "14.2 s in all." in said
    assert "proof.json" in text
    assert "4 workspaces have no credit left" in text


@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"books": BOOKS | {"rated": 93}}, "rated and erased"),
        ({"books": BOOKS | {"rated": 96, "erased": 4}}, "erased"),
        ({"books": BOOKS | {"rated": 96, "erased": 4}}, "rated"),
        ({"books": BOOKS | {"rated": 79, "erased": 21}}, "erased"),
        ({"books": BOOKS | {"rated": 79, "erased": 21}}, "rated"),
        ({"books": BOOKS | {"erased": None}}, "rated and erased"),
        ({"books": BOOKS | {"missing": 1}}, "missing"),
        ({"books": BOOKS | {"conflicts": 0}}, "of them conflicts"),
        ({"books": BOOKS | {"charges_pico": str(30 * PICO + 1)}}, "credit given less balances = charges"),
        ({"books": BOOKS | {"payments": {"records": 4, "repeated": 1}}}, "payment records"),
        ({"books": BOOKS | {"duplicates": None}}, "duplicates"),
        ({"dead_letters": {"malformed": 3}}, "dead letters by reason"),
        ({"quarantine": {"stale": 3}}, "quarantine by reason"),
        ({"by_model": {"gpt-4o": ModelUse(90, 1_001, 200)}}, "usage by model"),
        (
            {"ledger": {"payment_clearing": 85 * PICO, "fees": -5 * PICO - 1}},
            "credit bought, less refunds and disputes",
        ),
        (
            # The leaver's unused credit came to nothing, or to somebody.
            {"ledger": {"payment_clearing": 85 * PICO, "fees": -5 * PICO, "breakage": -10 * PICO + 1}},
            "credit given less balances = charges",
        ),
        ({"published": {"amber-otter": 40 * PICO}}, "balances published = billing's"),
        (
            {"published": {"amber-otter": 40 * PICO, "blue-heron": 14 * PICO + 1}},
            "credit given less balances = charges",
        ),
    ],
)
def test_one_wrong_figure_is_found_and_shown(wrong: dict[str, Any], where: str) -> None:
    comparisons = compare(account(), found(**wrong))
    assert where in [comparison.what for comparison in comparisons if not comparison.equal]
    bad = page(comparisons=comparisons)
    assert not bad.holds
    text = printed(bad, 100)
    assert "The books do NOT balance" in text
    assert "✗ The gateway's own account: differs" in text


@pytest.mark.parametrize(
    "change",
    [
        {"ok": False, "errors": ["a journal does not sum to zero"]},
        {"ok": False, "undetermined": ["a database could not be reached"]},
    ],
)
def test_books_that_are_not_proved_are_not_good_whatever_else_agrees(change: dict[str, Any]) -> None:
    bad = page(books=BOOKS | change)
    assert not bad.holds
    text = printed(bad, 100)
    assert "do NOT balance" in text and next(iter([*change.get("errors", ()), *change.get("undetermined", ())])) in text


def test_a_page_without_a_proof_at_all_can_be_shown() -> None:
    nothing = {"ok": False, "errors": [], "warnings": [], "undetermined": ["a database could not be reached"]}
    books = compare(account(), found(books=nothing))
    assert "not known" in printed(
        page(books=nothing, comparisons=books, usage=(), spend={}, letters=(), quarantine=()), 80
    )


# --- the deletion ------------------------------------------------------------------------------------------------


def deletion_of(shown: Page, width: int = 110) -> list[str]:
    lines = printed(shown, width).splitlines()
    return lines[lines.index(next(line for line in lines if line.startswith("An account is deleted"))) :]


def test_a_deletion_is_told_on_one_screen() -> None:
    lines = deletion_of(page())
    assert len(lines) <= 40
    text = " ".join(" ".join(lines).split())
    places = [text.index(word) for word in ("requested", "mail", "confirmed", "in effect", "completed", "certified")]
    assert places == sorted(places)
    assert "+ 34.9 s certified" in text or "+ 35.0 s certified" in text
    assert "metering request_log 429" in text and "seen: ends by 2026-12-08" in text
    assert "insights held nothing" in text
    assert "9 tables: legal obligation until 2034-01-01" in text
    assert "all 191 stores clean" in text
    assert "20 generations sent = 12 rated + 8 erased (of these 5 sent when it was gone); 8 sign-ins and clicks" in text
    assert "$4.00 of the credit were used" in text and "$71.00 ended unused" in text
    assert "steward certificate verify build/demo/certificate.json --trust build/demo/certificate.pem" in text


def test_a_deletion_that_is_only_completed_says_how_the_certificate_comes() -> None:
    waiting = case(state="sweeping", ended_at=None)
    shown = page(deletion=story(case=waiting, certificate=None, key=None, verdict=None))
    assert shown.holds, "it is done, and the certificate is a matter of time"
    text = " ".join(deletion_of(shown))
    assert "steward privacy certificate 019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b" in " ".join(text.split())
    assert "certified " not in text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"case": None, "trouble": "the mail with the code did not come"}, "the mail with the code did not come"),
        ({"case": case(state="wave_2", completed_at=None, ended_at=None), "certificate": None}, "It is not completed"),
        ({"verdict": "invalid"}, "certificate.json, invalid"),
        ({"sums_after": {"US": 0, "EU": 1}}, "✗ The books stand"),
        ({"sums_after": {"US": 0}}, "✗ The books stand"),
        ({"sums_before": {}}, "✗ The books stand"),
        ({"erased": 4}, "✗ What came late is dropped and counted"),
        ({"erased": 21}, "✗ What came late is dropped and counted"),
    ],
)
def test_a_deletion_that_is_not_done_is_not_told_as_one(changes: dict[str, Any], said: str) -> None:
    shown = page(deletion=story(**changes))
    assert not shown.holds and shown.balances_hold
    text = printed(shown, 110)
    assert said in " ".join(text.split())
    assert "the deletion does NOT hold." in text


def test_residue_is_marked_and_a_second_erasure_is_told() -> None:
    found = [{"holder": "metering", "store": "pending", "verdict": "residue", "count": 3}]
    again = case(scans=[{"action": "probe", "epoch": 1, "stores": found}])
    again["receipts"].append({**again["receipts"][0], "epoch": 2})
    text = " ".join(" ".join(deletion_of(page(deletion=story(case=again)))).split())
    assert "✗ The auditor looked: stores: 1 residue" in text
    assert text.count("in effect") == 1 and "again metering has erased once more" in text
    assert "metering request_log 858" in text, "what both took"


def test_the_live_table_shows_who_has_answered() -> None:
    steps = [
        ("case", "wave_1"),
        *((name, "done") for name in ("metering", "security", "retention")),
        ("billing", "later"),
    ]
    progress = Progress(("metering", "billing"), expected=10, deletion=lambda: steps)
    raw = io.StringIO()
    Console(file=raw, width=80, highlight=False).print(progress)
    assert "deletion erasing: metering security retention billing" in [
        line.rstrip() for line in raw.getvalue().splitlines()
    ]
    assert "deletion: case wave_1, metering done" in progress.line()


# --- parts -------------------------------------------------------------------------------------------------------


def test_the_arithmetic_of_an_explanation_is_exact() -> None:
    text = printed(page(), 100)
    assert "1,000 x $0.0000025 =" in text
    assert "not billed" in text and "price pv_1" in text
    assert "exactly $0.0024749999995, rounded once, half to even" in text


def test_a_bar_for_each_amount_in_proportion() -> None:
    amounts = [("a", 100 * PICO), ("b", 50 * PICO), ("c", 25 * PICO), ("d", PICO // 1000)]
    for count in range(1, 5):
        lines = [line.plain for line in bars(amounts[:count], 80, plain=True)]
        lengths = [line.count("#") for line in lines[:count]]
        assert len(lines) == count + 1, "one line for the dollars below"
        for (_, amount), length in zip(amounts, lengths, strict=False):
            assert abs(length / lengths[0] - amount / (100 * PICO)) < 0.05
        assert max(map(len, lines)) <= 80


def test_bars_without_room_become_a_list() -> None:
    lines = [line.plain for line in bars([("a-very-long-name", 100 * PICO), ("b", PICO)], 30, plain=False)]
    assert [line.strip() for line in lines] == ["a-very-long-name    $100.00", "b      $1.00"]
    assert [line.plain for line in bars([], 80, plain=False)] == ["nothing was spent"]


def test_the_chosen_generations_differ_in_what_they_show() -> None:
    def row(rule: str, tier: str, amount: int) -> dict[str, Any]:
        return {"rule": rule, "tier": tier, "amount_pico": str(amount), "generation_id": f"{rule} {tier}"}

    rows = [
        row("list", "standard", 9), row("list", "batch", 4), row("list", "standard>200000", 20), row("list", "batch>200000", 8),
        row("byok", "standard", 3), row("data_sharing", "priority", 2), row("cache_hit", "standard", 0),
    ]  # fmt: skip
    assert [r["generation_id"] for r in choose(rows)] == [
        "list standard>200000",
        "byok standard",
        "data_sharing priority",
    ]
    assert [r["generation_id"] for r in choose(rows[:2])] == ["list standard", "list batch"]
    assert choose([]) == []
