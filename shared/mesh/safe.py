"""Bytes that nobody could read wait in a safe: sealed in their dead letter, opened for a re-drive or for whoever has to look."""

from __future__ import annotations

from typing import Protocol

from shared.mesh.transaction import Transaction


class Safe(Protocol):
    """What is plugged into a service as `safe`. A service without one keeps such bytes as they are: it holds no personal
    data, and reads what the mesh itself has written."""

    async def lock(self, raw: bytes, tx: Transaction) -> bytes:
        """`raw`, sealed."""

    async def unlock(self, kept: bytes) -> bytes | None:
        """What `lock` was given; anything else as it is. None when its key is destroyed."""


async def locked(raw: bytes, tx: Transaction) -> bytes:
    """Bytes as a dead letter keeps them."""
    safe: Safe | None = tx.plugged.get("safe")
    return raw if safe is None else await safe.lock(raw, tx)


async def unlocked(kept: bytes | None, tx: Transaction) -> bytes | None:
    """What a dead letter keeps, to be read. None when it keeps nothing, or nothing that could still be read."""
    safe: Safe | None = tx.plugged.get("safe")
    return kept if safe is None or kept is None else await safe.unlock(kept)
