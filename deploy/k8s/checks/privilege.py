"""What each principal may do in Kafka is what its code does, and no more; at the API server nobody may do anything."""

from __future__ import annotations

from deploy.k8s import names, rights
from deploy.k8s.checks.objects import Overlay
from deploy.k8s.rights import Grant


def check(overlay: Overlay) -> list[str]:
    """A sentence for each right that no code needs, that some code needs and does not get, or that is wider than a name."""
    house = rights.services()
    needed: dict[str, set[Grant]] = {name: set(rights.grants(service)) for name, service in house.items()}
    needed |= {
        names.GATEWAY: set(rights.gateway_grants()),
        names.OPERATOR: set(rights.operator_grants()),
        names.SCALER: set(rights.scaler_grants(house.values())),
    }
    users = overlay.named("KafkaUser")
    bindings = overlay.of("RoleBinding", "ClusterRoleBinding")
    said = [
        f"{doc['kind']} {doc['metadata']['name']}: rights at the API server, and no pod of ours goes there"
        for doc in bindings
    ]
    said += [f"KafkaUser {name}: nobody goes to Kafka as {name}" for name in sorted(users.keys() - needed.keys())]
    for name, wanted in needed.items():
        if name not in users:
            said.append(f"KafkaUser {name} is missing")
            continue
        given = set()
        for acl in users[name]["spec"].get("authorization", {}).get("acls", []):
            resource = acl["resource"]
            if (
                resource.get("patternType") != "literal"
                or resource.get("name") in (None, "*")
                or acl.get("type") == "deny"
            ):
                said.append(f"KafkaUser {name}: a right on {resource.get('name')!r} that is not by one exact name")
            given |= {(resource["type"], resource.get("name"), operation) for operation in acl["operations"]}
        flat = {(grant.kind, grant.name, operation) for grant in wanted for operation in grant.operations}
        said += [
            f"KafkaUser {name}: {op} on {kind} {of}, and no code needs it" for kind, of, op in sorted(given - flat)
        ]
        said += [
            f"KafkaUser {name}: {op} on {kind} {of} is needed and not given" for kind, of, op in sorted(flat - given)
        ]
    return said
