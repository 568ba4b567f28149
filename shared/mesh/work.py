"""Jobs (once per slot, whatever the number of replicas) and tasks (long work in chunks)."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import asyncpg

from shared.mesh import metrics, store
from shared.mesh.clock import Clock
from shared.mesh.consumer import TRANSIENT
from shared.mesh.errors import where
from shared.mesh.service import Done, Guard, JobHandler, Later, Task, TaskHandler
from shared.mesh.store import Pool
from shared.mesh.transaction import Transaction, slot_of

log = logging.getLogger("steward.mesh")


class Worker:
    """Runs one service's jobs and tasks until stopped."""

    def __init__(
        self,
        service: str,
        pool: Pool,
        clock: Clock,
        jobs: dict[str, tuple[timedelta, JobHandler]],
        tasks: dict[str, TaskHandler],
        *,
        guard: Guard | None = None,
        unguarded: Collection[str] = (),
        plugged: Mapping[str, Any] | None = None,
        wake_relay: Callable[[], None] = lambda: None,
        fault: Callable[[str], Awaitable[None]] | None = None,
    ) -> None:
        self._service, self._pool, self._clock = service, pool, clock
        self._jobs, self._tasks = jobs, tasks
        self._guard, self._unguarded, self._plugged = guard, unguarded, plugged
        self._wake_relay = wake_relay
        self._fault = fault
        self._wake = asyncio.Event()
        self._stopping = asyncio.Event()

    def wake(self) -> None:
        """There may be tasks."""
        if self._tasks:
            self._wake.set()

    def stop(self) -> None:
        """Finishes what is in hand, then the `run_…` calls return."""
        self._stopping.set()
        self._wake.set()

    def slots_behind(self, next_slots: Mapping[str, datetime], now: datetime) -> dict[str, int]:
        """How many whole slots of each job have passed since the one that is due next; 0 for a job that is on time."""
        return {
            name: max(0, int((slot_of(now, every) - next_slots[name]) / every))
            for name, (every, _) in self._jobs.items()
            if name in next_slots
        }

    async def run_jobs(self) -> None:
        """Looks for due slots; the shortest job sets the pace (at least once a second)."""
        if not self._jobs:
            return
        pace = min(1.0, *(every.total_seconds() / 4 for every, _ in self._jobs.values()))
        while not self._stopping.is_set():
            for name in await self._due():
                try:
                    await self.run_job(name)
                except (*TRANSIENT, asyncpg.PostgresError) as error:
                    metrics.JOB_RUNS_TOTAL.labels(name, "failed").inc()
                    log.warning("job %s failed and is tried again: %s", name, type(error).__name__)
                except Exception as error:
                    metrics.JOB_RUNS_TOTAL.labels(name, "failed").inc()
                    log.error("job %s failed and is tried again: %s", name, where(error))
            await _wait(self._stopping, pace)

    async def _due(self) -> list[str]:
        """One question for all jobs: most of the time none is due."""
        try:
            return await store.due_jobs(self._pool, list(self._jobs), self._clock.now())
        except (*TRANSIENT, asyncpg.PostgresError) as error:
            log.warning("jobs wait: %s", type(error).__name__)
            return []

    async def run_job(self, name: str, *, force: bool = False) -> bool:
        """Runs the job if its slot has come (or `force`); True if it ran here."""
        every, handler = self._jobs[name]
        now = self._clock.now()
        async with self._pool.acquire() as db, db.transaction():
            job = await store.take_job(db, name, now + every if force else now, slot_of(now, every))
            if job is None:
                return False
            slot = slot_of(now, every)
            missed = max(0, int((slot - job["next_slot"]) / every))
            tx = Transaction(self._service, db, now, plugged=self._plugged)
            if self._guard is not None:
                await self._guard(tx)
            await handler(now, tx)
            await store.finish_job(db, name, slot + every, missed, now)
            publishes = await tx.flush()
        metrics.JOB_RUNS_TOTAL.labels(name, "done").inc()
        metrics.JOB_MISSED_SLOTS_TOTAL.labels(name).inc(missed)
        tx.committed()
        if publishes:
            self._wake_relay()
        if tx.enqueued:
            self.wake()
        return True

    async def run_tasks(self) -> None:
        """Works through due tasks, a chunk at a time."""
        if not self._tasks:
            return
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                worked = await self.run_task()
            except (*TRANSIENT, asyncpg.PostgresError) as error:
                log.warning("tasks wait: %s", type(error).__name__)
                worked = False
            if not worked:
                await _wait(self._wake, 1.0)

    async def run_task(self) -> bool:
        """One chunk of the oldest due task; False if none is due. A chunk that fails is tried again, later and later."""
        now = self._clock.now()
        async with self._pool.acquire() as db:
            transaction = db.transaction()
            await transaction.start()
            row = await store.take_task(db, list(self._tasks), now)
            if row is None:
                await transaction.rollback()
                return False
            task = Task(row["id"], row["name"], row["cause"], row["payload"], row["position"], row["attempts"])
            tx = Transaction(self._service, db, now, plugged=self._plugged)
            try:
                if self._guard is not None and task.name not in self._unguarded:
                    await self._guard(tx)
                position: Any = await self._tasks[task.name](task, tx)
                if isinstance(position, Done):
                    await store.finish_task(db, task.id)
                elif isinstance(position, Later):
                    due = now + timedelta(seconds=position.seconds)
                    await store.continue_task(db, task.id, position.position, due)
                else:
                    await store.continue_task(db, task.id, position, now)
                publishes = await tx.flush()
                if self._fault is not None:
                    await self._fault("task_before_commit")
            except TRANSIENT:
                await transaction.rollback()
                raise
            except Exception as error:
                await transaction.rollback()
                log.error("a chunk of task %s failed; again later: %s", task.name, where(error))
                metrics.TASK_CHUNKS_TOTAL.labels(task.name, "failed").inc()
                await store.postpone_task(db, task.id, now + timedelta(seconds=min(2**task.attempts, 300)))
                return True
            await transaction.commit()
        metrics.TASK_CHUNKS_TOTAL.labels(task.name, "done").inc()
        tx.committed()
        if publishes:
            self._wake_relay()
        if tx.enqueued:
            self.wake()
        return True


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        # Not wait_for: until Python 3.12 it swallows a cancellation that comes together with the event.
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return
