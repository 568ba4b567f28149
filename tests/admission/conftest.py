"""One cluster for each version of Kubernetes and each overlay, one after the other; what they cost is said at the end."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import pytest
import yaml

from deploy.k8s.kubectl import kustomized
from tests.admission import binaries
from tests.admission.cluster import Api, Cluster, Object

K8S = Path(__file__).resolve().parents[2] / "k8s"
OVERLAYS = sorted(folder.parent.name for folder in K8S.glob("overlays/*/kustomization.yaml"))
STRICTEST = "prod"
NAMESPACE = "steward"
_COSTS: list[str] = []


@dataclass
class Judge:
    """A cluster that judges one overlay. `documents` are the overlay's, as Kustomize renders them."""

    cluster: Cluster
    overlay: str
    text: str
    documents: list[Object]
    api: Api
    _applied: str | None = field(default=None)
    _controlled: bool = field(default=False)

    def of(self, kind: str, name: str | None = None) -> list[Object]:
        """The documents of a kind, all or those of one name."""
        found = (document for document in self.documents if document["kind"] == kind)
        return [document for document in found if name is None or document["metadata"]["name"] == name]

    def apply(self, *options: str) -> str:
        """Applies the overlay as an SRE does, strictly; kubectl's words. Fails the test with them when it is refused."""
        answer = self.cluster.kubectl(
            "apply", "--server-side", "--validate=strict", "-f", "-", *options, stdin=self.text
        )
        assert answer.returncode == 0, f"{self.overlay} on {self.cluster.version}:\n{answer.stderr}"
        return answer.stdout + answer.stderr

    def installed(self) -> str:
        """Applies the overlay for real, once."""
        if self._applied is None:
            self._applied = self.apply()
            # What controllers would do at once, and what admission waits for: not every cluster here has them.
            for namespace in self.of("Namespace"):
                self.api.apply(account("default", namespace["metadata"]["name"]))
            for quota in self.of("ResourceQuota"):
                hard = quota["spec"]["hard"]
                status = {"status": {"hard": hard, "used": dict.fromkeys(hard, "0")}}
                self.api("PATCH", f"{self.api.path(quota)}/status", status, content="application/merge-patch+json")
        return self._applied

    def controlled(self) -> None:
        """The overlay is installed, and what it asks for is made by controllers on simulated nodes."""
        self.installed()
        if not self._controlled:
            self.cluster.run_controllers()
            # KEDA is not here: what it scales runs as often as it would at least.
            for scaler in self.of("ScaledObject"):
                (target,) = self.of("Deployment", scaler["spec"]["scaleTargetRef"]["name"])
                target["spec"]["replicas"] = scaler["spec"]["minReplicaCount"]
                scale = {"spec": {"replicas": target["spec"]["replicas"]}}
                self.api("PATCH", f"{self.api.path(target)}/scale", scale, content="application/merge-patch+json")
            self._controlled = True


def account(name: str, namespace: str) -> Object:
    """A service account."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": namespace}}


@cache
def _rendered(overlay: str) -> tuple[str, list[Object]]:
    text = kustomized(K8S / "overlays" / overlay)
    documents = yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return text, [document for document in documents if document]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`judge`: each version with each overlay; `newest` and `strictest`: some of them; `deepest`: only where both meet;
    `first`: what somebody sees who has just begun."""
    pairs = [(version, overlay) for version in (binaries.OLDEST, binaries.NEWEST) for overlay in OVERLAYS]
    on_newest = [pair for pair in pairs if pair[0] == binaries.NEWEST]
    wanted = {
        "deepest": [pair for pair in on_newest if pair[1] == STRICTEST],
        "first": [pair for pair in on_newest if pair[1] == "dev"],
        "newest": on_newest,
        "strictest": [pair for pair in pairs if pair[1] == STRICTEST],
        "judge": pairs,  # the others stand on it
    }
    name = next((name for name in wanted if name in metafunc.fixturenames), None)
    if name is not None:
        metafunc.parametrize("judge", wanted[name], ids="-".join, indirect=True, scope="session")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One cluster after the other; on each what is taken, then what is refused, then what becomes of it."""
    ours = [item for item in items if item.path.parent == Path(__file__).parent]
    places = [number for number, item in enumerate(items) if item in ours]
    for place, item in zip(places, sorted(ours, key=_turn), strict=True):
        items[place] = item


def _turn(item: pytest.Item) -> tuple[str, str, int]:
    callspec = getattr(item, "callspec", None)  # tests without parameters have none
    version, overlay = callspec.params.get("judge", ("", "")) if callspec is not None else ("", "")
    stems = ("test_crds", "test_overlays", "test_mutations", "test_rollout", "test_first_hour")
    return version, overlay, stems.index(item.path.stem)


@pytest.fixture(scope="session")
def judge(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Judge]:
    """A fresh cluster with our custom resources, and an overlay that it has not seen yet."""
    version, overlay = request.param
    text, documents = _rendered(overlay)
    cluster = Cluster(version, tmp_path_factory.mktemp(f"{version}-{overlay}"))
    try:
        cluster.start()
        yield Judge(cluster, overlay, text, deepcopy(documents), cluster.admin())
    finally:
        cluster.stop()
        peaks = ", ".join(f"{name} {size / 1e6:.0f} MB" for name, size in sorted(cluster.peaks.items()))
        _COSTS.append(
            f"Kubernetes {version}, {overlay}: ready in {cluster.ready_seconds:.1f} s, "
            f"custom resources in {cluster.crds_seconds:.1f} s; peak memory {peaks}"
        )


@pytest.fixture(scope="session")
def newest(judge: Judge) -> Judge:
    """An overlay on the newest version."""
    return judge


@pytest.fixture(scope="session")
def strictest(judge: Judge) -> Judge:
    """The overlay for production."""
    return judge


@pytest.fixture(scope="session")
def deepest(judge: Judge) -> Judge:
    """The overlay for production, on the newest version."""
    return judge


@pytest.fixture(scope="session")
def first(judge: Judge) -> Judge:
    """The overlay for one machine, on the newest version."""
    return judge


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in _COSTS:
        terminalreporter.write_line(line)
