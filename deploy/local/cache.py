"""The user's cache: what is downloaded once and used by every stack of this user."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from deploy.local.errors import LocalError


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """`STEWARD_CACHE`, else the platform's cache folder; made when missing. It outlives `STEWARD_HOME`.

    Raises LocalError when it cannot be written.
    """
    given = environ.get("STEWARD_CACHE")
    if given:
        folder = Path(given).expanduser().absolute()
    elif sys.platform == "darwin":
        folder = Path("~/Library/Caches/steward").expanduser()
    else:
        folder = Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "steward"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = f"{folder} cannot be made ({error.strerror})"
        raise LocalError(f"{why}: set STEWARD_CACHE to a folder of yours") from error
    return folder


@contextlib.contextmanager
def only_one(lock: Path) -> Iterator[None]:
    """One process at a time fetches; the others wait, and then find everything there."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
