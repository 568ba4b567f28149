"""Runbooks at three in the morning: each alert has its page, and every command and query on it exists."""

from __future__ import annotations

import copy
import re
import shlex
import subprocess
from functools import cache
from pathlib import Path

import click
import pytest

from deploy.cli import main
from deploy.k8s.kubectl import kubectl
from deploy.observe.alerts import ALERTS, RECORDINGS
from deploy.observe.rules import RUNBOOKS
from deploy.rooms import ROOMS, load
from shared.contract.topics import BY_NAME as TOPICS
from shared.contract.topics import PAYMENTS
from shared.mesh import metrics
from tests.k8s import promql

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / RUNBOOKS
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md")) if path.stem != "README"}
_ID = "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b"
HEADINGS = ["Meaning", "Impact", "Diagnosis", "Mitigation"]
# What stands for a label of the alert, or for what the page had its reader list.
PLACES = {
    "$SERVICE": "billing", "$TOPIC": PAYMENTS.name, "$CASE": _ID,
    "$GENERATION": _ID, "$VERSION": "pv_3f9a0c1d2e4b", "$ENTRY": _ID,
}  # fmt: skip
# kubectl's verbs, and the kinds that we put into the cluster.
VERBS = {
    "annotate", "describe", "diff", "get", "logs", "port-forward", "rollout history", "rollout restart", "rollout status",
    "rollout undo", "scale",
}  # fmt: skip
KINDS = {
    "clusters.postgresql.cnpg.io", "deployment", "events", "kafka", "kafkatopic", "kafkauser", "networkpolicy", "pod",
    "podmonitor", "pods", "scaledobject",
}  # fmt: skip


def blocks(page: str, kind: str) -> list[str]:
    """The lines of a page's blocks of one kind."""
    return [
        line
        for block in re.findall(rf"^```{kind}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
        if line.strip()
    ]


def words(line: str) -> list[str]:
    """The command's words, with something in each place."""
    for place, something in PLACES.items():
        line = line.replace(place, something)
    assert "$" not in line, f"nobody says what stands in the place of {line}"
    return shlex.split(line)


def check_steward(arguments: list[str]) -> None:
    """Raises click's error for what the command line does not take."""
    command: click.Command = main
    context = click.Context(main, info_name="steward")
    while isinstance(command, click.Group):
        name, *arguments = arguments
        found = command.get_command(context, name)
        assert found is not None, f"there is no command {name}"
        command, context = found, click.Context(found, info_name=name, parent=context)
    # Files that a reader has, and we have not: a copy of the command takes their names as words.
    command = copy.copy(command)
    command.params = [copy.copy(parameter) for parameter in command.params]
    for parameter in command.params:
        if isinstance(parameter.type, click.Path | click.File):
            parameter.type = click.STRING
    command.make_context(command.name, list(arguments), parent=context.parent)


@cache
def options(verb: str) -> frozenset[str]:
    """What kubectl itself says that it takes after a verb."""
    asked = [str(kubectl()), *verb.split(), "--help"]
    said = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout
    lines = re.findall(r"^    (?:(-\w), )?(--[\w-]+)=", said, re.MULTILINE)
    return frozenset(option for line in lines for option in line if option)


def check_kubectl(arguments: list[str]) -> None:
    """A verb and a kind that exist, on a thing that we have put there."""
    assert arguments[:2] == ["-n", "steward"], "commands name the namespace"
    verb, *rest = arguments[2:]
    if verb == "rollout":
        verb, *rest = f"{verb} {rest[0]}", *rest[1:]
    assert verb in VERBS, verb
    given = {word.partition("=")[0] for word in rest if word.startswith("-")}
    assert given <= options(verb), f"{verb} does not know {given - options(verb)}"
    if verb == "diff":
        assert rest[0] == "-k" and (ROOT / rest[1] / "kustomization.yaml").is_file(), rest
        return
    target, *more = rest
    kind, _, name = target.partition("/")
    names = [name] if name else [word for word in more if not word.startswith("-")]
    assert kind in KINDS, kind
    for flag in [word for word in more if word.startswith("-l")]:
        selector = more[more.index(flag) + 1]
        assert selector.removeprefix("app.kubernetes.io/name=") in ROOMS
        names.remove(selector)
    for found in names if kind not in ("events", "kafka") else ():
        known = {*ROOMS, *TOPICS, *(f"{room}-db" for room in ROOMS), "toolbox", "wide", "yaml", "8080:8080"}
        assert found in known or "=" in found or (verb == "annotate" and found.endswith("-")), f"{kind} {found}"
        size = load(found).footprint if found in ROOMS else None
        assert verb != "scale" or size is None or size.scales_on is None, f"the ScaledObject of {found} takes it back"


def test_each_alert_has_its_page_and_no_page_is_left() -> None:
    assert sorted(PAGES) == sorted(alert.name for alert in ALERTS)
    assert all((ROOT / alert.runbook).is_file() for alert in ALERTS)


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_as_pages_are(name: str) -> None:
    page = PAGES[name]
    assert page.startswith(f"# {name}\n") and re.findall(r"^## (.*)$", page, re.MULTILINE) == HEADINGS
    for heading, text in zip(HEADINGS, re.split(r"^## .*$", page, flags=re.MULTILINE)[1:], strict=True):
        assert len(text.split()) >= 5, f"{heading} says nothing"
    assert len(page.splitlines()) <= 80
    links = re.findall(r"\]\((\w+)\.md\)", page)
    assert set(links) <= set(PAGES), "a link leads nowhere"
    assert blocks(page, "sh") or blocks(page, "promql")
    assert page.count("```") == 2 * len(re.findall(r"^```(sh|promql)$", page, re.MULTILINE))


@pytest.mark.parametrize("name", PAGES)
def test_its_commands_exist(name: str) -> None:
    for line in blocks(PAGES[name], "sh"):
        program, *arguments = words(line)
        if program == "steward":
            check_steward(arguments)
        elif program == "kubectl":
            check_kubectl(arguments)
        else:
            read = re.fullmatch(r"http://127.0.0.1:8080/reads/([\w-]+)(\?\S*)?", arguments[1])
            assert program == "curl" and read is not None, line
            assert any(read[1] in load(room).read_handlers for room in ROOMS), line


def test_what_is_named_in_words_exists() -> None:
    """Commands and metrics in backticks, outside of blocks."""
    for name, page in PAGES.items():
        prose = re.sub(r"^```.*?^```$", "", page, flags=re.MULTILINE | re.DOTALL)
        for line in re.findall(r"`steward ([^`]+)`", prose):
            group, *rest = line.split()
            known = main.get_command(click.Context(main), group)
            assert known is not None, f"{name}: steward {line}"
            if isinstance(known, click.Group):
                assert known.get_command(click.Context(known), rest[0]) is not None, f"{name}: steward {line}"


def test_its_queries_name_real_metrics() -> None:
    for room in ROOMS:
        load(room)
    known = {*promql.declared(metrics.REGISTRY), *promql.OWN, *(recording.name for recording in RECORDINGS)}
    for name, page in PAGES.items():
        for query in blocks(page, "promql"):
            asked = promql.asked(query)
            assert asked, f"{name}: {query}"
            assert {selector.metric for selector in asked} <= known, f"{name}: {query}"
            jobs = {value for selector in asked for label, value in selector.values if label == "job"}
            assert jobs <= {f"steward/{room}" for room in ROOMS}, f"{name}: {query}"


def test_a_command_that_does_not_exist_is_found() -> None:
    for wrong in ("cursors list --servise billing", "cursor list", "prices release", "dead-letters list --state old"):
        with pytest.raises((click.UsageError, AssertionError)):
            check_steward(wrong.split())
    for wrong in (
        "-n steward get deployments/billing",
        "-n steward delete pod/billing",
        "get pods",
        "-n steward get deployment/bill",
        "-n steward logs deployment/billing --all-pod",
        "-n steward scale deployment/billing --replicas=3",
        "-n steward diff -k k8s/overlays/production",
    ):
        with pytest.raises(AssertionError):
            check_kubectl(wrong.split())
