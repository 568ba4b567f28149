"""The contract as committed in tests/golden: a change to it is seen, and a change that breaks somebody is named.

Accept a change with `.venv/bin/steward contract --out tests/golden` and commit the difference.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from shared.contract.base import Event
from shared.contract.codec import Codec
from shared.contract.examples import example
from shared.contract.export import documents, event_types, schema, write
from shared.contract.topics import TOPICS
from tests.support.contract_changes import breaking_mesh, breaking_schema

GOLDEN = Path(__file__).parents[1] / "golden"
ACCEPT = "accept it with `.venv/bin/steward contract --out tests/golden`, and commit the difference"

by_type = pytest.mark.parametrize("model", event_types(), ids=lambda model: model.TYPE)
Change = Callable[[dict[str, Any]], object]
_texts = cache(documents)


def test_the_contract_is_as_committed() -> None:
    committed = {
        path.relative_to(GOLDEN).as_posix(): path.read_text(encoding="utf-8")
        for path in (GOLDEN / "asyncapi.yaml", *sorted((GOLDEN / "schemas").glob("*.json")))
        if path.exists()
    }
    now = documents()
    if now == committed:
        return
    said = [f"{name}: is new" for name in now.keys() - committed.keys()]
    broken = [f"{name}: the event type is gone" for name in committed.keys() - now.keys()]
    for name in now.keys() & committed.keys():
        if now[name] != committed[name]:
            said.append(f"{name}: changed")
            broken += [f"{name}: {what}" for what in _breaking(name, committed[name], now[name])]
    lines = ["the contract is not as committed", *sorted(said)]
    if broken:
        lines += ["BREAKING, so a new version of the event type (vN+1) is due:", *sorted(broken)]
    pytest.fail("\n  ".join([*lines, ACCEPT]), pytrace=False)


def _breaking(name: str, old: str, new: str) -> list[str]:
    if name.endswith(".json"):
        return breaking_schema(json.loads(old), json.loads(new))
    return breaking_mesh(yaml.safe_load(old), yaml.safe_load(new))


def test_written_documents_are_the_documents(tmp_path: Path) -> None:
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "gone.v1.json").write_text("{}", encoding="utf-8")
    files = write(tmp_path)
    assert {path.relative_to(tmp_path).as_posix(): path.read_text(encoding="utf-8") for path in files} == documents()
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(files)


@by_type
def test_schemas_stand_alone_and_their_examples_are_events(model: type[Event]) -> None:
    document = json.loads(_texts()[f"schemas/{model.TYPE}.json"])
    validator = jsonschema.Draft202012Validator
    validator.check_schema(document)
    references = [ref for ref in _references(document) if not ref.startswith("#/$defs/")]
    assert not references, "a schema that needs another document"
    (shown,) = document["examples"]
    validator(document).validate(shown)
    topic = next(topic for topic in TOPICS if model in topic.events)
    event = Codec(topic).decode(json.dumps(shown).encode())
    assert event.type == model.TYPE


@by_type
def test_a_schema_refuses_what_the_decoder_refuses(model: type[Event]) -> None:
    validator = jsonschema.Draft202012Validator(schema(model))
    for path in _members(example(model)):
        changed = example(model)
        changed = copy.deepcopy(changed)
        at = changed
        for step in path[:-1]:
            at = at[step]
        at[path[-1]] = ["no", "member", "looks", "like", "this"]
        assert not validator.is_valid(changed), f"{'.'.join(map(str, path))} may be anything"


def test_asyncapi_document_refers_only_to_itself() -> None:
    document = yaml.safe_load(_texts()["asyncapi.yaml"])
    for reference in _references(document):
        assert reference.startswith("#/"), f"{reference} is another document"
        found = document
        for step in reference.removeprefix("#/").split("/"):
            found = found[step]
    for message in document["components"]["messages"].values():
        (shown,) = message["examples"]
        whole = {"components": document["components"], **message["payload"]}
        jsonschema.Draft7Validator(whole).validate(shown["payload"])


def test_asyncapi_document_names_writers_and_readers() -> None:
    document = yaml.safe_load(_texts()["asyncapi.yaml"])
    for topic in TOPICS:
        for action, parties in (("send", topic.writers), ("receive", topic.readers)):
            for party in parties:
                operation = document["operations"][f"{party}.{action}.{topic.name}"]
                assert operation["action"] == action
                assert operation["channel"] == {"$ref": f"#/channels/{topic.name}"}
        binding = document["channels"][topic.name]["bindings"]["kafka"]
        assert binding["partitions"] == topic.partitions
        if not topic.compacted:
            assert binding["topicConfiguration"]["retention.ms"] == topic.retention.total_seconds() * 1000


def _data(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["$defs"]["Usage"]
    return found


COMPATIBLE: dict[str, Change] = {
    "a new optional member": lambda d: _data(d)["properties"].update(region={"type": "string"}),
    "a wider enum": lambda d: _data(d)["properties"]["tier"]["enum"].append("slow"),
    "a higher limit": lambda d: _data(d)["properties"]["log_retention_days"].update(maximum=365),
    "no longer required": lambda d: _data(d)["required"].remove("key"),
    "another description": lambda d: _data(d).update(description="Something else."),
}
BREAKING: dict[str, tuple[Change, str]] = {
    "a member gone": (lambda d: _data(d)["properties"].pop("byok"), "event.data.byok: is gone"),
    "a new required member": (lambda d: _data(d)["required"].append("tier"), "event.data.tier: is required now"),
    "a narrower enum": (
        lambda d: _data(d)["properties"]["tier"]["enum"].remove("batch"),
        "event.data.tier: may not be 'batch' any more",
    ),
    "one name less": (
        lambda d: _data(d)["properties"]["tokens"]["propertyNames"]["enum"].remove("input_video"),
        "event.data.tokens.<name>: may not be 'input_video' any more",
    ),
    "another type": (
        lambda d: _data(d)["properties"].update(byok={"type": "string"}),
        "event.data.byok: was boolean, is string",
    ),
    "null refused": (
        lambda d: _data(d)["properties"]["generation_ref"]["anyOf"].pop(),
        "event.data.generation_ref: may not be null any more",
    ),
    "a lower limit": (
        lambda d: _data(d)["properties"]["log_retention_days"].update(maximum=30),
        "event.data.log_retention_days: maximum was 90 and is 30",
    ),
    "another pattern": (
        lambda d: d["properties"]["subject"].update(pattern="^x$"),
        "event.subject: pattern was '^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$' and is '^x$'",
    ),
    "another version": (
        lambda d: d["properties"]["type"].update(const="generation.completed.v2"),
        "event.type: may not be 'generation.completed.v1' any more",
    ),
}


def _usage_schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(_texts()["schemas/generation.completed.v1.json"])
    return found


@pytest.mark.parametrize("what", COMPATIBLE)
def test_compatible_changes_break_nobody(what: str) -> None:
    changed = _usage_schema()
    COMPATIBLE[what](changed)
    assert changed != _usage_schema()
    assert breaking_schema(_usage_schema(), changed) == []


@pytest.mark.parametrize("what", BREAKING)
def test_breaking_changes_are_named(what: str) -> None:
    change, sentence = BREAKING[what]
    changed = _usage_schema()
    change(changed)
    assert breaking_schema(_usage_schema(), changed) == [sentence]


def test_breaking_changes_of_the_mesh_are_named() -> None:
    old = yaml.safe_load(_texts()["asyncapi.yaml"])
    assert breaking_mesh(old, old) == []
    new = copy.deepcopy(old)
    payments, usage, prices = (topic.name for topic in _payments_usage_prices())
    new["channels"][payments]["x-key"] = "account"
    new["channels"][usage]["bindings"]["kafka"]["partitions"] = 12
    del new["channels"][prices]["messages"]["price.published.v1"]
    del new["operations"][f"metering.receive.{prices}"]
    assert sorted(breaking_mesh(old, new)) == [
        f"{payments}: the key was 'workspace' and is 'account'",
        f"{prices}: does not carry price.published.v1 any more",
        f"{usage}: has 12 partitions, 6 were promised for its life",
        f"metering.receive.{prices}: nobody does that any more",
    ]


def _payments_usage_prices() -> tuple[Any, Any, Any]:
    from shared.contract import topics

    return topics.PAYMENTS, topics.USAGE_RATED, topics.PRICES


def _references(node: Any) -> list[str]:
    if isinstance(node, list):
        return [ref for item in node for ref in _references(item)]
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [ref for value in node.values() for ref in _references(value)]
    return []


def _members(document: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values that are no arrays; an array takes what it is given element by element."""
    if isinstance(document, dict):
        found = [] if not path else [path]
        return found + [p for key, value in document.items() for p in _members(value, (*path, key))]
    if isinstance(document, list):
        return [
            p for n, value in enumerate(document) for p in _members(value, (*path, n)) if not isinstance(value, list)
        ]
    return [path]
