"""What this room opens and seals: addresses and codes are readable in memory, for one mail at a time, and nowhere else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from shared.privacy.vault import CASE, Shredded, Tampered, Vault, open_value, open_vault, seal_value

log = logging.getLogger("steward.notifications")

_ADDRESS = "address.sealed"


class Seals:
    """The room's use of the vault. Who asks for what cannot be opened (any more) gets None."""

    def __init__(self, vault: Vault) -> None:
        self._vault = vault

    @classmethod
    async def open(cls, runtime: Any) -> Seals:
        """With the service's vault."""
        return cls(await open_vault(runtime))

    async def arrived(self, value: str) -> str | None:
        """The text of what a platform or another service sealed to the mesh."""
        try:
            (text,) = await self._vault.unseal([value])
        except (Shredded, Tampered) as error:
            log.warning("a sealed value cannot be opened: %s", type(error).__name__)
            return None
        return text

    async def seal_address(self, account: str, address: str, now: datetime) -> str:
        """An address under its account's own key, which is made here and ends with the account."""
        subject = ("account", account)
        keys = await self._vault.subject_keys([subject], at=now)
        return seal_value(keys[subject], address, where=_ADDRESS)

    async def open_address(self, account: str, sealed: str) -> str | None:
        """The address, unless its account's key is destroyed."""
        subject = ("account", account)
        keys = await self._vault.subject_keys([subject])
        try:
            return open_value(keys[subject], sealed, where=_ADDRESS) if subject in keys else None
        except (Shredded, Tampered):
            log.error("a sealed address does not belong where it stands: nobody is written to")
            return None

    async def open_addresses(self, sealed: Mapping[str, str]) -> dict[str, str]:
        """The addresses of accounts whose keys are there, the keys asked for together."""
        keys = await self._vault.subject_keys([("account", account) for account in sealed])
        found = {}
        for (_, account), key in keys.items():
            try:
                found[account] = open_value(key, sealed[account], where=_ADDRESS)
            except (Shredded, Tampered):
                log.error("a sealed address does not belong where it stands: nobody is written to")
        return found

    async def seal_envelopes(self, addresses: Mapping[str, str]) -> dict[str, str]:
        """Addresses under the keys of their cases, by case; cases that are over are left out."""
        keys = await self._vault.keys(CASE, list(addresses))
        return {case: seal_value(key, addresses[case], where=f"envelope:{case}") for case, key in keys.items()}

    async def open_envelope(self, case_id: str, sealed: str) -> str | None:
        """What an envelope holds, unless the case is over."""
        try:
            return open_value(await self._vault.key(CASE, case_id), sealed, where=f"envelope:{case_id}")
        except Shredded:
            return None
        except Tampered:
            log.error("an envelope does not belong where it stands: nobody is written to")
            return None
