"""Values at rest, master keys, and the hash of subjects: pure, so every change of every byte can be tried."""

from __future__ import annotations

import base64
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.mesh.settings import Misconfigured
from shared.privacy.masters import MasterKeys
from shared.privacy.values import (
    Key,
    Shredded,
    SubjectHasher,
    Tampered,
    day_hmac,
    key_id_of,
    open_value,
    seal_value,
    subject_hash,
)

ALICE = Key("subject", "0a" * 16, "k-alice", os.urandom(32))
WHERE = "address.mail"
TEXT = "ada.lovelace@example.com"


@given(st.text(max_size=500))
def test_a_value_opens_where_it_was_sealed_for(text: str) -> None:
    value = seal_value(ALICE, text, where=WHERE)
    assert open_value(ALICE, value, where=WHERE) == text
    assert key_id_of(value) == "k-alice"


@pytest.mark.promise(60)
def test_no_changed_character_of_a_value_opens() -> None:
    value = seal_value(ALICE, TEXT, where=WHERE)
    for at in range(len(value)):
        for other in ("A", "B", "_", "=", ":", "\n", ""):
            changed = value[:at] + other + value[at + 1 :]
            if changed == value:
                continue
            with pytest.raises((Tampered, Shredded)) as error:
                open_value(ALICE, changed, where=WHERE)
            assert TEXT not in str(error.value) and value[-30:] not in str(error.value)


@pytest.mark.promise(60)
def test_a_moved_value_does_not_open() -> None:
    value = seal_value(ALICE, TEXT, where=WHERE)
    with pytest.raises(Tampered):
        open_value(ALICE, value, where="address.name")
    # Another subject, day or purpose, even were the secret the same: what a key is of is bound in.
    for other in (replace(ALICE, name="0b" * 16), replace(ALICE, purpose="case")):
        with pytest.raises(Tampered):
            open_value(other, value, where=WHERE)
    with pytest.raises(Shredded):
        open_value(replace(ALICE, id="k-later"), value, where=WHERE)
    with pytest.raises(Tampered):
        open_value(replace(ALICE, id="k-later"), value.replace("k-alice", "k-later"), where=WHERE)
    with pytest.raises(Tampered):
        open_value(replace(ALICE, secret=os.urandom(32)), value, where=WHERE)


def test_short_and_foreign_texts_are_no_values() -> None:
    for text in ("", "v1:", "v1:k-alice:", "v1:k-alice:AAAA", "v2:k-alice:AAAA", TEXT):
        with pytest.raises(Tampered):
            open_value(ALICE, text, where=WHERE)


@pytest.mark.promise(60)
def test_the_length_at_rest_tells_nothing_about_an_address() -> None:
    assert (
        len({len(seal_value(ALICE, text, where=WHERE)) for text in ("1.2.3.4", TEXT, "2001:db8::8a2e:370:7348")}) == 1
    )


def test_a_key_does_not_show_itself() -> None:
    assert repr(ALICE.secret) not in repr(ALICE) and ALICE.secret.hex() not in repr(ALICE)


@pytest.mark.promise(60)
def test_addresses_correlate_within_a_day_and_not_beyond() -> None:
    today, tomorrow = (Key("ip", day, f"ip-{day}", os.urandom(32)) for day in ("2026-11-28", "2026-11-29"))
    same = {day_hmac(today, text) for text in ("2001:DB8::1", "2001:db8:0:0:0:0:0:1", "2001:db8::0001")}
    assert len(same) == 1 and len(next(iter(same))) == 16
    assert day_hmac(today, "2001:db8::2") not in same
    assert day_hmac(tomorrow, "2001:db8::1") not in same
    assert day_hmac(today, " NO address ") == day_hmac(today, "no address")


# --- who is who ----------------------------------------------------------------------------------------------------

SUBJECTS = st.tuples(st.sampled_from(["account", "workspace", "member", "key"]), st.text("ab:-1", max_size=6))


@given(st.lists(st.lists(SUBJECTS, max_size=12), max_size=8))
def test_the_hasher_is_the_hash_whatever_it_remembers(batches: list[list[tuple[str, str]]]) -> None:
    key = bytes(range(32))
    hasher = SubjectHasher(key, remembered=3)
    for batch in batches:
        assert hasher.hashes(batch) == [subject_hash(kind, id, key) for kind, id in batch]
        # One batch may pass the bound, and does not stay.
        assert len(hasher._old) <= 3 + 12 and len(hasher._young) <= 3


def test_subjects_have_hashes_of_their_own() -> None:
    key, other = os.urandom(32), os.urandom(32)
    subjects = [("account", "1"), ("workspace", "1"), ("account", "11"), ("account", "1:1")]
    hashes = SubjectHasher(key).hashes(subjects)
    assert Counter(map(len, hashes)) == {16: 4} and len(set(hashes)) == 4
    assert not set(hashes) & set(SubjectHasher(other).hashes(subjects))


def test_what_must_not_be_remembered_has_the_same_hash_and_leaves_nothing_behind() -> None:
    hasher = SubjectHasher(bytes(range(32)))
    once = hasher.once("code", "case-1:7QK2M9XB")
    assert "7QK2M9XB" not in repr(vars(hasher))
    assert [once] == hasher.hashes([("code", "case-1:7QK2M9XB")])
    assert once != hasher.once("code", "case-2:7QK2M9XB"), "a code is bound to its case"


# --- master keys ---------------------------------------------------------------------------------------------------


async def test_the_first_master_key_wraps_and_all_unwrap() -> None:
    old, new = MasterKeys.new("old"), MasterKeys.new("new")
    before, between = MasterKeys(old), MasterKeys(f"\n{new}\n  {old}  \n")
    master, wrapped = await before.wrap([(b"k" * 32, b"subject:1"), (b"l" * 32, b"subject:2")])
    assert (master, between.ids) == ("old", ("new", "old"))
    assert b"k" * 8 not in wrapped[0]
    bound = [(wrapped[0], b"subject:1"), (wrapped[1], b"subject:2")]
    assert await between.unwrap("old", bound) == [b"k" * 32, b"l" * 32]
    assert (await between.wrap([(b"k" * 32, b"")]))[0] == "new"
    with pytest.raises(Misconfigured):
        await MasterKeys(new).unwrap("old", bound)


@pytest.mark.promise(60)
async def test_a_wrapped_key_opens_for_its_row_alone() -> None:
    masters = MasterKeys(MasterKeys.new("m"))
    _, (wrapped,) = await masters.wrap([(b"k" * 32, b"subject:1")])
    for raw, bound in [(wrapped, b"subject:2"), (wrapped[:-1], b"subject:1"), (b"", b"subject:1")] + [
        (wrapped[:n] + bytes([wrapped[n] ^ 1]) + wrapped[n + 1 :], b"subject:1") for n in range(len(wrapped))
    ]:
        with pytest.raises(Tampered):
            await masters.unwrap("m", [(raw, bound)])
    again = MasterKeys(MasterKeys.new("m"))  # an id that was used twice
    with pytest.raises(Tampered):
        await again.unwrap("m", [(wrapped, b"subject:1")])


def test_what_is_no_master_key_is_refused_without_being_repeated() -> None:
    line = MasterKeys.new("m")
    secret = line.partition(":")[2]
    for text in ("", " \n", secret, f"m:{secret[:-4]}", f"{line}\n{line}", f"m n:{secret}", f"m:{secret}x",
                 f"m:{base64.b64encode(b'short').decode()}"):  # fmt: skip
        with pytest.raises(Misconfigured) as error:
            MasterKeys(text)
        assert secret not in str(error.value)
    with pytest.raises(Misconfigured):
        MasterKeys.from_values(None, None)
    with pytest.raises(Misconfigured):
        MasterKeys.from_values("/nowhere/master.key", line)
    assert MasterKeys.from_values(None, line).ids == ("m",)


async def test_a_file_that_changes_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "master.key"
    old, new = MasterKeys.new("old"), MasterKeys.new("new")
    file.write_text(old)
    masters = MasterKeys.from_values(str(file), None)
    assert masters.current() == "old"
    file.with_name("next").write_text(f"{new}\n{old}\n")
    file.with_name("next").replace(file)
    assert (await masters.wrap([(b"k" * 32, b"")]))[0] == "new"
    file.unlink()
    assert masters.current() == "new", "a secret that is being replaced stops nobody"
    # What another process wrapped by a key that came meanwhile.
    file.write_text(old)
    elsewhere = MasterKeys.from_values(str(file), None)
    _, (wrapped,) = await MasterKeys(new).wrap([(b"k" * 32, b"b")])
    file.write_text(f"{new}\n{old}\n")
    assert await elsewhere.unwrap("new", [(wrapped, b"b")]) == [b"k" * 32]
