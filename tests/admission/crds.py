"""The custom resource definitions beside this file, made from those of the releases: `python -m tests.admission.crds FOLDER`.

FOLDER holds the originals, one per file, named `<group>_<plural>.yaml`. What judges stays: types, enums, defaults, patterns,
CEL rules with their messages. What only explains goes: each description, and versions that are not served any more.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).with_name("crds")
# The kinds that our manifests use, and those that an SRE adds first.
WANTED = (
    "barmancloud.cnpg.io_objectstores",
    "cert-manager.io_certificates",
    "cert-manager.io_issuers",
    "external-secrets.io_externalsecrets",
    "external-secrets.io_secretstores",
    "kafka.strimzi.io_kafkanodepools",
    "kafka.strimzi.io_kafkarebalances",
    "kafka.strimzi.io_kafkas",
    "kafka.strimzi.io_kafkatopics",
    "kafka.strimzi.io_kafkausers",
    "keda.sh_scaledobjects",
    "keda.sh_triggerauthentications",
    "monitoring.coreos.com_podmonitors",
    "monitoring.coreos.com_prometheusrules",
    "monitoring.coreos.com_servicemonitors",
    "opentelemetry.io_opentelemetrycollectors",
    "postgresql.cnpg.io_backups",
    "postgresql.cnpg.io_clusters",
    "postgresql.cnpg.io_databaseroles",
    "postgresql.cnpg.io_databases",
    "postgresql.cnpg.io_imagecatalogs",
    "postgresql.cnpg.io_poolers",
    "postgresql.cnpg.io_scheduledbackups",
)
# What stands under these is somebody's value, not a schema.
_VALUES = frozenset({"default", "enum", "example"})


def bare(definition: dict[str, Any]) -> dict[str, Any]:
    """A definition that judges as the given one does, without the sentences that explain it."""
    spec = dict(definition["spec"])
    spec["versions"] = [_bare_version(version) for version in spec["versions"] if version["served"]]
    metadata = {key: value for key, value in definition["metadata"].items() if key in ("name", "annotations")}
    return {
        "apiVersion": definition["apiVersion"],
        "kind": definition["kind"],
        "metadata": metadata,
        "spec": spec,
    }


def schema(value: Any) -> Any:
    """A schema without its descriptions; a *property* that is named description stays."""
    if isinstance(value, list):
        return [schema(item) for item in value]
    if not isinstance(value, dict):
        return value
    kept = {}
    for key, inner in value.items():
        if key == "properties":
            kept[key] = {name: schema(property_) for name, property_ in inner.items()}
        elif key in _VALUES:
            kept[key] = inner
        elif key != "description":
            kept[key] = schema(inner)
    return kept


def written(definition: dict[str, Any]) -> str:
    """As it stands in its file."""
    return yaml.dump(definition, Dumper=getattr(yaml, "CSafeDumper", yaml.SafeDumper), sort_keys=False, width=120)


def read(file: Path) -> dict[str, Any]:
    """The one definition of a file."""
    loaded = yaml.load(file.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    assert isinstance(loaded, dict), f"{file} holds no single document"
    return loaded


def _bare_version(version: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in version.items() if key != "deprecationWarning"}
    kept["schema"] = {"openAPIV3Schema": schema(version["schema"]["openAPIV3Schema"])}
    if "additionalPrinterColumns" in kept:
        kept["additionalPrinterColumns"] = [
            {key: value for key, value in column.items() if key != "description"}
            for column in kept["additionalPrinterColumns"]
        ]
    return kept


def main(originals: Path) -> None:
    """Writes the wanted definitions anew."""
    HERE.mkdir(exist_ok=True)
    for name in WANTED:
        (HERE / f"{name}.yaml").write_text(written(bare(read(originals / f"{name}.yaml"))), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
