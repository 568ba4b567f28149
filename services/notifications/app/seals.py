"""TEMPORARY stand-in until the vault is there."""

from __future__ import annotations

import base64
from typing import Any

from shared.mesh import Transaction


class Seals:
    @classmethod
    async def open(cls, runtime: Any) -> Seals:
        return cls()

    async def arrived(self, sealed: str) -> str | None:
        raw = sealed.split(":")[4]
        if raw.startswith("BAD"):
            return None
        return base64.urlsafe_b64decode(raw + "=" * (-len(raw) % 4)).decode().strip()

    async def for_subject(self, account: str, text: str, tx: Transaction) -> bytes | None:
        return bytes(b ^ 0x5A for b in text.encode())

    async def of_subject(self, account: str, sealed: bytes) -> str | None:
        return bytes(b ^ 0x5A for b in sealed).decode()

    async def for_case(self, case_id: str, text: str) -> bytes:
        return bytes(b ^ 0xA5 for b in text.encode())

    async def of_case(self, case_id: str, sealed: bytes) -> str | None:
        return bytes(b ^ 0xA5 for b in sealed).decode()
