"""The contract as documents: `asyncapi.yaml` (AsyncAPI 3.0) and one self-contained JSON Schema for each event type.

Both are made from the topic table and the models alone, so they cannot say something else than the code. The same
input gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import yaml

from .base import Event
from .examples import example
from .topics import TOPICS, Topic

VERSION = "1.0.0"
"""Of the documents: the first number rises when an event type is taken away, the second when one is added."""

CONTENT_TYPE = "application/cloudevents+json"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_DEFS = "#/$defs/"
_SCHEMAS = "#/components/schemas/"


def write(folder: Path) -> list[Path]:
    """Writes every document below `folder` and returns the files; schemas of types that are gone are deleted."""
    wanted = documents()
    (folder / "schemas").mkdir(parents=True, exist_ok=True)
    for stale in (folder / "schemas").glob("*.json"):
        if f"schemas/{stale.name}" not in wanted:
            stale.unlink()
    for name, text in wanted.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in wanted]


def documents() -> dict[str, str]:
    """The text of every document, by its path below the output folder."""
    texts = {"asyncapi.yaml": _yaml(asyncapi())}
    for model in event_types():
        texts[f"schemas/{model.TYPE}.json"] = _json(schema(model))
    return texts


def event_types() -> list[type[Event]]:
    """Every event type of the contract, in the order of the topics."""
    return [model for topic in TOPICS for model in topic.events]


def schema(model: type[Event]) -> dict[str, Any]:
    """The event's JSON Schema (2020-12), with everything that it refers to and a valid instance."""
    body: dict[str, Any] = _tidy(model.model_json_schema())
    definitions = body.pop("$defs", {})
    head: dict[str, Any] = {"$schema": _DIALECT, "$id": f"urn:steward:event:{model.TYPE}", "title": model.TYPE}
    body.pop("title")
    return head | body | {"$defs": definitions, "examples": [example(model)]}


# --- AsyncAPI ----------------------------------------------------------------------------------------------------


def asyncapi() -> dict[str, Any]:
    """The AsyncAPI 3.0 document of the mesh: every topic, who sends and who receives, and every message."""
    components: dict[str, Any] = {"messages": {}, "schemas": {"EventHeaders": _HEADERS}}
    channels: dict[str, Any] = {}
    operations: dict[str, Any] = {}
    for topic in TOPICS:
        channels[topic.name] = _channel(topic)
        operations.update(_operations(topic))
        for model in topic.events:
            components["messages"][model.TYPE] = _message(topic, model)
            components["schemas"].update(_draft_7(model))
    return {
        "asyncapi": "3.0.0",
        "id": "urn:steward:mesh",
        "info": {
            "title": "Steward",
            "version": VERSION,
            "description": "The event mesh behind an AI gateway. Events are CloudEvents 1.0 in structured mode, JSON; "
            "times are UTC, amounts of money are whole pico-US-dollars as strings. Schemas are closed: a field that "
            "nobody declared is refused.",
        },
        "defaultContentType": CONTENT_TYPE,
        "channels": channels,
        "operations": operations,
        "components": components,
    }


# Headers repeat two members of the event, so that a record that cannot be read is still counted.
_HEADERS: Mapping[str, Any] = {
    "type": "object",
    "properties": {
        "content-type": {"type": "string", "const": CONTENT_TYPE},
        "ce_source": {"type": "string", "description": "The event's `source`."},
        "ce_sequence": {"type": "string", "description": "The event's `sequence`."},
    },
}


def _channel(topic: Topic) -> dict[str, Any]:
    settings = topic.config()
    configuration: dict[str, Any] = {"cleanup.policy": [settings["cleanup.policy"]]}
    for name in ("retention.ms", "delete.retention.ms"):
        if name in settings:
            configuration[name] = int(settings[name])
    return {
        "address": topic.name,
        "title": topic.title.split(":")[0].rstrip("."),
        "description": topic.title,
        "messages": {model.TYPE: {"$ref": f"#/components/messages/{model.TYPE}"} for model in topic.events},
        "bindings": {
            "kafka": {
                "topic": topic.name,
                "partitions": topic.partitions,
                "topicConfiguration": configuration,
                "bindingVersion": "0.5.0",
            }
        },
        "x-key": topic.key,
        "x-ordered-by-key": topic.ordered,
        "x-partition-count-is-fixed": topic.fixed_partitions,
        "x-personal-data": topic.personal,
        "x-after-erasure": dict(topic.after_erasure),
    }


def _operations(topic: Topic) -> Iterator[tuple[str, dict[str, Any]]]:
    channel = f"#/channels/{topic.name}"
    messages = [{"$ref": f"{channel}/messages/{model.TYPE}"} for model in topic.events]
    for action, parties in (("send", topic.writers), ("receive", topic.readers)):
        for party in parties:
            yield (
                f"{party}.{action}.{topic.name}",
                {
                    "action": action,
                    "channel": {"$ref": channel},
                    "title": f"{party} {action}s {topic.name}",
                    "messages": messages,
                },
            )


def _message(topic: Topic, model: type[Event]) -> dict[str, Any]:
    binding: dict[str, Any] = {"bindingVersion": "0.5.0"}
    if topic.key_of is not None or topic.compacted:
        binding["key"] = {"type": "string", "description": topic.key}
    return {
        "name": model.TYPE,
        "title": model.__name__,
        "summary": (model.__doc__ or "").strip().split("\n")[0],
        "contentType": CONTENT_TYPE,
        "headers": {"$ref": f"{_SCHEMAS}EventHeaders"},
        "payload": {"$ref": f"{_SCHEMAS}{model.__name__}"},
        "bindings": {"kafka": binding},
        "examples": [{"name": model.TYPE, "payload": example(model)}],
    }


def _draft_7(model: type[Event]) -> dict[str, Any]:
    """The model and all it refers to, in the dialect that AsyncAPI's own schema objects extend (draft 7)."""
    body = _rewritten(_tidy(model.model_json_schema()))
    definitions: dict[str, Any] = body.pop("$defs", {})
    return {model.__name__: body, **definitions}


def _rewritten(node: Any) -> Any:
    if isinstance(node, list):
        return [_rewritten(item) for item in node]
    if not isinstance(node, dict):
        return node
    changed: dict[str, Any] = {}
    for key, value in node.items():
        if key == "$ref":
            changed[key] = value.replace(_DEFS, _SCHEMAS)
        elif key == "prefixItems":
            changed["items"], changed["additionalItems"] = _rewritten(value), False
        else:
            changed[key] = _rewritten(value)
    return changed


# --- text --------------------------------------------------------------------------------------------------------


def _tidy(node: Any) -> Any:
    """Without the titles that only repeat a member's name."""
    if isinstance(node, list):
        return [_tidy(item) for item in node]
    if not isinstance(node, dict):
        return node
    tidy = {key: _tidy(value) for key, value in node.items()}
    for name, member in tidy.get("properties", {}).items():
        if isinstance(member, dict) and str(member.get("title", "")).lower().replace(" ", "_") == name:
            del member["title"]
    return tidy


def _json(document: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=2).decode() + "\n"


class _Plain(yaml.SafeDumper):
    """YAML without anchors: whoever reads one part sees it whole."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _yaml(document: Any) -> str:
    text: str = yaml.dump(msgspec.to_builtins(document), Dumper=_Plain, sort_keys=False, allow_unicode=True, width=100)
    return text
