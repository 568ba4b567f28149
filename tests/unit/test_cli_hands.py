"""What the commands say to bad input and without a stack: one clear line and the exit code of the house."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.cli import main
from deploy.cli.ask import actor
from deploy.cli.emit import Bad, Good, Reader
from shared.contract import events, topics
from shared.contract.base import Event
from shared.contract.examples import example
from shared.contract.topics import TOPICS

GENERATION = example(events.GenerationCompleted)


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which no stack was ever started."""
    monkeypatch.setenv("STEWARD_HOME", str(tmp_path / "home"))
    return tmp_path


def run(*arguments: str, **options: Any) -> Result:
    return CliRunner().invoke(main, list(arguments), **options)


# --- emit --------------------------------------------------------------------------------------------------------


def lines(*documents: Any) -> bytes:
    """One document a line; bytes as they are."""
    return b"\n".join(d if isinstance(d, bytes) else json.dumps(d).encode() for d in documents) + b"\n"


def test_every_event_of_the_gateway_finds_its_topic_and_key() -> None:
    for topic in TOPICS:
        for model in topic.events:
            (read,) = Reader().read([json.dumps(example(model)).encode()])
            if "gateway" not in topic.writers:
                assert isinstance(read, Bad) and read.reason == "not_the_gateways"
                continue
            assert isinstance(read, Good) and read.topic == topic.name
            headers = dict(read.headers)
            assert headers["content-type"] == b"application/cloudevents+json"
            assert (headers["ce_source"], headers["ce_sequence"]) == (b"gateway-eu-1", b"48211")
    keys: dict[type[Event], str] = {
        events.GenerationCompleted: "019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a7b",
        events.UsageCorrected: "019ab7d4-1e5a-7c3e-9d52-5b6a0f1c2d3e",
        events.PaymentSettled: "ws-204",
        events.PricePublished: "anthropic/claude-sonnet-4-5",
    }
    for kind, key in keys.items():
        (read,) = Reader().read([json.dumps(example(kind)).encode()])
        assert isinstance(read, Good) and read.key == key.encode()


def test_a_record_is_the_line_as_it_was_written() -> None:
    text = json.dumps(GENERATION, indent=None, separators=(", ", " : ")).encode()
    (read,) = Reader().read([b"\xef\xbb\xbf  " + text + b" \r\n"])
    assert isinstance(read, Good) and read.value == text
    without = {k: v for k, v in GENERATION.items() if k != "sequence"}
    (read,) = Reader().read(lines(without).splitlines())
    assert isinstance(read, Good) and "ce_sequence" not in dict(read.headers)


NOON = "2026-11-24T12:00:00Z"
SECRET = "4111111111111111"
BAD: dict[str, tuple[Any, str, str]] = {
    "no JSON": (b"{oops", "malformed", "not a JSON document"),
    "no text": (b'{"type": "\xff"}', "malformed", "not a JSON document"),
    "not an object": ([1], "unknown_type", "no CloudEvents `type`"),
    "no type": ({"id": "x"}, "unknown_type", "no CloudEvents `type`"),
    "a type nobody knows": (GENERATION | {"type": "lunch.eaten.v1"}, "unknown_type", "no topic carries"),
    "a newer version": (
        GENERATION | {"type": "generation.completed.v2"}, "unknown_type", "this contract knows generation.completed.v1",
    ),
    "a member too many": (GENERATION | {"prompt": SECRET}, "undeclared_field", "prompt"),
    "a member missing": ({k: v for k, v in GENERATION.items() if k != "id"}, "invalid", "id: Field required"),
    "a wrong value": (GENERATION | {"subject": f"card {SECRET}"}, "invalid", "subject: String should match"),
    "an instant without a zone": (GENERATION | {"time": "2026-11-24T21:00:00"}, "invalid", "time zone"),
    "buckets that do not add up": (
        GENERATION | {"data": GENERATION["data"] | {"input_tokens": 1}}, "invalid", "do not sum to input_tokens",
    ),
    "an event of the mesh": (example(events.BalanceChanged), "not_the_gateways", "only billing may write"),
    "a command": (example(events.OperatorCommand), "not_the_gateways", "only operator may write"),
    "a huge line": (b'"' + b"x" * (8 * 1024 * 1024) + b'"', "too_large", "bytes"),
    "nesting without end": (b"[" * 100_000, "malformed", "not a JSON document"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_bad_line_is_told_with_its_number_and_the_reason(what: str) -> None:
    document, reason, words = BAD[what]
    text = lines(GENERATION, b"", document)
    answer = run("emit", "-", "--dry-run", "--json", input=text)
    assert answer.exit_code == 1
    said = json.loads(answer.output)
    assert [(bad["line"], bad["reason"]) for bad in said["bad"]] == [(3, reason)]
    assert words in said["bad"][0]["detail"]
    assert SECRET not in answer.output, "a text about an error repeats no value"
    assert (said["sent"], said["held_back"]) == (0, 1)


def test_good_lines_are_counted_without_a_mesh(nowhere: Path) -> None:
    file = nowhere / "events.jsonl"
    file.write_bytes(lines(GENERATION, example(events.PaymentSettled)))
    answer = run("emit", str(file), "--dry-run")
    assert (answer.exit_code, answer.output) == (0, "2 events are fine, 0 lines are bad; nothing was sent\n")


def test_many_bad_lines_are_told_in_part() -> None:
    answer = run("emit", "-", "--dry-run", input=b"x\n" * 25)
    assert answer.exit_code == 1
    assert "line 20: malformed" in answer.output and "line 21:" not in answer.output
    assert "... and 5 more" in answer.output


def test_all_or_nothing_sends_nothing_and_needs_no_kafka_for_it() -> None:
    answer = run("emit", "-", "--all-or-nothing", input=lines(GENERATION, b"x"))
    assert answer.exit_code == 1
    assert answer.stdout == "0 events sent, 1 bad lines, 1 good ones held back (--all-or-nothing)\n"


def test_emit_without_a_stack() -> None:
    answer = run("emit", "-", input=lines(GENERATION))
    assert answer.exit_code == 3
    assert "STEWARD_KAFKA_BOOTSTRAP_SERVERS is not set" in answer.output
    assert run("emit", "no-such-file.jsonl").exit_code == 2


# --- contract ----------------------------------------------------------------------------------------------------


def test_the_contract_is_written(nowhere: Path) -> None:
    answer = run("contract", "--out", str(nowhere / "contract"))
    assert answer.exit_code == 0
    files = [Path(line) for line in answer.output.splitlines()]
    assert files[0] == nowhere / "contract" / "asyncapi.yaml"
    assert {f.name for f in files[1:]} == {f"{model.TYPE}.json" for topic in TOPICS for model in topic.events}
    assert all(f.stat().st_size for f in files)
    assert run("contract").exit_code == 2


# --- without a stack ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", "x"],
        ["balance", "ws-1"],
        ["check"],
        ["dead-letters", "list"],
        ["dead-letters", "show", "1"],
        ["dead-letters", "replay", "--all"],
        ["quarantine", "list"],
        ["quarantine", "release", "1"],
        ["cursors", "list"],
        ["cursors", "rewind", "--service", "metering", "--topic", "x", "--to", "0"],
    ],
)
def test_no_stack_is_unavailable(arguments: list[str]) -> None:
    answer = run(*arguments)
    assert answer.exit_code == 3, answer.output
    assert "steward up" in answer.output and len(answer.output.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dead-letters", "replay"], "say which: an ID, or --all"),
        (["dead-letters", "replay", "1", "--all"], "say which: an ID, or --all"),
        (["dead-letters", "show", "x"], "'x' is not a valid integer"),
        (["quarantine", "release"], "say which: an ID, or --all"),
        (["quarantine", "release", "--all", "--ticket", "a b"], "--ticket: letters, digits"),
        (["quarantine", "release", "--all", "--actor", "@me"], "--actor: letters, digits"),
        (["cursors", "rewind", "--service", "metering", "--topic", "x"], "say where to"),
        (["cursors", "rewind", "--service", "metering", "--topic", "x", "--to", "-1"], "--to: an offset"),
        (["cursors", "skip", "--service", "metering", "--topic", "x", "--to", "1", "--to-time", NOON], "say where to"),
        (["cursors", "rewind", "--service", "kitchen", "--topic", "x", "--to", "1"], "'kitchen' is not one of"),
        (["cursors", "rewind", "--service", "metering", "--to", "1"], "Missing option '--topic'"),
    ],
)  # fmt: skip
def test_wrong_usage(arguments: list[str], words: str) -> None:
    answer = run(*arguments)
    assert answer.exit_code == 2
    assert words in answer.output


# --- answers of a read API ---------------------------------------------------------------------------------------


class Answers(http.server.BaseHTTPRequestHandler):
    """Answers each read as `replies` says, and remembers who asked."""

    replies: dict[str, tuple[int, Any]] = {}  # noqa: RUF012 -- the test's own, set anew by the fixture
    asked: list[dict[str, str]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append({"path": self.path, "actor": self.headers.get("x-steward-actor", "")})
        status, said = self.replies.get(self.path.partition("?")[0].removeprefix("/reads/"), (404, {"error": "none"}))
        self.send_response(status)
        self.end_headers()
        self.wfile.write(said if isinstance(said, bytes) else json.dumps(said).encode())

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Answers]]:
    """A port that answers for metering and billing."""
    Answers.replies, Answers.asked = {}, []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    for room in ("METERING", "BILLING"):
        monkeypatch.setenv(f"STEWARD_{room}_PORT", str(server.server_port))
    try:
        yield Answers
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "code"), [(404, 1), (410, 4), (400, 2), (500, 3)], ids=["not found", "not kept", "no question", "broken"]
)
def test_an_answer_of_the_read_api_becomes_an_exit_code(api: type[Answers], status: int, code: int) -> None:
    api.replies["explain"] = (status, {"error": "not kept: log retention 0"})
    answer = run("explain", "x")
    assert answer.exit_code == code
    assert "not kept: log retention 0" in answer.output


def test_an_answer_that_is_no_json_is_no_answer(api: type[Answers]) -> None:
    api.replies["balance"] = (200, b"<html>")
    assert run("balance", "ws-1").exit_code == 3


def test_reads_name_who_asks(api: type[Answers], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEWARD_ACTOR", "ines@example")
    api.replies["balance"] = (404, {"error": "no such workspace is known here"})
    answer = run("balance", "ws 1&x=2")
    assert (answer.exit_code, answer.output) == (1, "Error: no such workspace is known here\n")
    assert api.asked == [{"path": "/reads/balance?workspace=ws+1%26x%3D2", "actor": "ines-example"}]
    monkeypatch.setenv("STEWARD_ACTOR", "...")
    assert actor() == "unknown"


def test_usage_in_the_quarantine_is_explained(api: type[Answers]) -> None:
    said = {
        "generation_id": "g",
        "quarantined": {"reason": "unknown_model", "missing": "", "provider": "p", "model": "m"},
    }
    api.replies["explain"] = (200, said)
    answer = run("explain", "g")
    assert (answer.exit_code, answer.output) == (0, "g waits in the quarantine: unknown_model, m at p\n")


def test_lists_that_are_empty(api: type[Answers]) -> None:
    api.replies |= {"dead-letters": (200, []), "quarantine": (200, {"counts": [], "rows": []})}
    assert run("dead-letters", "list").output == "No dead letters.\n"
    assert run("quarantine", "list").output == "Nothing is in the quarantine.\n"
    assert json.loads(run("quarantine", "list", "--json").output) == {"counts": [], "rows": []}


def test_a_letter_that_two_services_have_needs_a_service(api: type[Answers]) -> None:
    api.replies["dead-letter"] = (200, {"id": 1, "state": "waiting"})
    answer = run("dead-letters", "show", "1")
    assert answer.exit_code == 2 and "say --service" in answer.output
    api.replies["dead-letter"] = (404, {"error": "no such dead letter"})
    answer = run("dead-letters", "show", "1")
    assert answer.exit_code == 1 and "there is no dead letter 1" in answer.output


def test_topics_of_the_mesh_are_named_where_they_are_asked_for() -> None:
    """Whoever emits an event of the mesh itself is told who may."""
    (read,) = Reader().read([json.dumps(example(events.UsageRated)).encode()])
    assert isinstance(read, Bad)
    assert read.detail == f"only metering may write {topics.USAGE_RATED.name}"
