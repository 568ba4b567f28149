"""Name and version of the project where it is not installed but copied: `python image_version.py PYPROJECT FOLDER`.

Writes what `importlib.metadata` reads (PyPA, Recording installed projects) below FOLDER, which is on Python's path.
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path


def write(pyproject: Path, folder: Path) -> Path:
    """Returns the folder that it made. Raises KeyError when the project has no name or no version."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    name = re.sub(r"[-_.]+", "_", project["name"]).lower()
    made = folder / f"{name}-{project['version']}.dist-info"
    made.mkdir()
    about = f"Metadata-Version: 2.4\nName: {project['name']}\nVersion: {project['version']}\n"
    (made / "METADATA").write_text(about, encoding="utf-8")
    return made


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))
