"""Events as units: whose is which part. Filters, erasure and dead letters work on units, not on whole events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

from .events import AccessRecorded, GenerationCompleted, KeySettingsChanged, UsageCorrected, UsageRated

Subject: TypeAlias = tuple[str, str]
"""(kind, id), the kind as in `SubjectKind`."""

ERASED = "erased"
"""Stands where an erased member's trace was: the row belongs to the workspace and stays."""

_SUBJECTS = ("account", "workspace", "member")
_TRACED = frozenset((GenerationCompleted.TYPE, UsageCorrected.TYPE))


class Unit(NamedTuple):
    """One part of an event. When one of `subjects` is erased, the part is; of an erased trace only the name is."""

    subjects: tuple[Subject, ...]
    part: Any
    traces: tuple[Subject, ...] = ()


def units(event: Any) -> Sequence[Unit]:
    """The units of an event: one for most, one per workspace for packed rated usage."""
    data = event.data
    if event.type == UsageRated.TYPE:
        return [Unit((("workspace", unit.workspace), ("account", unit.account)), unit) for unit in data.units]
    if event.type in _TRACED:
        return [Unit((("account", data.account), ("workspace", data.workspace)), event, (("key", data.key),))]
    subjects = tuple((kind, value) for kind in _SUBJECTS if (value := getattr(data, kind, None)) is not None)
    if event.type == AccessRecorded.TYPE and data.account is None and data.identity is not None:
        # Whoever signs in without an account any more must not become somebody again. A new account may.
        subjects = (("identity", data.identity),)
    if event.type == KeySettingsChanged.TYPE:
        subjects += (("key", data.key),)
    # What an erased member's key still tries names the key no more.
    traces = (("key", data.key),) if event.type == AccessRecorded.TYPE and data.key is not None else ()
    return [Unit(subjects, event, traces)]
