"""Questions to a service's read API, and their answers as ends of a command."""

from __future__ import annotations

import getpass
import http.client
import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlencode, urlsplit

import click

from deploy.cli.errors import NotKept, Refused, Unavailable
from deploy.local import env
from deploy.local.ports import HOST

_SECONDS = 60.0
_PAGE = 1_000


def settings() -> dict[str, str]:
    """Where the stack's servers are: the env file of STEWARD_HOME, overridden by the environment."""
    return env.load(env.home())


def actor() -> str:
    """Who asks, for the services' logs: STEWARD_ACTOR, or the user of this machine."""
    try:
        name = os.environ.get("STEWARD_ACTOR") or getpass.getuser()
    except (KeyError, OSError):  # a user id without a name
        name = f"uid-{os.getuid()}"
    return re.sub(r"[^A-Za-z0-9_.:-]", "-", name).lstrip("_.:-")[:64] or "unknown"


def ask(known: Mapping[str, str], room: str, name: str, **query: object) -> Any:
    """The answer of a read that needs no reason; else as `ask_because`."""
    return ask_because("steward command", known, room, name, **query)


def ask_because(reason: str, known: Mapping[str, str], room: str, name: str, **query: object) -> Any:
    """The answer of a read, which logs who asks and why; of one that a role may ask as `ask_as`."""
    return ask_as("operator", reason, known, room, name, **query)


def ask_as(role: str, reason: str, known: Mapping[str, str], room: str, name: str, **query: object) -> Any:
    """The answer of a read that looks at the role, too.

    Ends the command when there is none: 1 not found, 2 not a question, 3 no answer, 4 not kept by a promise.
    """
    status, said = _get(known, room, f"/reads/{name}" + (f"?{urlencode(query)}" if query else ""), role, reason)
    if status == 200:
        return said
    why = str(said.get("error", status)) if isinstance(said, dict) else str(status)
    match status:
        case 403 | 404:
            raise Refused(why)
        case 410:
            raise NotKept(why)
        case 400:
            raise click.UsageError(why)
        case _:
            raise Unavailable(f"{room} could not answer ({why}): its log says more, see `steward status`")


def moment(instant: str) -> str:
    """An instant of an answer for a person's eye, to the second (UTC)."""
    return instant[:19].replace("T", " ")


def pages(known: Mapping[str, str], room: str, name: str, limit: int, **query: object) -> Iterator[dict[str, Any]]:
    """The rows of a read that answers in pages by id, at most `limit` of them."""
    after = 0
    while limit > 0:
        rows = ask(known, room, name, after=after, limit=min(limit, _PAGE), **query)
        rows = rows["rows"] if isinstance(rows, dict) else rows
        yield from rows
        if len(rows) < min(limit, _PAGE):
            return
        limit -= len(rows)
        after = rows[-1]["id"]


def _get(known: Mapping[str, str], room: str, path: str, role: str, reason: str) -> tuple[int, Any]:
    place = _place(known, room)
    headers = {"x-steward-actor": actor(), "x-steward-role": role, "x-steward-reason": reason}
    connection = http.client.HTTPConnection(place, timeout=_SECONDS)
    try:
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        said = str(error) or type(error).__name__
        raise Unavailable(
            f"{room} does not answer at {place} ({said}): see `steward status`, or start with `steward up`"
        ) from error
    finally:
        connection.close()


def _place(known: Mapping[str, str], room: str) -> str:
    """host:port of the service: on this machine, or where STEWARD_<SERVICE>_URL says (in a cluster)."""
    port = known.get(f"STEWARD_{room.upper()}_PORT")
    elsewhere = known.get(f"STEWARD_{room.upper()}_URL")
    if elsewhere:
        return urlsplit(elsewhere).netloc
    if not port:
        raise Unavailable(f"no stack has been started here (no port of {room} is known): start one with `steward up`")
    return f"{HOST}:{port}"
