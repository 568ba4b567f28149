"""The demo from its first second to its verdict: a throw-away stack, a gateway, the proof, the page."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console

from deploy.demo import arrivals
from deploy.demo.account import Found, compare, ended_pico
from deploy.demo.deletion import Deletion, answered
from deploy.demo.emit import Emitter
from deploy.demo.gateway import Gateway
from deploy.demo.mesh import Reads, by_reason, published_balances, use_by_model
from deploy.demo.progress import Progress, Watch, until
from deploy.demo.records import Record
from deploy.demo.show import Page, show, whole
from deploy.demo.trace import Trace
from deploy.demo.world import LATER_PRICED, WORKSPACES_MAX, offered
from deploy.local.errors import LocalError
from deploy.local.idle import wait_idle
from deploy.local.stack import Stack
from deploy.rooms import ROOMS
from services.metering.price_book import PriceBook
from shared.contract.topics import GENERATIONS, PRICES
from shared.mesh.clock import Clock
from shared.mesh.settings import KafkaSettings
from shared.policy import policy

_T = TypeVar("_T")
_U = TypeVar("_U")

_LONG_RUN = 200_000
_PRICE_WAIT_SECONDS = 90.0
_GUARD_SECONDS = 0.5
_INTERESTING = 3


@dataclass(frozen=True, slots=True)
class Options:
    """What a person asked for. `speed` None = as fast as the mesh takes it."""

    events: int
    seed: int = 1
    traces: Sequence[Trace] = ()
    speed: float | None = None
    report: Path | None = None
    keep: bool = False
    out: Path = Path("build/demo")

    @property
    def is_long(self) -> bool:
        """Whether Kafka's speed counts for more than its quick start."""
        return max(self.events, sum(trace.rows for trace in self.traces)) >= _LONG_RUN


Prove = Callable[[Mapping[str, str]], Awaitable[dict[str, Any]]]


class Demo:
    """One run. `stack` is stopped by whoever made it."""

    def __init__(
        self,
        options: Options,
        console: Console,
        clock: Clock,
        stack: Stack,
        prove: Prove,
        rooms: Sequence[str] = ROOMS,
    ) -> None:
        self._options, self._console, self._clock = options, console, clock
        self._stack, self._prove, self._rooms = stack, prove, tuple(rooms)
        self._started = time.monotonic()
        self._gateway: Gateway
        self._waited = 0

    async def run(self) -> bool:
        """Starts the stack, plays the gateway, proves the books and prints the page; whether all of it holds."""
        options, stack = self._options, self._stack
        _, book = await _both(stack.start_servers(), asyncio.to_thread(self._load_prices))
        self._gateway = self._make_gateway(book)
        reads = Reads(stack.settings)
        emitter, people = (Emitter(KafkaSettings.from_env(stack.settings)) for _ in range(2))
        self._deletion = Deletion(
            seed=options.seed, gateway=self._gateway, emitter=people, reads=reads, stack=stack, clock=self._clock,
            unpaced=options.speed is not None,
        )  # fmt: skip
        progress = Progress(self._rooms, started=self._started)
        progress.expected = self._gateway.count
        progress.doing = "the services start, and the gateway sends meanwhile"
        progress.deletion = self._steps
        stack.say = lambda text: None
        async with Watch(self._console, progress, reads, lambda: emitter.sent):
            page = await self._unless_a_part_ends(self._flow(emitter, people, reads, progress))
        if options.report is not None:
            report = json.dumps(self._report(page), indent=2)
            options.report.write_text(report + "\n", encoding="utf-8")
        show(self._console, page)
        return page.holds

    async def _flow(self, emitter: Emitter, people: Emitter, reads: Reads, progress: Progress) -> Page:
        """Services up, everything sent, somebody forgotten meanwhile, everything settled, everything proved."""
        async with people:
            traffic = _both(self._emit(emitter, reads, progress), self._deletion.run())
            up_at, _ = await _both(self._start_rooms(), traffic)
        sent = emitter.sent + people.sent
        progress.expected = emitter.sent
        progress.doing = "waiting until nothing is on its way"
        await self._settle(sent)
        flow_seconds = time.monotonic() - up_at
        progress.doing = "every service that holds something of who left proves that it is gone"
        await self._deletion.completed()
        page, _ = await _both(self._proved(reads, sent, progress), self._deletion.certified(self._options.out))
        await self._deletion.look_back()
        page = replace(page, flow_seconds=flow_seconds, seconds=time.monotonic() - self._started)
        progress.doing = "done"
        return page

    async def _proved(self, reads: Reads, sent: int, progress: Progress) -> Page:
        await self._settle(sent)
        progress.doing = "proving the books"
        page = await self._page(reads, sent)
        progress.doing = "the auditor looks everywhere once more, until Kafka's log has forgotten, too"
        return page

    def _steps(self) -> list[tuple[str, str]]:
        case = self._deletion.story.case
        return [] if case is None else [("case", case["state"]), *answered(case)]

    async def _unless_a_part_ends(self, step: Coroutine[Any, Any, _T]) -> _T:
        """The step's result. Raises LocalError with the last words of a service or server that ends meanwhile."""

        async def guard() -> None:
            while True:
                for part in self._stack.parts:
                    child = part.child
                    if child is not None and child.returncode is not None and not part.stopping:
                        raise LocalError(
                            f"{part.name} ended while the demo ran (code {child.returncode}):\n{child.tail()}"
                        )
                await asyncio.sleep(_GUARD_SECONDS)

        work, watching = asyncio.ensure_future(step), asyncio.ensure_future(guard())
        try:
            done, _ = await asyncio.wait((work, watching), return_when=asyncio.FIRST_COMPLETED)
            if work not in done:
                await watching  # raises
            return work.result()
        finally:
            work.cancel()
            watching.cancel()
            await asyncio.gather(work, watching, return_exceptions=True)

    async def _start_rooms(self) -> float:
        await self._stack.start_rooms(self._rooms)
        return time.monotonic()

    def _load_prices(self) -> PriceBook:
        """The seeded prices of the models on offer; a second's work, done in a thread while the servers start."""
        from services.metering.seed import GenaiPrices

        book, now = PriceBook(catalogue=GenaiPrices()), self._clock.now()
        offered(book, now - policy().window, now)
        return book

    def _make_gateway(self, book: PriceBook) -> Gateway:
        """The gateway, whose traffic ends a minute before this moment."""
        options, now = self._options, self._clock.now()
        played = (
            arrivals.traced(options.traces, now)
            if options.traces
            else arrivals.seeded(options.seed, options.events, now)
        )
        return Gateway(
            seed=options.seed,
            clock=_Fixed(now),
            book=book,
            arrivals=played,
            workspace_count=max(12, min(400, WORKSPACES_MAX, played.count // 400)),
        )

    async def _emit(self, emitter: Emitter, reads: Reads, progress: Progress) -> None:
        async def price_comes(record: Record) -> None:
            """The price of the new model is told once its usage is seen to wait, so that it is seen to be released."""

            async def waits() -> bool:
                said = await reads.try_("metering", "quarantine", limit=1)
                counts = [row["n"] for row in (said or {}).get("counts", ()) if row["model"] == LATER_PRICED.name]
                self._waited = max(self._waited, sum(counts))
                return bool(counts)

            progress.doing = f"usage of {LATER_PRICED.name} waits for its price"
            await until(waits, _PRICE_WAIT_SECONDS)
            progress.doing = f"the price of {LATER_PRICED.name} is published; sending goes on"

        async with emitter:
            await emitter.run(self._gateway.opening())
            await emitter.run(
                self._gateway.play(),
                speed=self._options.speed,
                before={PRICES.name: price_comes},
                pace=self._deletion.pace,
            )

    async def _settle(self, sent: int) -> None:
        # The auditor changes nothing, and has something to look for as long as a deletion is not certified.
        rooms = [room for room in self._rooms if room != "audit"]
        outcome = await wait_idle(self._stack.settings, 120.0 + sent / 1_000, rooms)
        if not outcome.idle:
            raise LocalError(outcome.text())

    async def _page(self, reads: Reads, sent: int) -> Page:
        """The proof, what the mesh answers, and both in one page."""
        account = self._gateway.account
        books = await self._prove(self._stack.settings)
        letters, quarantine, by_model, interesting, ledger, published, balances = await _all(
            reads.dead_letters("metering", GENERATIONS.name),
            reads("metering", "quarantine", limit=1),
            reads("metering", "usage-by-model", limit=1000),
            reads("metering", "interesting", limit=50),
            reads.ledger(),
            published_balances(self._stack.settings),
            reads.balances(workspace.name for workspace in self._gateway.workspaces),
        )
        found = Found(
            books=books,
            dead_letters=by_reason(letters),
            quarantine=by_reason(quarantine["counts"], "n"),
            by_model=use_by_model(by_model["models"]),
            ledger=ledger,
            published=published,
            balances=balances,
        )
        story = self._deletion.story
        story.credit_pico = sum(account.credited[name] for name in story.workspaces)
        story.ended_pico = ended_pico(ledger)
        story.sent, story.late, story.erased = account.leaving, account.leaving_late, int(books.get("erased") or 0)
        return Page(
            seed=self._options.seed,
            traces=[trace.path.name for trace in self._options.traces],
            usage=by_model["models"],
            spend={name: account.credited[name] - balance for name, balance in published.items()},
            balances=published,
            letters=letters,
            quarantine=quarantine["counts"],
            waited=self._waited,
            waited_model=LATER_PRICED.name,
            books=books,
            deletion=story,
            comparisons=compare(account, found),
            explains=[await self._explained(reads, row["generation_id"]) for row in choose(interesting)],
            records=sent,
            flow_seconds=0.0,
            seconds=0.0,
            report=self._options.report,
        )

    async def _explained(self, reads: Reads, generation: str) -> dict[str, Any]:
        said: dict[str, Any] = await reads("metering", "explain", id=generation)
        said["booked"] = await reads.try_("billing", "journal", record=said["record"], line=said["line"])
        return said

    def _report(self, page: Page) -> dict[str, Any]:
        """The JSON of `steward check`, and beside it what the emitter's account says."""
        account = self._gateway.account.as_dict()
        equal = all(comparison.equal for comparison in page.comparisons)
        story = page.deletion
        deletion = {
            "completed": story.completed, "certified": story.certified, "certificate": story.verdict,
            "holds": story.holds, "case": story.case,
            "copy": None if story.copy is None else asdict(story.copy) | {"link": None},
            "sums_before": story.sums_before, "sums_after": story.sums_after,
        }  # fmt: skip
        return {**page.books, "emitter": {"equal": equal, "account": account}, "deletion": deletion}


# Rules by how much their arithmetic tells.
_TELLING = ("byok", "data_sharing", "list", "zero_completion", "error", "cache_hit")


def choose(rows: Sequence[Mapping[str, Any]], count: int = _INTERESTING) -> list[Mapping[str, Any]]:
    """The most instructive of the dearest generations: one with a long context, then one of each other rule."""

    def telling(row: Mapping[str, Any]) -> tuple[int, int, int]:
        rule = _TELLING.index(row["rule"]) if row["rule"] in _TELLING else len(_TELLING)
        return rule, int(">" in row["tier"]), -whole(row["amount_pico"])

    chosen = sorted((row for row in rows if ">" in row["tier"] and row["rule"] == "list"), key=telling)[:1]
    ranked = sorted(rows, key=telling)
    first_of_rule = [row for n, row in enumerate(ranked) if row["rule"] not in {r["rule"] for r in ranked[:n]}]
    for row in (*first_of_rule, *ranked):
        if len(chosen) < count and row not in chosen:
            chosen.append(row)
    return chosen


@dataclass(frozen=True, slots=True)
class _Fixed:
    """A clock that stands at the run's beginning."""

    at: datetime

    def now(self) -> datetime:
        return self.at


async def _both(first: Coroutine[Any, Any, _T], second: Coroutine[Any, Any, _U]) -> tuple[_T, _U]:
    """Both results; when one fails the other is cancelled, and the failure raised."""
    one, other = asyncio.ensure_future(first), asyncio.ensure_future(second)
    try:
        await asyncio.gather(one, other)
        return one.result(), other.result()
    finally:
        one.cancel()
        other.cancel()
        await asyncio.gather(one, other, return_exceptions=True)


async def _all(*steps: Coroutine[Any, Any, Any]) -> list[Any]:
    """All answers, asked for together."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(step) for step in steps]
    return [task.result() for task in tasks]
