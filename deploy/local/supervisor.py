"""Keeps a stack up: starts again what ends, says so, writes the state down, drains on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator

from deploy.local import state
from deploy.local.errors import LocalError
from deploy.local.process import Identity
from deploy.local.stack import Part, Say, Stack
from deploy.local.state import PartState, Phase, StackState

# Seconds before a part is started again: doubling, and from the first again once it has lived for a minute.
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_LIVED_SECONDS = 60.0
_POLL_SECONDS = 0.2


class Supervisor:
    """Watches the parts of a started stack."""

    def __init__(self, stack: Stack, say: Say) -> None:
        self._stack = stack
        self._say = say
        self._phase: Phase = "starting"
        self._detail = ""
        self._states: dict[str, str] = {}
        self._restarts: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._own = Identity.of(os.getpid()) or Identity(os.getpid(), "?")

    def restarts(self, name: str) -> int:
        """How often a part was started again."""
        return self._restarts.get(name, 0)

    def watch(self) -> None:
        """Begins to watch; the stack is up."""
        self.note("running")
        self._tasks = [asyncio.create_task(self._watch(part), name=part.name) for part in self._stack.parts]

    async def rest(self) -> None:
        """Ends watching, so that the stack can be stopped."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def note(self, phase: Phase, detail: str = "") -> None:
        """Writes the state down, with every process as it is now."""
        self._phase, self._detail = phase, detail
        # The state of a folder that another stack holds is not ours to write.
        if self._stack.owns_home and self._stack.home.is_dir():
            state.write(self._stack.home, self.state())

    def state(self) -> StackState:
        """The state of the stack."""
        parts = [self._part(part) for part in self._stack.parts if part.child is not None]
        return StackState(self._phase, self._own.pid, self._own.started, self._detail, parts)

    def _part(self, part: Part) -> PartState:
        assert part.child is not None
        fallback = "running" if part.running else "stopped"
        return PartState(
            name=part.name,
            state=self._states.get(part.name, fallback),
            pid=part.child.identity.pid,
            started=part.child.identity.started,
            port=part.port,
            url=part.url,
            log=str(part.log),
            restarts=self.restarts(part.name),
        )

    async def _watch(self, part: Part) -> None:
        delay = _FIRST_DELAY
        while True:
            started = time.monotonic()
            assert part.child is not None
            code = await part.child.wait()
            if part.stopping:  # somebody meant it (a fault test) and starts it again
                await _until(lambda: part.running)
                continue
            delay = _FIRST_DELAY if time.monotonic() - started > _LIVED_SECONDS else delay
            self._restarts[part.name] = self.restarts(part.name) + 1
            self._set(part, "restarting")
            self._say(f"{part.name} ended ({_reason(code)}, see {part.log}); starting it again in {delay:g} s")
            await asyncio.sleep(delay)
            delay = min(delay * 2, _LONGEST_DELAY)
            try:
                await part.start()
            except LocalError as error:
                self._say(str(error).splitlines()[0])
                continue
            self._set(part, "running")
            self._say(f"{part.name} is ready again (restart {self.restarts(part.name)})")

    def _set(self, part: Part, state_of_part: str) -> None:
        self._states[part.name] = state_of_part
        self.note(self._phase, self._detail)


async def run_until_signal(stack: Stack, say: Say, ready: Callable[[], None]) -> None:
    """Starts the stack, keeps it up until SIGINT, SIGTERM or SIGHUP, and drains it. A second signal hurries.

    `ready` is called once everything is ready. Raises LocalError when the start fails; the state then says
    why.
    """
    supervisor = Supervisor(stack, say)
    asked = asyncio.Event()
    with _signals(lambda: stack.hurry() if asked.is_set() else asked.set()):
        starting = asyncio.create_task(_start(stack, supervisor, say))
        waiting = asyncio.create_task(asked.wait())
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        try:
            if not asked.is_set():
                await starting
                supervisor.watch()
                ready()
                await waiting
            say("stopping: the services finish their batches first (a second Ctrl-C does not wait)")
            supervisor.note("stopping")
        finally:
            waiting.cancel()
            starting.cancel()
            await asyncio.gather(waiting, starting, return_exceptions=True)
            await supervisor.rest()
            await stack.stop()
        state.clear(stack.home)
        say("stopped")


async def _start(stack: Stack, supervisor: Supervisor, say: Say) -> None:
    def tell(text: str) -> None:
        say(text)
        supervisor.note("starting", text)

    stack.say = tell
    try:
        await stack.start()
    except LocalError as error:
        supervisor.note("failed", str(error))
        raise


async def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(_POLL_SECONDS)


@contextlib.contextmanager
def _signals(handler: Callable[[], None]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def _reason(code: int) -> str:
    return f"code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
