"""What platforms seal: it opens with the right key alone, says nothing by its length, and bears no change."""

from __future__ import annotations

import base64
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from shared.contract.base import Sealed
from shared.contract.sealing import (
    decoded,
    encoded,
    key_of,
    key_text,
    new_private_key,
    padded,
    parse_key,
    public_key_of,
    seal,
    seal_to,
    unpadded,
    unseal,
)
from shared.emitter import seal as emitters_seal

PRIVATE = new_private_key()
PUBLIC = public_key_of(PRIVATE)
KEY = "ingress-2026-11-28-0a1b2c3d"
ADDRESS = "ada.lovelace@example.com"
SEALED = TypeAdapter(Sealed)


def opened(value: str, private: bytes = PRIVATE, *, context: bytes = b"") -> str:
    return unseal(value, lambda id: private, context=context)


@given(st.text(max_size=2000))
def test_what_is_sealed_opens_again_and_fits_the_contract(text: str) -> None:
    value = seal(text, KEY, PUBLIC)
    assert SEALED.validate_python(value) == value
    assert opened(value) == text
    assert key_of(value) == KEY


def test_the_longest_text_fits_the_contract_and_a_longer_one_is_refused() -> None:
    for text in ("", "x" * 8_191, "ü" * 4_095):
        assert opened(SEALED.validate_python(seal(text, KEY, PUBLIC))) == text
    for text in ("x" * 8_192, "\ud800"):
        with pytest.raises(ValueError) as error:
            seal(text, KEY, PUBLIC)
        assert text not in str(error.value) and error.value.__cause__ is None


@given(st.binary(max_size=300))
def test_padding_has_an_end_wherever_it_falls(raw: bytes) -> None:
    assert len(padded(raw)) % 64 == 0 and len(padded(raw)) > len(raw)
    assert unpadded(padded(raw)) == raw
    assert decoded(encoded(raw)) == raw


@pytest.mark.promise(60)
@given(st.text("AQgw_-+/= é\n9", max_size=12) | st.binary(max_size=12).map(encoded))
def test_bytes_have_one_text_and_no_other(text: str) -> None:
    """Padding, the other alphabet, blanks, and bits behind the end: none of it is taken for the same."""
    alphabet = set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    good = set(text) <= alphabet and len(text) % 4 != 1
    if good:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        good = encoded(raw) == text
    if good:
        assert decoded(text) == raw
    else:
        with pytest.raises(ValueError):
            decoded(text)


def test_a_length_tells_nothing_about_an_address() -> None:
    texts = (
        "1.2.3.4",
        "2001:db8:85a3:8d3:1319:8a2e:370:7348",
        "a@b.io",
        "a.much.longer.name.than.that@subdomain.example.com",
    )
    assert len({len(seal(text, KEY, PUBLIC)) for text in texts}) == 1


@pytest.mark.promise(60)
def test_no_changed_character_opens() -> None:
    value = seal(ADDRESS, KEY, PUBLIC)
    for at in range(len(value)):
        for other in ("A", "B", "_", "=", ":", "\n", ""):
            changed = value[:at] + other + value[at + 1 :]
            if changed == value:
                continue
            with pytest.raises(ValueError) as error:
                opened(changed)
            assert ADDRESS not in str(error.value) and value[-40:] not in str(error.value)
    for extra in ("A", "=", "\n", ":"):
        with pytest.raises(ValueError):
            opened(value + extra)


@pytest.mark.promise(60)
def test_another_key_id_or_context_does_not_open_it() -> None:
    value = seal(ADDRESS, KEY, PUBLIC, context=b"acc-1")
    assert opened(value, context=b"acc-1") == ADDRESS
    for context in (b"", b"acc-2", b"\0acc-1"):
        with pytest.raises(ValueError):
            opened(value, context=context)
    with pytest.raises(ValueError):
        opened(value.replace(KEY, "ingress-2026-11-29-0a1b2c3d"), context=b"acc-1")
    with pytest.raises(ValueError):
        opened(value, new_private_key(), context=b"acc-1")
    # The parts of two values are not exchangeable.
    other = seal(ADDRESS, KEY, PUBLIC, context=b"acc-1").split(":")
    mixed = [*value.split(":")[:3], other[3], value.split(":")[4]]
    with pytest.raises(ValueError):
        opened(":".join(mixed), context=b"acc-1")


def test_a_missing_key_is_no_damage() -> None:
    def gone(id: str) -> bytes:
        raise KeyError(id)

    with pytest.raises(LookupError):
        unseal(seal(ADDRESS, KEY, PUBLIC), gone)


def test_every_value_has_a_key_of_its_own() -> None:
    values = [seal(ADDRESS, KEY, PUBLIC) for _ in range(50)]
    assert len({part for value in values for part in value.split(":")[3:]}) == 100
    # As long as chance does not write among some thousand characters of base64.
    assert not re.search("lovelace|example", "".join(values))


def test_platforms_seal_with_the_key_as_it_is_printed() -> None:
    printed = key_text(KEY, PUBLIC)
    assert parse_key(f" {printed}\n") == (KEY, PUBLIC)
    for value in (seal_to(ADDRESS, printed), emitters_seal(ADDRESS, printed)):
        assert opened(value) == ADDRESS
    for wrong in ("", KEY, f"{KEY}:", f"{KEY}:{encoded(PUBLIC[:31])}", f"a b:{encoded(PUBLIC)}", encoded(PUBLIC)):
        with pytest.raises(ValueError, match=r"ID:KEY|base64url"):
            emitters_seal(ADDRESS, wrong)
    with pytest.raises(ValueError) as error:
        seal(ADDRESS, KEY, bytes(32))  # a point on which no secret can be agreed
    assert ADDRESS not in str(error.value)
