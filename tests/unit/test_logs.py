"""What a process logs: lines of JSON with their trace, and nothing of what errors and libraries carry along."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import datetime
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from shared.mesh import tracing
from shared.mesh.logs import JsonFormatter, TextFormatter
from shared.mesh.settings import Misconfigured

SECRET = "anna@example.org"


def record(
    message: str, *arguments: Any, name: str = "steward.mesh", error: BaseException | None = None
) -> logging.LogRecord:
    about = None if error is None else (type(error), error, error.__traceback__)
    return logging.LogRecord(name, logging.WARNING, __file__, 1, message, arguments, about)


def line(made: logging.LogRecord) -> dict[str, Any]:
    text = JsonFormatter("metering").format(made)
    assert "\n" not in text
    decoded: dict[str, Any] = json.loads(text)
    return decoded


def raised(*, cause: bool = False) -> BaseException:
    try:
        try:
            raise ValueError(f"Key (email)=({SECRET}) already exists.")
        except ValueError as error:
            if not cause:
                raise
            raise Misconfigured("STEWARD_X is not set") from error
    except Exception as error:
        return error


def test_a_line_is_one_object_with_its_instant() -> None:
    said = line(record('%s: "quoted"\nand ümlaut', "billing"))
    assert list(said) == ["ts", "level", "logger", "service", "message"]
    assert said["message"] == 'billing: "quoted"\nand ümlaut' and said["level"] == "warning"
    assert said["service"] == "metering" and said["logger"] == "steward.mesh"
    assert said["ts"].endswith("Z") and datetime.fromisoformat(said["ts"]).tzinfo is not None
    # The auditor's sweep looks for what people are called, not for escapes.
    assert "ümlaut" in JsonFormatter("metering").format(record("ümlaut"))


@pytest.mark.parametrize("formatter", [JsonFormatter("metering"), TextFormatter()])
def test_of_an_error_its_type_and_place_are_said_and_no_value(formatter: logging.Formatter) -> None:
    text = formatter.format(record("it failed", error=raised()))
    assert SECRET not in text and "ValueError" in text and f"{__file__}" in text and "in raised" in text


def test_of_our_own_errors_the_sentence_is_said() -> None:
    said = line(record("it failed", error=raised(cause=True)))["exception"]
    assert said["type"] == "shared.mesh.settings.Misconfigured"
    lines = said["traceback"].splitlines()
    assert lines[-1] == "shared.mesh.settings.Misconfigured: STEWARD_X is not set"
    assert "ValueError" in lines, "and what it was raised from, without its text"


def test_of_talkative_libraries_the_sentence_stays() -> None:
    unretrieved = f"Task exception was never retrieved\nfuture: <Task exception=ValueError('{SECRET}')>"
    assert line(record(unretrieved, name="asyncio"))["message"] == "Task exception was never retrieved"
    served = record("Error handling request from %s", "203.0.113.7", name="aiohttp.server")
    assert line(served)["message"] == "Error handling request from %s"


@pytest.mark.parametrize("formatter", [JsonFormatter("metering"), TextFormatter()])
def test_a_line_that_cannot_be_put_together_is_said_without_what_was_to_go_into_it(
    formatter: logging.Formatter,
) -> None:
    text = formatter.format(record("%d of %s", SECRET))
    assert "%d of %s" in text and SECRET not in text
    assert "half ?" in formatter.format(record("half \ud800"))


def test_a_line_inside_a_span_has_its_ids_and_a_failed_span_no_text(request: pytest.FixtureRequest) -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracing.use_provider(provider)
    request.addfinalizer(tracing.stop)
    with pytest.raises(ValueError), tracing.batch_span("t", "g", []):
        inside = line(record("in a batch"))
        raise ValueError(SECRET)
    (span,) = spans.get_finished_spans()
    assert span.context is not None
    assert inside["trace_id"] == f"{span.context.trace_id:032x}" and inside["span_id"] == f"{span.context.span_id:016x}"
    assert "trace_id" not in line(record("after it"))
    assert span.status.status_code is StatusCode.ERROR and (span.attributes or {})["error.type"] == "ValueError"
    assert SECRET not in span.to_json()
    with tracing.batch_span("t", "g", []):
        tracing.stop()
        assert tracing.current() is None, "nothing is asked for while tracing is off"


_PROCESS = """
import logging, sys, threading, warnings
from shared.mesh import logs
logs.setup("metering", {environment})
logging.getLogger("aiokafka").info("chatter")
logging.getLogger("steward.mesh").info("hello")
class Lost:
    def __del__(self):
        raise ValueError("{secret}")
def fail():
    raise ValueError("{secret}")
Lost()
thread = threading.Thread(target=fail)
thread.start()
thread.join()
warnings.warn("mind")
raise ValueError("{secret}")
"""


@pytest.mark.parametrize("wanted", ["", "json", "text"])
def test_a_process_says_everything_in_one_form_its_last_words_too(wanted: str) -> None:
    code = _PROCESS.format(environment={"STEWARD_LOG_FORMAT": wanted}, secret=SECRET)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stdout == "" and SECRET not in done.stderr
    assert "hello" in done.stderr and "chatter" not in done.stderr and "ValueError" in done.stderr
    if wanted != "text":  # no terminal: lines of JSON
        lines = [json.loads(text) for text in done.stderr.splitlines()]
        assert [(said["level"], said["message"].splitlines()[0].rpartition(": ")[2]) for said in lines] == [
            ("info", "hello"), ("error", "an error in a clean-up"), ("error", "a thread ends by an error"),
            ("warning", "mind"), ("critical", "the process ends by an error"),
        ]  # fmt: skip


def test_another_format_is_refused() -> None:
    from shared.mesh import logs

    with pytest.raises(Misconfigured, match="json or text"):
        logs.setup("metering", {"STEWARD_LOG_FORMAT": "yaml"})
