"""As much of the key database as a holder needs: whom a case is about, and the hash under which a subject is erased."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from shared.contract.sealing import decoded, encoded, padded, unpadded


class Keys:
    """Reads `vault_key` with a login that may do that, and the master key that the installation gives its holders."""

    def __init__(self, db: Any, master: str) -> None:
        lines = (line.partition(":") for line in master.splitlines() if line.strip())
        self._db = db
        self._masters = {name: AESGCM(base64.b64decode(value)) for name, _, value in lines}

    async def _key(self, purpose: str, name: str) -> tuple[str, bytes] | None:
        row = await self._db.fetchrow(
            "SELECT id, wrapped, wrapped_by FROM vault_key WHERE purpose = $1 AND name = $2", purpose, name
        )
        if row is None:
            return None
        wrapped, bound = row["wrapped"], f"{purpose}:{name}:{row['id']}".encode()
        return row["id"], self._masters[row["wrapped_by"]].decrypt(wrapped[:12], wrapped[12:], bound)

    async def subjects(self, case: str, sealed: str) -> list[tuple[str, str]] | None:
        """(kind, id) of everybody whom a case is about; None when its key is destroyed: the case is over."""
        found = await self._key("case", case)
        if found is None:
            return None
        key_id, key = found
        raw = decoded(sealed.rpartition(":")[2])
        where = f"case.subjects\0case:{case}\0{key_id}".encode()
        return [(kind, value) for kind, value in json.loads(unpadded(AESGCM(key).decrypt(raw[:12], raw[12:], where)))]

    async def sealed_copy(self, case: str, text: str) -> bytes:
        """A part of a copy, under the case's key."""
        found = await self._key("case", case)
        assert found is not None
        key_id, key = found
        nonce = os.urandom(12)
        where = f"case.export\0case:{case}\0{key_id}".encode()
        return f"v1:{key_id}:{encoded(nonce + AESGCM(key).encrypt(nonce, padded(text.encode()), where))}".encode()

    async def hash_key(self) -> bytes:
        """The key of all tombstones. Raises LookupError before the mesh has one."""
        found = await self._key("tombstone", "v1")
        if found is None:
            raise LookupError("the mesh has no key for tombstones yet")
        return found[1]


def subject_hash(key: bytes, kind: str, value: str) -> str:
    """As it stands in a tombstone: BLAKE2b over kind and id, 16 bytes, hex."""
    return hashlib.blake2b(f"{kind}:{value}".encode(), digest_size=16, key=key).hexdigest()
