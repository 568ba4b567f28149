"""Every manifest that follows from the code: written below k8s/, or compared with what stands there.

What the code does not know (the namespace, Kafka's and the operators' own parts, quotas, overlays) is written by hand beside
it, in files that this module never touches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from deploy.k8s import database, kafka, monitoring, network, rights, scaling, secrets, sizing, toolbox, workload
from deploy.k8s.names import Doc
from deploy.observe import render as observe
from shared.mesh import Service

FOLDER = Path(__file__).parents[2] / "k8s"
# The folder of the base that is written by hand.
_BY_HAND = "platform"
HEADER = "# Written by `steward k8s render` from what the code declares. Change the declaration, not this file.\n"


def objects() -> dict[str, Sequence[Doc]]:
    """Every object that is rendered, by the path below k8s/ of the file in which it stands."""
    house = list(rights.services().values())
    files: dict[str, Sequence[Doc]] = {
        "base/contract/topics.yaml": kafka.topics(),
        "base/contract/users.yaml": kafka.users(house),
        "components/keda/scaledobjects.yaml": [*scaling.scaled(house), *scaling.authentication()],
        "components/network-policies/rooms.yaml": network.policies(house),
        "components/tracing/network-policy.yaml": network.of_traces(house),
        "components/monitoring/podmonitors.yaml": monitoring.pod_monitors(house),
        "components/external-secrets/secrets.yaml": secrets.external(house),
        "components/toolbox/toolbox.yaml": toolbox.documents(house),
    }
    for service in house:
        files |= _room(service)
    for owner, docs in database.all_of(house).items():
        files[f"base/{owner}/database.yaml"] = docs
    return files


@cache
def documents() -> Mapping[str, str]:
    """The text of every manifest that is rendered, by its path below k8s/."""
    texts = {path: _text(docs) for path, docs in objects().items()}
    folders: dict[str, list[str]] = {}
    for path in texts:
        if path.startswith("base/"):
            folder, _, name = path.removeprefix("base/").partition("/")
            folders.setdefault(folder, []).append(name)
    for folder, listed in folders.items():
        texts[f"base/{folder}/kustomization.yaml"] = _kustomization(sorted(listed))
    texts["base/kustomization.yaml"] = _kustomization([_BY_HAND, *folders])
    house = list(rights.services().values())
    texts["components/keda/kustomization.yaml"] = _component(["scaledobjects.yaml"], scaling.patches(house))
    texts["components/network-policies/kustomization.yaml"] = _component(
        ["default-deny.yaml", "rooms.yaml", "kafka.yaml"], network.patches(house)
    )
    texts["SIZING.md"] = sizing.page()
    for path, text in observe.documents().items():
        texts[path] = HEADER + text if path.endswith(".yaml") else text
    return texts


def _kustomization(resources: Sequence[str]) -> str:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return _text([head | {"resources": list(resources)}])


def _component(resources: Sequence[str], patches: Sequence[tuple[Doc, Sequence[Doc]]]) -> str:
    """`patches`: the target of each, and its operations (RFC 6902)."""
    head = {"apiVersion": "kustomize.config.k8s.io/v1alpha1", "kind": "Component"}
    done = [{"target": target, "patch": _dumped(operations)} for target, operations in patches]
    return _text([head | {"resources": list(resources), "patches": done}])


def _room(service: Service) -> dict[str, Sequence[Doc]]:
    where = f"base/{service.name}"
    return {
        f"{where}/deployment.yaml": [workload.deployment(service)],
        f"{where}/identity.yaml": [workload.identity(service), workload.disruption(service), *workload.ports(service)],
    }


def write(folder: Path = FOLDER) -> list[Path]:
    """Writes what differs and deletes what is rendered no more; returns those files."""
    wanted = documents()
    touched = []
    for path, text in wanted.items():
        file = folder / path
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
            touched.append(file)
    for stale in _stale(folder, wanted):
        stale.unlink()
        touched.append(stale)
    return touched


def differences(folder: Path = FOLDER) -> list[str]:
    """How k8s/ differs from what the code says, a sentence each; none when it does not."""
    wanted = documents()
    said = []
    for path, text in wanted.items():
        file = folder / path
        if not file.exists():
            said.append(f"{path} is missing")
        elif file.read_text(encoding="utf-8") != text:
            said.append(f"{path} is not what the code says")
    return said + [f"{stale.relative_to(folder)} is rendered no more" for stale in _stale(folder, wanted)]


def _stale(folder: Path, wanted: Mapping[str, str]) -> list[Path]:
    ours = [file for file in folder.rglob("*.yaml") if file.read_text(encoding="utf-8").startswith(HEADER)]
    # JSON has no place for a first line: folders of it are rendered as a whole.
    for whole in {Path(path).parent for path in wanted if path.endswith(".json")}:
        ours += (folder / whole).glob("*.json")
    return [file for file in sorted(ours) if str(file.relative_to(folder)) not in wanted]


class _Dumper(yaml.SafeDumper):
    """Lists are indented below their key, and nothing is an anchor."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> Any:
        return super().increase_indent(flow, False)

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _text(docs: Sequence[Doc]) -> str:
    return HEADER + "---\n".join(_dumped(doc) for doc in docs)


def _dumped(value: Any) -> str:
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, width=130, allow_unicode=True)
