"""What an overlay makes of what is rendered: it may add, and change what depends on the place; the rest is the code's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from deploy.k8s import render
from deploy.k8s.checks.objects import Overlay
from deploy.k8s.checks.references import secrets_of

_Place: TypeAlias = tuple[str, ...]

_POD = ("spec", "template", "spec")
# What depends on the place: how much there is of it, whose images, which store. Policies and rights are not compared: what they
# come to is (`reach`, `privilege`).
_FREE: Mapping[str, tuple[_Place, ...]] = {
    "Deployment": (
        ("spec", "replicas"),
        (*_POD, "containers", "*", "image"),
        (*_POD, "containers", "*", "imagePullPolicy"),
        (*_POD, "containers", "*", "resources", "requests", "cpu"),
        # Its name has a hash of what is in it (`references` looks for it).
        (*_POD, "containers", "*", "envFrom"),
    ),
    "KafkaTopic": (("spec", "replicas"), ("spec", "config", "min.insync.replicas")),
    "KafkaUser": (("spec", "authorization", "acls"),),
    "NetworkPolicy": (("spec",),),
    "Cluster": (
        ("spec", "imageName"),
        ("spec", "instances"),
        ("spec", "storage"),
        ("spec", "walStorage"),
        ("spec", "resources"),
        ("spec", "postgresql", "synchronous"),
        ("spec", "postgresql", "parameters"),
    ),
    "ExternalSecret": (("spec", "refreshInterval"), ("spec", "secretStoreRef"), ("spec", "data")),
}
# Where an addition changes what is said: a role's attributes, a topic's settings, by what is scaled.
_WHOLE = ("DatabaseRole", "KafkaTopic", "PodDisruptionBudget", "ScaledObject", "TriggerAuthentication")


def check(overlay: Overlay) -> list[str]:
    """A sentence for each thing that the code says and the overlay does not: missing, or something else."""
    there = {_key(doc): doc for doc in overlay.docs}
    said = []
    for path, docs in render.objects().items():
        # A component is a choice; who takes a part of it takes all of it.
        if path.startswith("components/") and not any(_key(doc) in there for doc in docs):
            continue
        for doc in docs:
            kind, name = doc["kind"], doc["metadata"]["name"]
            if (found := there.get(_key(doc))) is None:
                said.append(f"{kind} {name} is missing")
                continue
            said += [f"{kind} {name}: {each}" for each in _differs(doc, found, (), _FREE.get(kind, ()))]
            if kind == "Deployment":
                more = sorted(secrets_of(found) - secrets_of(doc))
                said += [f"Deployment {name}: it is given the secret {each}, and no code needs it" for each in more]
            if kind in _WHOLE:
                said += [
                    f"{kind} {name}: {each}, which the code does not say"
                    for each in _added(doc["spec"], found["spec"], ())
                ]
    return said


def _key(doc: Mapping[str, Any]) -> tuple[str, str | None, str]:
    return doc["kind"], doc["metadata"].get("namespace"), doc["metadata"]["name"]


def _differs(wanted: Any, found: Any, place: _Place, free: tuple[_Place, ...]) -> Iterator[str]:
    if any(len(each) == len(place) and all(a in ("*", b) for a, b in zip(each, place, strict=True)) for each in free):
        return
    wanted, found = _aligned(wanted, found)
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        for key, value in wanted.items():
            yield from _differs(value, found.get(key), (*place, key), free)
    elif wanted != found:
        yield f"{'.'.join(place)} is {'missing' if found is None else repr(found)}, and the code says {wanted!r}"


def _added(wanted: Any, found: Any, place: _Place) -> Iterator[str]:
    wanted, found = _aligned(wanted, found)
    if isinstance(wanted, Mapping) and isinstance(found, Mapping):
        yield from (f"{'.'.join((*place, key))} is {found[key]!r}" for key in found.keys() - wanted.keys())
        for key in found.keys() & wanted.keys():
            yield from _added(wanted[key], found[key], (*place, key))


def _aligned(wanted: Any, found: Any) -> tuple[Any, Any]:
    """Two lists as mappings: by the names of their items, or by place where there are as many."""
    if not (isinstance(wanted, list) and isinstance(found, list)):
        return wanted, found
    if all(isinstance(each, Mapping) and "name" in each for each in (*wanted, *found)):
        return {each["name"]: each for each in wanted}, {each["name"]: each for each in found}
    if len(wanted) == len(found):
        places = [str(number) for number in range(len(wanted))]
        return dict(zip(places, wanted, strict=True)), dict(zip(places, found, strict=True))
    return wanted, found
