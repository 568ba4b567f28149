"""Certificates of erasure: what was done and seen, signed (Ed25519) over canonical JSON (RFC 8785), in a Merkle log.

A certificate verifies offline: its own signature, its place in the log that it names, and, with the certificate before
it, that the log only grew. See CERTIFICATE.md for how to do it without this code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import rfc8785
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.privacy import merkle

TYPE = "steward.erasure-certificate.v1"
Verdict = Literal["clean", "shredded", "retained", "held", "expiring", "residue", "not_scanned"]
# What a certificate may say of a store. `expiring` is good for a completed erasure, and not yet for a certified one.
GOOD = ("clean", "shredded", "retained", "held")
_HEX32 = r"^[0-9a-f]{64}$"


class _Closed(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Kept(_Closed):
    """What the law keeps of a table."""

    ground: str
    until: str


class Table(_Closed):
    """What a holder did to a table."""

    table: str
    action: str
    columns: list[str]
    rows: int = Field(ge=0)
    remaining: int = Field(ge=0)
    retained: Kept | None = None
    not_after: str | None = None


class HolderDone(_Closed):
    """One holder's receipt."""

    holder: str
    epoch: int
    map_version: str
    code_version: str
    tables: list[Table]


class Waiver(_Closed):
    """A holder without a receipt, and the person who took that upon them."""

    holder: str
    by: str
    ticket: str
    at: str


class Held(_Closed):
    """Records that a legal hold keeps."""

    holder: str
    table: str
    rows: int
    ground: str
    until: str | None = None


class Store(_Closed):
    """What the auditor saw of one store."""

    holder: str
    store: str
    verdict: Verdict
    count: int = Field(ge=0)
    ground: str | None = None
    not_after: str | None = None


class PolicyVersion(_Closed):
    """The policy by which it was done."""

    version: str
    digest: str


class Head(_Closed):
    """A state of the log."""

    size: int = Field(ge=0)
    root: str = Field(pattern=_HEX32)


class Log(_Closed):
    """The certificate's place in the log, and the proofs of it."""

    index: int = Field(ge=0)
    head: Head
    inclusion: list[str]
    previous: Head
    consistency: list[str]


class Signature(_Closed):
    """Over the canonical JSON of everything else."""

    alg: Literal["Ed25519"]
    key_id: str
    value: str = Field(pattern=r"^[0-9a-f]{128}$")


class Certificate(_Closed):
    """The whole document."""

    type: Literal["steward.erasure-certificate.v1"]
    case: str
    scope: Literal["account", "workspace", "member"]
    subject: str = Field(description="Keyed hash of the subject: leads to nobody without the mesh's own key.")
    policy: PolicyVersion
    requested_at: str
    confirmed_at: str
    completed_at: str
    certified_at: str
    expected: list[str] = Field(description="The holders that had to answer.")
    holders: list[HolderDone]
    waived: list[Waiver]
    held: list[Held]
    scanned_at: str
    scan: list[Store]
    log: Log
    signature: Signature


@dataclass(frozen=True, slots=True)
class Judgement:
    """`valid`, `invalid` or `cannot tell`, and why, a sentence each."""

    verdict: Literal["valid", "invalid", "cannot tell"]
    reasons: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """0 valid, 1 invalid, 2 cannot tell."""
        return ("valid", "invalid", "cannot tell").index(self.verdict)


class NotACertificate(ValueError):
    """The bytes are no certificate; the text says why."""


def canonical(document: Mapping[str, Any]) -> bytes:
    """The one way to write a document (RFC 8785)."""
    return rfc8785.dumps(dict(document))


def leaf(document: Mapping[str, Any]) -> bytes:
    """The hash of a certificate's leaf: of all but its place in the log and its signature."""
    return merkle.leaf_hash(canonical({k: v for k, v in document.items() if k not in ("log", "signature")}))


def key_id(public: Ed25519PublicKey) -> str:
    """The name of a key: the first 16 bytes of its SHA-256, hex."""
    return hashlib.sha256(public.public_bytes_raw()).hexdigest()[:32]


def sign(document: Mapping[str, Any], private: Ed25519PrivateKey) -> dict[str, Any]:
    """`document` with its signature. Raises ValueError when it would not be a true certificate."""
    unsigned = {k: v for k, v in document.items() if k != "signature"}
    signed = unsigned | {
        "signature": {
            "alg": "Ed25519",
            "key_id": key_id(private.public_key()),
            "value": private.sign(canonical(unsigned)).hex(),
        }
    }
    found = problems(Certificate.model_validate(signed))
    if found:
        raise ValueError("no certificate can be given: " + "; ".join(found))
    return signed


def problems(certificate: Certificate) -> list[str]:
    """What makes a certificate untrue by itself, whoever signed it."""
    found = []
    answered = [holder.holder for holder in certificate.holders]
    missing = set(certificate.expected) - set(answered) - {waiver.holder for waiver in certificate.waived}
    found += [f"{holder} gave no receipt, and nobody has waived it" for holder in sorted(missing)]
    if not certificate.expected:
        found.append("it expects no holder")
    if len(set(answered)) != len(answered):
        found.append("a holder answers twice")
    for holder in certificate.holders:
        found += [f"{holder.holder}.{t.table}: {t.remaining} rows remain" for t in holder.tables if t.remaining]
    found += [
        f"{store.holder}.{store.store} is {store.verdict}" for store in certificate.scan if store.verdict not in GOOD
    ]
    found += [
        f"{store.holder}.{store.store} is retained without a ground or an end"
        for store in certificate.scan
        if store.verdict == "retained" and not (store.ground and store.not_after)
    ]
    scanned = {store.holder for store in certificate.scan}
    waived = {waiver.holder for waiver in certificate.waived}
    found += [f"{holder} was not scanned" for holder in sorted(set(certificate.expected) - scanned - waived)]
    times = [certificate.requested_at, certificate.confirmed_at, certificate.completed_at, certificate.certified_at]
    try:
        instants = [datetime.fromisoformat(at) for at in times]
        if instants != sorted(instants):
            found.append("its instants are out of order")
    except (TypeError, ValueError):
        found.append("one of its instants is none")
    return found


def parse(raw: bytes) -> tuple[dict[str, Any], Certificate]:
    """The document in `raw`. Raises `NotACertificate`; so for a member that is there twice, which two readers could take
    for two documents."""
    try:
        document = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_no_twins, parse_constant=_refused, parse_float=_refused
        )
    except (ValueError, RecursionError) as error:
        raise NotACertificate(f"it is not plain JSON ({type(error).__name__})") from None
    if not isinstance(document, dict) or document.get("type") != TYPE:
        raise NotACertificate(f"it does not say that it is a {TYPE}")
    try:
        return document, Certificate.model_validate(document)
    except ValidationError as error:
        fields = sorted({".".join(map(str, each["loc"])) for each in error.errors()})
        raise NotACertificate(f"members are missing, unknown or of another kind: {', '.join(fields[:5])}") from None


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len({name for name, _ in pairs}) != len(pairs):
        raise ValueError("a member twice")
    return dict(pairs)


def _refused(text: str) -> Any:
    raise ValueError(f"not a number of a certificate: {text[:20]}")


def verify(raw: bytes, trusted: Iterable[Ed25519PublicKey], previous: bytes | None = None) -> Judgement:
    """Whether `raw` is a certificate, signed by one of the trusted keys, true in itself and in the log that it names.

    `previous`: an earlier certificate of the same log: then also whether the log only grew since. A valid certificate
    that the proof at hand does not reach from `previous` gives `cannot tell`.
    """
    try:
        document, certificate = parse(raw)
    except NotACertificate as error:
        return Judgement("cannot tell", (f"this is not a certificate: {error}",))
    keys = {key_id(key): key for key in trusted}
    key = keys.get(certificate.signature.key_id)
    if key is None:
        return Judgement("cannot tell", ("it is signed by a key that is not among the trusted ones",))
    unsigned = {k: v for k, v in document.items() if k != "signature"}
    try:
        key.verify(bytes.fromhex(certificate.signature.value), canonical(unsigned))
    except (InvalidSignature, rfc8785.CanonicalizationError):
        return Judgement("invalid", ("the signature does not fit: it was changed after it was signed",))
    found = problems(certificate) + _log_problems(document, certificate.log)
    if found:
        return Judgement("invalid", tuple(found))
    return Judgement("valid") if previous is None else _follows(certificate, previous, keys)


def _log_problems(document: Mapping[str, Any], log: Log) -> list[str]:
    found = []
    proof = _hashes(log.inclusion)
    head, before = bytes.fromhex(log.head.root), bytes.fromhex(log.previous.root)
    if proof is None or not merkle.included(leaf(document), log.index, log.head.size, proof, head):
        found.append("it is not in the log that it names")
    steps = _hashes(log.consistency)
    if steps is None or not merkle.consistent(log.previous.size, log.head.size, before, head, steps):
        found.append("the log that it names did not only grow")
    return found


def _follows(certificate: Certificate, previous: bytes, keys: Mapping[str, Ed25519PublicKey]) -> Judgement:
    earlier = verify(previous, keys.values())
    if earlier.verdict != "valid":
        return Judgement(earlier.verdict, tuple(f"the previous certificate: {reason}" for reason in earlier.reasons))
    head = parse(previous)[1].log.head
    if head == certificate.log.previous:
        return Judgement("valid")
    if head.size == certificate.log.previous.size:
        return Judgement("invalid", ("the log had another root at that size: two histories were told",))
    return Judgement(
        "cannot tell",
        (
            f"its proof starts at size {certificate.log.previous.size} and the previous certificate's log has {head.size}",
        ),
    )


def _hashes(texts: Sequence[str]) -> list[bytes] | None:
    try:
        found = [bytes.fromhex(text) for text in texts]
    except ValueError:
        return None
    return found if all(len(one) == 32 for one in found) else None


# --- keys --------------------------------------------------------------------------------------------------------


def new_signing_key() -> bytes:
    """A private key as PEM (PKCS 8)."""
    return Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def signing_key(pem: bytes) -> Ed25519PrivateKey:
    """The key in a PEM file. Raises ValueError for any other kind of key."""
    key = load_pem_private_key(pem, None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError("the signing key must be an Ed25519 key")
    return key


def public_pem(key: Ed25519PrivateKey) -> bytes:
    """What others verify with."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def trusted_key(pem: bytes) -> Ed25519PublicKey:
    """A public key from PEM. Raises ValueError for any other kind."""
    try:
        key = load_pem_public_key(pem)
    except UnsupportedAlgorithm:
        raise ValueError("a trusted key must be an Ed25519 public key") from None
    if not isinstance(key, Ed25519PublicKey):
        raise ValueError("a trusted key must be an Ed25519 public key")
    return key
