"""What a process of retention keeps at hand: the vault, its patience, its random source."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.retention.case import QUICK, Timing
from services.retention.subjects import Subject
from shared.contract.sealing import seal
from shared.mesh import Transaction
from shared.mesh.settings import Misconfigured
from shared.policy import policy
from shared.privacy.certificate import signing_key
from shared.privacy.tombstones import Tombstones
from shared.privacy.vault import CASE, Shredded, Tampered, Vault, open_value, open_vault, seal_value

log = logging.getLogger("steward.retention")

_NAME = "api_key.name"


class Room:
    """One process of retention."""

    def __init__(self, holders: tuple[str, ...], timing: Timing | None, random_bits: Callable[[int], int]) -> None:
        self.holders = holders
        self.random_bits = random_bits
        self.timing = timing or Timing()
        self._timing_given = timing is not None
        self.signing_key: Ed25519PrivateKey
        self.tombstones: Tombstones
        self._vault: Vault

    async def open(self, runtime: Any) -> None:
        """Opens the vault, and sees that platforms have a key to seal to."""
        if not self._timing_given:
            patience = Timing() if runtime.settings.environment == "production" else QUICK
            self.timing = replace(patience, lapse=timedelta(days=policy().confirmation_days))
        self.signing_key = _signing_key(runtime.settings.signing_key_file)
        self._vault = await open_vault(runtime)
        await self.make_ingress_keys(runtime.clock.now())

    async def make_ingress_keys(self, now: datetime) -> None:
        """Key pairs of today and two days ahead, so that no midnight waits for the key database."""
        today = _day(now)
        await self._vault.make_ingress([today + timedelta(days=n) for n in range(3)], now)

    def pseudonym(self, kind: str, name: str) -> bytes:
        """The keyed hash of a subject, 16 bytes."""
        return self._vault.hasher.hashes([(kind, name)])[0]

    def code_hash(self, case_id: str, code: str) -> bytes:
        """The keyed hash of a code, good for its case alone."""
        return self._vault.hasher.hashes([("code", f"{case_id}:{code}")])[0]

    async def seal_out(self, text: str, now: datetime) -> str:
        """A text that only the mesh can read, as the contract's `Sealed`."""
        key_id, public = await self._vault.ingress(_day(now))
        return seal(text, key_id, public)

    async def reseal_name(self, account: str, sealed: str | None, tx: Transaction) -> str | None:
        """A key's name under its account's key. One that cannot be opened any more is left out, and counted."""
        if sealed is None:
            return None
        try:
            (text,) = await self._vault.unseal([sealed])
        except (Shredded, Tampered) as error:
            log.info("the name of an API key cannot be opened: %s", type(error).__name__)
            tx.count("names_unreadable")
            return None
        owner = ("account", account)
        key = (await self._vault.subject_keys([owner], at=tx.now))[owner]
        return seal_value(key, text or "", where=_NAME)

    async def seal_subjects(self, case_id: str, subjects: tuple[Subject, ...], now: datetime) -> str:
        """Whom a case (or a hold) is about, under its own key, which is made now."""
        return await self._vault.seal_subjects(case_id, subjects, now)

    async def expect(self, case_ids: Collection[str], *, at: datetime | None = None) -> None:
        """The keys of many cases are about to be needed, one after the other: they are asked for (and with `at` made)
        together."""
        await self._vault.keys(CASE, case_ids, at=at)

    async def open_subjects(self, case_id: str, sealed: str) -> list[Subject]:
        """Whom a case is about."""
        return await self._vault.open_subjects(case_id, sealed)

    async def seal_account(self, case_id: str, account: str) -> str:
        """Whom to tell, under the case's key."""
        return seal_value(await self._vault.key(CASE, case_id), account, where=f"case:{case_id}:account")

    async def open_account(self, case_id: str, sealed: str) -> str:
        """Whom to tell."""
        return open_value(await self._vault.key(CASE, case_id), sealed, where=f"case:{case_id}:account")

    async def destroy_subject_keys(self, subjects: Sequence[Subject]) -> None:
        """The second lock, when every holder has erased: what a copy still has of these subjects cannot be opened any more."""
        await self._vault.destroy_subjects(subjects)

    async def destroy_case_key(self, case_id: str) -> None:
        """Ends what was sealed for the case, in every copy."""
        await self._vault.destroy(CASE, [case_id])


def _day(now: datetime) -> date:
    return now.astimezone(UTC).date()


def _signing_key(file: str | None) -> Ed25519PrivateKey:
    if not file:
        raise Misconfigured(
            "retention needs STEWARD_SIGNING_KEY_FILE: certificates are signed (`steward up` makes a key)"
        )
    try:
        return signing_key(Path(file).read_bytes())
    except (OSError, ValueError, TypeError) as error:
        raise Misconfigured(f"the signing key cannot be used ({type(error).__name__}): {file}") from None
