"""Whose is which part of an event."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from shared.contract.base import Event, twin
from shared.contract.events import UsageRated
from shared.contract.examples import example
from shared.contract.topics import TOPICS
from shared.contract.units import units

EVERY = [model for topic in TOPICS for model in topic.events]


@pytest.mark.parametrize("model", EVERY, ids=[model.TYPE for model in EVERY])
def test_every_event_has_units(model: type[Event]) -> None:
    event: Any = msgspec.convert(example(model), twin(model))
    found = units(event)
    assert found
    if model is UsageRated:
        assert [unit.part for unit in found] == list(event.data.units)
        assert found[0].subjects == (
            ("workspace", event.data.units[0].workspace),
            ("account", event.data.units[0].account),
        )
    else:
        assert [unit.part for unit in found] == [event]
