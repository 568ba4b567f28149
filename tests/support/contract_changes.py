"""What changed between two versions of the contract's documents, and what of it breaks somebody.

A change breaks if something that was an event is none any more, or no longer goes where it went.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_RISING = ("minimum", "minLength", "minItems")
_FALLING = ("maximum", "maxLength", "maxItems")
_EXACT = ("pattern", "format")


def breaking_schema(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Why an event of the old schema may not be one of the new schema, a sentence each; empty = compatible."""
    return list(_node("event", old, new, old, new))


def breaking_mesh(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What two AsyncAPI documents do not agree on and everybody relies on: topics, their keys, who may do what."""
    return list(_mesh(old, new))


def _mesh(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    for name, before in old["channels"].items():
        after = new["channels"].get(name)
        if after is None:
            yield f"{name}: the topic is gone"
            continue
        for message in before["messages"].keys() - after["messages"].keys():
            yield f"{name}: does not carry {message} any more"
        if before["x-key"] != after["x-key"]:
            yield f"{name}: the key was {before['x-key']!r} and is {after['x-key']!r}"
        if before["x-ordered-by-key"] and not after["x-ordered-by-key"]:
            yield f"{name}: is not ordered by key any more"
        partitions = [kafka["bindings"]["kafka"]["partitions"] for kafka in (before, after)]
        if before["x-partition-count-is-fixed"] and partitions[0] != partitions[1]:
            yield f"{name}: has {partitions[1]} partitions, {partitions[0]} were promised for its life"
    for name in old["operations"].keys() - new["operations"].keys():
        yield f"{name}: nobody does that any more"


def _node(path: str, old: Any, new: Any, old_root: Any, new_root: Any) -> Iterator[str]:
    before, after = _variants(old, old_root), _variants(new, new_root)
    for kind, one in before.items():
        if kind not in after:
            yield (
                f"{path}: may not be {kind} any more"
                if len(before) > 1
                else f"{path}: was {kind}, is {'|'.join(after)}"
            )
        else:
            yield from _same_kind(path, one, after[kind], old_root, new_root)


def _same_kind(path: str, old: Any, new: Any, old_root: Any, new_root: Any) -> Iterator[str]:
    yield from _limits(path, old, new)
    if "properties" in old or "properties" in new:
        yield from _members(path, old, new, old_root, new_root)
    for key, step in (("items", "[]"), ("additionalProperties", ".*"), ("propertyNames", ".<name>")):
        if isinstance(old.get(key), Mapping) and isinstance(new.get(key), Mapping):
            yield from _node(path + step, old[key], new[key], old_root, new_root)
    if "prefixItems" in old:
        places = new.get("prefixItems", [])
        if len(places) != len(old["prefixItems"]):
            yield f"{path}: had {len(old['prefixItems'])} places, has {len(places)}"
        for n, (before, after) in enumerate(zip(old["prefixItems"], places, strict=False)):
            yield from _node(f"{path}[{n}]", before, after, old_root, new_root)


def _members(path: str, old: Any, new: Any, old_root: Any, new_root: Any) -> Iterator[str]:
    members = new.get("properties", {})
    for name, member in old.get("properties", {}).items():
        if name not in members:
            yield f"{path}.{name}: is gone"
        else:
            yield from _node(f"{path}.{name}", member, members[name], old_root, new_root)
    for name in sorted(set(new.get("required", ())) - set(old.get("required", ()))):
        yield f"{path}.{name}: is required now"
    if old.get("additionalProperties", True) is True and new.get("additionalProperties", True) is False:
        yield f"{path}: is closed now"


def _limits(path: str, old: Any, new: Any) -> Iterator[str]:
    allowed = _allowed(new)
    for value in _allowed(old) or ():
        if allowed is not None and value not in allowed:
            yield f"{path}: may not be {value!r} any more"
    if _allowed(old) is None and allowed is not None:
        yield f"{path}: is restricted to {sorted(allowed, key=str)}"
    for name in _EXACT:
        if name in new and old.get(name) != new[name]:
            yield f"{path}: {name} was {old.get(name)!r} and is {new[name]!r}"
    for name in _RISING:
        if new.get(name, old.get(name)) is not None and (old.get(name) is None or new.get(name, 0) > old[name]):
            yield f"{path}: {name} was {old.get(name)} and is {new.get(name)}"
    for name in _FALLING:
        if name in new and (old.get(name) is None or new[name] < old[name]):
            yield f"{path}: {name} was {old.get(name)} and is {new[name]}"


def _allowed(node: Any) -> set[Any] | None:
    if "const" in node:
        return {node["const"]}
    return set(node["enum"]) if "enum" in node else None


def _variants(node: Any, root: Any) -> dict[str, Any]:
    """The node by the kinds of value that it takes."""
    while "$ref" in node:
        found = root
        for step in node["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        node = found
    if "anyOf" in node:
        return {kind: one for option in node["anyOf"] for kind, one in _variants(option, root).items()}
    return {node.get("type", "anything"): node}
