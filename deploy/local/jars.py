"""Kafka's jars: their Maven coordinates were resolved once, by jgo, into the lock beside this file.

Each line of the lock is `sha256  size in bytes  group:artifact:version`. A start takes the jars from the
user's cache; what is missing is fetched by jgo from Maven Central (and from mirrors in jgo's own settings
file), and nothing is used whose sum is not the lock's. `python -m deploy.local.jars` resolves the
coordinates anew and rewrites the lock.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from deploy.local.cache import only_one
from deploy.local.errors import LocalError

if TYPE_CHECKING:
    import requests
    from rich.console import Console

KAFKA_VERSION = "4.3.1"
# The `!` keeps log4j's dependency management out: it would pick other versions of Kafka's own jars.
COORDINATES = f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}+org.apache.logging.log4j:log4j-slf4j-impl:2.25.1!"
LOCK = Path(__file__).with_name("kafka-jars.sha256")
# Few connections, used again: opening one costs more than fetching most of these files.
_CONNECTIONS = 6
_CHUNK_BYTES = 256 * 1024
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, slots=True)
class Jar:
    """One line of the lock."""

    sha256: str
    size: int
    group: str
    artifact: str
    version: str

    @property
    def file_name(self) -> str:
        """Its name in Maven and in the cache."""
        return f"{self.artifact}-{self.version}.jar"

    @property
    def path_in_maven(self) -> str:
        """Its path in a Maven repository."""
        return f"{self.group.replace('.', '/')}/{self.artifact}/{self.version}/{self.file_name}"

    def __str__(self) -> str:
        return f"{self.sha256}  {self.size:>9}  {self.group}:{self.artifact}:{self.version}"


def locked(lock: Path = LOCK) -> tuple[Jar, ...]:
    """The jars of the lock, in its order, which is the class path's."""
    return tuple(_jars(lock.read_text(encoding="utf-8")))


def folder(cache: Path, lock: Path = LOCK) -> Path:
    """Where the jars of this lock live in the cache: another lock, another folder."""
    digest = hashlib.sha256(lock.read_bytes()).hexdigest()[:12]
    return cache / f"kafka-{KAFKA_VERSION}-{digest}"


def ensure(cache: Path, console: Console | None = None) -> list[Path]:
    """The jars, each checked against the lock; fetches what is missing, with a progress bar on `console`.

    A file whose size and time are those of its last full check is taken as checked. Raises LocalError when a
    jar cannot be had, or is not the one that the lock names.
    """
    target, jars = folder(cache), locked()
    target.mkdir(parents=True, exist_ok=True)
    with only_one(target / "lock"):
        checked = _Checked(target / "checked.json")
        missing = [jar for jar in jars if not checked.holds(target / jar.file_name, jar)]
        if missing:
            _fetch(missing, target, console)
            for jar in missing:
                checked.note(target / jar.file_name)
            checked.save()
    return [target / jar.file_name for jar in jars]


class _Checked:
    """Size and modification time (ns) of each file at its last full check."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamps: dict[str, list[int]] = {}
        with contextlib.suppress(OSError, ValueError):  # none yet, or half a file: check everything
            self._stamps = json.loads(path.read_text(encoding="utf-8"))

    def holds(self, file: Path, jar: Jar) -> bool:
        """Whether `file` is `jar`. A file that is not is removed."""
        if not file.exists():
            return False
        if self._stamps.get(file.name) == _stamp(file):
            return True
        if _sha256(file) != jar.sha256:
            file.unlink()
            return False
        self.note(file)
        self.save()
        return True

    def note(self, file: Path) -> None:
        """`file` has been checked as it is now."""
        self._stamps[file.name] = _stamp(file)

    def save(self) -> None:
        """Writes the notes."""
        self._path.write_text(json.dumps(self._stamps), encoding="utf-8")


def _fetch(jars: list[Jar], target: Path, console: Console | None) -> None:
    download = _Downloads(target)
    largest_first = sorted(jars, key=lambda jar: -jar.size)
    with (
        _progress(console, sum(jar.size for jar in jars), len(jars)) as advance,
        ThreadPoolExecutor(_CONNECTIONS) as pool,
    ):
        list(pool.map(lambda jar: download(jar, advance), largest_first))


class _Downloads:
    """Fetches jars over a few kept connections, from the repositories that jgo knows."""

    def __init__(self, target: Path) -> None:
        from jgo.config import GlobalSettings
        from jgo.constants import MAVEN_CENTRAL_URL
        from jgo.maven import MavenContext

        self._target = target
        remotes = {**GlobalSettings.load().repositories, "central": MAVEN_CENTRAL_URL}
        self._maven = MavenContext(repo_cache=target, remote_repos=remotes, timeout=_TIMEOUT_SECONDS)
        self._kept = threading.local()

    def __call__(self, jar: Jar, advance: Callable[[int], None]) -> None:
        artifact = self._maven.project(jar.group, jar.artifact).at_version(jar.version).artifact()
        path = f"{artifact.component.path_prefix.as_posix()}/{artifact.filename}"
        refusals = []
        for remote in self._maven.remote_repos.values():
            try:
                self._from(f"{remote.rstrip('/')}/{path}", jar, advance)
                return
            except OSError as error:  # requests' errors are OSErrors: the next repository may have it
                refusals.append(f"{remote}: {error}")
        raise LocalError(
            f"{jar.file_name} cannot be had ({'; '.join(refusals)}): check the network, or name a mirror "
            f"under [repositories] in ~/.config/jgo.conf, or copy {self._target} from another machine"
        )

    def _from(self, url: str, jar: Jar, advance: Callable[[int], None]) -> None:
        """One file into place, in one step, if it is the right one."""
        part = self._target / f".{jar.file_name}.part"
        digest, size = hashlib.sha256(), 0
        request = self._session().get(url, stream=True, timeout=_TIMEOUT_SECONDS)
        with request as answer, part.open("wb") as file:
            answer.raise_for_status()
            for chunk in answer.iter_content(_CHUNK_BYTES):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                advance(len(chunk))
        if digest.hexdigest() != jar.sha256:
            part.unlink()
            advance(-size)
            raise OSError(f"{url} is not the file that {LOCK.name} names (sha256 {digest.hexdigest()})")
        part.replace(self._target / jar.file_name)

    def _session(self) -> requests.Session:
        import requests
        from requests.adapters import HTTPAdapter
        from urllib3.util import Retry

        session: requests.Session | None = getattr(self._kept, "session", None)
        if session is None:
            session = self._kept.session = requests.Session()
            again = Retry(total=4, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
            session.mount("https://", HTTPAdapter(max_retries=again))
        return session


@contextlib.contextmanager
def _progress(console: Console | None, total: int, files: int) -> Iterator[Callable[[int], None]]:
    """A progress bar over all files; a plain line where nobody could see it move."""
    label = f"Apache Kafka {KAFKA_VERSION} (first start: {files} files, {total / 1e6:.0f} MB)"
    if console is None or not console.is_terminal:
        if console is not None:
            console.print(f"Downloading {label}")
        yield lambda size: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda size: progress.advance(task, size)


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_size, status.st_mtime_ns]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _jars(text: str) -> Iterator[Jar]:
    for line in text.splitlines():
        if line and not line.startswith("#"):
            sha256, size, coordinate = line.split()
            yield Jar(sha256, int(size), *coordinate.split(":"))


def resolve() -> list[Jar]:
    """Resolves `COORDINATES`, fetches every jar and takes its sum. Takes a quarter of a minute."""
    from jgo.maven import MavenContext
    from jgo.parse import Endpoint

    with TemporaryDirectory() as scratch:
        maven = MavenContext(repo_cache=Path(scratch), timeout=_TIMEOUT_SECONDS)
        named = [replace(c, scope=c.scope or "compile") for c in Endpoint.parse(COORDINATES).coordinates]
        inputs, others = maven.resolver.resolve([maven.create_dependency(coordinate) for coordinate in named])
        kept = [*inputs, *(dependency for dependency in others if dependency.scope in ("compile", "runtime"))]
        found = []
        for artifact in (dependency.artifact for dependency in kept):
            file = artifact.resolve()
            name = (artifact.groupId, artifact.artifactId, artifact.version)
            found.append(Jar(_sha256(file), file.stat().st_size, *name))
    return sorted(found, key=lambda jar: (jar.group, jar.artifact))


def _rewrite_lock() -> None:
    head = f"# {COORDINATES}\n# sha256, size, coordinate; made by `python -m deploy.local.jars`\n"
    beside = LOCK.with_name(f"{LOCK.name}.{os.getpid()}")
    beside.write_text(head + "".join(f"{jar}\n" for jar in resolve()), encoding="utf-8")
    beside.replace(LOCK)


if __name__ == "__main__":
    _rewrite_lock()
