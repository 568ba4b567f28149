"""`python -m tests.bench [--events N] [--only NAME ...] [--quick]`: measures, prints the table, writes build/bench.json.

Figures inform and never fail: the exit code is 0 (2 for wrong arguments, 130 when interrupted). Nothing else should
run on the machine meanwhile. Everything runs on a stack of its own that is thrown away.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatch
from pathlib import Path

import uvloop
from rich.console import Console

from tests.bench import processes
from tests.bench.backlog import Plan
from tests.bench.ceilings import Ceilings
from tests.bench.chain import chain_lines, metering_line
from tests.bench.emitter import emitter_lines
from tests.bench.erasure import account_lines, queue_lines
from tests.bench.expiry import expiry_lines
from tests.bench.growth import growth_lines
from tests.bench.idle import idle_lines
from tests.bench.lab import Lab
from tests.bench.latency import latency_lines
from tests.bench.naive import naive_line
from tests.bench.package import package_lines
from tests.bench.partitions import partition_lines
from tests.bench.rating import rating_lines
from tests.bench.report import Report
from tests.bench.tombstones import latency_lines as tombstone_latency_lines
from tests.bench.tombstones import million_lines

OUTPUT = Path(__file__).resolve().parents[2] / "build" / "bench.json"


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    events: int
    ceiling_rows: int
    naive_events: int
    warm_up_seconds: float
    paced_seconds: float
    idle_events: int
    idle_seconds: float
    stored_small: int
    stored_large: int
    growth_events: int
    rated: int

    @classmethod
    def usual(cls, events: int | None) -> Sizes:
        """What the limits speak about."""
        return cls._capped(
            events or 2_000_000, 200_000, 3_000, 30, 20, 100_000, 20, 100_000, 10_000_000, 400_000, 10_000
        )

    @classmethod
    def quick(cls, events: int | None) -> Sizes:
        """A tenth or less: enough to see that all of it works, not to judge a figure."""
        return cls._capped(events or 200_000, 50_000, 500, 2, 6, 20_000, 5, 5_000, 250_000, 50_000, 1_000)

    @classmethod
    def _capped(
        cls, events: int, ceiling: int, naive: int, warm_up: float, paced: float, idle_events: int, idle: float,
        small: int, large: int, growth: int, rated: int,
    ) -> Sizes:  # fmt: skip
        return cls(
            events, min(events // 2, ceiling), min(events // 4, naive), warm_up, paced, min(events, idle_events), idle,
            small, large, min(events, growth), min(events, rated),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Erasing:
    """How much is erased, entombed, ended and packed: what the limits speak about."""

    account_rows: int = 1_000_000
    queue: int = 10_000
    samples: int = 200
    tombstones: int = 1_000_000
    tombstone_events: int = 400_000
    tombstone_pairs: int = 2
    day_rows: int = 10_000_000
    package_rows: int = 1_000_000

    @classmethod
    def quick(cls) -> Erasing:
        """Enough to see that it works."""
        return cls(20_000, 200, 10, 50_000, 100_000, 1, 200_000, 20_000)

    def changed(self, options: argparse.Namespace) -> Erasing:
        """With the sizes that the command line names."""
        named = {name: getattr(options, name) for name in (field.name for field in fields(self))}
        return replace(self, **{name: value for name, value in named.items() if value is not None})


@dataclass(slots=True)
class Bench:
    """One run."""

    lab: Lab
    sizes: Sizes
    report: Report
    plan: Plan
    ceilings: Ceilings
    replicas: int
    erasing: Erasing

    async def ceiling(self) -> None:
        """The ceilings for themselves; beside each figure that needs them they are measured again."""
        await self.ceilings.measure()

    async def metering_one(self) -> None:
        """Metering in one process."""
        await metering_line(self.lab, self.ceilings, self.plan, self.report, 1)

    async def metering_two(self) -> None:
        """Metering in two processes."""
        await metering_line(self.lab, self.ceilings, self.plan, self.report, 2)

    async def chain(self) -> None:
        """All services."""
        await chain_lines(self.lab, self.ceilings, self.plan, self.report, self.replicas)

    async def naive(self) -> None:
        """The naive design."""
        await naive_line(self.lab, self.plan, self.report, self.sizes.naive_events)

    async def latency_500(self) -> None:
        """Event to balance at 500/s."""
        await self._latency("500", 500)

    async def latency_10000(self) -> None:
        """Event to balance at 10,000/s, each event of a workspace of its own."""
        await self._latency("10000", 10_000)

    async def latency_10000_zipf(self) -> None:
        """Event to balance at 10,000/s, among usage as it really is."""
        await self._latency("10000_zipf", 10_000, probe_every=20)

    async def _latency(self, name: str, rate: int, probe_every: int = 1) -> None:
        sizes = self.sizes
        seconds = sizes.paced_seconds
        await latency_lines(self.lab, self.report, name, rate, sizes.warm_up_seconds, seconds, probe_every)

    async def idle(self) -> None:
        """Nothing happens."""
        await idle_lines(self.lab, self.report, self.sizes.idle_events, self.sizes.idle_seconds)

    async def partitions(self) -> None:
        """What a partition costs."""
        await partition_lines(self.lab, self.report, 336, 2_000, self.sizes.idle_seconds)

    async def emitter(self) -> None:
        """What emitting costs the platform."""
        await emitter_lines(self.lab, self.report, min(self.sizes.events, 500_000))

    async def growth(self) -> None:
        """Much is stored."""
        sizes = self.sizes
        await growth_lines(self.lab, self.report, sizes.stored_small, sizes.stored_large, sizes.growth_events)

    async def erasure_account(self) -> None:
        """One large account is erased beside traffic of others."""
        await account_lines(self.lab, self.report, self.erasing.account_rows)

    async def erasure_queue(self) -> None:
        """Many ordinary accounts are erased."""
        await queue_lines(self.lab, self.report, self.erasing.queue)

    async def tombstone_latency(self) -> None:
        """From a confirmation to its tombstones everywhere."""
        await tombstone_latency_lines(self.lab, self.report, self.erasing.samples)

    async def tombstones_million(self) -> None:
        """What tombstones cost those who look them up."""
        size = self.erasing
        await million_lines(self.lab, self.report, size.tombstones, size.tombstone_events, size.tombstone_pairs)

    async def expiry_day(self) -> None:
        """A large day ends."""
        await expiry_lines(self.lab, self.report, self.erasing.day_rows)

    async def package(self) -> None:
        """A large account gets a copy of its data."""
        await package_lines(self.lab, self.report, self.erasing.package_rows)


# What each measurement gives, in the order in which they run: those that share the backlog follow each other.
MEASUREMENTS: tuple[tuple[Callable[[Bench], Awaitable[None]], tuple[str, ...]], ...] = (
    (Bench.ceiling, ("ceiling_a", "ceiling_b")),
    (Bench.metering_one, ("metering_one", "metering_one_of_a", "metering_one_wal", "metering_one_cpu_us_postgres")),
    (Bench.metering_two, ("metering_two", "metering_two_of_a", "metering_two_wal", "metering_two_cpu_us_postgres")),
    (Bench.chain, ("generations_to_balances", "cpu_us_*", "rss_*", "wal_bytes_per_event", "stored_bytes_*")),
    (Bench.naive, ("naive",)),
    (Bench.latency_500, ("latency_500_p50", "latency_500_p99", "busy_500")),
    (Bench.latency_10000, ("latency_10000_p50", "latency_10000_p99", "busy_10000")),
    (Bench.latency_10000_zipf, ("latency_10000_zipf_p50", "latency_10000_zipf_p99", "busy_10000_zipf")),
    (Bench.idle, ("idle_cpu", "idle_machine")),
    (Bench.partitions, ("partition_idle_*", "partition_event_*", "partition_claim")),
    (Bench.emitter, ("emitter_call_us", "emitter_sustained", "emitter_cpu_us", "emitter_rss")),
    (Bench.growth, ("million_rows", "million_rows_small", "million_rows_large")),
    (Bench.erasure_account, ("erasure_account", "erasure_account_lag")),
    (Bench.erasure_queue, ("erasure_queue",)),
    (Bench.tombstone_latency, ("tombstone_latency_p50", "tombstone_latency_p99")),
    (Bench.tombstones_million, ("tombstones_million", "metering_tombstones*", "billing_tombstones*")),
    (Bench.expiry_day, ("expiry_day",)),
    (Bench.package, ("package", "package_lag", "package_rss_metering", "package_rss_retention")),
)


# Figures that need no servers.
ALONE = ("rating_package", "rating", "adapters")


def chosen(wanted: Sequence[str]) -> tuple[bool, list[Callable[[Bench], Awaitable[None]]]]:
    """Whether those of `ALONE` are wanted, and the measurements that give the others (all, if none is named).

    Raises ValueError for an unknown name.
    """
    if not wanted:
        return True, [measure for measure, _ in MEASUREMENTS]
    every = (ALONE, *(names for _, names in MEASUREMENTS))
    for name in wanted:
        if not any(_gives(names, name) for names in every):
            known = ", ".join(name for names in every for name in names)
            raise ValueError(f"there is no figure {name!r}; there are {known}")
    measures = [measure for measure, names in MEASUREMENTS if any(_gives(names, name) for name in wanted)]
    return any(_gives(ALONE, name) for name in wanted), measures


def _gives(names: Sequence[str], wanted: str) -> bool:
    return any(fnmatch(wanted, name) or fnmatch(name, wanted) for name in names)


async def run(
    measures: Sequence[Callable[[Bench], Awaitable[None]]],
    sizes: Sizes,
    report: Report,
    replicas: int,
    erasing: Erasing,
) -> None:
    """Measures one after the other; one that fails leaves its line empty."""
    async with Lab(report.console) as lab:
        plan = Plan.just_before_now(sizes.events)
        bench = Bench(lab, sizes, report, plan, Ceilings(lab, plan, sizes.ceiling_rows), replicas, erasing)
        try:
            for measure in measures:
                name = measure.__name__
                report.console.print(f"[bold]{name}[/bold]")
                try:
                    await measure(bench)
                except Exception as error:
                    report.failed(name, f"{type(error).__name__}: {error}")
                    logging.getLogger("bench").debug("%s", name, exc_info=True)
        finally:
            bench.ceilings.report(report)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--events", type=int, help="records of the backlog (2,000,000; with --quick 200,000)")
    parser.add_argument("--only", nargs="+", action="extend", default=[], metavar="NAME", help="only these figures")
    parser.add_argument("--quick", action="store_true", help="small sizes: shows that it works, not how fast it is")
    parser.add_argument("--replicas", type=int, default=1, help="metering processes in the whole chain (1)")
    for field in fields(Erasing):
        name = f"--{field.name.replace('_', '-')}"
        parser.add_argument(
            name, type=int, metavar="N", help=f"erasures: {getattr(Erasing(), field.name):,} by themselves"
        )
    parser.add_argument("--debug", action="store_true", help="tracebacks of what fails")
    options = parser.parse_args(arguments)
    if options.events is not None and options.events < 1_000:
        parser.error("--events: at least 1,000")
    if not processes.available():
        parser.error("the figures come from /proc, which this system does not have")
    try:
        alone, measures = chosen(options.only)
    except ValueError as error:
        parser.error(str(error))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    logging.getLogger("aiokafka").setLevel(logging.ERROR)
    if options.debug:
        logging.getLogger("bench").setLevel(logging.DEBUG)
    sizes = Sizes.quick(options.events) if options.quick else Sizes.usual(options.events)
    erasing = (Erasing.quick() if options.quick else Erasing()).changed(options)
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)  # a file has no width of its own
    report = Report(console)
    code = 0
    try:
        if alone:
            console.print("[bold]rating[/bold]")
            try:
                rating_lines(report, sizes.rated)
            except ValueError as error:
                report.failed("rating", str(error))
        if measures:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(run(measures, sizes, report, options.replicas, erasing))
    except KeyboardInterrupt:
        code = 130
    except Exception as error:
        report.failed("bench", f"{type(error).__name__}: {error}")
        logging.getLogger("bench").debug("bench", exc_info=True)
    report.show(f"{sizes.events:,} events, {os.cpu_count()} cores" + (", quick" if options.quick else ""))
    report.write(OUTPUT)
    return code


if __name__ == "__main__":
    sys.exit(main())
