"""How many pods: KEDA looks at the group's backlog and asks for as many as work it off within seconds."""

from __future__ import annotations

from collections.abc import Iterable

from deploy.k8s import names, rights
from deploy.k8s.names import Doc
from deploy.k8s.network import MONITORING
from deploy.k8s.workload import footprint
from shared.contract.topics import Topic
from shared.mesh import Service

TARGET_SECONDS = 5
"""How old a backlog may be before there is one pod more: half of what the freshness goal allows an event."""
SHARE = 0.7
"""How much of its time a pod is to work, day by day: counted in time, since records of one topic differ a thousandfold.
Without this second wish the first would take pods away as soon as they had worked the backlog off, and the load that made it
would be there still."""
AUTHENTICATION = "kafka-scaler"
# Each step stops the whole group for a moment: few steps, one pod at a time, and slow ones down.
_UP_SECONDS, _DOWN_SECONDS, _CALM_SECONDS = 30, 300, 600
RATE_SECONDS = 120
"""Over how long the load is averaged."""
PROMETHEUS = f"http://prometheus-operated.{MONITORING}.svc:9090"


def threshold(service: Service) -> int:
    """The backlog of one pod (records) that asks for another."""
    return footprint(service).per_second * TARGET_SECONDS


def load_threshold(service: Service, topic: Topic) -> float:
    """The load of one pod (seconds of work a second; batches that overlap count each) that asks for another."""
    return SHARE * next(consumer.parallel for consumer in service.consumers if consumer.topic is topic)


def scaled(house: Iterable[Service]) -> list[Doc]:
    """A ScaledObject for each service whose number of pods is not fixed."""
    return [_scaled(service) for service in house if rights.scales_on(service) is not None]


def _scaled(service: Service) -> Doc:
    measured, topic = footprint(service), rights.scales_on(service)
    assert topic is not None
    policy = {"type": "Pods", "value": 1}
    return {
        "apiVersion": "keda.sh/v1alpha1",
        "kind": "ScaledObject",
        "metadata": names.meta(service.name, service.name),
        "spec": {
            "scaleTargetRef": {"name": service.name},
            "pollingInterval": 15,
            "minReplicaCount": measured.replicas,
            "maxReplicaCount": measured.most,
            "fallback": {"failureThreshold": 4, "replicas": measured.replicas, "behavior": "currentReplicasIfHigher"},
            "advanced": {
                "horizontalPodAutoscalerConfig": {
                    "behavior": {
                        "scaleUp": {
                            "stabilizationWindowSeconds": _UP_SECONDS,
                            "policies": [policy | {"periodSeconds": 2 * _UP_SECONDS}],
                        },
                        "scaleDown": {
                            "stabilizationWindowSeconds": _CALM_SECONDS,
                            "policies": [policy | {"periodSeconds": _DOWN_SECONDS}],
                        },
                    }
                }
            },
            "triggers": [
                {
                    "type": "kafka",
                    "metricType": "AverageValue",
                    # KEDA looks every 15 s and no oftener: offsets are told to Kafka every 3 s, and a look soon after the last
                    # one would take them all for persistent.
                    "useCachedMetrics": True,
                    "metadata": {
                        "bootstrapServers": f"{names.KAFKA_BOOTSTRAP.replace(':', f'.{names.NAMESPACE}.svc:')}",
                        "consumerGroup": rights.group(service.name, topic),
                        "topic": topic.name,
                        "lagThreshold": str(threshold(service)),
                        "offsetResetPolicy": "earliest",
                        # A partition that stands still waits for a person, not for more pods.
                        "excludePersistentLag": "true",
                        "sasl": "scram_sha512",
                        "tls": "enable",
                        # The oldest protocol that Kafka 4 speaks (KIP-896); KEDA would begin with an older one.
                        "version": "2.1.0",
                    },
                    "authenticationRef": {"name": AUTHENTICATION},
                },
                {
                    "type": "prometheus",
                    "metricType": "AverageValue",
                    "metadata": {
                        "serverAddress": PROMETHEUS,
                        "query": load_query(service.name, topic),
                        "threshold": f"{load_threshold(service, topic):g}",
                        # A Prometheus that knows nothing (yet) asks for nothing; the backlog still counts.
                        "ignoreNullValues": "true",
                    },
                },
            ],
        },
    }


def patches(house: Iterable[Service]) -> list[tuple[Doc, list[Doc]]]:
    """How many pods there are is the scaler's alone where there is one: a number in the manifest would put it back with each
    apply, and stop the group for it."""
    scaled = [service.name for service in house if rights.scales_on(service) is not None]
    return [({"kind": "Deployment", "name": name}, [{"op": "remove", "path": "/spec/replicas"}]) for name in scaled]


def load_query(service: str, topic: Topic) -> str:
    """Seconds a second for which the group works at the topic's batches."""
    return (
        f'sum(rate(steward_batch_duration_seconds_sum{{namespace="{names.NAMESPACE}", job="{names.NAMESPACE}/{service}", '
        f'topic="{topic.name}"}}[{RATE_SECONDS}s]))'
    )


def authentication() -> list[Doc]:
    """As whom KEDA looks at Kafka. The name is no secret, but has no place in the trigger."""
    of = names.SCALER
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": names.meta(AUTHENTICATION, of),
            "data": {"username": of},
        },
        {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "TriggerAuthentication",
            "metadata": names.meta(AUTHENTICATION, of),
            "spec": {
                "configMapTargetRef": [{"parameter": "username", "name": AUTHENTICATION, "key": "username"}],
                "secretTargetRef": [
                    {"parameter": "password", "name": of, "key": "password"},
                    {"parameter": "ca", "name": names.KAFKA_CA, "key": "ca.crt"},
                ],
            },
        },
    ]
