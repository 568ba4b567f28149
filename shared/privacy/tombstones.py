"""No event of an erased subject has effects: one look-up in each transaction, at what is erased by then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from shared.contract.events import SubjectErased
from shared.contract.topics import GENERATIONS
from shared.contract.units import ERASED, Subject, units
from shared.mesh.service import Batch, Received
from shared.mesh.transaction import Transaction
from shared.privacy import store
from shared.privacy.vault import vault_of


class Tombstones:
    """The tombstones in one service's database. `enabled` off is for tests that show what they prevent."""

    def __init__(self, service: str, *, enabled: bool = True) -> None:
        self._service = service
        self.enabled = enabled

    async def guard(self, tx: Transaction) -> None:
        """First in every transaction that makes rows: from here on no tombstone is added until it has ended."""
        if self.enabled:
            await store.share(tx.db)

    async def filter(self, batch: Batch, tx: Transaction) -> Batch:
        """Takes out of `batch` what is about erased subjects, as the contract says for this reader."""
        treatment = batch.topic.after_erasure.get(self._service)
        if treatment is None or treatment == "control" or not self.enabled:
            return batch
        found = await self.erased(_subjects(batch), tx)
        if not found:
            return batch
        if treatment == "book":
            return replace(batch, erased_subjects=frozenset(found))
        kept: list[Received] = []
        dropped: list[Received] = []
        for received in batch.events:
            # A topic that is dropped has no packed events: one unit each.
            (unit,) = units(received.event)
            if found.isdisjoint(unit.subjects):
                kept.append(received)
                for kind, _ in found.intersection(unit.traces):
                    setattr(received.event.data, kind, ERASED)
            else:
                dropped.append(received)
        if dropped and batch.topic is not GENERATIONS:
            # Metering counts its own: a repeat of what was dropped is a duplicate.
            tx.count(f"erased:{batch.topic.name}", len(dropped))
        return replace(batch, events=kept, erased=dropped)

    async def erased(self, subjects: Iterable[Subject], tx: Transaction) -> set[Subject]:
        """Which of the subjects are erased."""
        asked = list(subjects)
        if not asked:
            return set()
        hashes = vault_of(tx).hasher.hashes(asked)
        found = await store.erased(tx.db, hashes)
        return {subject for subject, digest in zip(asked, hashes, strict=True) if digest in found} if found else set()

    async def learn(self, batch: Batch, tx: Transaction) -> None:
        """Tombstones from their topic."""
        stones = [
            (bytes.fromhex(event.data.hash), event.data.kind, event.data.case, event.data.at)
            for event, _ in batch.events
            if event.type == SubjectErased.TYPE
        ]
        if stones:
            tx.count("tombstones", await store.add_tombstones(tx.db, stones))


def _subjects(batch: Batch) -> set[Subject]:
    """Everybody whom the batch's events are about, or name."""
    if batch.topic is GENERATIONS:
        # By the thousand, and all of one shape.
        usages = [received.event.data for received in batch.events]
        found = {("account", value) for value in {usage.account for usage in usages}}
        found |= {("workspace", value) for value in {usage.workspace for usage in usages}}
        return found | {("key", value) for value in {usage.key for usage in usages}}
    return {
        subject
        for received in batch.events
        for unit in units(received.event)
        for subject in unit.subjects + unit.traces
    }
