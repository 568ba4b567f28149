"""A Tiltfile evaluated without Tilt: by the Starlark engine that Tilt uses, with builtins that check what Tilt checks.

`evaluate` raises WrongTiltfile where Tilt would stop; `Tilted.faults` says what Tilt would only warn of, or find when it is
too late: resources that wait for nothing or for each other, ports taken twice, objects that belong to nobody.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import yaml
from starlark_go import Starlark, StarlarkError, configure_starlark

from deploy.local.errors import LocalError
from tests.k8s.dockerfile import Dockerfile, DockerfileError, Ignored, Stage, expand, parse
from tests.k8s.tilt_api import VALUES, WrongCall, bind, loaded, names

Doc = dict[str, Any]
# yaml's own loader takes ten times as long.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LOAD = re.compile(r"^load\((?P<arguments>[^)]*)\)\s*$", re.MULTILINE)
_DOTTED = re.compile(r"\b(config|os)\.([a-z_]+)\(")
_LABEL = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
# The kinds that hold containers; an own kind would have to be told by `k8s_kind`.
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "Job", "CronJob", "Pod")


class WrongTiltfile(Exception):
    """Tilt would not take it; the text says why."""


@dataclass(slots=True)
class Resource:
    """A line in Tilt's list."""

    name: str
    objects: list[Doc] = field(default_factory=list)
    deps: list[str] = field(default_factory=list)
    ports: list[tuple[int, int]] = field(default_factory=list)
    # Labels of pods that belong to it, beside those of its objects.
    pods: list[dict[str, str]] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    command: str = ""
    automatic: bool = True


@dataclass(slots=True)
class Tilted:
    """What a Tiltfile makes of itself."""

    resources: dict[str, Resource] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: list[Doc] = field(default_factory=list)
    enabled: set[str] = field(default_factory=set)
    loose: list[Doc] = field(default_factory=list)

    def faults(self) -> Iterator[str]:
        """A sentence for each."""
        taken: dict[int, str] = {}
        for resource in self.resources.values():
            for dep in resource.deps:
                if dep not in self.resources:
                    yield f"{resource.name} waits for {dep}, which is no resource"
            for local, inside in resource.ports:
                if local in taken:
                    yield f"port {local} is forwarded to {taken[local]} and to {resource.name}"
                taken[local] = resource.name
                open_ports = {
                    port["containerPort"]
                    for doc in resource.objects
                    for container in containers(doc)
                    for port in container.get("ports", ())
                }
                if inside not in open_ports:
                    yield f"{resource.name} has no port {inside}"
            for pods in resource.pods:
                if not any(pods.items() <= known.items() for known in self._pods()):
                    yield f"{resource.name}: no network policy knows pods {pods}"
            if not resource.labels:
                yield f"{resource.name} stands in no group"
            for label in resource.labels:
                if not _LABEL.fullmatch(label):
                    yield f"{resource.name}: {label} is no label"
        yield from _circles({name: resource.deps for name, resource in self.resources.items()})
        for doc in self.loose:
            yield f"{doc['kind']} {doc['metadata']['name']} belongs to no resource"
        used = {container["image"] for doc in self.documents for container in containers(doc)}
        for image in self.images:
            if image not in used:
                yield f"image {image} is built and not used"
        for image in sorted(used):
            if ":" not in image and image not in self.images:
                yield f"image {image} is used and not built"

    def _pods(self) -> Iterator[dict[str, str]]:
        """The labels of the pods that an operator makes, as far as the overlay speaks of them."""
        for doc in self.documents:
            if doc["kind"] == "NetworkPolicy":
                yield doc["spec"]["podSelector"].get("matchLabels", {})


def evaluate(
    text: str, tree: Path, render: Callable[[Path], str], arguments: Mapping[str, list[str]] | None = None
) -> Tilted:
    """Runs the Tiltfile of `tree`. `arguments`: what `config.parse` gives. Raises WrongTiltfile."""
    # What Tilt sets: a Tiltfile may assign a name again, and has loops and conditions at its top.
    configure_starlark(allow_global_reassign=True)
    run = _Run(tree, render, dict(arguments or {}))
    functions = {name.replace(".", "__"): run.builtin(name) for name in names()}

    def load(match: re.Match[str]) -> str:
        words = [word.strip() for word in match["arguments"].split(",") if word.strip()]
        extension, *imported = (word.strip("'\"") for word in words)
        for name in imported:
            functions[name] = run.builtin(loaded(extension, name))
        # The line stays, so that the numbers of the others do.
        return f"# {extension}"

    try:
        source = _DOTTED.sub(r"\1__\2(", _LOAD.sub(load, text))
        Starlark(globals={**functions, **VALUES}, print=lambda words: None).exec(source, filename="Tiltfile")
        run.assemble()
    except (StarlarkError, WrongCall, DockerfileError, LocalError) as error:
        raise WrongTiltfile(str(error)) from error
    return run.result


def containers(doc: Doc) -> list[Doc]:
    """The containers of a workload, none of anything else."""
    if doc["kind"] not in _WORKLOADS:
        return []
    spec = doc["spec"]
    for step in ("jobTemplate", "spec", "template", "spec"):
        if "containers" not in spec and step in spec:
            spec = spec[step]
    return [*spec.get("initContainers", ()), *spec["containers"]]


class _Run:
    """One evaluation: what the builtins have been told."""

    def __init__(self, tree: Path, render: Callable[[Path], str], arguments: dict[str, list[str]]) -> None:
        self.result = Tilted()
        self._tree = tree
        self._render = render
        self._arguments = arguments
        self._defined: set[str] = set()
        self._options: list[dict[str, Any]] = []

    def builtin(self, name: str) -> Callable[..., Any]:
        """The function of that name: its arguments are bound as Tilt does, then looked at."""
        short = name.rpartition(" ")[2]
        act: Callable[[dict[str, Any]], Any] | None = getattr(self, f"_{short.replace('.', '_')}", None)

        def call(*positional: Any, **keywords: Any) -> Any:
            bound = bind(name, positional, keywords)
            return act(bound) if act is not None else None

        return call

    # -- settings --------------------------------------------------------------------------------------------------------

    def _config_define_string_list(self, given: dict[str, Any]) -> None:
        self._defined.add(given["name"])

    def _config_parse(self, given: dict[str, Any]) -> dict[str, list[str]]:
        unknown = set(self._arguments) - self._defined
        if unknown:
            raise WrongCall(f"config.parse: {', '.join(sorted(unknown))} is not defined")
        return self._arguments

    def _config_set_enabled_resources(self, given: dict[str, Any]) -> None:
        self.result.enabled = set(given["resources"])

    def _version_settings(self, given: dict[str, Any]) -> None:
        if not re.fullmatch(r"(>=|>|<|<=|=)?\d+\.\d+\.\d+", given.get("constraint", "0.0.0")):
            raise WrongCall("version_settings: constraint is none")

    # -- objects ---------------------------------------------------------------------------------------------------------

    def _kustomize(self, given: dict[str, Any]) -> Doc:
        folder = self._path("kustomize", given["paths"])
        if not (folder / "kustomization.yaml").is_file():
            raise WrongCall(f"kustomize: {given['paths']} has no kustomization.yaml")
        return {"blob": _documents(self._render(folder))}

    def _decode_yaml_stream(self, given: dict[str, Any]) -> list[Doc]:
        text = given["yaml"]
        return list(text["blob"] if isinstance(text, dict) else _documents(text))

    def _encode_yaml_stream(self, given: dict[str, Any]) -> Doc:
        return {"blob": given["objs"]}

    def _k8s_yaml(self, given: dict[str, Any]) -> None:
        blobs = given["yaml"] if isinstance(given["yaml"], list) else [given["yaml"]]
        for blob in blobs:
            path = blob if isinstance(blob, str) else None
            self.result.documents += (
                _documents(self._path("k8s_yaml", path).read_text(encoding="utf-8")) if path else blob["blob"]
            )

    def _k8s_resource(self, given: dict[str, Any]) -> None:
        if not given.get("workload") and not (given.get("new_name") and given.get("objects")):
            raise WrongCall("k8s_resource: neither a workload, nor a new name with objects")
        if given.get("pod_readiness", "") not in ("", "ignore", "wait"):
            raise WrongCall(f"k8s_resource: pod_readiness is 'ignore' or 'wait', not {given['pod_readiness']!r}")
        self._options.append(given)

    def _port_forward(self, given: dict[str, Any]) -> list[int]:
        return [given["local_port"], given.get("container_port", given["local_port"])]

    # -- images ----------------------------------------------------------------------------------------------------------

    def _docker_build(self, given: dict[str, Any]) -> None:
        context = self._path("docker_build", given["context"])
        file = self._path("docker_build", given.get("dockerfile", "Dockerfile"))
        found = _dockerfile(file.read_text(encoding="utf-8"))
        watched = [self._below("docker_build: only", context, path) for path in given.get("only", ())] or [context]
        target = given.get("target")
        stage = found.stage(target) if target else found.stages[-1]
        if stage is None:
            raise WrongCall(f"docker_build: {given['dockerfile']} has no stage {target}")
        arguments = {step.text.partition("=")[0] for stage in found.stages for step in stage.all("ARG")}
        for name in given.get("build_args", {}):
            if name not in arguments | found.arguments.keys():
                raise WrongCall(f"docker_build: {given['dockerfile']} has no ARG {name}")
        landed = _landed(found, stage, context, given.get("build_args", {}))
        ignored = Ignored.read(context)
        for place in landed:
            path = place.relative_to(context)
            # `only` leaves the rest out of what Tilt sends.
            if not any(place.is_relative_to(one) for one in watched) or ignored(str(path)):
                raise WrongCall(f"docker_build: COPY {path} is not in `only`")
        self._steps(given.get("live_update", ()), watched, landed, _own(stage))
        if given["ref"] in self.result.images:
            raise WrongCall(f"docker_build: {given['ref']} is built twice")
        self.result.images[given["ref"]] = given

    def _docker_build_with_restart(self, given: dict[str, Any]) -> None:
        if not given["live_update"]:
            raise WrongCall("docker_build_with_restart: no step of live_update")
        file = given.get("restart_file", "/tmp/.restart-proc")
        if file.startswith("/tmp/"):
            raise WrongCall("docker_build_with_restart: restart_file lies in /tmp, which the pods cover with a volume")
        restart = {"step": "run", "paths": [], "writes": file}
        self._docker_build({**given, "live_update": [*given["live_update"], restart]})

    def _sync(self, given: dict[str, Any]) -> Doc:
        if not given["remote_path"].startswith("/"):
            raise WrongCall(f"sync: {given['remote_path']} is not absolute")
        paths = [str(self._path("sync", given["local_path"]))]
        return {"step": "sync", "paths": paths, "writes": given["remote_path"]}

    def _fall_back_on(self, given: dict[str, Any]) -> Doc:
        paths = [given["paths"]] if isinstance(given["paths"], str) else given["paths"]
        return {"step": "fall_back_on", "paths": [str(self._path("fall_back_on", path)) for path in paths]}

    def _run(self, given: dict[str, Any]) -> Doc:
        trigger = given.get("trigger", [])
        trigger = [trigger] if isinstance(trigger, str) else trigger
        return {"step": "run", "paths": [], "trigger": [str(self._path("run", path)) for path in trigger]}

    def _steps(
        self, steps: Sequence[Any], watched: list[Path], landed: Mapping[Path, PurePosixPath], own: list[str]
    ) -> None:
        """Tilt's order: fall_back_on, sync, run; only what is watched can change, and only the user's own be written."""
        order = ["initial_sync", "fall_back_on", "sync", "run"]
        before = 0
        for step in steps:
            if not isinstance(step, dict) or "step" not in step:
                raise WrongCall(f"live_update: {step} is no step")
            now = order.index(step["step"])
            if now < before:
                raise WrongCall(f"live_update: {step['step']} must precede {order[before]}")
            before = now
            for path in step["paths"]:
                if not any(Path(path).is_relative_to(one) for one in watched):
                    raise WrongCall(f"live_update: {path} is not below what the image is built from")
                if step["step"] == "sync" and PurePosixPath(step["writes"]) != _place(Path(path), landed):
                    raise WrongCall(f"live_update: {path} is not {step['writes']} in the image")
            if "writes" in step and not any(PurePosixPath(step["writes"]).is_relative_to(one) for one in own):
                raise WrongCall(f"live_update: {step['writes']} is not the user's own to write")
        synced = [Path(path) for step in steps if step["step"] == "sync" for path in step["paths"]]
        for path in [path for step in steps for path in step.get("trigger", ())]:
            if not any(Path(path).is_relative_to(one) for one in synced):
                raise WrongCall(f"live_update: {path} triggers a run and is not synced, so it never does")

    # -- the machine -----------------------------------------------------------------------------------------------------

    def _local_resource(self, given: dict[str, Any]) -> None:
        command = given.get("cmd", "")
        self._add(
            Resource(
                given["name"],
                deps=list(given.get("resource_deps", ())),
                labels=_labels(given),
                command=command if isinstance(command, str) else shlex.join(command),
                automatic=given.get("auto_init", True),
            )
        )

    # -- the end ---------------------------------------------------------------------------------------------------------

    def assemble(self) -> None:
        """Puts objects to resources as Tilt does after the last line."""
        loose = [doc for doc in self.result.documents if not containers(doc)]
        for doc in self.result.documents:
            if containers(doc):
                mine = [other for other in loose if _selects(other, doc)]
                loose = [other for other in loose if other not in mine]
                self._add(Resource(doc["metadata"]["name"], [doc, *mine]))
        known: dict[str, list[Doc]] = {}
        for doc in self.result.documents:
            for fragment in _fragments(doc):
                known.setdefault(fragment, []).append(doc)
        for given in self._options:
            name = given.get("workload") or given["new_name"]
            if not given.get("workload"):
                self._add(Resource(name))
            elif name not in self.result.resources:
                raise WrongCall(f"k8s_resource: there is no workload {name}")
            resource = self.result.resources[name]
            for fragment in given.get("objects", ()):
                found = known.get(fragment.lower(), [])
                if not found:
                    raise WrongCall(f"k8s_resource {name}: no object is {fragment}")
                if len(found) > 1:
                    raise WrongCall(f"k8s_resource {name}: {fragment} are several")
                if found[0] not in loose:
                    raise WrongCall(f"k8s_resource {name}: {fragment} belongs to a resource already")
                loose.remove(found[0])
                resource.objects.append(found[0])
            resource.deps += given.get("resource_deps", ())
            resource.labels += _labels(given)
            forwards = given.get("port_forwards", [])
            resource.ports += [(one, one) if isinstance(one, int) else (one[0], one[1]) for one in forwards]
            resource.pods += given.get("extra_pod_selectors", ())
        self.result.loose = loose
        self.result.enabled = self._with_deps(self.result.enabled)

    def _with_deps(self, chosen: set[str]) -> set[str]:
        """As Tilt does: what runs brings what it waits for."""
        unknown = chosen - self.result.resources.keys()
        if unknown:
            raise WrongCall(f"config.set_enabled_resources: there is no {', '.join(sorted(unknown))}")
        more = {dep for name in chosen for dep in self.result.resources[name].deps} & self.result.resources.keys()
        return chosen if more <= chosen else self._with_deps(chosen | more)

    def _add(self, resource: Resource) -> None:
        if resource.name in self.result.resources:
            raise WrongCall(f"two resources are called {resource.name}")
        self.result.resources[resource.name] = resource

    def _path(self, call: str, path: str) -> Path:
        return self._below(call, self._tree, path)

    @staticmethod
    def _below(call: str, folder: Path, path: str) -> Path:
        place = (folder / path).resolve()
        if not place.exists():
            raise WrongCall(f"{call}: there is no {path}")
        return place


@lru_cache(maxsize=8)
def _documents(text: str) -> tuple[Doc, ...]:
    """What a text of YAML holds; whoever changes it changes a copy, since Starlark has values of its own."""
    return tuple(doc for doc in yaml.load_all(text, _LOADER) if doc)


_dockerfile = lru_cache(maxsize=8)(parse)


def _chain(found: Dockerfile, stage: Stage) -> list[Stage]:
    """A stage after those that it stands on."""
    below = found.stage(stage.base)
    return [*(_chain(found, below) if below else ()), stage]


def _landed(found: Dockerfile, stage: Stage, context: Path, arguments: Mapping[str, str]) -> dict[Path, PurePosixPath]:
    """What a stage, and those that it is made of, copy from the context, and where it is then."""
    landed: dict[Path, PurePosixPath] = {}
    workdir = PurePosixPath("/")
    for step in (step for one in _chain(found, stage) for step in one.steps):
        if step.name == "WORKDIR":
            workdir /= step.text
        if step.name != "COPY":
            continue
        *sources, target = (expand(word, arguments) for word in step.words)
        other = found.stage(step.flags.get("from", ""))
        if other:
            landed |= _landed(found, other, context, arguments)
        if "from" not in step.flags:
            for source in sources:
                into = workdir / target
                landed[context / source] = into / Path(source).name if target.endswith("/") else into
    return landed


def _place(path: Path, landed: Mapping[Path, PurePosixPath]) -> PurePosixPath | None:
    """Where a file or folder is in an image; None when it is not there."""
    return next((to / path.relative_to(one) for one, to in landed.items() if path.is_relative_to(one)), None)


def _own(stage: Stage) -> list[str]:
    """The folders that a stage gives to the user of its process."""
    return [
        word for step in stage.all("RUN") if step.words[0] == "chown" for word in step.words[1:] if word.startswith("/")
    ]


def _labels(given: Mapping[str, Any]) -> list[str]:
    labels = given.get("labels", [])
    return [labels] if isinstance(labels, str) else list(labels)


def _selects(service: Doc, workload: Doc) -> bool:
    """Whether Tilt puts a Service to this workload by itself."""
    if service["kind"] != "Service" or service["metadata"].get("namespace") != workload["metadata"].get("namespace"):
        return False
    wanted = service["spec"].get("selector") or {}
    return bool(wanted) and wanted.items() <= workload["spec"]["template"]["metadata"]["labels"].items()


def _fragments(doc: Doc) -> set[str]:
    """Every name that Tilt knows an object by: name, name:kind, name:kind:namespace, name:kind:namespace:group."""
    group = doc["apiVersion"].rpartition("/")[0] or "core"
    parts = [doc["metadata"]["name"], doc["kind"], doc["metadata"].get("namespace", "default"), group]
    return {":".join(parts[: n + 1]).lower() for n in range(len(parts))}


def _circles(deps: Mapping[str, Sequence[str]]) -> Iterator[str]:
    done: set[str] = set()

    def walk(name: str, path: tuple[str, ...]) -> Iterator[str]:
        if name in path:
            yield " waits for ".join((*path[path.index(name) :], name))
        elif name not in done:
            for dep in deps.get(name, ()):
                yield from walk(dep, (*path, name))
            done.add(name)

    for name in deps:
        yield from walk(name, ())
