"""A pod for people: the `steward` command inside the cluster, with an operator's rights. It runs only while somebody works."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.k8s import names, rights, workload
from deploy.k8s.names import Doc
from deploy.k8s.network import TOOLBOX
from deploy.local.databases import AUDITOR, Names
from shared.mesh import Service


def documents(house: Sequence[Service]) -> list[Doc]:
    """The toolbox: a Deployment without replicas, and its account."""
    rooms = tuple(service.name for service in house)
    memory = "256Mi"
    container = {
        "name": TOOLBOX,
        "image": f"steward-{TOOLBOX}",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-c", "import signal; signal.sigwait({signal.SIGTERM, signal.SIGINT})"],
        "envFrom": [{"configMapRef": {"name": names.SETTINGS}}],
        "env": [
            {"name": "STEWARD_HOME", "value": "/tmp/steward"},  # noqa: S108 - the pod's own
            *({"name": f"STEWARD_{room.upper()}_URL", "value": f"http://{room}:{names.HTTP_PORT}"} for room in rooms),
            *workload.kafka_login(names.OPERATOR),
            *(
                entry
                for room in (*rooms, rights.KEYS)
                for entry in workload.login(room, Names(room).owner, "OWNER", names.owner_secret(room))
            ),
            # `steward check` proves the books from where it runs, with a login that only reads.
            *(
                entry
                for room in ("billing", "metering")
                for entry in workload.login(room, AUDITOR, "AUDITOR", names.AUDITOR_SECRET)
            ),
        ],
        "resources": {"requests": {"cpu": "50m", "memory": memory}, "limits": {"memory": memory}},
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - the pod's own
            *({"name": name, "mountPath": f"/etc/steward/{name}", "readOnly": True} for name in ("kafka", "db")),
        ],
    }
    volumes = [workload.kafka_volume(), workload.database_volume((*rooms, rights.KEYS))]
    spec = workload.pod(TOOLBOX, container, volumes)
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": names.meta(TOOLBOX, TOOLBOX),
            "spec": {
                "replicas": 0,
                "selector": {"matchLabels": names.selector(TOOLBOX)},
                "template": {"metadata": {"labels": names.labels(TOOLBOX)}, "spec": spec},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "ServiceAccount",
            "metadata": names.meta(TOOLBOX, TOOLBOX),
            "automountServiceAccountToken": False,
        },
    ]
