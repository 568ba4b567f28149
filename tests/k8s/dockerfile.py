"""A Dockerfile read, judged, and performed in a folder, for machines without a Docker engine.

`parse` knows the part of the language that ours uses and refuses the rest; `faults` says what is wrong with it as an image
for a service; `Replay` does its steps: each stage is a folder, and what a RUN names by an absolute path lies in that folder.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

_WORDS = frozenset(("FROM", "ARG", "ENV", "LABEL", "COPY", "RUN", "WORKDIR", "USER", "EXPOSE", "ENTRYPOINT", "CMD"))
# What a stage that ships may take from the others: anything more could be a tool.
_CONTENT = frozenset(("/libraries", "/app", "/state"))
_SECRET = re.compile("PASSW|SECRET|TOKEN|CREDENTIAL|KEY$|_URL$")
_VARIABLE = re.compile(r"\$(?:\{(?P<braced>[A-Za-z_][A-Za-z0-9_]*)\}|(?P<bare>[A-Za-z_][A-Za-z0-9_]*))")


class DockerfileError(Exception):
    """The text is none that this module, or Docker, can read."""


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction. `words`: of an exec form its list, else the words as a shell would split them."""

    name: str
    flags: Mapping[str, str]
    text: str
    words: tuple[str, ...]
    exec_form: bool


@dataclass(slots=True)
class Stage:
    """What one FROM begins."""

    name: str | None
    base: str
    steps: list[Instruction] = field(default_factory=list)

    def all(self, name: str) -> list[Instruction]:
        """Its instructions of one name."""
        return [step for step in self.steps if step.name == name]


@dataclass(slots=True)
class Dockerfile:
    """Arguments before the first FROM, and the stages."""

    arguments: dict[str, str]
    stages: list[Stage]

    def stage(self, name: str) -> Stage | None:
        """The stage of that name."""
        return next((stage for stage in self.stages if stage.name == name), None)


def parse(text: str) -> Dockerfile:
    """Reads a Dockerfile. Raises DockerfileError."""
    found = Dockerfile({}, [])
    for step in _instructions(text):
        if step.name == "FROM":
            match step.words:
                case (base,):
                    name = None
                case (base, word, name) if word.upper() == "AS":
                    pass
                case _:
                    raise DockerfileError(f"FROM {step.text}")
            found.stages.append(Stage(name, expand(base, found.arguments)))
        elif found.stages:
            found.stages[-1].steps.append(step)
        elif step.name == "ARG":
            name, _, value = step.text.partition("=")
            found.arguments[name] = value
        else:
            raise DockerfileError(f"{step.name} before FROM")
    if not found.stages:
        raise DockerfileError("no FROM")
    return found


def expand(text: str, variables: Mapping[str, str]) -> str:
    """`${NAME}` and `$NAME` replaced. Raises DockerfileError for one that is not known (Docker takes it for empty)."""

    def value(match: re.Match[str]) -> str:
        name = match["braced"] or match["bare"]
        if name not in variables:
            raise DockerfileError(f"{name} is not declared here: {text}")
        return variables[name]

    return _VARIABLE.sub(value, text)


def pairs(step: Instruction) -> dict[str, str]:
    """What an ENV or LABEL sets."""
    return dict(word.split("=", 1) for word in step.words)


def faults(text: str, context: Path, services: tuple[str, ...]) -> list[str]:
    """Why this is no Dockerfile for these services, a sentence each; none when it is one."""
    try:
        found = parse(text)
        shipped = [stage for stage in (found.stage("toolbox"), found.stages[-1]) if stage is not None]
        started = [stage for stage in (found.stage("dev"), *shipped) if stage is not None]
        wrong = [text for stage in shipped for text in _shipped(stage)]
        wrong += [text for stage in started for text in _process(stage, context)]
        return [*_stages(found), *_secrets(found), *wrong, *_sources(found, context, services)]
    except DockerfileError as error:
        return [str(error)]


def _stages(found: Dockerfile) -> Iterator[str]:
    if len(found.stages) < 2:
        yield "one stage alone: what builds would be in the image"
    seen: set[str] = set()
    for stage in found.stages:
        external = [] if stage.base in seen else [stage.base]
        for copy in stage.all("COPY"):
            origin = copy.flags.get("from")
            if origin is not None and origin not in seen:
                external.append(origin)
        for image in external:
            if not _pinned(image):
                yield f"{image} names no version"
        used = any("{SERVICE}" in step.text for step in stage.steps)
        if used and not any(step.text == "SERVICE" for step in stage.all("ARG")):
            yield f"stage {stage.name or stage.base} uses SERVICE without ARG SERVICE"
        seen |= {stage.name} if stage.name else set()
    bases = {stage.base for stage in found.stages} - seen
    releases = {match[1] if (match := re.search(r"debian:?(\d+)", base)) else base for base in bases}
    if len(releases) != 1:
        yield f"the bases are of Debian {sorted(releases)}: what one Python installs, another would run"
    builds = [step for stage in found.stages for step in stage.all("RUN") if re.search(r"\b(pip\d?|uv)\b", step.text)]
    if not builds:
        yield "nothing installs the libraries"
    for step in builds:
        for flag in ("--require-hashes", "--only-binary"):
            if flag not in step.words:
                yield f"the libraries are installed without {flag}"
    for name in ("dev", "toolbox"):
        if found.stage(name) is None:
            yield f"there is no stage {name}"
    dev = found.stage("dev")
    while dev is not None and (below := found.stage(dev.base)) is not None:
        dev = below
    if dev is not None and "distroless" in dev.base:
        yield "stage dev has no shell"


def _secrets(found: Dockerfile) -> Iterator[str]:
    said = dict(found.arguments)
    for stage in found.stages:
        for step in stage.all("ENV"):
            said |= pairs(step)
        said |= {name: text for name, _, text in (step.text.partition("=") for step in stage.all("ARG"))}
    for name, text in said.items():
        if _SECRET.search(name) or re.search("://[^/]*:[^/]*@", text):
            yield f"{name} is a secret in a layer"


def _pinned(image: str) -> bool:
    _, _, tag = image.rpartition("/")[2].partition(":")
    return "@sha256:" in image or (bool(tag) and tag != "latest")


def _shipped(stage: Stage) -> Iterator[str]:
    name = stage.name or "the last stage"
    if stage.all("RUN"):
        yield f"{name} runs something: it needs a shell or a tool that the image should not have"
    if "distroless" not in stage.base or "debug" in stage.base:
        yield f"{name} stands on {stage.base}, which has a shell"
    for copy in stage.all("COPY"):
        if "from" in copy.flags and not set(copy.words[:-1]) <= _CONTENT:
            yield f"{name} takes {copy.text}, which is neither libraries nor sources"


def _process(stage: Stage, context: Path) -> Iterator[str]:
    name = stage.name or "the last stage"
    users = stage.all("USER")
    if not users or not re.fullmatch(r"[1-9][0-9]*(:[1-9][0-9]*)?", users[-1].text):
        yield f"{name}: USER is not a number above 0: Kubernetes cannot see that it is not root"
    entry = stage.all("ENTRYPOINT")
    if not entry or not entry[-1].exec_form:
        yield f"{name} has no ENTRYPOINT in exec form: a shell would be PID 1 and keep SIGTERM to itself"
    elif not re.fullmatch(r"(/usr/bin/)?python3? -m", " ".join(entry[-1].words[:2])) or not _module(
        context, entry[-1].words[2]
    ):
        yield f"{name}: ENTRYPOINT {entry[-1].text} starts no module of the tree"
    variables = {variable: text for step in stage.all("ENV") for variable, text in pairs(step).items()}
    if variables.get("PYTHONDONTWRITEBYTECODE") != "1":
        yield f"{name} lets Python write bytecode into a file system that is read-only"


def _module(context: Path, name: str) -> bool:
    place = context.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()


def _sources(found: Dockerfile, context: Path, services: tuple[str, ...]) -> Iterator[str]:
    ignored = Ignored.read(context)
    seen: set[str] = set()
    for stage in found.stages:
        for copy in stage.all("COPY"):
            origin = copy.flags.get("from")
            if origin is not None:
                if origin not in seen and "/" not in origin:
                    yield f"COPY --from={origin}: there is no such stage before it"
                continue
            for service in services:
                for source in copy.words[:-1]:
                    path = expand(source, {"SERVICE": service})
                    if not (context / path).exists():
                        yield f"COPY {path}: there is no such file"
                    elif ignored(path):
                        yield f"COPY {path}: .dockerignore leaves it out"
        seen |= {stage.name} if stage.name else set()


def _instructions(text: str) -> Iterator[Instruction]:
    joined = ""
    for line in text.splitlines():
        if line.lstrip().startswith("#") or not line.strip():
            continue
        joined += line
        if joined.endswith("\\"):
            joined = joined[:-1] + " "
            continue
        yield _instruction(joined.strip())
        joined = ""
    if joined:
        raise DockerfileError(f"the last line goes on: {joined}")


def _instruction(line: str) -> Instruction:
    name, _, rest = line.partition(" ")
    if name.upper() not in _WORDS:
        raise DockerfileError(f"{name} is no instruction of ours")
    flags: dict[str, str] = {}
    rest = rest.strip()
    while match := re.match(r"--([a-z]+)=(\S+)\s+", rest):
        flags[match[1]], rest = match[2], rest[match.end() :]
    if rest.startswith("["):
        try:
            words = json.loads(rest)
        except ValueError as error:
            raise DockerfileError(f"no list: {rest}") from error
        return Instruction(name.upper(), flags, rest, tuple(words), True)
    return Instruction(name.upper(), flags, rest, tuple(shlex.split(rest)), False)


@dataclass(frozen=True, slots=True)
class Ignored:
    """A .dockerignore: called with a path of the context, whether it is left out. The last pattern that fits decides."""

    patterns: tuple[str, ...]

    @classmethod
    def read(cls, context: Path) -> Ignored:
        """The one of a context."""
        lines = (context / ".dockerignore").read_text(encoding="utf-8").splitlines()
        return cls(tuple(line.strip() for line in lines if line.strip() and not line.startswith("#")))

    def __call__(self, path: str) -> bool:
        parts = PurePosixPath(path).parts
        above = ["/".join(parts[: n + 1]) for n in range(len(parts))]
        out = False
        for pattern in self.patterns:
            wanted = pattern.lstrip("!")
            if any(_fits(one, wanted) for one in above):
                out = not pattern.startswith("!")
        return out


def _fits(path: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return any(fnmatch.fnmatchcase(part, pattern[3:]) for part in path.split("/"))
    # `*` does not cross a slash.
    return len(path.split("/")) == len(pattern.split("/")) and fnmatch.fnmatchcase(path, pattern)


@dataclass(slots=True)
class Image:
    """What a replayed stage is: its folder, and how it starts."""

    root: Path
    # Folders of other stages, by where they are in this one.
    mounts: dict[str, Path] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    workdir: str = "/"
    user: str = "0"
    entrypoint: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)

    def where(self, path: str) -> Path:
        """Where a path of the image is on this machine."""
        full = PurePosixPath(self.workdir) / path
        for place, folder in self.mounts.items():
            if full.is_relative_to(place):
                return folder / full.relative_to(place)
        return self.root / full.relative_to("/")


class Replay:
    """Performs a Dockerfile's stages in folders below `folder`. Programs of the base images are this machine's.

    A stage sees the folders of the one below it, and a COPY from a stage those of that stage: nothing is copied twice, and
    what a later stage changes is changed for the earlier one, too.

    `apt-get` is left out (it makes the base, which is this machine), and so is `chown` unless we are root.
    """

    def __init__(self, found: Dockerfile, context: Path, folder: Path) -> None:
        self._found = found
        self._context = context
        self._folder = folder
        self._ignored = Ignored.read(context)
        self._images: dict[str, Image] = {}

    def image(self, stage: Stage, service: str) -> Image:
        """The stage for a service, performed; once, as Docker's cache does, and for all services if it does not name one."""
        name = (stage.name or "last") + (f"-{service}" if self._of_service(stage) else "")
        if name not in self._images:
            base = self._found.stage(stage.base)
            root = self._folder / name
            if base is None:
                root.mkdir(parents=True)
                image = Image(root)
            else:
                below = self.image(base, service)
                root.mkdir()
                mounts = below.mounts | {f"/{path.name}": path for path in below.root.iterdir() if path.is_dir()}
                image = Image(root, mounts, dict(below.environment), below.workdir, below.user, below.entrypoint)
            self._images[name] = image
            known: dict[str, str] = {}
            for step in stage.steps:
                self._perform(step, image, known, service)
        return self._images[name]

    def _of_service(self, stage: Stage | None) -> bool:
        if stage is None:
            return False
        named = any(step.text == "SERVICE" for step in stage.all("ARG"))
        return named or self._of_service(self._found.stage(stage.base))

    def _perform(self, step: Instruction, image: Image, known: dict[str, str], service: str) -> None:
        def value(text: str) -> str:
            return expand(text, image.environment | known)

        match step.name:
            case "ARG":
                name, _, default = step.text.partition("=")
                known[name] = service if name == "SERVICE" else default
            case "ENV":
                image.environment |= {name: value(text) for name, text in pairs(step).items()}
            case "LABEL":
                image.labels |= {name: value(text) for name, text in pairs(step).items()}
            case "WORKDIR":
                image.workdir = step.text
                image.where(step.text).mkdir(parents=True, exist_ok=True)
            case "USER":
                image.user = step.text
            case "ENTRYPOINT":
                image.entrypoint = step.words
            case "COPY":
                self._copy(step, image, [value(word) for word in step.words], service)
            case "RUN":
                self._run(step, image, known)

    def _copy(self, step: Instruction, image: Image, words: list[str], service: str) -> None:
        *sources, target = words
        into = image.where(target)
        origin = step.flags.get("from")
        if origin is not None:
            stage = self._found.stage(origin)
            if stage is None:  # a program of another image: this machine has it
                return
            other = self.image(stage, service)
            for source in sources:
                owner = step.flags.get("chown")
                if owner is None:
                    image.mounts[target] = other.where(source)
                    continue
                shutil.copytree(other.where(source), into, symlinks=True)
                if os.geteuid() == 0:
                    _chown(into, owner)
            return
        for source in sources:
            path = self._context / source
            if path.is_dir():
                shutil.copytree(path, into, ignore=self._leave_out, dirs_exist_ok=True)
            elif not self._ignored(source):
                place = into / path.name if target.endswith("/") else into
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, place)
                if mode := step.flags.get("chmod"):
                    place.chmod(int(mode, 8))

    def _leave_out(self, folder: str, names: list[str]) -> set[str]:
        below = Path(folder).relative_to(self._context)
        return {name for name in names if self._ignored((below / name).as_posix())}

    def _run(self, step: Instruction, image: Image, known: Mapping[str, str]) -> None:
        words = list(step.words)
        if words[1:2] == ["--cache-dir"]:
            del words[1:3]  # a mount of the builder's: here it is this machine's own
        if words[0] == "apt-get" or (words[0] == "chown" and os.geteuid() != 0):
            return
        if not step.exec_form:
            words = ["sh", "-c", step.text]
        else:
            words = [words[0], *(self._mapped(image, word) for word in words[1:])]
        program = {"uv": str(Path(sys.executable).with_name("uv")), "/usr/bin/python3": sys.executable}
        words[0] = program.get(words[0], words[0])
        ours = {
            name: text
            for name, text in os.environ.items()
            if not name.startswith(("PYTHON", "STEWARD_", "VIRTUAL_ENV"))
        }
        # What the lock names was installed on this machine a moment ago: the cache has it, and no registry is asked.
        for offline in ({"UV_OFFLINE": "1"}, {}) if step.words[0] == "uv" else ({},):
            environment = {**ours, **image.environment, **known, **offline}
            done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100, check=False)
            if done.returncode == 0:
                return
        raise DockerfileError(f"RUN {step.text} ended with {done.returncode}: {done.stderr[-2000:]}")

    def _mapped(self, image: Image, word: str) -> str:
        if word == "/usr/bin/python3":
            return sys.executable
        return str(image.where(word)) if word.startswith("/") else word


def _chown(folder: Path, owner: str) -> None:
    user, _, group = owner.partition(":")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, int(user), int(group or user))
