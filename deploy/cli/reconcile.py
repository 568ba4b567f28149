"""`steward reconcile`: own rating beside what the providers say they charged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any

import click

from deploy.cli.ask import ask, settings

_EPOCH = date(1970, 1, 1)


@click.command(epilog="Example: steward reconcile --days 7 --provider openrouter")
@click.option("--days", type=click.IntRange(1, 400), default=30, show_default=True, help="Days (UTC), today included.")
@click.option("--provider", help="Only this provider.")
@click.option("--open", "only_open", is_flag=True, help="Only differences that nothing explains.")
@click.option("--json", "as_json", is_flag=True, help="For programs; money as decimal strings of pico-dollars.")
def reconcile(days: int, provider: str | None, only_open: bool, as_json: bool) -> None:
    """Compare own rating with the costs that providers report.

    By day, provider and model.

    Counts generations whose event says what the provider charged (cost_reported_pico). Each difference is explained
    (rounding, fee for the customer's own key, cancelled, discount, tier served) or open.

    Exit code 0 whatever the difference.
    """
    since = (datetime.now(UTC).date() - _EPOCH).days - days + 1
    rows = [
        {
            **row,
            "day": str(_EPOCH + timedelta(days=row["day"])),
            "drift_pico": str(int(row["reported_pico"]) - int(row["rated_pico"])),
        }
        for row in ask(settings(), "metering", "costs", since_day=since)
        if provider in (None, row["provider"]) and not (only_open and row["explanation"] != "open")
    ]
    if as_json:
        click.echo(json.dumps({"rows": rows}, indent=2))
    elif not rows:
        click.echo("No generation in these days says what its provider charged.")
    else:
        _print(rows)


def _print(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    from shared.contract.money import usd

    table = Table(box=None, pad_edge=False)
    for name in (
        "day",
        "provider",
        "model",
        "explanation",
        "generations",
        "our rating",
        "reported",
        "drift",
        "%",
    ):
        table.add_column(name, justify="left" if name in ("day", "provider", "model", "explanation") else "right")
    for row in rows:
        rated, drift = int(row["rated_pico"]), int(row["drift_pico"])
        table.add_row(
            row["day"], row["provider"], row["model"], row["explanation"], f"{row['generations']:,}", usd(rated, 6),
            usd(int(row["reported_pico"]), 6), usd(drift, 6), f"{100 * drift / rated:+.2f}" if rated else "",
            style="yellow" if row["explanation"] == "open" else None,
        )  # fmt: skip
    Console(highlight=False).print(table)
