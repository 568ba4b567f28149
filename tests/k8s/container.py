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
# $1: the root, $2: the folder of the volumes, $3: uid:gid or nothing; then folders and where they are in the root (`none`: an
# empty one), a `--`, and the command.
_ENTER = """set -eu
root=$1 volumes=$2 user=$3; shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
while [ "$1" != -- ]; do
  if [ "$1" = none ]; then
    mount -t tmpfs none "$root$2"
  else
    mount --bind "$1" "$root$2"
    mount -o remount,bind,ro "$root$2"
  fi
  shift 2
done
shift
for one in proc dev; do mount --rbind "/$one" "$root/$one"; done
mount --bind "$volumes" "$root/var/lib/steward"
exec chroot ${user:+--userspec="$user"} "$root" "$@"
"""
_NONE = Path("none")


@lru_cache(maxsize=1)
def isolation() -> tuple[str, ...] | None:
    """The command that gives a process mounts of its own, None where there is none."""
    for words in (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount")):
        try:
            # A kernel may allow the namespace and refuse what it is for.
            tried = "mount --bind /usr /mnt && mount -o remount,bind,ro /mnt && mount -t tmpfs none /tmp"
            done = subprocess.run([*words, "sh", "-c", tried], capture_output=True, check=False, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0:
            return words
    return None


def base(folder: Path) -> dict[str, Path]:
    """What the base image of the last stage has, from this machine: Python, what it is linked with, and the runtime of C
    and C++ (GoogleContainerTools/distroless: python3/config.bzl, on top of cc). A wheel that needs more finds nothing.

    Returns folders by where they are in an image; what needs one of its own is made below `folder`.
    """
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    stdlib = Path(sysconfig.get_path("stdlib"))
    (folder / "usr/bin").mkdir(parents=True)
    (folder / "usr/lib" / name).mkdir(parents=True)
    shutil.copy2(Path(sys.base_prefix, "bin", name).resolve(), folder / "usr/bin" / name)
    for other in ("python", "python3"):
        (folder / "usr/bin" / other).symlink_to(name)
    linked = [folder / "usr/bin" / name, *stdlib.glob("lib-dynload/*.so"), *_runtime()]
    told = subprocess.run(["ldd", *map(str, linked)], capture_output=True, text=True, check=False).stdout
    needed = {*re.findall(r"(?:=> |^\t)(/\S+) \(0x", told, re.MULTILINE), *_runtime()}
    for library in sorted(needed):
        place = folder / library.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(library, place)
    # An image may have put something of its own below /usr.
    parts = [path for path in folder.iterdir() if path.name != "usr"] + list((folder / "usr").iterdir())
    mounts = {f"/{path.relative_to(folder)}": path for path in parts} | {f"/usr/lib/{name}": stdlib}
    # What is installed for this machine's Python is none of the image's.
    return mounts | ({f"/usr/lib/{name}/site-packages": _NONE} if (stdlib / "site-packages").exists() else {})


def _runtime() -> list[str]:
    """Where this machine's linker finds the libraries of distroless/cc: those of C's own package, of C++ and of GCC."""
    known = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    names = r"(?:m|dl|rt|util|pthread|resolv|anl|stdc\+\+|gcc_s|gomp)"
    return re.findall(rf"^\tlib{names}\.so\.\d \(libc6,[^)]*\) => (\S+)$", known, re.MULTILINE)


class Container:
    """An image, and the folder that stands for its volumes (mounted at /var/lib/steward)."""

    def __init__(self, image: Image, system: Mapping[str, Path], volumes: Path) -> None:
        self.image = image
        self._volumes = volumes
        self._mounts = {**system, **image.mounts, "/tmp": _NONE}
        for place in (*system, *image.mounts, "/tmp", "/proc", "/dev"):
            (image.root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
        if not volumes.exists():  # as Docker does: a new volume takes content and owners from the image
            shutil.copytree(image.root / "var/lib/steward", volumes)
            if os.geteuid() == 0:
                for path in (volumes, *volumes.iterdir()):
                    owned = (image.root / "var/lib/steward" / path.relative_to(volumes)).stat()
                    os.chown(path, owned.st_uid, owned.st_gid)

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
