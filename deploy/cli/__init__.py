"""The `steward` command. Each family of commands is a module of this package; this one only knows where they
are.
"""

from __future__ import annotations

import click

from deploy.cli.lazy import Lazy, LazyGroup

COMMANDS: dict[str, Lazy] = {
    "up": Lazy("deploy.cli.stack:up", "Start Kafka, PostgreSQL and every service on this machine."),
    "down": Lazy("deploy.cli.stack:down", "Stop the stack: services first, then the servers."),
    "status": Lazy("deploy.cli.stack:status", "Show what runs, where, and whether it is ready."),
    "wait": Lazy("deploy.cli.stack:wait", "Wait until the mesh has nothing left to do."),
    "doctor": Lazy("deploy.cli.stack:doctor", "Check servers and machine before anything starts."),
}


@click.group(cls=LazyGroup, lazy=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="steward", prog_name="steward")
def main() -> None:
    """Keeps an AI gateway's books and the promises of its privacy policy.

    Exit codes: 0 yes, 1 no, 2 wrong usage, 3 a server or service is not available, 4 not kept (by a promise).
    The stack lives in ./.steward, or in the folder that STEWARD_HOME names.
    """
