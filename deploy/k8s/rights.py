"""Who may do what in Kafka, and who has to reach whom: derived from the contract and the services' declarations alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from deploy.k8s import names
from deploy.rooms import ROOMS, load
from shared.contract.topics import COMMANDS, TOPICS, Topic
from shared.mesh import Service
from shared.mesh.trim import groups_of

KEYS = "keys"


class Grant(NamedTuple):
    """What a principal may do with one topic or one consumer group, by its exact name."""

    kind: str
    """`topic` or `group`."""
    name: str
    operations: tuple[str, ...]


def services() -> dict[str, Service]:
    """Every service of the house by name, in the order of the rooms."""
    return {room: load(room) for room in ROOMS}


def reads(service: Service) -> tuple[Topic, ...]:
    """The topics that the service has a consumer group on."""
    mine = {consumer.topic.name for consumer in service.consumers}
    if service.name in COMMANDS.readers:
        mine.add(COMMANDS.name)
    return tuple(topic for topic in TOPICS if topic.name in mine)


def writes(principal: str) -> tuple[Topic, ...]:
    """The topics that the contract lets `principal` write."""
    return tuple(topic for topic in TOPICS if principal in topic.writers)


def grants(service: Service) -> tuple[Grant, ...]:
    """What the service needs in Kafka, and no more. Read and Write bring Describe with them (Kafka's authorizer does so)."""
    wanted: list[Grant] = []
    for topic in reads(service):
        wanted.append(Grant("topic", topic.name, ("Read",)))
        wanted.append(Grant("group", group(service.name, topic), ("Read",)))
    wanted += [Grant("topic", topic.name, ("Write",)) for topic in writes(service.name)]
    wanted += [Grant("topic", topic.name, ("DescribeConfigs", "Read")) for topic in service.rights.inspects]
    for topic in service.rights.trims:
        wanted.append(Grant("topic", topic.name, ("Delete", "Describe")))
        # How far each reader is, and it never goes further.
        wanted += [Grant("group", name, ("Describe",)) for name in groups_of(topic)]
    return merged(wanted)


def gateway_grants() -> tuple[Grant, ...]:
    """The platform writes what it emits and reads what it has to obey, with groups named like everybody's."""
    wanted = [Grant("topic", topic.name, ("Write",)) for topic in writes(names.GATEWAY)]
    for topic in TOPICS:
        if names.GATEWAY in topic.readers:
            wanted.append(Grant("topic", topic.name, ("Read",)))
            wanted.append(Grant("group", group(names.GATEWAY, topic), ("Read",)))
    return merged(wanted)


def operator_grants() -> tuple[Grant, ...]:
    """People give commands and see where topics begin and end, to move cursors."""
    return merged(
        [
            *(Grant("topic", topic.name, ("Write",)) for topic in writes(names.OPERATOR)),
            *(Grant("topic", topic.name, ("Describe",)) for topic in TOPICS),
        ]
    )


def scaler_grants(house: Iterable[Service]) -> tuple[Grant, ...]:
    """The autoscaler sees how far the groups are by which it scales."""
    wanted: list[Grant] = []
    for service in house:
        if (topic := scales_on(service)) is not None:
            wanted.append(Grant("topic", topic.name, ("Describe",)))
            wanted.append(Grant("group", group(service.name, topic), ("Describe",)))
    return merged(wanted)


def scales_on(service: Service) -> Topic | None:
    """The topic by whose backlog the service gets more processes; None where the number is fixed."""
    footprint = service.footprint
    return footprint.scales_on if footprint is not None and footprint.most > footprint.replicas else None


def databases(service: Service) -> tuple[str, ...]:
    """Whose databases the service connects to: its own, the keys', and those that it audits."""
    keys = [KEYS] if service.uses_keys else []
    return tuple(dict.fromkeys((service.name, *keys, *service.rights.audits)))


def group(reader: str, topic: Topic) -> str:
    """The name of a reader's consumer group on a topic."""
    return f"steward.{reader}.{topic.name}"


def merged(grants: Sequence[Grant]) -> tuple[Grant, ...]:
    """One grant for each topic or group, with all of its operations; what Read and Write bring along is left out."""
    found: dict[tuple[str, str], set[str]] = {}
    for grant in grants:
        found.setdefault((grant.kind, grant.name), set()).update(grant.operations)
    for operations in found.values():
        if operations & {"Read", "Write", "Delete"}:
            operations.discard("Describe")
    return tuple(Grant(kind, name, tuple(sorted(operations))) for (kind, name), operations in sorted(found.items()))
