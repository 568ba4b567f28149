"""How a command ends: 0 yes, 1 no, 2 usage, 3 unavailable, 4 not kept. A text says what to do next."""

from __future__ import annotations

from typing import ClassVar

import click

YES, NO, USAGE, UNAVAILABLE, NOT_KEPT = range(5)


class Refused(click.ClickException):
    """The answer is no, or the command would do what it must not: exit code 1."""

    exit_code: ClassVar[int] = NO


class Unavailable(click.ClickException):
    """A server or a service is not reachable, or not running: exit code 3."""

    exit_code: ClassVar[int] = UNAVAILABLE


class NotKept(click.ClickException):
    """What was asked for is not kept, by a promise: exit code 4."""

    exit_code: ClassVar[int] = NOT_KEPT


def translate(error: Exception) -> click.ClickException | None:
    """The command's end for an error of another layer; None for a bug, which keeps its traceback.

    Imports only when something has failed: a command that works pays nothing for this.
    """
    from deploy.local.errors import LocalError, LocalRefusal

    if isinstance(error, LocalRefusal):
        return Refused(str(error))
    if isinstance(error, LocalError):
        return Unavailable(str(error))
    if type(error).__name__ == "Misconfigured" and type(error).__module__ == "shared.mesh.settings":
        return Unavailable(str(error))
    if type(error).__name__ == "PolicyError" and type(error).__module__ == "shared.policy.rules":
        return Refused(str(error))
    if isinstance(error, ConnectionError | TimeoutError) or _from_a_client(error):
        said = str(error) or type(error).__name__
        return Unavailable(f"a server does not answer ({said}): see `steward status`, or start with `steward up`")
    return None


_AWAY = {"KafkaConnectionError", "NodeNotReadyError", "CannotConnectNowError", "ClientConnectorError"}


def _from_a_client(error: Exception) -> bool:
    """An error by which a database or Kafka client says that its server is away."""
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & _AWAY)
