"""The source tree that this process runs from, and the name of what is in it."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

# Where a run of the tests leaves what it showed, below the tree's root.
PROOF = Path("build", "promises.json")


def root() -> Path:
    """The folder that holds deploy/, services/ and shared/."""
    return Path(__file__).resolve().parent.parent


def commit(tree: Path) -> str | None:
    """The commit of the git work tree at `tree`; None where there is none.

    With changes that are not committed it ends in `+dirty.` and a digest of them, staged or not: two dirty trees are the
    same code only if they have the same changes. What .gitignore leaves out does not count.
    """
    head = _git(tree, "rev-parse", "--verify", "HEAD")
    # A folder inside somebody else's repository has no commit of its own.
    if head is None or (_git(tree, "rev-parse", "--show-prefix") or b"").strip():
        return None
    changed = _git(tree, "diff", "HEAD", "--name-only", "--no-renames", "-z")
    new = _git(tree, "ls-files", "--others", "--exclude-standard", "-z")
    if changed is None or new is None:
        return None
    sha = head.decode().strip()
    names = sorted({name for name in (changed + new).split(b"\0") if name})
    if not names:
        return sha
    digest = hashlib.sha256()
    for name in names:
        path = tree / os.fsdecode(name)
        content = path.read_bytes() if path.is_file() else b"gone"
        digest.update(b"%d:%s%d:%s" % (len(name), name, len(content), content))
    return f"{sha}+dirty.{digest.hexdigest()[:12]}"


def _git(tree: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(("git", "-C", str(tree), *arguments), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
