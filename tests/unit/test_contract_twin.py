"""The fast twin of an event and its pydantic model take and refuse the same documents, and read the same from them."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from shared.contract import events, topics
from shared.contract.base import Event, Refused, twin
from shared.contract.codec import Codec
from shared.contract.events import UNITS
from shared.contract.examples import example
from shared.contract.export import event_types

by_type = pytest.mark.parametrize("model", event_types(), ids=lambda model: model.TYPE)

# What a sender may put where something else belongs. Each value is wrong somewhere and right somewhere.
VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 89, 90, 91, 1000, 1001, 10**9, 10**12, 10**12 + 1, 2**63, 2**64, -(2**63) - 1, 10**30]),
    st.sampled_from([0.0, 1.0, -0.0, 1.5, 1e300]),
    st.integers(),
    st.sampled_from(
        [
            "",
            " ",
            "x",
            "X" * 63,
            "X" * 64,
            "X" * 65,
            "X" * 128,
            "X" * 129,
            "a\n",
            "\na",
            "a b",
            "a@b",
            "a/b",
            "-a",
            "é",
            "٣",
            "a\u0000",
            "null",
            "true",
            "0",
            "1",
            "-1",
            "+1",
            "01",
            "1.0",
            "1e3",
            "-0",
            "0.5",
            ".5",
            "5.",
            "1.0000000000000000000000001",
            "US",
            "us",
            "USA",
            "0000-2359",
            "2400-0100",
            "0900-0900",
            "1" * 30,
            "1" * 31,
            "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b",
            "019AB7D4-1E5A-7F00-8A1B-2C3D4E5F6A7B",
            "019ab7d4-1e5a-4f00-8a1b-2c3d4e5f6a7b",
            "0" * 32,
            "sealed:v1:k:" + "A" * 43 + ":" + "A" * 24,
            "sealed:v1:k::",
        ]
    ),
    st.text(max_size=70),
    st.sampled_from(UNITS),
    st.lists(st.sampled_from([*UNITS, 1, None]), max_size=3),
    st.dictionaries(st.sampled_from([*UNITS, "what", ""]), st.sampled_from([0, 1, 1.0, "1", None, True]), max_size=3),
)

_zone = st.sampled_from(["Z", "z", "", "+00:00", "-00:00", "+0000", "+01", "+24:00", "+23:59", " Z", "-01:00"])
_fraction = st.one_of(st.just(""), st.from_regex(r"[.,][0-9]{0,10}", fullmatch=True))
INSTANTS = st.builds(
    lambda day, gap, clock, fraction, zone: f"{day}{gap}{clock}{fraction}{zone}",
    st.sampled_from(
        ["2026-11-24", "0001-01-01", "0000-01-01", "9999-12-31", "2026-02-29", "2024-02-29", "26-11-24", "20261124"]
    ),
    st.sampled_from(["T", "t", " ", "_", ""]),
    st.sampled_from(["21:00:00", "00:00:00", "23:59:59", "23:59:60", "24:00:00", "21:00", "210000", "1:00:00"]),
    _fraction,
    _zone,
)


def paths(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document but its root."""
    found = [path] if path else []
    if isinstance(node, dict):
        return found + [p for key, value in node.items() for p in paths(value, (*path, key))]
    if isinstance(node, list):
        return found + [p for n, value in enumerate(node) for p in paths(value, (*path, n))]
    return found


@st.composite
def documents(draw: st.DrawFn, model: type[Event]) -> dict[str, Any]:
    """An event of the type with up to three changes, some of which leave it an event."""
    document = copy.deepcopy(example(model))
    for _ in range(draw(st.integers(0, 3))):
        path = draw(st.sampled_from(paths(document)))
        holder: Any = document
        for step in path[:-1]:
            holder = holder[step]
        change = draw(st.sampled_from(["replace", "replace", "instant", "remove", "add", "twice"]))
        if change == "replace":
            holder[path[-1]] = draw(VALUES)
        elif change == "instant":
            holder[path[-1]] = draw(INSTANTS)
        elif change == "remove":
            del holder[path[-1]]
        elif change == "add" and isinstance(holder, dict):
            holder[draw(st.sampled_from(["extra", "type", "original", "sequence", "counts", *UNITS]))] = draw(VALUES)
        elif isinstance(holder, list):
            holder.append(copy.deepcopy(holder[path[-1]]))
    return document


def _model_reads(model: type[Event], raw: bytes) -> Any:
    try:
        return model.model_validate_json(raw)
    except ValidationError:
        return None


def _twin_reads(model: type[Event], raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw, type=twin(model))
    except (msgspec.DecodeError, ValueError):
        return None


def _plain(value: Any) -> Any:
    """Attributes and elements as plain data, the same for a model and its twin."""
    if isinstance(value, datetime):
        return value.astimezone(UTC) if value.year not in (1, 9999) else (value.replace(tzinfo=None), value.utcoffset())
    if isinstance(value, BaseModel | msgspec.Struct):
        names = value.__struct_fields__ if isinstance(value, msgspec.Struct) else tuple(type(value).model_fields)
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def agree(model: type[Event], raw: bytes) -> None:
    """Fails unless model and twin say the same about `raw`."""
    by_model, by_twin = _model_reads(model, raw), _twin_reads(model, raw)
    assert (by_model is None) == (by_twin is None), (
        f"{'twin' if by_model is None else 'model'} alone takes {raw.decode(errors='replace')}"
    )
    if by_model is not None:
        assert _plain(by_model) == _plain(by_twin)


@by_type
@given(data=st.data())
def test_twin_and_model_agree(model: type[Event], data: st.DataObject) -> None:
    agree(model, json.dumps(data.draw(documents(model))).encode())


@by_type
def test_twin_and_model_agree_on_every_single_change(model: type[Event]) -> None:
    """Systematic, where chance may pass by: every place taken out, made null, made a number that is none, a list."""
    for path in paths(example(model)):
        values: tuple[Any, ...] = (None, True, 1.0, 1, "x", "x\n", [], {}, [[]], "2026-11-24T21:00:00")
        for value in values:
            document = copy.deepcopy(example(model))
            holder: Any = document
            for step in path[:-1]:
                holder = holder[step]
            holder[path[-1]] = value
            agree(model, json.dumps(document).encode())
            if isinstance(holder, dict):
                holder["undeclared"] = holder.pop(path[-1])
                agree(model, json.dumps(document).encode())
                del holder["undeclared"]
                agree(model, json.dumps(document).encode())


USAGE = json.dumps(example(events.GenerationCompleted))
TEXTS: dict[str, str] = {
    "as it is": USAGE,
    "white space": f" \n\t{USAGE}\r\n ",
    "an integral float": USAGE.replace("1812", "1812.0"),
    "an exponent": USAGE.replace("1812", "1.812e3"),
    "minus zero": USAGE.replace('"web_search": 1', '"web_search": -0'),
    "a leading zero": USAGE.replace("1812", "01812"),
    "not a number": USAGE.replace("1812", "NaN"),
    "infinity": USAGE.replace("1812", "Infinity"),
    "a lone surrogate": USAGE.replace("gateway-eu-1", "gateway-\\ud800"),
    "an escaped letter": USAGE.replace("gateway-eu-1", "gateway-\\u0065u-1"),
    "a raw control character": USAGE.replace("gateway-eu-1", "gateway\x01"),
    "a member said twice": USAGE.replace('"subject": "ws-204"', '"subject": "ws-1", "subject": "ws-204"'),
    "a bucket said twice": USAGE.replace('"input": 612', '"input": 1, "input": 612'),
    "something behind it": USAGE + " {}",
    "a comma too many": USAGE.replace("1812,", "1812,,"),
    "a byte order mark": "\ufeff" + USAGE,
    "cut off": USAGE[:-1],
    "an array": f"[{USAGE}]",
    "nothing": "",
}  # fmt: skip


@pytest.mark.parametrize("what", TEXTS)
def test_twin_and_model_agree_on_texts(what: str) -> None:
    agree(events.GenerationCompleted, TEXTS[what].encode("utf-8"))


def test_twin_and_model_agree_on_bytes_that_are_no_text() -> None:
    agree(events.GenerationCompleted, USAGE.encode().replace(b"gateway-eu-1", b"gateway-\xff"))


def test_a_line_is_an_array_of_seven() -> None:
    document = example(events.UsageRated)
    (line,) = document["data"]["units"][0]["lines"]
    names = events.RatedLine._fields
    for wrong in (dict(zip(names, line, strict=True)), line[:-1], [*line, 1], [], None):
        document["data"]["units"][0]["lines"] = [wrong]
        agree(events.UsageRated, json.dumps(document).encode())
        with pytest.raises(Refused):
            Codec(topics.USAGE_RATED).decode(json.dumps(document).encode())


LINE_ID, AMOUNT = 0, 6
BAD_LINES = (
    (LINE_ID, "0" * 31),
    (LINE_ID, "0" * 33),
    (LINE_ID, ""),
    (LINE_ID, "A" * 32),
    (LINE_ID, "0" * 31 + "\n"),
    (LINE_ID, "0" * 31 + " "),
    (LINE_ID, "0" * 31 + "\u0663"),
    (AMOUNT, ""),
    (AMOUNT, "1,2"),
    (AMOUNT, ","),
    (AMOUNT, "1\n"),
    (AMOUNT, "01"),
    (AMOUNT, "+1"),
    (AMOUNT, "--1"),
    (AMOUNT, "1" * 31),
    (AMOUNT, "\u0663"),
)


@pytest.mark.parametrize("lines", [1, 2, 40])
@pytest.mark.parametrize("bad", BAD_LINES, ids=repr)
def test_one_bad_line_among_many_is_refused(bad: tuple[int, str], lines: int) -> None:
    """The twin looks at all lines of a record at once: none may hide behind its neighbours."""
    document = example(events.UsageRated)
    (line,) = document["data"]["units"][0]["lines"]
    field, value = bad
    for place in {0, lines // 2, lines - 1}:
        document["data"]["units"][0]["lines"] = [copy.copy(line) for _ in range(lines)]
        agree(events.UsageRated, json.dumps(document).encode())
        Codec(topics.USAGE_RATED).decode(json.dumps(document).encode())
        document["data"]["units"][0]["lines"][place][field] = value
        agree(events.UsageRated, json.dumps(document).encode())
        with pytest.raises(Refused, match=rf"lines\.{place}\.{field}: "):
            Codec(topics.USAGE_RATED).decode(json.dumps(document).encode())


@pytest.mark.parametrize("amount", ["0", "-0", "-1", "1" * 30, "-" + "9" * 30])
def test_amounts_of_a_line_may_be_of_either_sign(amount: str) -> None:
    document = example(events.UsageRated)
    document["data"]["units"][0]["lines"][0][AMOUNT] = amount
    agree(events.UsageRated, json.dumps(document).encode())
    Codec(topics.USAGE_RATED).decode(json.dumps(document).encode())


@pytest.mark.parametrize("place", ["valid_from", "valid_to"])
def test_an_instant_without_a_zone_is_refused_wherever_it_stands(place: str) -> None:
    document = example(events.PricePublished)
    document["data"][place] = "2026-11-24T21:00:00"
    with pytest.raises(Refused, match="time zone"):
        Codec(topics.PRICES).decode(json.dumps(document).encode())
