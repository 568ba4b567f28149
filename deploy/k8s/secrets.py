"""The secrets that nobody but the installation can make: which there are, fresh ones, and where a cluster takes them from.

Kafka's and the databases' certificates, and Kafka's passwords, are their operators' and are not among them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from deploy.k8s import names, rights
from deploy.k8s.names import Doc
from deploy.k8s.network import OBJECTS
from deploy.local.databases import AUDITOR, Names
from shared.mesh import Service
from shared.privacy.certificate import new_signing_key
from shared.privacy.vault import MasterKeys

STORE = "steward"
"""The SecretStore of external-secrets; an overlay says where it leads."""


class Wanted(NamedTuple):
    """A secret: its Kubernetes type, and of each key what a fresh value is; None for what only a person knows."""

    name: str
    kind: str
    keys: Mapping[str, Callable[[], str] | None]


def wanted(house: Iterable[Service]) -> list[Wanted]:
    """Every secret that the manifests name and no operator makes."""
    rooms = [*(service.name for service in house), rights.KEYS]
    logins = [(names.AUDITOR_SECRET, AUDITOR)]
    for room in rooms:
        logins += [(names.owner_secret(room), Names(room).owner), (names.app_secret(room), Names(room).app)]
    return [
        *(_login(name, role) for name, role in logins),
        Wanted(
            names.MASTER_KEY, "Opaque", {"master.key": lambda: MasterKeys.new(f"k8s-{secrets.token_hex(3)}") + "\n"}
        ),
        Wanted(names.SIGNING_KEY, "Opaque", {"signing.pem": lambda: new_signing_key().decode("ascii")}),
        Wanted(names.SMTP, "Opaque", {"url": None, "from": None}),
        Wanted(names.BLOBS, "Opaque", {"access-key": lambda: secrets.token_hex(10), "secret-key": _password}),
    ]


def _login(name: str, role: str) -> Wanted:
    return Wanted(name, "kubernetes.io/basic-auth", {"username": lambda: role, "password": _password})


def _password() -> str:
    # Letters and digits, - and _ alone: it stands in a URL as it is.
    return secrets.token_urlsafe(24)


def fresh(house: Iterable[Service], known: Mapping[str, str]) -> list[Doc]:
    """Secrets with new random values; `known` has those of the mail server (`url`, `from`). Not for Git."""
    return [_secret(secret, known) for secret in wanted(house)]


def fresh_for_development(house: Iterable[Service]) -> list[Doc]:
    """The same for the overlay dev, whose mail server and object store are its own."""
    made = fresh(house, {"url": "smtp://mail:1025", "from": "steward@localhost"})
    copies = next(doc for doc in made if doc["metadata"]["name"] == names.BLOBS)
    return [*made, copies | {"metadata": copies["metadata"] | {"namespace": OBJECTS}}]


def _secret(secret: Wanted, known: Mapping[str, str]) -> Doc:
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": names.meta(secret.name, secret.name),
        "type": secret.kind,
        "stringData": {key: known[key] if make is None else make() for key, make in secret.keys.items()},
    }


def external(house: Iterable[Service]) -> list[Doc]:
    """Where a cluster with external-secrets takes each of them from: `steward/<secret>` in the store, a property a key."""
    return [
        {
            "apiVersion": "external-secrets.io/v1",
            "kind": "ExternalSecret",
            "metadata": names.meta(secret.name, secret.name),
            "spec": {
                "refreshInterval": "1h",
                "secretStoreRef": {"kind": "SecretStore", "name": STORE},
                # What a key protects is lost with it: the copy in the cluster stays when this resource goes.
                "target": {"creationPolicy": "Owner", "deletionPolicy": "Retain", "template": {"type": secret.kind}},
                "data": [
                    {"secretKey": key, "remoteRef": {"key": f"steward/{secret.name}", "property": key}}
                    for key in secret.keys
                ],
            },
        }
        for secret in wanted(house)
    ]
