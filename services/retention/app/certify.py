"""The certificate of a case: what was found, done, kept and seen, signed and chained."""

from __future__ import annotations

from services.retention import store
from services.retention.app.room import Room
from shared.mesh import Transaction


async def certify(room: Room, tx: Transaction, row: store.Row) -> None:
    """Writes the certificate of a case whose sweep was clean."""
