"""A cluster without a container: etcd and kube-apiserver on loopback, controllers, scheduler and simulated nodes when asked.

Everything lives in a folder of its own, ends with the test run, and is ended by process id.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.client import HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from deploy.k8s.kubectl import kubectl
from deploy.local.ports import HOST, free_port, is_free
from deploy.local.process import Child
from tests.admission import binaries, crds

Object = dict[str, Any]
CRDS = crds.HERE
NODES = Path(__file__).with_name("nodes.yaml")
ZONES, NODES_PER_ZONE = ("a", "b", "c"), 2
# Generous: four programs start at once on two cores that may have other work.
_READY_SECONDS = 120.0
_POLL_SECONDS = 0.05


class Refused(Exception):
    """The API server said no. `code` is HTTP's; the text is the server's own."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Kind:
    """How the server calls the objects of one kind."""

    group_version: str
    plural: str
    namespaced: bool

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """The path of the collection, or of one object."""
        root = f"/api/{self.group_version}" if self.group_version == "v1" else f"/apis/{self.group_version}"
        room = f"/namespaces/{namespace}" if self.namespaced and namespace is not None else ""
        return f"{root}{room}/{self.plural}" + (f"/{name}" if name is not None else "")


def until(condition: Callable[[], bool], what: str | Callable[[], str], within: float = _READY_SECONDS) -> None:
    """Waits for a state of the servers that nothing announces. Raises TimeoutError with `what`, asked for only then."""
    end = time.monotonic() + within
    while not condition():
        if time.monotonic() >= end:
            raise TimeoutError(f"{what if isinstance(what, str) else what()}: not within {within:.0f} s")
        time.sleep(_POLL_SECONDS)  # lint: allow sleep-in-test -- polls for what no event announces


class Api:
    """The API server as one user sees it. Not for several threads."""

    def __init__(self, port: int, token: str, authority: Path) -> None:
        self._port, self._token = port, token
        self._context = ssl.create_default_context(cafile=str(authority))
        self._connection: HTTPSConnection | None = None
        self._kinds: dict[tuple[str, str], Kind] = {}

    def __call__(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        content: str = "application/json",
        **query: str,
    ) -> Any:
        """One request; the parsed answer. Raises Refused for every code from 400 on."""
        answer = self._send(self._connected(), method, path, body, content, query)
        text = answer.read().decode()
        parsed = json.loads(text) if answer.headers.get_content_type() == "application/json" else text
        if answer.status >= 400:
            raise Refused(answer.status, parsed["message"] if isinstance(parsed, dict) else text)
        return parsed

    def create(self, document: Object, *, dry_run: bool = False) -> Any:
        """Submits an object as a strict client does: unknown and double fields are errors."""
        query = {"fieldValidation": "Strict"} | ({"dryRun": "All"} if dry_run else {})
        namespace = document["metadata"].get("namespace")
        return self("POST", self.kind(document).path(namespace), document, **query)

    def apply(self, document: Object, *, dry_run: bool = False) -> Any:
        """Server-side apply of one object, strict, as the field manager `tests`."""
        query = {"fieldManager": "tests", "force": "true", "fieldValidation": "Strict"}
        query |= {"dryRun": "All"} if dry_run else {}
        return self("PATCH", self.path(document), document, content="application/apply-patch+yaml", **query)

    def get(self, document: Object) -> Any:
        """The stored object of a manifest."""
        return self("GET", self.path(document))

    def items(self, path: str, **query: str) -> list[Object]:
        """The objects of a collection."""
        found: list[Object] = self("GET", path, **query)["items"]
        return found

    def path(self, document: Object) -> str:
        """Where the object of a manifest is."""
        metadata = document["metadata"]
        return self.kind(document).path(metadata.get("namespace"), metadata["name"])

    def kind(self, document: Object) -> Kind:
        """What the server calls it. Raises Refused when it does not know the kind in that version."""
        version, name = document["apiVersion"], document["kind"]
        if (version, name) not in self._kinds:
            root = "/api/v1" if version == "v1" else f"/apis/{version}"
            for entry in self("GET", root)["resources"]:
                if "/" not in entry["name"]:
                    self._kinds[version, entry["kind"]] = Kind(version, entry["name"], entry["namespaced"])
        if (version, name) not in self._kinds:
            raise Refused(404, f"no kind {name!r} in {version}")
        return self._kinds[version, name]

    @contextmanager
    def watch(self, path: str, within: float, **query: str) -> Iterator[Iterator[tuple[str, Object]]]:
        """(ADDED | MODIFIED | DELETED, object) as it happens, from `resourceVersion` on; ends after `within` seconds."""
        connection = HTTPSConnection(HOST, self._port, timeout=within, context=self._context)
        options = {"watch": "true", "timeoutSeconds": str(int(within)), **query}
        try:
            answer = self._send(connection, "GET", path, None, "application/json", options)
            yield ((event["type"], event["object"]) for event in map(json.loads, answer))
        finally:
            connection.close()

    def _connected(self) -> HTTPSConnection:
        if self._connection is None:
            self._connection = HTTPSConnection(HOST, self._port, timeout=60, context=self._context)
        return self._connection

    def _send(
        self,
        connection: HTTPSConnection,
        method: str,
        path: str,
        body: object,
        content: str,
        query: Mapping[str, str],
    ) -> HTTPResponse:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": content, "Accept": "application/json"}
        target = path + (f"?{urlencode(query)}" if query else "")
        try:
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            return connection.getresponse()
        except (HTTPException, OSError):
            connection.close()  # the next request connects anew
            raise


@dataclass
class Cluster:
    """One version of Kubernetes. `start` gives an API server that knows our custom resources."""

    version: str
    home: Path
    children: dict[str, Child] = field(default_factory=dict)
    peaks: dict[str, int] = field(default_factory=dict)
    ready_seconds: float = 0.0
    crds_seconds: float = 0.0

    def start(self) -> None:
        """etcd, then the API server, then the custom resource definitions."""
        self.home.mkdir(parents=True, exist_ok=True)
        self._ports: set[int] = set()
        self._tokens = {name: secrets.token_urlsafe(24) for name in ("admin", "controllers", "scheduler", "nodes")}
        began = time.monotonic()
        self._start_etcd()
        self._start_api_server()
        self.ready_seconds = time.monotonic() - began
        self.crds_seconds = self._apply_definitions()

    def stop(self) -> None:
        """Ends every process, the youngest first. Their memory is noted."""
        for name, child in reversed(list(self.children.items())):
            self.peaks[name] = max(self.peaks.get(name, 0), peak_bytes(child.pid))
            child.send(signal.SIGCONT)
            # What they hold is thrown away: nothing is waited for but their end.
            asyncio.run(child.stop(signal.SIGKILL))
        self.children.clear()

    def admin(self) -> Api:
        """The API server as a cluster administrator sees it."""
        return Api(self._port, self._tokens["admin"], self._authority)

    def account(self, namespace: str, name: str) -> Api:
        """The API server as a service account sees it that has asked for a token."""
        path = f"{Kind('v1', 'serviceaccounts', True).path(namespace, name)}/token"
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return Api(self._port, self.admin()("POST", path, asked)["status"]["token"], self._authority)

    def kubectl(self, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
        """Runs kubectl as the administrator. Its code is not checked."""
        command = [
            str(kubectl()),
            f"--kubeconfig={self.kubeconfig('admin')}",
            f"--cache-dir={self.home / 'discovery'}",
        ]
        return subprocess.run(
            [*command, *arguments], input=stdin, capture_output=True, text=True, timeout=120, check=False
        )

    def run_controllers(self) -> None:
        """kube-controller-manager, kube-scheduler, and kwok with nodes in three zones; returns when all nodes are ready."""
        admin = self.admin()
        ports = [free_port(self._ports) for _ in range(3)]
        common = ("--leader-elect=false", "--bind-address=127.0.0.1", f"--cert-dir={self.home / 'serving'}")
        self._run(
            "kube-controller-manager",
            *common,
            f"--secure-port={ports[0]}",
            f"--kubeconfig={self.kubeconfig('controllers')}",
            "--use-service-account-credentials=true",
            f"--service-account-private-key-file={self.home / 'service-accounts.key'}",
            f"--root-ca-file={self._authority}",
            "--resource-quota-sync-period=5s",  # a creation that is tried again is counted twice until then
        )
        self._run(
            "kube-scheduler",
            *common,
            f"--secure-port={ports[1]}",
            f"--kubeconfig={self.kubeconfig('scheduler')}",
        )
        self._run(
            "kwok",
            f"--kubeconfig={self.kubeconfig('nodes')}",
            f"--config={NODES}",
            "--manage-all-nodes=true",
            "--node-lease-duration-seconds=40",
            f"--server-address=127.0.0.1:{ports[2]}",
            module="kwok",
        )
        for node in _nodes():
            admin.create(node)
        until(lambda: self._check() and all(map(_is_ready, admin.items("/api/v1/nodes"))), "the nodes are ready")

    def pause(self, name: str) -> None:
        """Stops a process where it is, until `resume`."""
        self.children[name].send(signal.SIGSTOP)

    def resume(self, name: str) -> None:
        """Lets a paused process go on."""
        self.children[name].send(signal.SIGCONT)

    # ----------------------------------------------------------------------------------------------

    def _start_etcd(self) -> None:
        client, peer = (f"http://{HOST}:{free_port(self._ports)}" for _ in range(2))
        self._etcd = client
        self._run(
            "etcd",
            f"--data-dir={self.home / 'etcd'}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--unsafe-no-fsync",  # nothing here outlives the run
            module="etcd",
        )

    def _start_api_server(self) -> None:
        self._port = free_port(self._ports)
        self._authority = self.home / "certificates" / "apiserver.crt"
        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        key_file = self.home / "service-accounts.key"
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        key_file.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        users = {
            "admin": ("admin", "system:masters"),
            "controllers": ("system:kube-controller-manager", ""),
            "scheduler": ("system:kube-scheduler", ""),
            "nodes": ("kwok", "system:masters"),
        }
        lines = (f'{self._tokens[name]},{user},{user},"{group}"' for name, (user, group) in users.items())
        (self.home / "tokens.csv").write_text("\n".join(lines) + "\n")
        self._run(
            "kube-apiserver",
            f"--etcd-servers={self._etcd}",
            f"--bind-address={HOST}",
            f"--advertise-address={HOST}",
            f"--secure-port={self._port}",
            f"--cert-dir={self.home / 'certificates'}",
            "--endpoint-reconciler-type=none",  # nobody reaches this server but over loopback
            "--service-cluster-ip-range=10.96.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-signing-key-file={key_file}",
            f"--service-account-key-file={key_file}",
            f"--token-auth-file={self.home / 'tokens.csv'}",
            "--authorization-mode=Node,RBAC",
            # Beside the defaults (PodSecurity, ResourceQuota, LimitRanger, Priority, ServiceAccount, ... among them).
            "--enable-admission-plugins=NodeRestriction",
            "--allow-privileged=true",  # as real clusters have it: Pod Security is to judge, not this flag
        )
        until(self._answers, "the API server is ready")

    def _answers(self) -> bool:
        self._check()
        if not self._authority.exists() or is_free(self._port):
            return False
        try:
            # The post-start hooks among its checks: RBAC's roles and the priority classes are there.
            return bool(self.admin()("GET", "/readyz") == "ok")
        except (Refused, OSError, HTTPException):
            return False

    def _apply_definitions(self) -> float:
        began, admin = time.monotonic(), self.admin()
        definitions = _definitions()
        for definition in definitions:
            admin.create(definition)
        names = {(d["spec"]["group"], d["spec"]["names"]["plural"]) for d in definitions}
        groups = {f"/apis/{d['spec']['group']}/{v['name']}" for d in definitions for v in d["spec"]["versions"]}

        def served() -> bool:
            try:
                found = [(g.split("/")[2], e["name"]) for g in groups for e in admin("GET", g)["resources"]]
            except Refused:
                return False
            return names <= set(found)

        until(served, "the custom resources are served")
        return time.monotonic() - began

    def kubeconfig(self, user: str) -> Path:
        """The file by which a program goes to this cluster as `user`."""
        file = self.home / f"{user}.kubeconfig"
        if not file.exists():
            server = {"server": f"https://{HOST}:{self._port}", "certificate-authority": str(self._authority)}
            config = {
                "apiVersion": "v1",
                "kind": "Config",
                "clusters": [{"name": "here", "cluster": server}],
                "users": [{"name": user, "user": {"token": self._tokens[user]}}],
                "contexts": [{"name": "here", "context": {"cluster": "here", "user": user}}],
                "current-context": "here",
            }
            file.write_text(yaml.safe_dump(config))
            file.chmod(0o600)
        return file

    def _run(self, name: str, *arguments: str, module: str | None = None) -> None:
        program = binaries.path(module or self.version, name)
        assert program.exists(), f"{name} has not been built: `make admission` does that first"
        self.children[name] = Child.start(
            name,
            [str(program), *arguments],
            log=self.home / f"{name}.log",
            die_with_parent=signal.SIGKILL,
            cwd=self.home,
        )

    def _check(self) -> bool:
        """Fails with the last words of a process that has ended."""
        for name, child in self.children.items():
            assert child.returncode is None, f"{name} {self.version} ended:\n{child.tail(20)}"
        return True


def peak_bytes(pid: int) -> int:
    """The largest resident size that a process has had; 0 where the system does not tell."""
    status = Path(f"/proc/{pid}/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def condition(stored: Object, name: str) -> bool:
    """Whether a condition of an object's status is True."""
    found = stored.get("status", {}).get("conditions") or ()
    return any(entry["type"] == name and entry["status"] == "True" for entry in found)


def _is_ready(stored: Object) -> bool:
    return condition(stored, "Ready")


@cache
def _definitions() -> tuple[Object, ...]:
    return tuple(crds.read(file) for file in sorted(CRDS.glob("*.yaml")))


def _nodes() -> Sequence[Object]:
    names = [(zone, f"node-{zone}{number}") for zone in ZONES for number in range(1, NODES_PER_ZONE + 1)]
    return [_node(name, zone) for zone, name in names]


def _node(name: str, zone: str) -> Object:
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": "amd64",
        "topology.kubernetes.io/zone": zone,
    }
    size = {"cpu": "32", "memory": "128Gi", "pods": "110"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels, "annotations": {"kwok.x-k8s.io/node": "fake"}},
        "spec": {},
        "status": {"allocatable": size, "capacity": size},
    }
