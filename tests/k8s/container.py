"""A replayed image as a process: Python alone in a root of its own, read-only, without privileges, as a cluster would run it.

Needs mount namespaces, which root has, and on most machines everybody within a user namespace. Where neither works, the
process runs from the same folders without that isolation, and sees no other library all the same.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from tests.k8s.dockerfile import Image

USER = "65532"
_PATH = "/usr/local/bin:/usr/bin"
# $1: the root, $2: the folder of the volumes, $3: uid:gid or nothing; then folders and what they are in the root, a `--`, and
# the command.
_ENTER = """set -eu
root=$1 volumes=$2 user=$3; shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
while [ "$1" != -- ]; do
  mount --bind "$1" "$root$2"
  mount -o remount,bind,ro "$root$2"
  shift 2
done
shift
for one in proc dev; do mount --rbind "/$one" "$root/$one"; done
mount -t tmpfs none "$root/tmp"
mount --bind "$volumes" "$root/var/lib/steward"
exec chroot ${user:+--userspec="$user"} "$root" "$@"
"""


@lru_cache(maxsize=1)
def isolation() -> tuple[str, ...] | None:
    """The command that gives a process mounts of its own, None where there is none."""
    for words in (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount")):
        try:
            # A bind mount, since a kernel may allow the namespace and refuse what it is for.
            done = subprocess.run(
                [*words, "mount", "--bind", "/tmp", "/tmp"], capture_output=True, check=False, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return words
    return None


def base(folder: Path, libraries: Path) -> Path:
    """What the base image of the last stage has, from this machine: Python, and what it and `libraries` are linked with."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "usr/bin").mkdir(parents=True)
    shutil.copy2(Path(sys.base_prefix, "bin", name).resolve(), folder / "usr/bin" / name)
    for other in ("python", "python3"):
        (folder / "usr/bin" / other).symlink_to(name)
    unused = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "idlelib", "ensurepip", "tkinter", "config-*"
    )
    stdlib = folder / "usr/lib" / name
    shutil.copytree(sysconfig.get_path("stdlib"), stdlib, ignore=unused, symlinks=True)
    linked = [folder / "usr/bin" / name, *stdlib.rglob("*.so"), *libraries.rglob("*.so")]
    told = subprocess.run(["ldd", *map(str, linked)], capture_output=True, text=True, check=False).stdout
    for library in sorted(set(re.findall(r"(?:=> |^\t)(/\S+) \(0x", told, re.MULTILINE))):
        if not library.startswith(str(libraries)):
            place = folder / library.lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(library, place)
    return folder


class Container:
    """An image, and the folder that stands for its volumes (mounted at /var/lib/steward)."""

    def __init__(self, image: Image, base_folder: Path, volumes: Path) -> None:
        self.image = image
        self._volumes = volumes
        # An image may have put something of its own below /usr.
        parts = [path for path in base_folder.iterdir() if path.name != "usr"] + list((base_folder / "usr").iterdir())
        self._mounts = {f"/{path.relative_to(base_folder)}": path for path in parts} | image.mounts
        for place in (*self._mounts, "proc", "dev", "tmp"):
            (image.root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        if not volumes.exists():
            shutil.copytree(image.root / "var/lib/steward", volumes)
            if os.geteuid() == 0:
                for path in (volumes, *volumes.iterdir()):
                    os.chown(path, int(USER), int(USER))

    def command(self, words: Sequence[str]) -> list[str]:
        """How this machine runs `words` in the container; its first word is looked up in the image."""
        isolated = isolation()
        if isolated is None:
            return [sys.executable, "-S", *words[1:]]
        user = f"{USER}:{USER}" if os.geteuid() == 0 else ""
        script = ["sh", "-c", _ENTER, "sh", str(self.image.root), str(self._volumes), user]
        mounts = [word for place, folder in self._mounts.items() for word in (str(folder), place)]
        return [*isolated, *script, *mounts, "--", *words]

    def environment(self, told: Mapping[str, str]) -> dict[str, str]:
        """The image's variables and what it is told, and nothing of this machine's."""
        known = {"PATH": _PATH, "LANG": "C.UTF-8", **self.image.environment, **told}
        if isolation() is not None:
            return {**known, "PATH": f"{_PATH}:/bin:/usr/sbin:/sbin"}
        known["PYTHONPATH"] = ":".join(str(self.image.where(path)) for path in known["PYTHONPATH"].split(":"))
        return {name: text.replace("/var/lib/steward", str(self._volumes)) for name, text in known.items()}

    def run(
        self, words: Sequence[str], told: Mapping[str, str], timeout: float = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end."""
        return subprocess.run(
            self.command(words),
            env=self.environment(told),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
