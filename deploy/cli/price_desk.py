"""`steward prices import | held | release | reject | rerate`: how prices come in, and who lets them."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from deploy.cli.ask import ask, moment, settings
from deploy.cli.command import command_options, order, publish, read_up_to, until, who
from deploy.cli.errors import NO, Refused

if TYPE_CHECKING:
    from services.metering.price_desk import Statement
    from services.metering.price_files import PriceFile

_PER_EVENT = 200
_SINCE_EVER = "2000-01-01T00:00:00Z"
_ID = r"[A-Za-z0-9][A-Za-z0-9_.:-]{0,31}"
_json = click.option("--json", "as_json", is_flag=True, help="For programs; prices as decimal strings.")


@click.command("import", epilog="Example: steward prices import model_prices.json --source litellm --dry-run")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--source", required=True, help="Whose prices they are, by a name that stays: two sources can agree.")
@click.option("--dry-run", is_flag=True, help="Show what would be accepted and held; send nothing.")
@click.option("--valid-from", help="In force from this instant  [default: now; a first price: always].")
@click.option("--timeout", type=click.FloatRange(min=1), default=120.0, show_default=True, help="Seconds to wait.")
@_json
def import_(file: Path, source: str, dry_run: bool, valid_from: str | None, timeout: float, as_json: bool) -> None:
    """Take prices from a file of LiteLLM, models.dev or genai-prices.

    Nothing is downloaded: you bring the file. What it says anew is published, all models of a provider together, and
    judged by the guard; what the guard holds changes nothing until a second source agrees or a person releases it.

    Exit code 0 when everything is accepted or nothing is new, 1 when something is held.
    """
    import re

    from services.metering.price_files import read_price_file

    if re.fullmatch(_ID, source) is None:
        raise click.UsageError("--source: letters, digits and _ . : - only, 32 at most")
    raw = file.read_bytes()
    try:
        parsed = read_price_file(raw)
    except ValueError as error:
        raise click.UsageError(f"{file.name}: {error}") from None
    known = settings()
    now = datetime.now(UTC)
    desk = _Desk(known, source, now, _instant(valid_from))
    new = desk.new(parsed)
    batch = f"{source}-{hashlib.sha256(raw).hexdigest()[:12]}-{now:%Y%m%dT%H%M%S}"
    if dry_run or not new:
        rows = desk.judged(new)
    else:
        _publish(known, batch, new, timeout)
        rows = ask(known, "metering", "prices", batch=batch)
    held = [row for row in rows if row["held_since"] is not None]
    said = {
        "batch": None if dry_run else batch, "format": parsed.format, "models": len(parsed.lists),
        "unchanged": len(parsed.lists) - len(rows), "accepted": len(rows) - len(held), "held": len(held),
        "left_out": dict(parsed.left_out), "versions": rows,
    }  # fmt: skip
    if as_json:
        click.echo(json.dumps(said, indent=2))
    else:
        _print_import(said, dry_run)
    if held:
        sys.exit(NO)


@click.command(epilog="Example: steward prices held --json")
@_json
def held(as_json: bool) -> None:
    """List the prices that the guard holds, and why."""
    rows = ask(settings(), "metering", "held-prices")
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    elif not rows:
        click.echo("No price is held.")
    else:
        _print_held(rows)


@click.command(epilog="Example: steward prices release pv_3f9a0c1d2e4b --ticket OPS-381")
@click.argument("version")
@click.option("--keep-past", is_flag=True, help="Do not rate again what was rated while it was held.")
@command_options
@_json
def release(version: str, keep_past: bool, by: str | None, ticket: str, timeout: float, as_json: bool) -> None:
    """Let a held price come into force: you vouch for it.

    Generations that it would have rated while it was held are rated again, and the differences are booked; usage that
    waited for it is charged.
    """
    _decide("release_price", version, by, ticket, timeout, as_json, **({"keep_past": "yes"} if keep_past else {}))


@click.command(epilog="Example: steward prices reject pv_3f9a0c1d2e4b --ticket OPS-381")
@click.argument("version")
@command_options
@_json
def reject(version: str, by: str | None, ticket: str, timeout: float, as_json: bool) -> None:
    """Say that a held price is wrong: it never rates anything."""
    _decide("reject_price", version, by, ticket, timeout, as_json)


@click.command(epilog="Example: steward prices rerate --from 2026-11-01 --to 2026-11-08 --provider openai --dry-run")
@click.option("--from", "start", required=True, help="Event times from this instant (UTC, or with a zone) ...")
@click.option("--to", "end", required=True, help="... to before this one.")
@click.option("--provider", help="Only of this provider.")
@click.option("--model", help="Only of this model, as the events name it.")
@click.option("--dry-run", is_flag=True, help="Count the differences; book nothing.")
@command_options
@_json
def rerate(
    start: str, end: str, provider: str | None, model: str | None, dry_run: bool, by: str | None, ticket: str,
    timeout: float, as_json: bool,
) -> None:  # fmt: skip
    """Rate logged generations again by what is known now, and book the differences.

    Each one whose amount differs is taken back and charged anew, in its own month. Generations without a log row (log
    retention 0, or expired) stay as they are.
    """
    first, last = _instant(start), _instant(end)
    assert first is not None and last is not None, "both are required"
    if first >= last:
        raise click.UsageError("--from must lie before --to")
    orders, known = who(by, ticket, timeout), settings()
    before = {row["id"] for row in ask(known, "metering", "reratings", limit=1000)}
    more = {"provider": provider, "model": model, "dry_run": "yes" if dry_run else None}
    chosen = {name: value for name, value in more.items() if value is not None}
    order(known, "metering", "rerate", ["usage"], orders, start=first.isoformat(), end=last.isoformat(), **chosen)
    if not timeout:
        click.echo(json.dumps({"ordered": True}) if as_json else "The second rating is ordered.")
        return

    def ours() -> list[dict[str, Any]]:
        return [row for row in ask(known, "metering", "reratings", limit=1000) if row["id"] not in before]

    until(timeout, "the second rating is not through", lambda: any(row["ended_at"] for row in ours()))
    (said,) = ours()[:1]
    if as_json:
        click.echo(json.dumps(said, indent=2))
        return
    difference = int(said["after_pico"]) - int(said["before_pico"])
    what = "would be charged" if dry_run else "is charged"
    click.echo(
        f"{said['examined']:,} generations looked at, {said['changed']:,} cost something else, "
        f"{said['unpriced']:,} have no price now; {_usd(difference)} {what} on top."
    )


class _Desk:
    """What the mesh knows of prices, and what a file adds to it."""

    def __init__(self, known: Mapping[str, str], source: str, now: datetime, valid_from: datetime | None) -> None:
        from services.metering.price_book import PriceBook
        from services.metering.price_version import from_json
        from services.metering.seed import GenaiPrices

        self._source, self._now, self._valid_from = source, now, valid_from
        self._rows = [{**row, "version": from_json(row["body"])} for row in ask(known, "metering", "prices")]
        self._catalogue = GenaiPrices()
        self._book = PriceBook((row["version"] for row in self._rows), self._catalogue)
        # Of each price, what this source said last and is held or rejected: to say it again is nothing new.
        self._last: dict[str, Any] = {row["name"]: row for row in self._rows if row["version"].source == source}

    def new(self, parsed: PriceFile) -> list[tuple[dict[str, Any], Statement]]:
        """The statements of a file that are not known yet, as contract data and as versions."""
        from services.metering.price_desk import Statement, in_force, merged, name_of, same
        from services.metering.price_version import event_version_id

        found = []
        for number, stated in enumerate(parsed.lists):
            data = {"valid_from": _SINCE_EVER, **stated, "source": self._source}
            version, units = Statement.of(data, self._now, event_version_id(f"{number}"))
            before = in_force(self._book, version, self._now)
            if "valid_from" not in stated and (before is not None or self._valid_from is not None):
                version = replace(version, valid_from=self._valid_from or self._now)
                data["valid_from"] = version.valid_from.isoformat()
            full = version if units is None else merged(version, units, before)
            last = self._last.get(name_of(version))
            if last is not None and last["version"].held and same(full, last["version"]):
                continue
            silent = last is not None and units is not None and set(last["spoken"] or ()) - units
            if not same(full, before) or silent:
                found.append((data, Statement(version, units)))
        return found

    def judged(self, new: Sequence[tuple[dict[str, Any], Statement]]) -> list[dict[str, Any]]:
        """What the guard would say, in the form of the read."""
        from services.metering.price_desk import decide, market_of, shown
        from services.metering.price_version import to_json

        stated = [row["version"] for row in self._rows if not row["rejected"]]
        market = market_of(self._catalogue.all_versions(), stated, self._now)
        spoken = {name: frozenset(row["spoken"]) for name, row in self._last.items() if row["spoken"] is not None}
        rows = []
        for chunk in _chunks(new):
            decisions = decide(self._book, market, [statement for _, statement in chunk], self._now, spoken)
            rows += [
                shown(to_json(one.version), one.reasons)
                | {"version": None, "held_since": self._now.isoformat() if one.reasons else None}
                for one in decisions
            ]
        return rows


def _publish(
    known: Mapping[str, str], batch: str, new: Sequence[tuple[dict[str, Any], Statement]], timeout: float
) -> None:
    """Publishes statements, a provider's together, and waits until metering has judged them."""
    from shared.contract import events, topics

    said = [
        (f"{chunk[0][0]['provider']}/*", {"batch": batch, "lists": [data for data, _ in chunk]})
        for chunk in _chunks(new)
    ]
    offset = asyncio.run(publish(known, topics.PRICES, events.PricesImported, "prices", said))
    trouble = "metering has not judged the prices"
    until(timeout, trouble, lambda: read_up_to(known, "metering", topics.PRICES.name) > offset)


def _chunks(new: Iterable[tuple[dict[str, Any], Statement]]) -> Iterator[list[tuple[dict[str, Any], Statement]]]:
    """By provider, at most so many that an event stays small."""
    by_provider = defaultdict(list)
    for one in new:
        by_provider[one[0]["provider"]].append(one)
    for ones in by_provider.values():
        for start in range(0, len(ones), _PER_EVENT):
            yield ones[start : start + _PER_EVENT]


def _decide(action: str, version: str, by: str | None, ticket: str, timeout: float, as_json: bool, **more: str) -> None:
    import re

    if re.fullmatch(_ID, version) is None:
        raise click.UsageError("VERSION: as `steward prices held` shows it, e.g. pv_3f9a0c1d2e4b")
    orders, known = who(by, ticket, timeout), settings()
    if version not in {row["version"] for row in ask(known, "metering", "held-prices")}:
        raise Refused(f"no price {version} is held: see `steward prices held`")
    order(known, "metering", action, [version], orders, **more)
    if timeout:
        until(timeout, "it is not through", lambda: not ask(known, "metering", "idle")["tasks"])
    done = {"release_price": "released", "reject_price": "rejected"}[action]
    text = f"{version} is {done}." if timeout else f"It is ordered that {version} be {done}."
    click.echo(json.dumps({"version": version, "decision": done, "waited": bool(timeout)}) if as_json else text)


def _instant(text: str | None) -> datetime | None:
    """UTC where nothing else is said."""
    if text is None:
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        raise click.UsageError(f"{text!r} is no instant: write 2026-11-24 or 2026-11-24T21:00:00Z") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)


def _usd(pico: int) -> str:
    from shared.contract.money import usd

    return usd(pico, 6)


# --- for people --------------------------------------------------------------------------------------------------


def _print_import(said: Mapping[str, Any], dry_run: bool) -> None:
    verb = "would be " if dry_run else ""
    click.echo(
        f"A file of {said['format']} with {said['models']:,} prices: {said['unchanged']:,} say nothing new, "
        f"{said['accepted']:,} {verb}accepted, {said['held']:,} {verb}held."
    )
    for reason, n in Counter(said["left_out"]).most_common():
        click.echo(f"  left out: {n:,} times {reason}")
    if said["held"]:
        _print_held([row for row in said["versions"] if row["held_since"] is not None])
        click.echo("Compare with the provider's own price page, then `steward prices release|reject VERSION`.")


def _print_held(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("version", "price of", "source", "since", "unit", "in force", "stated", "why"):
        table.add_column(name, overflow="fold", no_wrap=name in ("version", "unit"))
    for row in rows:
        tier = "" if row["tier"] == "standard" else f" ({row['tier']})"
        head = [
            row["version"] or "",
            f"{row['model']} at {row['provider']}{tier}",
            row["source"],
            moment(row["held_since"]),
        ]
        for reason in row["reasons"]:
            above = f" >{reason['above']:,}" if reason["above"] else ""
            table.add_row(
                *head, reason["unit"] + above, _price(reason["old"]), _price(reason["new"]),
                f"{reason['reason']}: {reason['detail']}",
            )  # fmt: skip
            head = [""] * 4
    Console(highlight=False).print(table)


def _price(text: str | None) -> str:
    return "none" if text is None else f"${text}"
