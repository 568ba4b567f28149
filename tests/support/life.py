"""Everything that the contract lets a platform, or the mesh, say of somebody: one event of each type, about `who`."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from typing import Any

from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.examples import example
from shared.contract.units import Subject
from shared.mesh.transaction import rfc3339
from tests.support.gateway import Gateway, Sent, body

# What is said of a case, or makes somebody erased, is no part of a life.
_CONTROL = (
    topics.COMMANDS, topics.PRIVACY_REQUESTS, topics.TOMBSTONES, topics.PRIVACY_COMMANDS, topics.PRIVACY_RECEIPTS,
    topics.MESSAGE_OUTCOMES, topics.PRICES,
)  # fmt: skip
# These end what the others begin: a holder of somebody who left holds less, and the kit wants it to hold much.
_ENDS = (events.AccountClosed, events.MemberRemoved, events.KeyRevoked)


def subjects_of(who: str) -> list[Subject]:
    """Everybody that `who` is."""
    return [
        ("account", f"acc-{who}"), ("workspace", f"ws-{who}"), ("member", f"mem-{who}"), ("key", f"key-{who}"),
        ("identity", f"idn-{who}"),
    ]  # fmt: skip


def prices(gateway: Gateway) -> Sent:
    """The price of what lives use."""
    data = example(events.PricePublished)["data"] | {"valid_from": "2020-01-01T00:00:00Z"}
    return gateway.event(topics.PRICES, events.PricePublished, data, key=f"{data['provider']}/{data['model']}")


def life(gateway: Gateway, who: str, read: Collection[str], seal: Callable[[str], str]) -> list[Sent]:
    """One event of each type that these topics carry, valid and about `who`; `seal` seals a text for the mesh."""
    made: list[Sent] = []
    for topic in topics.TOPICS:
        if topic.name not in read or topic in _CONTROL:
            continue
        for model in topic.events:
            if model not in _ENDS:
                data = _about(model, gateway, who, seal, made)
                key = (
                    topic.key_of(_Envelope(model.TYPE, data, f"acc-{who}"))
                    if topic.key_of and topic is not topics.GENERATIONS
                    else None
                )
                made.append(gateway.event(topic, model, data, key=key or f"ws-{who}", subject=f"ws-{who}"))
                if model is events.GenerationCompleted:
                    # One more of a model that has no price: it waits.
                    made.append(gateway.event(topic, model, data | {"model": "nobody-knows"}, subject=f"ws-{who}"))
    return made


def _about(
    model: type[Event], gateway: Gateway, who: str, seal: Callable[[str], str], made: list[Sent]
) -> dict[str, Any]:
    now = time.time()
    unique = hashlib.sha256(f"{gateway.seed}:{gateway.source}:{len(made)}:{now}".encode()).hexdigest()
    names = {
        "account": f"acc-{who}", "workspace": f"ws-{who}", "member": f"mem-{who}", "administrator": f"mem-{who}",
        "actor": f"mem-{who}", "key": f"key-{who}", "identity": f"idn-{who}", "session": f"ses-{who}",
        "address": seal(f"{who}@example.org"), "name": seal("A Name"), "text": seal("a note"), "ip": seal("192.0.2.7"),
        "token": seal("pm-token"),
        "version": 3, "changed_at": rfc3339(datetime.fromtimestamp(now, UTC)),
        "expires_at": rfc3339(datetime.fromtimestamp(now + 86_400 * 60, UTC)),
        "payment": f"pay-{unique[:12]}", "refund": f"re-{unique[:12]}", "dispute": f"dp-{unique[:12]}",
        "grant": f"gr-{unique[:12]}", "note": f"no-{unique[:12]}", "cause": f"cause-{unique[:12]}",
    }  # fmt: skip
    data: dict[str, Any] = example(model)["data"]
    data |= {name: value for name, value in names.items() if name in data}
    if model is events.UsageCorrected:
        data["original"] = next(body(s)["id"] for s in made if body(s)["type"] == events.GenerationCompleted.TYPE)
    if model is events.AccountOpened:
        data["identity"] = names["identity"]
    if model is events.MemberRestricted:
        data |= {"log_retention_days": 90, "activity_opt_out": False}  # or nothing would be kept of anybody
    if model is events.UsageRated:
        for unit in data["units"]:
            unit |= {"account": names["account"], "workspace": names["workspace"]}
            unit["lines"][0][0] = f"{int(now * 1000):012x}{unique[:20]}"
            unit["lines"][0][1] = int(now) // 3600
    if model is events.MessageRequested:
        data["proof"] |= {"until": rfc3339(datetime.fromtimestamp(now + 86_400 * 7, UTC))}
    return data


class _Envelope:
    """As much of an event as a topic's key is made from."""

    def __init__(self, kind: str, data: dict[str, Any], subject: str) -> None:
        self.type = kind
        self.subject = subject
        self.data = _Data(data)


class _Data:
    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return self._values.get(name)
