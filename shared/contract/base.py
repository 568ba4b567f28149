"""What every event is made of: a closed pydantic model in a CloudEvents 1.0 envelope, and a fast twin for decoding.

The pydantic model *is* the contract (schemas, documentation, error texts). For decoding, a msgspec twin is derived
from it, field by field: two to three times faster, and held against the model by a property test. Whatever the twin
refuses is explained by the model, in words that name fields and never repeat a value.
"""

from __future__ import annotations

import json
import re
import types
import typing
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
from annotated_types import Ge, GroupedMetadata, Le, MaxLen, MinLen
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)
from pydantic.fields import FieldInfo

# Names of models and providers ("@" occurs in model names), and ids of things the gateway made (no "@", no blank:
# neither an address nor a sentence has a place in an id).
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:~+/@-]{0,127}$")]
Id = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,63}$")]
EventId = Annotated[
    str, StringConstraints(pattern=r"^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$")
]
Pico = Annotated[
    str,
    StringConstraints(pattern=r"^-?(0|[1-9][0-9]{0,29})$"),
    Field(description="Pico-US-dollars (1e-12 USD), a whole number as a string."),
]
PositivePico = Annotated[
    str,
    StringConstraints(pattern=r"^[1-9][0-9]{0,29}$"),
    Field(description="Pico-US-dollars (1e-12 USD), a positive whole number as a string."),
]
CostPico = Annotated[
    str,
    StringConstraints(pattern=r"^(0|[1-9][0-9]{0,21})$"),
    Field(description="Pico-US-dollars (1e-12 USD), a whole number of at least 0 as a string."),
]
UnitPrice = Annotated[
    str,
    StringConstraints(pattern=r"^(0|[1-9][0-9]{0,11})(\.[0-9]{1,24})?$"),
    Field(description="US dollars for one unit, an exact decimal as a string."),
]
Sequence = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,17}$")]
Quantity = Annotated[int, Field(ge=0, le=10**12)]
# Mail addresses, names, IP addresses, free text: sealed by the emitter to the mesh's ingress key of the day.
Sealed = Annotated[
    str, StringConstraints(pattern=r"^sealed:v1:[A-Za-z0-9_-]{1,64}:[A-Za-z0-9_-]{43}:[A-Za-z0-9_-]{24,10944}$")
]


# What the twin reads as an instant; the schema says the stricter form that everybody should send.
_READ_INSTANT = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:?[0-9]{2})?"
)
_SENT_INSTANT = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?(Z|[+-][0-9]{2}:[0-9]{2})$"


def _rfc3339(value: Any) -> Any:
    # The model alone would also take seconds since 1970, or an instant without seconds.
    if not isinstance(value, datetime) and (not isinstance(value, str) or _READ_INSTANT.fullmatch(value) is None):
        raise ValueError("not an instant of RFC 3339 (e.g. 2026-11-24T21:00:00Z)")
    return value


def _aware(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("an instant needs a time zone (RFC 3339, e.g. 2026-11-24T21:00:00Z)")
    return value


Instant = Annotated[
    datetime,
    Strict(False),  # what a validator has looked at counts as Python's, where strict takes no text for an instant
    BeforeValidator(_rfc3339),
    AfterValidator(_aware),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": _SENT_INSTANT}),
]


IN_BULK = object()
"""Annotates a text in an array whose pattern the holder's `check` verifies for all of the array at once, which costs
a quarter. The model checks it like any other; the twin leaves it to `check`."""


def as_array(value: Any) -> Any:
    """For a tuple with names: on the wire it is an array, and nothing else."""
    if not isinstance(value, list | tuple):
        raise ValueError("expected an array")
    return value


class Closed(BaseModel):
    """A model that nobody can add a field to from outside. `check` holds its cross-field rules."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True)

    # Called with a model or with its twin, which has the same attributes; raises ValueError.
    check: ClassVar[Any] = None

    @model_validator(mode="after")
    def _apply_check(self) -> Closed:
        if type(self).check is not None:
            type(self).check(self)
        return self


class Event(Closed):
    """A CloudEvents 1.0 event in structured mode, JSON.

    `id` is a UUIDv7 made once by the producer and repeated on every retry; `source` names the emitting instance and
    `sequence` counts that instance's events on one topic from 1 without gaps, so that loss before the mesh is seen.
    """

    specversion: Literal["1.0"] = Field(description="CloudEvents version.")
    id: EventId = Field(description="UUIDv7, made once; the same for every retry of the same event.")
    source: Id = Field(description="The emitting instance, e.g. `gateway-eu-1`.")
    subject: Id = Field(description="The account or workspace that the event is about.")
    time: Instant = Field(description="Event time, RFC 3339 with a zone.")
    sequence: Sequence | None = Field(default=None, description="This source's n-th event on this topic, from 1.")
    datacontenttype: Literal["application/json"] = Field(default="application/json")

    TYPE: ClassVar[str]
    """`noun.verb.vN`; N rises with each incompatible change."""


class Refused(ValueError):
    """A record that is not an event of its topic. `reason` is one of a few words; the text never repeats a value."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


class NewerVersion(Exception):
    """An event type in a version that this reader does not know yet: the reader must be deployed first."""


def explain_refusal(model: type[BaseModel], raw: bytes, fallback: str) -> Refused:
    """Why `raw` is not a `model`, by field and rule. Undeclared fields are their own reason."""
    try:
        model.model_validate_json(raw)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        extra = [d for d in details if d["type"] == "extra_forbidden"]
        shown = "; ".join(f"{_path(d['loc'])}: {d['msg']}" for d in (extra or details)[:5])
        return Refused("undeclared_field" if extra else "invalid", shown)
    return Refused("invalid", fallback)


def declared_part(model: type[BaseModel], raw: bytes) -> tuple[bytes, str]:
    """`raw` as a dead letter may keep it, and what is left out: of fields that nobody declared their names and lengths.

    A value that breaks its field's rule is kept as its length, too: it may be what the rule is there to keep away, such as
    an address that was not sealed. So is a name in a table (a bucket of tokens, a workspace) that breaks the rule of names.
    """
    document = json.loads(raw)
    rest = []
    try:
        model.model_validate_json(raw)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
        # Names last: until then they lead to what stands under them.
        for n, detail in enumerate(sorted(details, key=lambda detail: detail["loc"][-1:] == ("[key]",))):
            *way, name = _reached(document, detail["loc"]) or ("",)
            holder: Any = document
            for step in way:
                holder = holder[step]
            if detail["type"] == "extra_forbidden":
                size = len(json.dumps(holder.pop(name)))
                rest.append(f"{_path(detail['loc'])} ({size} bytes)")
            elif detail["loc"][-1:] == ("[key]",) and isinstance(holder, dict):
                # Still refused by the rule: who replays the record is not to lose an entry unseen.
                holder[f"({len(json.dumps(name))} bytes, {n})"] = holder.pop(name)
            elif name != "" and (isinstance(holder[name], str) or detail["type"].endswith("_type")):
                holder[name] = f"({len(json.dumps(holder[name]))} bytes)"
    return json.dumps(document, separators=(",", ":")).encode(), ", ".join(rest)


def _reached(document: Any, loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """As much of `loc` as leads into the document: behind it pydantic may name a branch of a union."""
    way: list[int | str] = []
    for step in loc:
        if not (
            (isinstance(document, dict) and step in document) or (isinstance(document, list) and isinstance(step, int))
        ):
            break
        document = document[step]  # type: ignore[index]
        way.append(step)
    return tuple(way)


def _path(loc: tuple[int | str, ...]) -> str:
    # A field nobody declared may itself be named by a person's data: only names of a plain shape are repeated.
    return (
        ".".join(str(part) if re.fullmatch(r"[A-Za-z0-9_]{1,40}", str(part)) else "<name>" for part in loc) or "event"
    )


# --- the fast twin ---------------------------------------------------------------------------------------------

_TWINS: dict[type[BaseModel], type[msgspec.Struct]] = {}
_CACHE_LIMIT = 200_000
# Texts of which nearly every event has its own. Names repeat by the thousand: those are remembered once checked.
_HARDLY_REPEAT = frozenset(("id", "sequence", "generation_ref", "original"))


def twin(model: type[BaseModel]) -> type[msgspec.Struct]:
    """The msgspec struct with `model`'s fields, limits, patterns and cross-field rules."""
    if model not in _TWINS:
        _TWINS[model] = _derive(model)
    return _TWINS[model]


def _derive(model: type[BaseModel]) -> type[msgspec.Struct]:
    fields: list[Any] = []
    patterns: list[tuple[str, re.Pattern[str], set[str] | None]] = []
    for name, info in model.model_fields.items():
        kind = _twin_type(info.annotation, info.metadata)
        if info.is_required():
            fields.append((name, kind))
        else:
            default = info.get_default(call_default_factory=True)
            fields.append(
                (name, kind, msgspec.field(default_factory=type(default)) if default in ([], {}) else default)
            )
        pattern = text_pattern(info)
        if pattern is not None:
            patterns.append((name, _python_pattern(pattern), None if name in _HARDLY_REPEAT else set()))
    check = getattr(model, "check", None)
    return msgspec.defstruct(
        model.__name__,
        fields,
        forbid_unknown_fields=True,
        kw_only=True,
        omit_defaults=True,
        gc=False,
        namespace={"__post_init__": _post_init(tuple(patterns), check)},
    )


def _post_init(patterns: tuple[tuple[str, re.Pattern[str], set[str] | None], ...], check: Any) -> Any:
    """The twin's check after decoding, written out field by field: a loop over the fields costs twice as much."""
    scope: dict[str, Any] = {"check": check}
    lines = ["def __post_init__(self):"]
    for n, (name, pattern, known) in enumerate(patterns):
        scope[f"known{n}"], scope[f"verify{n}"] = known, _verifier(name, pattern, known)
        lines.append(f"    value = self.{name}")
        if known is None:
            scope[f"search{n}"] = pattern.search
            lines.append(f"    if value is not None and search{n}(value) is None: verify{n}(value)")
        else:
            lines.append(f"    if value not in known{n} and value is not None: verify{n}(value)")
    lines.append("    check(self)" if check is not None else "    return None")
    exec("\n".join(lines), scope)  # noqa: S102 -- names of the contract's own fields, nothing from outside
    return scope["__post_init__"]


def _verifier(name: str, pattern: re.Pattern[str], known: set[str] | None) -> Any:
    search = pattern.search

    def verify(value: str) -> None:
        if search(value) is None:
            raise ValueError(f"{name}: does not match its pattern")
        if known is not None and len(known) < _CACHE_LIMIT:
            known.add(value)

    return verify


def _python_pattern(pattern: str) -> re.Pattern[str]:
    # In a schema "$" is the end of the text; Python's "$" also matches before a last line feed.
    return re.compile(pattern.removesuffix("$") + r"\Z" if pattern.endswith("$") else pattern)


def text_pattern(info: FieldInfo) -> str | None:
    """The pattern of a field that is a text (or null); None for any other."""
    metas: list[Any] = list(info.metadata)
    if get_origin(info.annotation) in (Union, types.UnionType):
        for arg in get_args(info.annotation):
            metas += getattr(arg, "__metadata__", ())
    for meta in metas:
        inner: tuple[Any, ...] = tuple(getattr(meta, "metadata", None) or ())
        for item in (meta, *inner):
            found: Any = getattr(item, "pattern", None)
            if found is not None:
                return str(found)
    return None


def _twin_type(annotation: Any, metadata: typing.Iterable[Any] = (), nested: bool = False) -> Any:
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *rest = get_args(annotation)
        return _twin_type(inner, rest, nested)
    if origin in (Union, types.UnionType):
        return Union[tuple(_twin_type(arg, (), nested) for arg in get_args(annotation))]  # noqa: UP007
    if origin in (list, tuple, dict):
        args = tuple(arg if arg is Ellipsis else _twin_type(arg, (), True) for arg in get_args(annotation))
        return origin[args]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return twin(annotation)
    if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
        # A plain tuple: there are thousands in a record, and names cost a quarter of their decoding.
        hints = get_type_hints(annotation, include_extras=True)
        return tuple[tuple(_twin_type(hints[f], (), True) for f in annotation._fields)]  # type: ignore[misc]
    limits: dict[str, Any] = {"tz": True} if annotation is datetime else {}
    metadata = tuple(metadata)
    for meta in metadata:
        items: tuple[Any, ...] = (
            tuple(meta) if isinstance(meta, GroupedMetadata) else getattr(meta, "metadata", None) or (meta,)
        )
        for item in items:
            if isinstance(item, Ge):
                limits["ge"] = item.ge
            elif isinstance(item, Le):
                limits["le"] = item.le
            elif isinstance(item, MinLen):
                limits["min_length"] = item.min_length
            elif isinstance(item, MaxLen):
                limits["max_length"] = item.max_length
            elif nested and IN_BULK not in metadata and getattr(item, "pattern", None) is not None:
                # Patterns of a model's own fields are checked in __post_init__, which remembers what it saw.
                limits["pattern"] = _python_pattern(str(item.pattern)).pattern
    return Annotated[annotation, msgspec.Meta(**limits)] if limits else annotation


def without_none(value: Mapping[str, Any]) -> dict[str, Any]:
    """`value` without its None entries: optional fields are left out on the wire."""
    return {key: item for key, item in value.items() if item is not None}
