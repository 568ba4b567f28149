"""What a process of retention keeps at hand: the vault, its patience, its random source."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from services.retention.case import QUICK, Timing
from services.retention.store import Marks
from services.retention.subjects import Subject
from services.retention.wish import Details
from shared.contract.sealing import encoded, seal
from shared.mesh import Transaction
from shared.mesh.settings import Misconfigured
from shared.policy import policy
from shared.privacy.blobs import Blobs, open_blobs
from shared.privacy.certificate import signing_key
from shared.privacy.errands import VALUE, WHERE
from shared.privacy.tombstones import Tombstones
from shared.privacy.vault import CASE, Key, Shredded, Tampered, Vault, open_value, open_vault, seal_value

log = logging.getLogger("steward.retention")


class Room:
    """One process of retention."""

    def __init__(self, holders: tuple[str, ...], timing: Timing | None, random_bits: Callable[[int], int]) -> None:
        self.holders = holders
        self.random_bits = random_bits
        self.timing = timing or Timing()
        self._timing_given = timing is not None
        self.signing_key: Ed25519PrivateKey
        self.tombstones: Tombstones
        # Where copies and packages lie; None on an installation that has no place for them.
        self.blobs: Blobs | None = None
        # The store did not answer: when it is asked again to forget what nobody needs.
        self.blobs_again = datetime.min.replace(tzinfo=UTC)
        self._vault: Vault
        self._runtime: Any

    @property
    def public_url(self) -> str:
        """Where people reach packages: what the installation says, else this process's own port for them."""
        settings = self._runtime.settings
        return settings.public_url or f"http://{settings.host}:{self._runtime.port.public_port}"

    async def open(self, runtime: Any) -> None:
        """Opens the vault, and sees that platforms have a key to seal to."""
        if not self._timing_given:
            patience = Timing() if runtime.settings.environment == "production" else QUICK
            rules = policy()
            self.timing = replace(patience, lapse=timedelta(days=rules.confirmation_days), attempts=rules.code_attempts)
        self.signing_key = _signing_key(runtime.settings.signing_key_file)
        self._vault = await open_vault(runtime)
        self.blobs = open_blobs(runtime.settings.blobs) if runtime.settings.blobs else None
        self._runtime = runtime
        await self.make_ingress_keys(runtime.clock.now())

    async def make_ingress_keys(self, now: datetime) -> None:
        """Key pairs of today and two days ahead, so that no midnight waits for the key database."""
        today = _day(now)
        await self._vault.make_ingress([today + timedelta(days=n) for n in range(3)], now)

    def pseudonym(self, kind: str, name: str) -> bytes:
        """The keyed hash of a subject, 16 bytes."""
        return self._vault.hasher.hashes([(kind, name)])[0]

    def marks(self, scope: str, target: str, account: str, wish: str | None = None) -> Marks:
        """By what a case is found. A deletion is one wish for its subject, however it came about."""
        subject = self.pseudonym(scope, target)
        return Marks(
            subject, self.pseudonym("account", account), subject if wish is None else self.pseudonym("wish", wish)
        )

    def token(self) -> tuple[str, bytes]:
        """A new link's token (160 bits), and the keyed hash by which it is known here."""
        token = f"{self.random_bits(160):040x}"
        return token, self.token_hash(token)

    def token_hash(self, token: str) -> bytes:
        """The keyed hash of a token."""
        return self.pseudonym("package", token)

    async def arrived(self, values: Mapping[str, str | None]) -> dict[str, str]:
        """What a platform has sealed to the mesh, by name; absent values are left out. Raises `Tampered` or `Shredded`."""
        said = {name: value for name, value in values.items() if value is not None}
        opened = await self._vault.unseal(list(said.values()))
        return {name: text or "" for name, text in zip(said, opened, strict=True)}

    async def seal_details(self, case_id: str, details: Details, now: datetime) -> str | None:
        """What a request says, under the case's own key, which is made now if it must; None if it says nothing."""
        if not (known := details.known()):
            return None
        key = await self._vault.key(CASE, case_id, at=now)
        return seal_value(key, json.dumps(known), where=f"case:{case_id}:details")

    async def open_details(self, case_id: str, sealed: str | None) -> Details:
        """What a request says."""
        if sealed is None:
            return Details()
        text = open_value(await self._vault.key(CASE, case_id), sealed, where=f"case:{case_id}:details")
        return Details.of(json.loads(text))

    async def seal_right(self, case_id: str, value: str, now: datetime) -> str:
        """What is right, for a correction's order."""
        return seal_value(await self._vault.key(CASE, case_id, at=now), value, where=VALUE)

    async def case_key(self, case_id: str) -> Key:
        """A case's own key. Raises `Shredded`."""
        return await self._vault.key(CASE, case_id)

    async def seal_out(self, text: str, now: datetime) -> str:
        """A text that only the mesh can read, as the contract's `Sealed`."""
        key_id, public = await self._vault.ingress(_day(now))
        return seal(text, key_id, public)

    async def public_key(self, now: datetime) -> dict[str, str]:
        """The key that platforms seal to today."""
        key_id, public = await self._vault.ingress(_day(now))
        return {"id": key_id, "public_key": encoded(public)}

    async def reseal_name(self, account: str, sealed: str | None, tx: Transaction, *, where: str) -> str | None:
        """A name under its account's key. One that cannot be opened any more is left out, and counted."""
        if sealed is None:
            return None
        try:
            (text,) = await self._vault.unseal([sealed])
        except (Shredded, Tampered) as error:
            log.info("a name cannot be opened: %s", type(error).__name__)
            tx.count("names_unreadable")
            return None
        owner = ("account", account)
        key = (await self._vault.subject_keys([owner], at=tx.now))[owner]
        return seal_value(key, text or "", where=where)

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

    async def open_part(self, case_id: str, raw: bytes) -> str:
        """A part of a copy. Raises `Shredded` or `Tampered`."""
        return open_value(await self._vault.key(CASE, case_id), raw.decode("ascii", "replace"), where=WHERE)

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
