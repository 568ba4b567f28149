"""The source tree that this process runs from, and the name of what is in it."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

# Where a run of the tests leaves what it showed, below the tree's root.
PROOF = Path("build", "promises.json")


def root() -> Path:
    """The folder that holds deploy/, services/ and shared/."""
    return Path(__file__).resolve().parent.parent


def commit(tree: Path) -> str | None:
    """The commit of the git work tree at `tree`; None where there is none.

    With changes that are not committed it ends in `+dirty.` and a digest of them: two dirty trees are the same code only
    if they have the same changes. What .gitignore leaves out does not count.
    """
    head = _git(tree, "rev-parse", "--verify", "HEAD")
    # A tree that lies inside somebody else's repository has no commit of its own.
    if head is None or (_git(tree, "rev-parse", "--show-prefix") or b"").strip():
        return None
    changes = _git(tree, "diff", "HEAD", "--binary", "--no-ext-diff", "--no-color")
    listed = _git(tree, "ls-files", "--others", "--exclude-standard", "-z")
    if changes is None or listed is None:
        return None
    digest = hashlib.sha256(changes)
    for name in sorted(filter(None, listed.split(b"\0"))):
        path = tree / name.decode(errors="surrogateescape")
        digest.update(b"\0" + name + b"\0" + (path.read_bytes() if path.is_file() else b""))
    sha = head.decode().strip()
    return f"{sha}+dirty.{digest.hexdigest()[:12]}" if changes or listed else sha


def _git(tree: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(("git", "-C", str(tree), *arguments), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
