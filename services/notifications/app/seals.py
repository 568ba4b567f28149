"""What this room opens and seals: addresses, codes and links are readable in memory, for one mail at a time, and nowhere
else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from shared.privacy.vault import CASE, Key, Shredded, Tampered, Vault, open_value, open_vault, seal_value

log = logging.getLogger("steward.notifications")

MAIL_KEYS = "mail"
"""Purpose of the keys, one a day, of what mails to nobody's account say in secret."""

_ADDRESS, _PREVIOUS = "address.sealed", "address.previous"


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

    # --- hashes --------------------------------------------------------------------------------------------------

    def code_hash(self, case_id: str, code: str) -> bytes:
        """The keyed hash of a code, good for its case alone."""
        return self._vault.hasher.once("code", f"{case_id}:{code}")

    def address_hash(self, address: str) -> bytes:
        """The keyed hash of an address (as `mailbox` gives it), however it is written."""
        return self._vault.hasher.once("address", address.casefold())

    def ended_hash(self, case_id: str, account: str | None) -> bytes:
        """The keyed hash of a case that is over, or with `account` of one that this account has taken back."""
        return self._vault.hasher.once("ended", case_id if account is None else f"{case_id}:{account}")

    async def seal_for(self, account: str, text: str, where: str, now: datetime) -> str:
        """A text under its account's own key, which is made if need be, and ends with the account."""
        subject = ("account", account)
        keys = await self._vault.subject_keys([subject], at=now)
        return seal_value(keys[subject], text, where=where)

    async def open_for(self, account: str, sealed: str, where: str) -> str | None:
        """The text, unless its account's key is destroyed."""
        subject = ("account", account)
        keys = await self._vault.subject_keys([subject])
        return _opened(keys.get(subject), sealed, where)

    async def seal_address(self, account: str, address: str, now: datetime) -> str:
        """An address, where an account is written to."""
        return await self.seal_for(account, address, _ADDRESS, now)

    async def open_address(self, account: str, sealed: str) -> str | None:
        """Where an account is written to."""
        return await self.open_for(account, sealed, _ADDRESS)

    async def seal_previous(self, account: str, address: str, now: datetime) -> str:
        """The address before a change."""
        return await self.seal_for(account, address, _PREVIOUS, now)

    async def open_previous(self, account: str, sealed: str) -> str | None:
        """The address before a change."""
        return await self.open_for(account, sealed, _PREVIOUS)

    async def open_addresses(self, sealed: Mapping[str, str]) -> dict[str, str]:
        """The addresses of accounts whose keys are there, the keys asked for together."""
        keys = await self._vault.subject_keys([("account", account) for account in sealed])
        found = {account: _opened(key, sealed[account], _ADDRESS) for (_, account), key in keys.items()}
        return {account: address for account, address in found.items() if address is not None}

    # --- in a mail -----------------------------------------------------------------------------------------------

    async def seal_in_mail(self, account: str | None, column: str, cause: str, text: str, now: datetime) -> str:
        """What a mail says in secret: under its account's key, or without an account under that of the day."""
        where = f"mail.{column}:{cause}"
        if account is not None:
            return await self.seal_for(account, text, where, now)
        return seal_value(await self._vault.key(MAIL_KEYS, _day(now).isoformat(), at=now), text, where=where)

    async def open_in_mail(
        self, account: str | None, column: str, cause: str, sealed: str, sealed_at: datetime
    ) -> str | None:
        """What a mail says in secret."""
        where = f"mail.{column}:{cause}"
        if account is not None:
            return await self.open_for(account, sealed, where)
        day = _day(sealed_at).isoformat()
        return _opened((await self._vault.keys(MAIL_KEYS, [day])).get(day), sealed, where)

    async def end_days(self, before: date) -> None:
        """Destroys the keys of days before `before`, whatever copy of their mails there is."""
        await self._vault.destroy_days(MAIL_KEYS, before)

    # --- under the key of a case ---------------------------------------------------------------------------------

    async def account_of(self, case_id: str, sealed: str) -> str | None:
        """The account that an order is about, unless there is none or the case is over."""
        who = (await self._vault.open_cases([(case_id, sealed)])).get(case_id, [])
        return next((value for kind, value in who if kind == "account"), None)

    async def seal_envelopes(self, addresses: Mapping[str, str]) -> dict[str, str]:
        """Addresses under the keys of their cases, by case; cases that are over are left out."""
        keys = await self._vault.keys(CASE, list(addresses))
        return {case: seal_value(key, addresses[case], where=f"envelope:{case}") for case, key in keys.items()}

    async def open_envelope(self, case_id: str, sealed: str) -> str | None:
        """What an envelope holds, unless the case is over."""
        return _opened((await self._vault.keys(CASE, [case_id])).get(case_id), sealed, f"envelope:{case_id}")


def _opened(key: Key | None, sealed: str, where: str) -> str | None:
    if key is None:
        return None
    try:
        return open_value(key, sealed, where=where)
    except (Shredded, Tampered):
        log.error("a sealed value does not belong where it stands: nobody is written to")
        return None


def _day(instant: datetime) -> date:
    return instant.astimezone(UTC).date()
