"""No field of the contract has room for content, or for what signs somebody in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest

from shared.contract import topics

PROMPT = "Write a poem about my neighbour Anna, please"
# A bearer token in the forms that are usual: JSON Web Token, base64 with its padding.
TOKENS = ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiI0MiJ9.c2lnbmF0dXJl", "Kx9+/bT4pQ==")
SEALED = "^sealed:"
# What the mesh alone writes: facts of a mail (dates, numbers, ids); price version and tier of a rated line.
WRITTEN_BY_US = {("message.requested.v1", "facts"), ("usage.rated.v1", "lines")}
CREDENTIAL = re.compile(r"token|secret|password|cookie|bearer|credential|authorization|jwt", re.IGNORECASE)
CONTENT = re.compile(r"^(prompt|messages?|completion|content|answer|response|input_text|output_text|body)$")
COUNTS = {"input_tokens", "output_tokens", "above_input_tokens", "tokens"}


def strings(schema: Any, root: Any, name: str, seen: tuple[str, ...] = ()) -> Iterator[tuple[str, dict[str, Any]]]:
    """(name of the field, schema) of every text in a schema, keys of objects included."""
    if "$ref" in schema:
        way = schema["$ref"].rpartition("/")[2]
        if way not in seen:
            yield from strings(root["$defs"][way], root, name, (*seen, way))
        return
    if schema.get("type") == "string":
        yield name, schema
    for each in (*schema.get("anyOf", ()), *schema.get("prefixItems", ())):
        yield from strings(each, root, name, seen)
    for inner in ("items", "additionalProperties", "propertyNames"):
        if isinstance(schema.get(inner), dict):
            yield from strings(schema[inner], root, name, seen)
    for pattern, each in schema.get("patternProperties", {}).items():
        yield name, {"pattern": pattern}
        yield from strings(each, root, name, seen)
    for field, each in schema.get("properties", {}).items():
        yield from strings(each, root, field, seen)


def fields() -> list[tuple[str, str, dict[str, Any]]]:
    """(event type, field, schema) of every text of the contract."""
    found = []
    for topic in topics.TOPICS:
        for model in topic.events:
            schema = model.model_json_schema()
            found += [(model.TYPE, name, each) for name, each in strings(schema, schema, "")]
    return found


def fits(schema: dict[str, Any], text: str) -> bool:
    """Whether a text could stand there."""
    if "const" in schema or "enum" in schema or schema.get("format") == "date-time":
        return False
    pattern = schema.get("pattern")
    return (pattern is None or re.search(pattern, text) is not None) and len(text) <= schema.get("maxLength", 10**9)


@pytest.mark.promise(25)
@pytest.mark.promise(28)
def test_no_text_of_the_contract_takes_a_sentence_but_sealed() -> None:
    texts = fields()
    assert len(texts) > 300
    for text in (PROMPT, "please help"):
        assert {(kind, name) for kind, name, schema in texts if fits(schema, text)} <= WRITTEN_BY_US
    by_gateway = {model.TYPE for topic in topics.TOPICS if "gateway" in topic.writers for model in topic.events}
    assert not by_gateway & {kind for kind, _ in WRITTEN_BY_US}
    assert sorted({(kind, name) for kind, name, _ in texts if CONTENT.match(name)}) == []


@pytest.mark.promise(37)
def test_no_field_is_for_what_signs_somebody_in() -> None:
    for kind, name, schema in fields():
        if CREDENTIAL.search(name) and name not in COUNTS:
            assert str(schema.get("pattern", "")).startswith(SEALED), (kind, name)
    sessions = [schema for _, name, schema in fields() if "session" in name]
    assert len(sessions) == 1
    assert not any(fits(schema, token) for schema in sessions for token in TOKENS)


def test_the_lint_sees_a_field_that_takes_content() -> None:
    wild = {"properties": {"note": {"anyOf": [{"type": "string", "maxLength": 500}, {"type": "null"}]}}}
    assert [(name, fits(schema, PROMPT)) for name, schema in strings(wild, wild, "")] == [("note", True)]
