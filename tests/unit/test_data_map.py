"""The data map: short to write, and refused when it contradicts itself."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from shared.policy import policy
from shared.privacy import Column, by_column, contradictions, personal, plain
from shared.privacy.data_map import DataUse, longest

DAY = timedelta(days=1)

REQUEST = Column(
    table="request_log",
    column="workspace_id",
    category="user.unique_id",
    use="essential.service.operations",
    clock_start="request",
    period="request_log",
    on_erasure="delete_row",
    ground="contract",
)
ADDRESS = replace(REQUEST, column="ip", category="user.device.ip_address", period=30 * DAY)


def test_a_sound_map_has_no_contradictions() -> None:
    data_map = (
        *plain("prices", "model", "version"),
        *plain("cursors", "epoch", category="system.operations"),
        REQUEST,
        ADDRESS,
    )
    assert contradictions(data_map) == ()


def test_plain_columns_are_not_personal() -> None:
    model, version = plain("prices", "model", "version")
    assert (model.table, model.column, version.column) == ("prices", "model", "version")
    assert not model.personal
    assert REQUEST.personal
    assert str(model) == "prices.model"


def test_columns_that_share_a_classification_are_written_once() -> None:
    columns = personal(
        "request_log",
        "workspace_id",
        "account_id",
        category="user.unique_id",
        use="essential.service.operations",
        clock_start="request",
        period="request_log",
        on_erasure="delete_row",
        ground="contract",
    )
    assert columns == (REQUEST, replace(REQUEST, column="account_id"))


def test_by_column_finds_an_entry_and_refuses_a_second_one() -> None:
    assert by_column((REQUEST, ADDRESS))["request_log", "ip"] is ADDRESS
    with pytest.raises(ValueError, match=r"request_log\.ip is declared twice"):
        by_column((ADDRESS, replace(ADDRESS, period=DAY)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"clock_start": "none"}, "no clock that ends it"),
        ({"period": None}, "no clock that ends it"),
        ({"period": timedelta(0)}, "not positive"),
        ({"use": "none"}, "no use"),
        ({"ground": "none"}, "no legal ground"),
        ({"on_erasure": "none"}, "an erasure would not touch it"),
        ({"on_erasure": "retain"}, "no law demands it"),
        ({"on_erasure": "expire"}, "can run longer than 30 days"),
        ({"category": "none"}, "yet nothing personal"),
        ({"use": "essential.service.security", "period": 91 * DAY}, "90 days of essential.service.security"),
        ({"category": "user.device.ip_address", "period": 31 * DAY}, "30 days of user.device.ip_address"),
        ({"category": "user.device.ip_address"}, "30 days of user.device.ip_address"),
        (
            {"category": "user.device.ip_address", "period": "billing_record"},
            "30 days of user.device.ip_address",
        ),
        ({"column": "Workspace"}, "lower case"),
        ({"table": "billing.lines"}, "lower case"),
        # What may never be kept, and never be a purpose, is no word of the vocabulary.
        ({"category": "user.financial.credit_card"}, "category: not in the vocabulary"),
        ({"category": "user.authorization.password"}, "category: not in the vocabulary"),
        ({"use": "marketing.advertising"}, "use: not in the vocabulary"),
        ({"period": "for_ever"}, "period: not in the vocabulary"),
    ],
)
def test_a_contradiction_is_named(change: dict[str, Any], says: str) -> None:
    (sentence,) = contradictions([replace(REQUEST, **change)])
    assert says in sentence
    assert sentence.startswith(f"{change.get('table', 'request_log')}.")


def test_a_column_that_is_declared_twice() -> None:
    assert contradictions([REQUEST, REQUEST]) == ("request_log.workspace_id: declared twice",)


def test_a_row_is_either_deleted_or_kept() -> None:
    kept = replace(REQUEST, column="amount", on_erasure="retain", ground="legal_obligation")
    assert contradictions([REQUEST, kept]) == ("request_log: an erasure deletes the row and keeps some of its columns",)


def test_a_short_clock_may_outlast_an_erasure_command() -> None:
    seen = replace(REQUEST, category="user.unique_id.pseudonymous", clock_start="id_day", on_erasure="expire")
    assert contradictions([replace(seen, period="deduplication_window")]) == ()


def test_periods_follow_the_policy() -> None:
    assert longest(3 * DAY) == 3 * DAY
    assert longest("deduplication_window") == policy().window
    assert longest("request_log", replace(policy(), request_log_max_days=40)) == 40 * DAY
    assert longest("account_closure") == 30 * DAY
    assert longest("usage_rollup") == 31 * policy().rollup_months * DAY
    assert longest("billing_record") is None
    assert longest(None) is None


def test_a_longer_policy_can_contradict_a_map() -> None:
    use: DataUse = "essential.service.security"
    watched = replace(REQUEST, use=use)
    assert contradictions([watched], replace(policy(), request_log_max_days=90)) == ()
    assert contradictions([watched], replace(policy(), rollup_months=3)) == ()
    assert contradictions([replace(watched, period="usage_rollup")], replace(policy(), rollup_months=3))
