"""Sealing: what only the mesh may read is enciphered by whoever emits it, to the mesh's public key of the day.

X25519 with a key pair of its own for each value, HKDF-SHA256, AES-256-GCM; key id and the value's public key are bound in. The
text is padded to full blocks of 32 bytes, so that its length says little.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Callable

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

_BLOCK = 32
_NONCE = bytes(12)  # each value has a key of its own: a nonce is used once with it


def seal(text: str, key_id: str, public_key: bytes) -> str:
    """`text` as the contract's `Sealed`, readable with the private half of `public_key` (32 bytes) alone.

    Raises ValueError for a key that is none, or a text of more than 8,000 bytes.
    """
    raw = text.encode()
    if len(raw) > 8_000:
        raise ValueError("a sealed value holds at most 8,000 bytes")
    ephemeral = X25519PrivateKey.generate()
    public = ephemeral.public_key().public_bytes_raw()
    key = shared_key(ephemeral.exchange(X25519PublicKey.from_public_bytes(public_key)), public, public_key)
    cipher = AESGCM(key).encrypt(_NONCE, padded(raw), _bound(key_id, public))
    return f"sealed:v1:{key_id}:{encoded(public)}:{encoded(cipher)}"


def unseal(value: str, private_key_of: Callable[[str], bytes]) -> str:
    """The text of a `Sealed` value. Raises whatever `private_key_of` raises, and ValueError for what was tampered with."""
    try:
        _, _, key_id, public_text, cipher = value.split(":")
        public = decoded(public_text)
        private = X25519PrivateKey.from_private_bytes(private_key_of(key_id))
        own = private.public_key().public_bytes_raw()
        key = shared_key(private.exchange(X25519PublicKey.from_public_bytes(public)), public, own)
        return unpadded(AESGCM(key).decrypt(_NONCE, decoded(cipher), _bound(key_id, public))).decode()
    except LookupError:
        raise
    except Exception:
        raise ValueError("a sealed value cannot be opened: it is damaged, or another key sealed it") from None


def shared_key(secret: bytes, ephemeral: bytes, recipient: bytes) -> bytes:
    """The AES key that both sides derive."""
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"steward sealed v1" + ephemeral + recipient).derive(
        secret
    )


def key_text(key_id: str, public_key: bytes) -> str:
    """A public key as people and settings carry it: `id:base64url`."""
    return f"{key_id}:{encoded(public_key)}"


def parse_key(text: str) -> tuple[str, bytes]:
    """(id, public key) from what `key_text` wrote. Raises ValueError."""
    key_id, _, value = text.strip().partition(":")
    public = decoded(value)
    if not key_id or len(public) != 32:
        raise ValueError("an ingress key reads ID:KEY, as `steward keys ingress` prints it")
    return key_id, public


def padded(raw: bytes) -> bytes:
    """`raw` with its end marked, filled to whole blocks."""
    return raw + b"\x80" + bytes(-(len(raw) + 1) % _BLOCK)


def unpadded(raw: bytes) -> bytes:
    """What `padded` was given. Raises ValueError."""
    text, mark, rest = raw.rpartition(b"\x80")
    if not mark or rest.strip(b"\x00"):
        raise ValueError("no padding")
    return text


def encoded(raw: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def decoded(text: str) -> bytes:
    """What `encoded` was given. Raises ValueError."""
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _bound(key_id: str, public: bytes) -> bytes:
    return key_id.encode() + b"\0" + public


def new_private_key() -> bytes:
    """A private key, 32 bytes."""
    return os.urandom(32)
