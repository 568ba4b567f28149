"""age files: an implementation of others opens what is written here, and what it writes is opened here."""

from __future__ import annotations

import io
import os

import pyrage
import pytest

from shared.privacy.age import CannotOpen, Decrypting, Encrypting, Opener

WORDS = "correct horse battery"
CHUNK = 64 * 1024


def sealed(data: bytes, opener: Opener, step: int = 1_000_003) -> bytes:
    out = io.BytesIO()
    into = Encrypting(out, opener)
    for n in range(0, len(data), step):
        into.write(data[n : n + step])
    into.close()
    return out.getvalue()


def unsealed(raw: bytes, **key: str) -> bytes:
    return io.BufferedReader(Decrypting(io.BytesIO(raw), **key)).read()


@pytest.fixture(scope="module")
def identity() -> pyrage.x25519.Identity:
    return pyrage.x25519.Identity.generate()


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 1_000_003])
def test_both_open_what_the_other_has_written(size: int, identity: pyrage.x25519.Identity) -> None:
    data = os.urandom(size)
    mine = sealed(data, Opener(recipient=str(identity.to_public())))
    assert pyrage.decrypt(mine, [identity]) == data == unsealed(mine, identity=str(identity))
    theirs = pyrage.encrypt(data, [pyrage.x25519.Identity.generate().to_public(), identity.to_public()])
    assert unsealed(theirs, identity=str(identity)) == data


def test_both_open_what_the_other_has_written_for_a_passphrase() -> None:
    data = os.urandom(CHUNK + 5)
    assert pyrage.passphrase.decrypt(sealed(data, Opener(passphrase=WORDS), step=7_001), WORDS) == data
    assert unsealed(pyrage.passphrase.encrypt(data, WORDS), passphrase=WORDS) == data


def test_it_can_be_read_from_any_place(identity: pyrage.x25519.Identity) -> None:
    data = os.urandom(3 * CHUNK + 11)
    file = Decrypting(io.BytesIO(sealed(data, Opener(recipient=str(identity.to_public())))), identity=str(identity))
    for place in (0, 5, CHUNK, 2 * CHUNK - 1, len(data), len(data) + 9):
        file.seek(place)
        assert file.read(CHUNK + 3) in (data[place : place + CHUNK + 3], data[place : (place // CHUNK + 1) * CHUNK])
    assert file.seek(-3, io.SEEK_END) == len(data) - 3 and file.read() == data[-3:]


def test_only_its_opener_opens_it(identity: pyrage.x25519.Identity) -> None:
    by_words, by_key = sealed(b"x", Opener(passphrase=WORDS)), sealed(b"x", Opener(recipient=str(identity.to_public())))
    other = str(pyrage.x25519.Identity.generate())
    for raw, key in (
        (by_words, {"passphrase": WORDS + "x"}), (by_key, {"identity": other}), (by_words, {"identity": other}),
        (by_key, {"passphrase": WORDS}),
    ):  # fmt: skip
        with pytest.raises(CannotOpen) as told:
            unsealed(raw, **key)
        assert not set(key.values()) & set(str(told.value).split())


def test_whatever_is_changed_or_cut_off_does_not_open(identity: pyrage.x25519.Identity) -> None:
    raw = sealed(os.urandom(2 * CHUNK), Opener(recipient=str(identity.to_public())))
    head = raw.index(b"\n---") + 1
    for place in (0, 25, 40, head - 20, head + 10, head + 60, len(raw) // 2, len(raw) - 1):
        changed = bytearray(raw)
        changed[place] ^= 1
        with pytest.raises(CannotOpen):
            unsealed(bytes(changed), identity=str(identity))
    for end in (0, 10, head, len(raw) - CHUNK - 16, len(raw) - 1):
        with pytest.raises(CannotOpen):
            unsealed(raw[:end], identity=str(identity))
    with pytest.raises(CannotOpen):
        unsealed(raw + b"x", identity=str(identity))


def test_who_may_open_is_said_once_and_well(identity: pyrage.x25519.Identity) -> None:
    recipient = str(identity.to_public())
    for wrong in (
        {}, {"passphrase": WORDS, "recipient": recipient}, {"passphrase": "eleven char"}, {"recipient": "age1"},
        {"recipient": recipient[:-1] + ("q" if recipient[-1] != "q" else "p")}, {"recipient": recipient.upper()},
        {"recipient": "ssh-ed25519 AAAA"}, {"recipient": str(identity)}, {"recipient": f"{recipient} "},
    ):  # fmt: skip
        with pytest.raises(ValueError) as told:
            Opener(**wrong)
        assert str(identity) not in str(told.value)
    assert WORDS not in repr(Opener(passphrase=WORDS))
    assert Opener(passphrase="twelve chars").recipient is None
