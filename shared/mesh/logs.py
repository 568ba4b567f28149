"""What a process says: one JSON object a line, with the trace it belongs to and without anybody's data.

Texts of errors carry values (a database names the row that it refuses), and so do lines of libraries that print whom they
serve. Of an error stays its type and where it was raised; its text only where the class is ours, and so the sentence.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import TracebackType

import msgspec

from shared.mesh import tracing
from shared.mesh.settings import Misconfigured

_OURS = ("shared.", "services.", "deploy.")
# Their lines hold the repr of what failed, or an address: of these stays the sentence without what was put into it.
_TALKATIVE = ("asyncio", "aiohttp")
_CHAIN_MAX = 8

log = logging.getLogger("steward.process")


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON: ts, level, logger, service, message; trace_id and span_id inside a span; exception."""

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, str | dict[str, str]] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "service": self._service,
            "message": _message(record),
        }
        context = tracing.current()
        if context is not None:
            line |= {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        error = _error(record)
        if error is not None:
            line["exception"] = {"type": named(error), "traceback": told_of(error)}
        # Not the standard library's encoder: what is not ASCII stays readable, and is found by whoever searches the logs.
        return msgspec.json.encode(line).decode()


class TextFormatter(logging.Formatter):
    """The same for a person at a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and below it what is told of an exception."""
        at = datetime.fromtimestamp(record.created, UTC).strftime("%H:%M:%S.%f")[:-3]
        error = _error(record)
        below = "" if error is None else "\n" + told_of(error)
        return f"{at} {record.levelname} {record.name} {_message(record)}{below}"


def setup(service: str, environ: Mapping[str, str] = os.environ) -> None:
    """Sends all that this process logs to stderr: as JSON, or as text where STEWARD_LOG_FORMAT says so, or at a terminal.

    Also what would end the process. Raises `Misconfigured` for another format.
    """
    wanted = environ.get("STEWARD_LOG_FORMAT") or ("text" if sys.stderr.isatty() else "json")
    if wanted not in ("json", "text"):
        raise Misconfigured("STEWARD_LOG_FORMAT is json or text")
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter(service) if wanted == "json" else TextFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("aiokafka").setLevel(logging.WARNING)
    logging.getLogger("steward.faststream").setLevel(logging.ERROR)
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)  # each retry while a collector is away is a warning
    logging.captureWarnings(True)
    # What Python itself would print, with the error's text.
    sys.excepthook = _last_words
    sys.unraisablehook = lambda lost: _unheard("an error in a clean-up", lost.exc_value)
    threading.excepthook = lambda lost: _unheard("a thread ends by an error", lost.exc_value)


def named(error: BaseException) -> str:
    """The full name of an error's class, as Python prints it."""
    kind = type(error)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def told_of(error: BaseException) -> str:
    """The traceback of `error` and of what led to it, the last one last: files, lines and functions, no values."""
    parts = []
    for one in reversed(list(_chain(error))):
        frames = "".join(
            f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n'
            for frame in traceback.extract_tb(one.__traceback__)
        )
        ours = f": {one}" if type(one).__module__.startswith(_OURS) else ""
        parts.append(f"{frames}{named(one)}{ours}")
    return _encodable("\n".join(parts))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """`error`, what it was raised from or during, and so on."""
    seen: set[int] = set()
    at: BaseException | None = error
    while at is not None and id(at) not in seen and len(seen) < _CHAIN_MAX:
        seen.add(id(at))
        yield at
        at = at.__cause__ or (None if at.__suppress_context__ else at.__context__)


def _message(record: logging.LogRecord) -> str:
    if record.name.partition(".")[0] in _TALKATIVE:
        return _encodable(str(record.msg).partition("\n")[0])
    try:
        return _encodable(record.getMessage())
    except Exception:  # the line's own fault; whoever hears of it would print what was to be put into it
        return _encodable(str(record.msg))


def _encodable(text: str) -> str:
    """Without halves of characters, for which no encoding has bytes."""
    return text.encode("utf-8", "replace").decode()


def _error(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if isinstance(record.exc_info, tuple) else None


def _unheard(what: str, error: BaseException | None) -> None:
    log.error(what, exc_info=error)


def _last_words(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    log.critical("the process ends by an error", exc_info=(kind, error, trace))
