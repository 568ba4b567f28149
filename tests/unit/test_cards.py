"""Card-shaped numbers: found however they are written, and not seen where numbers are long by right."""

from __future__ import annotations

import random
import uuid

import pytest
from annotated_types import Le
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from shared.contract.base import Event, text_pattern
from shared.contract.cards import holds_card, masked, may_hold_card
from shared.emitter.emitter import _NEVER_CARDS, EVENTS, free_texts

# Published test numbers of the issuers.
CARDS = (
    "4111111111111111", "4222222222222", "5555555555554444", "2223003122003222", "378282246310005", "30569309025904",
    "6011111111111117", "3530111333300000", "6200000000000005", "6759649826438453", "2200000000000004",
)  # fmt: skip


@pytest.mark.parametrize("card", CARDS)
@pytest.mark.parametrize("dress", ["{}", "gen-{}-b3", "card{}", "2026-11-24_{}", "{}.1", "x:{}:y"])
def test_a_card_is_found(card: str, dress: str) -> None:
    assert holds_card(dress.format(card))
    assert may_hold_card("ws-1\n" + dress.format(card) + "\nopenai") is not None


@given(st.sampled_from(CARDS), st.lists(st.sampled_from(["", "-", " ", ".", "_"]), min_size=19, max_size=19))
def test_separators_do_not_hide_it(card: str, between: list[str]) -> None:
    # The first two digits stand together on every card.
    shown = card[0] + "".join(digit + mark for digit, mark in zip(card[1:], between, strict=False))
    assert holds_card(shown.strip(" -._"))
    assert may_hold_card(shown) is not None


@given(st.sampled_from(CARDS), st.integers(1, 9))
def test_a_wrong_last_digit_is_no_card(card: str, more: int) -> None:
    assert not holds_card(card[:-1] + str((int(card[-1]) + more) % 10))


@pytest.mark.parametrize(
    "text",
    [
        "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b",  # a UUID
        "41111111-1111-4111-8111-411111111111",  # a UUID of decimal digits
        "gen-1764018000123-b3",  # milliseconds since 1970
        "claude-sonnet-4-5-20250929",
        "ab4111111111111111",  # a hash
        "1234567890123456",  # nobody issues it
        "acc-5512",
    ],
)  # fmt: skip
def test_ids_as_they_are_used_pass(text: str) -> None:
    assert not holds_card(text)


def test_random_ids_pass() -> None:
    source = random.Random(7)
    for _ in range(20_000):
        assert not holds_card(uuid.UUID(int=source.getrandbits(128)).hex)
        assert not holds_card(str(uuid.UUID(int=source.getrandbits(128), version=4)))


@pytest.mark.parametrize("model", EVENTS, ids=lambda model: model.TYPE)
def test_every_text_of_an_event_is_looked_at_or_cannot_be_a_card(model: type[Event]) -> None:
    """A field that the contract gains is looked at, unless its numbers are long by right or end below 13 digits."""
    data = model.model_fields["data"].annotation
    assert isinstance(data, type) and issubclass(data, BaseModel)
    looked_at = set(free_texts(model))
    assert "subject" in looked_at
    for name, info in data.model_fields.items():
        pattern = text_pattern(info)
        assert f"data.{name}" in looked_at or pattern is None or pattern in _NEVER_CARDS, name
        for meta in info.metadata:
            assert not isinstance(meta, Le) or int(str(meta.le)) <= 10**12, name
    assert looked_at & {"data.account", "data.provider", "data.member"}


def test_what_is_nested_holds_no_free_text() -> None:
    """`free_texts` looks at an event's own fields: a nested text of a new kind would have to be looked at as well."""
    for model in EVENTS:
        definitions = model.model_json_schema()["$defs"]
        outer = definitions.pop(getattr(model.model_fields["data"].annotation, "__name__", ""))
        assert outer["type"] == "object"
        for nested in [*definitions.values(), outer]:
            for member in nested["properties"].values():
                inside = [member.get("items", {}), member.get("additionalProperties", {})]
                if nested is not outer:
                    inside.append(member)
                for part in inside:
                    if isinstance(part, dict) and part.get("type") == "string":
                        assert "enum" in part or part["pattern"] in _NEVER_CARDS


@given(st.sampled_from(CARDS), st.binary(max_size=20), st.binary(max_size=20))
def test_no_digit_of_a_card_is_left_in_bytes(card: str, before: bytes, after: bytes) -> None:
    kept = masked(before + b" " + card.encode() + b" " + after)
    assert len(kept) == len(before) + len(card) + len(after) + 2
    assert card.encode() not in kept and card[4:].encode() not in kept
    assert masked(kept) == kept


@pytest.mark.parametrize(
    "raw",
    [
        b'{"id":"019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b","data":{"input_tokens":1812}}',
        b'{"id":"41111111-1111-4111-8111-411111111111"}',
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"\xff\x00 not json",
    ],
)
def test_bytes_without_a_card_stay_as_they_are(raw: bytes) -> None:
    assert masked(raw) == raw
