"""KEDA's triggers: their `metadata` is a free map for the API server, so that a misspelt name passes it unseen."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from deploy.k8s import names, rights, scaling
from deploy.k8s.checks.objects import Overlay
from deploy.k8s.names import Doc

_FLAGS = ("true", "false")
_LIKE_FLAGS = {"allowIdleConsumers", "excludePersistentLag", "scaleToZeroOnInvalidOffset", "limitToPartitionsWithLag",
               "ensureEvenDistributionOfPartitions", "unsafeSsl", "ignoreNullValues"}  # fmt: skip


@cache
def _scalers() -> dict[str, dict[str, dict[str, Any]]]:
    text = Path(__file__).with_name("keda.json").read_text(encoding="utf-8")
    scalers: dict[str, dict[str, dict[str, Any]]] = json.loads(text)["scalers"]
    return scalers


def check(overlay: Overlay) -> list[str]:
    """A sentence for each thing in a ScaledObject that KEDA would refuse, pass over, or scale by the wrong thing for."""
    return [
        f"ScaledObject {doc['metadata']['name']}: {said}"
        for doc in overlay.of("ScaledObject")
        for said in (
            *_target(overlay, doc),
            *(s for trigger in doc["spec"]["triggers"] for s in _trigger(overlay, doc, trigger)),
        )
    ]


def _target(overlay: Overlay, doc: Doc) -> Iterator[str]:
    spec, name = doc["spec"], doc["spec"]["scaleTargetRef"]["name"]
    target = overlay.named("Deployment").get(name)
    if target is None:
        yield f"there is no Deployment {name} to scale"
        return
    if sum(each["spec"]["scaleTargetRef"]["name"] == name for each in overlay.of("ScaledObject")) > 1:
        yield f"it is not the only one that scales {name}"
    if "replicas" in target["spec"]:
        yield "the Deployment says a number of replicas, too: each apply would put it back"
    # KEDA's own defaults where nothing is said.
    least, most = spec.get("minReplicaCount", 0), spec.get("maxReplicaCount", 100)
    if not 1 <= least <= most:
        yield f"replicas from {least} to {most}"
    behavior = spec.get("advanced", {}).get("horizontalPodAutoscalerConfig", {}).get("behavior", {})
    down = {"stabilizationWindowSeconds": 0, "policies": []} | behavior.get("scaleDown", {})
    steps = [(policy["type"], policy["value"]) for policy in down["policies"]]
    if down["stabilizationWindowSeconds"] < 300 or steps != [("Pods", 1)]:
        yield "scales down too fast: each step stops the whole group (at least 300 s of calm, one pod at a time)"


def _trigger(overlay: Overlay, doc: Doc, trigger: Doc) -> Iterator[str]:
    kind, said, given = trigger["type"], trigger["metadata"], _given(overlay, trigger)
    parameters = _scalers().get(kind)
    if parameters is None:
        yield f"{kind!r} is a trigger that nobody here knows: add its parameters to the check"
        return
    for name, value in said.items():
        known = parameters.get(name)
        if known is None:
            yield f"the {kind} trigger has no parameter {name!r}"
        elif "metadata" not in known["in"]:
            yield f"{name} comes by authentication alone"
        elif not isinstance(value, str):
            yield f"{name}: {value!r} is no text, and every parameter is one"
        elif value not in known.get("values", _FLAGS if name in _LIKE_FLAGS else (value,)):
            yield f"{name}: {value!r} is none of {', '.join(known.get('values', _FLAGS))}"
    for name in given - parameters.keys():
        yield f"its authentication gives {name!r}, which the {kind} trigger does not know"
    for name, known in parameters.items():
        if not known["optional"] and name not in said and name not in given:
            yield f"{name} is missing"
    if "authenticationRef" in trigger and trigger["authenticationRef"]["name"] not in overlay.named(
        "TriggerAuthentication"
    ):
        yield "its authentication is not there"
    yield from _backlog(overlay, doc, said) if kind == "kafka" else _load(doc, said)


def _given(overlay: Overlay, trigger: Doc) -> set[str]:
    """The parameters that come by the trigger's authentication."""
    found = overlay.named("TriggerAuthentication").get(trigger.get("authenticationRef", {}).get("name", ""))
    spec = found["spec"] if found else {}
    return {each["parameter"] for kind in ("secretTargetRef", "configMapTargetRef") for each in spec.get(kind, [])}


def _load(doc: Doc, said: Doc) -> Iterator[str]:
    """That it is the load of the pods that are scaled, in a metric that they have."""
    service = rights.services().get(doc["spec"]["scaleTargetRef"]["name"])
    topic = rights.scales_on(service) if service is not None else None
    if service is None or topic is None:
        return
    if said.get("query") != scaling.load_query(service.name, topic):
        yield f"its query is not what {service.name} handles of {topic.name}"
    wanted = f"{scaling.load_threshold(service, topic):g}"
    if said.get("threshold") != wanted:
        yield f"threshold {said.get('threshold')} is not the share of a pod's time ({wanted})"


def _backlog(overlay: Overlay, doc: Doc, said: Doc) -> Iterator[str]:
    """That it is the backlog of the pods that are scaled, and that the threshold is what was measured."""
    service = rights.services().get(doc["spec"]["scaleTargetRef"]["name"])
    topic = overlay.named("KafkaTopic").get(said.get("topic", ""))
    if topic is None:
        yield f"there is no topic {said.get('topic')!r}"
    elif doc["spec"].get("maxReplicaCount", 100) > topic["spec"]["partitions"]:
        yield f"more replicas than {said['topic']} has partitions"
    if service is None:
        return
    own = rights.scales_on(service)
    if own is None or said.get("topic") != own.name or said.get("consumerGroup") != rights.group(service.name, own):
        yield f"{said.get('consumerGroup')} on {said.get('topic')} is not what {service.name} scales by"
    if said.get("lagThreshold") != str(scaling.threshold(service)):
        yield f"lagThreshold {said.get('lagThreshold')} is not what was measured ({scaling.threshold(service)})"
    if not str(said.get("bootstrapServers", "")).startswith(f"{names.KAFKA}-kafka-bootstrap.{names.NAMESPACE}.svc:"):
        yield f"{said.get('bootstrapServers')} is not reached from KEDA's namespace"
