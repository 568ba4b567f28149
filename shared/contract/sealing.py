"""Sealing: what only the mesh may read is enciphered by whoever emits it, to the mesh's public key of the day.

`sealed:v1:<key id>:<public key of this value>:<cipher text>`, both parts base64url without padding. It is HPKE (RFC 9180) in
base mode: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM; `info` is `steward sealed v1`, a zero byte, the key id, a zero
byte and the context, so none of them can be exchanged. A key of its own for each value: no nonce is stored. Any language with
an HPKE library can make one.

Before that the text (UTF-8) gets the byte 0x80 and zeros up to whole blocks of 64 bytes: every IP address and nearly every
mail address is as long as any other.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hpke import AEAD, KDF, KEM, Suite

_SUITE = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_PUBLIC_BYTES = 32
_BLOCK = 64
_MOST_BYTES = 8_191
_KEY_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_STANDARD = {ord("-"): "+", ord("_"): "/"}


def seal(text: str, key_id: str, public_key: bytes, *, context: bytes = b"") -> str:
    """`text` as the contract's `Sealed`, readable with the private half of `public_key` (32 bytes) alone.

    `context` must be said again to open it; events are sealed without one. Raises ValueError for a key that is none, or a
    text of more than 8,191 bytes; the error never holds the text.
    """
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise ValueError("a text that is no UTF-8 cannot be sealed") from None
    if len(raw) > _MOST_BYTES:
        raise ValueError("a sealed value holds at most 8,191 bytes")
    if _KEY_ID.fullmatch(key_id) is None or len(public_key) != _PUBLIC_BYTES:
        raise ValueError(_NO_KEY)
    made = _SUITE.encrypt(padded(raw), X25519PublicKey.from_public_bytes(public_key), info=_info(key_id, context))
    return f"sealed:v1:{key_id}:{encoded(made[:_PUBLIC_BYTES])}:{encoded(made[_PUBLIC_BYTES:])}"


def seal_to(text: str, key: str, *, context: bytes = b"") -> str:
    """`seal`, with the key as `steward keys ingress` prints it: `ID:BASE64URL`. Raises ValueError."""
    return seal(text, *parse_key(key), context=context)


def unseal(value: str, private_key_of: Callable[[str], bytes], *, context: bytes = b"") -> str:
    """The text of a `Sealed` value.

    `private_key_of` gives the private key (32 bytes) of a key id, or raises LookupError, which is passed on. ValueError says
    that the value was changed, was sealed for another context, or is none; it never holds a part of it.
    """
    try:
        scheme, number, key_id, public, cipher = value.split(":")
        if (scheme, number) != ("sealed", "v1"):
            raise ValueError
        made = decoded(public) + decoded(cipher)
        private = X25519PrivateKey.from_private_bytes(private_key_of(key_id))
        return unpadded(_SUITE.decrypt(made, private, info=_info(key_id, context))).decode()
    except (InvalidTag, ValueError):
        raise ValueError("a sealed value cannot be opened: it is damaged, or another key sealed it") from None


def key_of(value: str) -> str:
    """The id of the key that a `Sealed` value was sealed to; empty for what is no such value."""
    parts = value.split(":")
    return parts[2] if len(parts) == 5 else ""


def public_key_of(private_key: bytes) -> bytes:
    """The public half (32 bytes) of a private key."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def key_text(key_id: str, public_key: bytes) -> str:
    """A public key as people and settings carry it: `ID:BASE64URL`."""
    return f"{key_id}:{encoded(public_key)}"


def parse_key(text: str) -> tuple[str, bytes]:
    """(id, public key) from what `key_text` wrote. Raises ValueError."""
    key_id, _, value = text.strip().partition(":")
    public = decoded(value.rstrip("="))
    if _KEY_ID.fullmatch(key_id) is None or len(public) != _PUBLIC_BYTES:
        raise ValueError(_NO_KEY)
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
    """What `encoded` was given; no other text for the same bytes. Raises ValueError."""
    # In passes that run in C over megabytes (a part of a copy): no regular expression, and only the end is encoded again,
    # since nothing else can be written in two ways.
    if not text.isascii() or "+" in text or "/" in text or "=" in text:
        raise ValueError("not base64url")
    raw = binascii.a2b_base64(text.translate(_STANDARD) + "=" * (-len(text) % 4), strict_mode=True)
    if encoded(raw[len(raw) - len(raw) % 3 :]) != text[len(text) - len(text) % 4 :]:
        raise ValueError("not base64url")
    return raw


def new_private_key() -> bytes:
    """A private key, 32 bytes."""
    return os.urandom(32)


_NO_KEY = "an ingress key reads ID:KEY, as `steward keys ingress` prints it"


def _info(key_id: str, context: bytes) -> bytes:
    return b"steward sealed v1\0" + key_id.encode() + b"\0" + context
