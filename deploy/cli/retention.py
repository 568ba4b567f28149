"""`steward retention`: how much time each store has until it keeps something longer than the policy says."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

import click

from deploy.cli.ask import ask, moment, settings


@click.command(epilog="Example: steward retention --json")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def retention(as_json: bool) -> None:
    """Show how much time each store has until it keeps something too long.

    Reads back the settings and the oldest record of every topic, and the partitions of every database, and holds them
    against the contract and the policy. Slack: hours until the bound is broken.

    Exit code 0 when everything ends in time, 1 when something does not.
    """
    said = ask(settings(), "audit", "drift")
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        _print(said)
    sys.exit(1 if said["findings"] else 0)


def _print(said: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for name in ("store", "", "bound", "oldest"):
        table.add_column(name)
    table.add_column("slack (h)", justify="right")
    for each in said["stores"]:
        slack = each["slack_hours"]
        table.add_row(
            each["service"], each["name"], each["bound"], moment(each["oldest_at"]) if each["oldest_at"] else "-",
            "-" if slack is None else f"{slack:.1f}", style="red" if slack is not None and slack < 0 else None,
        )  # fmt: skip
    console.print(table)
    for finding in said["findings"]:
        console.print(f"[red]![/red] {finding}", soft_wrap=True)
    if not said["findings"]:
        console.print("Everything ends in time.")
