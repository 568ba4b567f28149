"""`steward cursors list | rewind | skip | rebase`: where services read on. Kafka's own offsets are only hints."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

import click

from deploy.cli.ask import actor, settings
from deploy.cli.errors import Refused, Unavailable
from deploy.rooms import ROOMS

_F = TypeVar("_F", bound=Callable[..., Any])
_json = click.option("--json", "as_json", is_flag=True, help="For programs.")
_service = click.option("--service", type=click.Choice(ROOMS), required=True, help="Whose cursors.")


@dataclass(frozen=True, slots=True)
class Place:
    """A cursor, and the log that it points into: [begin, end)."""

    grp: str
    topic: str
    part: int
    at: int
    high: int
    begin: int
    end: int
    owner: str

    def as_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "group": self.grp, "topic": self.topic, "partition": self.part, "next_offset": self.at,
            "high_offset": self.high, "log_start": self.begin, "log_end": self.end, "lag": max(0, self.end - self.at),
            "owner": self.owner,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Where:
    """Where to: an offset, `start` or `end` of the log, or the first record at or after an instant."""

    to: str | None
    to_time: datetime | None


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
def cursors() -> None:
    """See and move where services read on in their topics.

    The cursors in PostgreSQL decide; the offsets that Kafka shows for a group are hints for lag tools, and moving
    those does nothing. A running service notices with the partition's next record, a restarted one at once.
    """


@cursors.command("list", epilog="Example: steward cursors list --service metering")
@click.option("--service", type=click.Choice(ROOMS), help="Only this service's  [default: all]")
@_json
def list_(service: str | None, as_json: bool) -> None:
    """List every cursor with the log that it points into."""
    places = [place for name in (ROOMS if service is None else (service,)) for place in _run(_places(settings(), name))]
    if as_json:
        click.echo(json.dumps([place.as_dict() for place in places], indent=2))
    else:
        _print(("topic", "part", "next", "log", "lag", "owner"), [
            (p.topic, p.part, p.at, f"{p.begin}..{p.end}", max(0, p.end - p.at), p.owner) for p in places
        ])  # fmt: skip


def _options(function: _F) -> _F:
    for option in (
        _json,
        click.option("--actor", "by", help="Who moves it  [default: STEWARD_ACTOR, or your user name]"),
        click.option("--dry-run", is_flag=True, help="Show what would happen."),
        click.option("--to-time", type=click.DateTime(["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S%z"]), metavar="INSTANT",
                     help="The first record that Kafka took at or after this instant, e.g. 2026-11-24T21:00:00Z."),
        click.option("--to", help="An offset, or: start, end (of the log)."),
        click.option("--partition", "parts", type=click.IntRange(0), multiple=True,
                     help="This partition; may be said again  [default: all]"),
        click.option("--topic", required=True, help="In which topic."),
        _service,
    ):  # fmt: skip
        function = option(function)
    return function


@cursors.command(
    epilog="Example: steward cursors rewind --service billing --topic mesh.usage-rated --to start --dry-run"
)
@_options
def rewind(
    service: str, topic: str, parts: tuple[int, ...], to: str | None, to_time: datetime | None, dry_run: bool,
    by: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Read records again, from an earlier place on.

    Safe: what had an effect already has none again, and counters stand still. Records below the log's start are
    gone; an offset there is refused.
    """

    def check(place: Place, offset: int) -> None:
        if offset > place.at:
            raise Refused(f"{_name(place)} reads on at {place.at}: {offset} lies ahead, so that is a `skip`")

    _move(service, topic, parts, Where(to, to_time), check, by, dry_run=dry_run, as_json=as_json)


@cursors.command(
    epilog="Example: steward cursors skip --service metering --topic gateway.prices --partition 0 --to 812 --dry-run"
)
@_options
def skip(
    service: str, topic: str, parts: tuple[int, ...], to: str | None, to_time: datetime | None, dry_run: bool,
    by: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Leave records out: they will have no effect, and no counter will know of them.

    For a partition that stands still. Records that fail by themselves become dead letters, without this.
    """

    def check(place: Place, offset: int) -> None:
        if offset < place.at:
            raise Refused(f"{_name(place)} reads on at {place.at}: {offset} lies behind, so that is a `rewind`")

    _move(service, topic, parts, Where(to, to_time), check, by, dry_run=dry_run, as_json=as_json)


@cursors.command(epilog="Example: steward cursors rebase --service metering --topic gateway.generations --dry-run")
@_options
def rebase(
    service: str, topic: str, parts: tuple[int, ...], to: str | None, to_time: datetime | None, dry_run: bool,
    by: str | None, as_json: bool,
) -> None:  # fmt: skip
    """Follow a topic that was made anew (a moved cluster), where offsets begin again. Without --to: at its start.

    What is read from there counts as read for the first time; what was handled on the old cluster already is
    recognised by its id.
    """
    if to is None and to_time is None:
        to = "start"
    _move(service, topic, parts, Where(to, to_time), lambda *_: None, by, dry_run=dry_run, as_json=as_json, anew=True)


def _move(
    service: str, topic: str, parts: Sequence[int], where: Where, check: Callable[[Place, int], None], by: str | None, *,
    dry_run: bool, as_json: bool, anew: bool = False,
) -> None:  # fmt: skip
    if (where.to is None) == (where.to_time is None):
        raise click.UsageError("say where to: --to or --to-time")
    if where.to is not None and where.to not in ("start", "end") and not where.to.isdecimal():
        raise click.UsageError("--to: an offset, `start` or `end`")
    known = settings()
    places = [p for p in _run(_places(known, service)) if p.topic == topic and (not parts or p.part in parts)]
    if not places or len(places) < len(set(parts)):
        raise Refused(f"{service} has no such cursor in {topic}: see `steward cursors list --service {service}`")
    targets = _run(_offsets(known, places, where))
    moves = []
    for place, offset in zip(places, targets, strict=True):
        if offset < place.begin:
            raise Refused(
                f"{_name(place)} starts at {place.begin}: records below it are gone, so {offset} cannot be read "
                "(`--to start` reads what is left)"
            )
        if offset > place.end:
            raise Refused(f"{_name(place)} ends at {place.end}: there is no offset {offset} yet")
        check(place, offset)
        moves.append((place, offset))
    if not dry_run:
        _run(_write(known, service, moves, f"operator:{by or actor()}", anew=anew))
    if as_json:
        said = [place.as_dict() | {"moved_to": offset} for place, offset in moves]
        click.echo(json.dumps({"dry_run": dry_run, "cursors": said}, indent=2))
        return
    _print(("topic", "part", "from", "to", "records"), [
        (p.topic, p.part, p.at, offset, f"{abs(offset - p.at):,} {'again' if offset < p.at else 'left out'}"
         if offset != p.at else "stays") for p, offset in moves
    ])  # fmt: skip
    click.echo("Nothing was moved (--dry-run)." if dry_run else f"Moved; {service} reads on from there.")


def _name(place: Place) -> str:
    return f"{place.topic}, partition {place.part},"


def _run(work: Any) -> Any:
    from aiokafka.errors import KafkaError
    from asyncpg import PostgresError

    try:
        return asyncio.run(work)
    except (KafkaError, PostgresError) as error:
        raise Unavailable(f"a server refused ({type(error).__name__}: {error}): see `steward doctor`") from error


async def _places(known: Mapping[str, str], service: str) -> list[Place]:
    from shared.mesh import store
    from shared.mesh.admin import end_offsets
    from shared.mesh.settings import KafkaSettings

    db = await store.connect(_owner(known, service), "steward-cursors")
    try:
        rows = await store.cursors(db)
    finally:
        await db.close()
    spans = await end_offsets(KafkaSettings.from_env(known), sorted({row["topic"] for row in rows})) if rows else {}
    by_place = {(tp.topic, tp.partition): span for tp, span in spans.items()}
    places = []
    for row in rows:
        begin, end = by_place.get((row["topic"], row["part"]), (0, 0))
        places.append(
            Place(
                row["grp"], row["topic"], row["part"], row["next_offset"], row["high_offset"], begin, end, row["owner"]
            )
        )
    return places


async def _offsets(known: Mapping[str, str], places: Sequence[Place], where: Where) -> list[int]:
    """The offset meant for each place."""
    if where.to == "start":
        return [place.begin for place in places]
    if where.to == "end":
        return [place.end for place in places]
    if where.to is not None:
        return [int(where.to)] * len(places)
    from aiokafka import AIOKafkaConsumer, TopicPartition

    from shared.mesh.settings import KafkaSettings

    assert where.to_time is not None
    at = where.to_time if where.to_time.tzinfo is not None else where.to_time.replace(tzinfo=UTC)
    consumer = AIOKafkaConsumer(**KafkaSettings.from_env(known).client())
    await consumer.start()
    try:
        wanted = {TopicPartition(place.topic, place.part): int(at.timestamp() * 1000) for place in places}
        found = await consumer.offsets_for_times(wanted)
    finally:
        await consumer.stop()
    by_part = {(tp.topic, tp.partition): offset for tp, offset in found.items()}
    # No record so late: the end, where such records will come.
    return [
        place.end if (offset := by_part.get((place.topic, place.part))) is None else offset.offset for place in places
    ]


async def _write(
    known: Mapping[str, str], service: str, moves: Sequence[tuple[Place, int]], owner: str, *, anew: bool
) -> None:
    from shared.mesh import store
    from shared.mesh.clock import clock_from

    now = clock_from(known.get("STEWARD_CLOCK"), known.get("STEWARD_ENV", "local")).now()
    move = store.rebase_cursor if anew else store.move_cursor
    db = await store.connect(_owner(known, service), "steward-cursors")
    try:
        async with db.transaction():
            for place, offset in moves:
                await move(db, place.grp, place.topic, place.part, offset, owner, now)
    finally:
        await db.close()


def _owner(known: Mapping[str, str], service: str) -> str:
    url = known.get(f"STEWARD_{service.upper()}_OWNER_DATABASE_URL")
    if not url:
        raise Unavailable(
            f"no stack has been started here (no database of {service} is known): start with `steward up`"
        )
    return url


def _print(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in ("topic", "owner", "log") else "right")
    for row in rows:
        table.add_row(*map(str, row))
    Console(highlight=False).print(table)
