"""What is in the wheel: packages of shared/ under the product's name. Run by hatchling, never imported."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_PACKAGES = ("policy", "contract", "emitter", "adapters")
# Makes documents out of the contract, needs more than the contract does; the wheel's own making; what our tests prove.
_LEFT_OUT = {
    "contract/export.py", "emitter/steward.py", "emitter/wheel.py", "policy/promises.toml", "policy/register.py",
}  # fmt: skip


class Wheel(BuildHookInterface[Any]):
    """Lays shared/<package>/ as steward/<package>/."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Adds the files; `steward/__init__.py` is emitter/steward.py."""
        here = Path(self.root)
        files = {here / "steward.py": "steward/__init__.py", here / "py.typed": "steward/py.typed"}
        for package in _PACKAGES:
            for pattern in ("*.py", "*.toml"):
                for path in sorted((here.parent / package).glob(pattern)):
                    name = f"{package}/{path.name}"
                    if name not in _LEFT_OUT and path.name != "pyproject.toml":
                        files[path] = f"steward/{name}"
        build_data["force_include"] = {str(path): name for path, name in files.items()}
