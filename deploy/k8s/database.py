"""A PostgreSQL cluster for each service and one for the keys.

Each its own: a service is restored to a moment by itself (a restore takes a whole cluster with it), a busy one takes nothing
from the others, and a network policy can tell them apart.
"""

from __future__ import annotations

from collections.abc import Iterable

from deploy.k8s import names
from deploy.k8s.names import Doc
from deploy.local.databases import AUDITOR, Names, rights, roles_without_login
from shared.mesh import Service

_API = "postgresql.cnpg.io/v1"
_IMAGE = "ghcr.io/cloudnative-pg/postgresql:18"
_MIB = 2**20


def documents(service: str, *, busy: bool) -> list[Doc]:
    """The cluster of `service` (or of the keys), with its roles. `busy`: it keeps the books."""
    room = Names(service)
    return [_cluster(room, busy=busy), _role(room, room.app, names.app_secret(service), "the service"),
            _role(room, AUDITOR, names.AUDITOR_SECRET, "audit: it reads")]  # fmt: skip


def _cluster(room: Names, *, busy: bool) -> Doc:
    memory = 4096 if busy else 1024
    return {
        "apiVersion": _API,
        "kind": "Cluster",
        "metadata": names.meta(names.cluster(room.name), names.cluster(room.name)),
        "spec": {
            "instances": 3,
            "imageName": _IMAGE,
            "enableSuperuserAccess": False,
            "priorityClassName": "steward-platform",
            "bootstrap": {
                "initdb": {
                    "database": room.database,
                    "owner": room.owner,
                    "secret": {"name": names.owner_secret(room.name)},
                    "encoding": "UTF8",
                    "dataChecksums": True,
                    # The roles get their login from the resources below; rights need them to be there.
                    "postInitSQL": list(roles_without_login(room)),
                    "postInitApplicationSQL": list(rights(room)),
                }
            },
            "postgresql": {
                "parameters": {
                    "max_connections": "200",
                    "max_locks_per_transaction": "128",
                    "shared_buffers": f"{memory // 4}MB",
                    "effective_cache_size": f"{memory * 3 // 4}MB",
                    "work_mem": "16MB" if busy else "4MB",
                    "wal_compression": "lz4",
                    "checkpoint_timeout": "15min",
                    "random_page_cost": "1.1",
                    "jit": "off",
                    "timezone": "UTC",
                    "log_error_verbosity": "terse",
                    "ssl_min_protocol_version": "TLSv1.3",
                },
                # What was said to be committed survives a lost primary.
                "synchronous": {"method": "any", "number": 1, "dataDurability": "required"},
                # No login without TLS, and none but by password.
                "pg_hba": ["hostnossl all all all reject"],
            },
            "storage": {"size": "100Gi" if busy else "10Gi"},
            "walStorage": {"size": "20Gi" if busy else "5Gi"},
            "resources": {
                "requests": {"cpu": "2" if busy else "250m", "memory": f"{memory}Mi"},
                "limits": {"memory": f"{memory}Mi"},
            },
            "affinity": {"enablePodAntiAffinity": True, "topologyKey": "kubernetes.io/hostname",
                         "podAntiAffinityType": "preferred"},
            "inheritedMetadata": {"labels": dict(names.PART_OF)},
        },
    }  # fmt: skip


def _role(room: Names, role: str, secret: str, comment: str) -> Doc:
    name = f"{names.cluster(room.name)}-{'auditor' if role == AUDITOR else 'app'}"
    return {
        "apiVersion": _API,
        "kind": "DatabaseRole",
        "metadata": names.meta(name, names.cluster(room.name)),
        "spec": {
            "cluster": {"name": names.cluster(room.name)},
            "name": role,
            "comment": comment,
            "login": True,
            "passwordSecret": {"name": secret},
            "databaseRoleReclaimPolicy": "retain",
        },
    }


def all_of(house: Iterable[Service]) -> dict[str, list[Doc]]:
    """The documents of every database by the name of whose it is."""
    books = {service.name: bool(service.footprint and service.footprint.books) for service in house}
    return {name: documents(name, busy=busy) for name, busy in {**books, "keys": False}.items()}
