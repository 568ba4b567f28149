"""Rights are no input to a price: what prices is not told of settings, restrictions or cases."""

from __future__ import annotations

import ast
import inspect
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from services.billing import charges, ledger
from services.metering import price_book, pricing
from services.metering.price_book import PriceBook
from services.metering.price_version import PriceVersion
from services.metering.usage import _KIND, Effects, Known, Priced, price
from shared.contract import events
from shared.contract.base import twin

AT = datetime(2026, 11, 24, 12, tzinfo=UTC)
AT_US = int(AT.timestamp()) * 1_000_000
BOOK = PriceBook(
    [PriceVersion("pv", "p", "m", "standard", {"input": Decimal("0.000001"), "output": Decimal("0.000003")}, "t")]
)
Usage = twin(events.Usage)

# All that a price may follow from: the model, the tier served, how it ended, what was used, whose key it was, and the offer
# of a discount for shared data, which is a contract and no right of anybody's.
OF_THE_REQUEST = {"provider", "model", "tier", "outcome", "finish_reason", "byok", "data_sharing", "tokens", "counts"}
# Words of settings, rights and people. None is a name in what prices.
OF_THE_PERSON = ("retention", "opt_out", "opted", "setting", "restrict", "case", "erased", "privacy", "member", "log_")


class Watched:
    """A usage that notes what is asked of it."""

    def __init__(self, usage: Any) -> None:
        self._usage, self.asked = usage, set[str]()

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._usage, name)


def usage(**changes: Any) -> Any:
    data: dict[str, Any] = {
        "account": "a", "workspace": "w", "key": "k", "model": "m", "provider": "p", "finish_reason": "stop",
        "input_tokens": 1000, "output_tokens": 10, "tokens": {"input": 1000, "output": 10},
    } | changes  # fmt: skip
    return msgspec.convert(data, Usage)


@pytest.mark.promise(16, 52)
def test_a_price_asks_a_request_for_nothing_but_the_request() -> None:
    asked = set()
    for changes in (
        {}, {"outcome": "failed"}, {"outcome": "cancelled"}, {"outcome": "cache_hit"}, {"byok": True}, {"data_sharing": True},
        {"finish_reason": None, "output_tokens": 0, "tokens": {"input": 1000}},
    ):  # fmt: skip
        watched = Watched(usage(**changes))
        assert isinstance(price(BOOK, watched, AT, AT), Priced)
        asked |= watched.asked
    assert asked <= OF_THE_REQUEST and {"tokens", "model"} <= asked
    # What the quick way groups by: nothing else tells two prices apart.
    watched = Watched(usage())
    _KIND(watched)
    assert watched.asked <= OF_THE_REQUEST


@pytest.mark.promise(16, 52)
@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled", "cache_hit"])
def test_a_line_is_the_same_to_the_byte_whatever_is_kept(outcome: str) -> None:
    """The way of `take`: what is plain goes the quick way, the rest the long one; only the log row differs."""
    lines = []
    for days in (0, 1, 30, 90):
        effects, one = Effects(6), usage(outcome=outcome, log_retention_days=days)
        event = type("Event", (), {"data": one, "time": AT})()
        record = type("Record", (), {"timestamp": AT_US // 1000})()
        rest = effects.add_plain(Known(BOOK), [(bytes(16), (event, record, AT_US, 0, bytes(16)))], AT_US)
        for line_id, _ in rest:
            priced = price(BOOK, one, AT, AT)
            assert isinstance(priced, Priced)
            effects.add(one, bytes(16), line_id, AT_US, priced, AT_US)
        ((_, _, units),) = effects.records()
        lines.append(msgspec.json.encode(units))
        assert len(effects.rows) == (days > 0)
    assert len(set(lines)) == 1


@pytest.mark.promise(52)
@pytest.mark.parametrize("module", [pricing, price_book, ledger, charges], ids=lambda module: module.__name__)
def test_what_prices_has_no_name_for_a_right(module: Any) -> None:
    """The modules that price are pure: what has no name there, as a parameter or a field, cannot change an amount."""
    tree = ast.parse(Path(inspect.getfile(module)).read_text(encoding="utf-8"))
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    names |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    found = {name for name in names for word in OF_THE_PERSON if word in name.lower()}
    # Usage of the erased is booked on nobody: whose line it is changes, and not what it costs.
    booked_on_nobody = {"erased", "erased_workspaces"} if module is charges else set()
    assert found <= booked_on_nobody, found
