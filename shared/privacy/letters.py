"""Undecodable bytes may hold anything: in a dead letter they stand under a key of their day, which ends with the letter."""

from __future__ import annotations

from datetime import date, timedelta

from shared.mesh.consumer import DEAD_LETTER_LIFE
from shared.mesh.transaction import Transaction
from shared.privacy.values import Key, Shredded, key_id_of, open_bytes, seal_bytes
from shared.privacy.vault import LETTER, Vault

_WHERE = "mesh_dead_letter.payload"
# Nothing else that a letter keeps begins like this: a record's declared part is JSON.
_MARK = f"v1:{LETTER}-".encode()


class LetterSafe:
    """Seals with the day's key, which is asked for once a day: a record that cannot be read waits for no database of keys."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault
        self._today: tuple[date, Key] | None = None

    async def lock(self, raw: bytes, tx: Transaction) -> bytes:
        """`raw` under the key of today."""
        today = tx.now.date()
        if self._today is None or self._today[0] != today:
            self._today = today, await self._vault.key(LETTER, today.isoformat(), at=tx.now)
        return seal_bytes(self._today[1], raw, where=_WHERE).encode()

    async def unlock(self, kept: bytes) -> bytes | None:
        """What was sealed; anything else as it is; None when the key is destroyed. Raises `Tampered`."""
        if not kept.startswith(_MARK):
            return kept
        value = kept.decode("ascii", "replace")
        id = key_id_of(value)
        key = (await self._vault.by_id([id])).get(id)
        try:
            return None if key is None else open_bytes(key, value, where=_WHERE)
        except Shredded:
            return None

    async def forget(self, today: date) -> None:
        """Destroys the keys of days whose letters are over."""
        await self._vault.destroy_days(LETTER, today - DEAD_LETTER_LIFE + timedelta(days=1))
