"""The journal: what was appended is read, in order, once; torn tails and damage are counted; places are remembered."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.emitter.journal import Journal, create, framed, parse, take_over

_PIECES = st.binary(min_size=0, max_size=300).map(lambda piece: piece.replace(b"\0", b"k"))


def record(number: int, size: int = 50) -> list[bytes]:
    return [b"topic", b"key-%d" % number, b"%d" % number, b'{"v":"%b"}' % (b"v" * size)]


@contextmanager
def written(spool: Path, numbers: range, *, segment_bytes: int = 1_000, source: str = "gw:1") -> Iterator[Journal]:
    journal = create(spool, source, segment_bytes=segment_bytes, always_sync=False)
    for number in numbers:
        journal.append(framed(*record(number)))
    yield journal
    journal.close()


def all_of(journal: Journal) -> list[int]:
    found = []
    while (more := journal.read()) is not None:
        found += [int(sequence) for _, _, sequence, _ in more[0]]
    return found


def segments(spool: Path, source: str = "gw:1") -> list[Path]:
    return sorted((spool / source).glob("*.log"))


@given(st.lists(st.tuples(_PIECES, _PIECES, st.sampled_from([b"", b"00-aa-bb-01"]))), st.integers(0, 400))
def test_a_cut_block_gives_its_whole_records(pieces: list[tuple[bytes, bytes, bytes]], cut: int) -> None:
    frames = [framed(b"t", key, b"1", value, span) for key, value, span in pieces]
    block = b"".join(frames)
    records, used = parse(block[: max(0, len(block) - cut)])
    assert block[:used] == b"".join(frames[: len(records)])
    assert len(records) == len(frames) or used + len(frames[len(records)]) > len(block) - cut
    whole = pieces[: len(records)]
    assert [record[3:] for record in records] == [
        [value[:-1] + b',"sequence":"1"}', *([span] if span else [])] for _, value, span in whole
    ]


@given(st.integers(0, 10**9), st.integers(0, 7))
def test_one_wrong_bit_is_seen(place: int, bit: int) -> None:
    block = bytearray(framed(*record(1)) + framed(*record(2)))
    place %= len(block)
    block[place] ^= 1 << bit
    records, _ = parse(bytes(block))
    assert len(records) == (0 if place < len(block) // 2 else 1)


def test_zeros_are_no_records() -> None:
    assert parse(bytes(4096)) == ([], 0)


def test_it_is_read_in_order_over_segments(tmp_path: Path) -> None:
    with written(tmp_path, range(100)) as journal:
        assert len(segments(tmp_path)) > 5
        assert all_of(journal) == list(range(100))
        assert journal.read() is None and journal.read_all
        journal.append(framed(*record(100)))
        assert all_of(journal) == [100]


def test_a_record_larger_than_a_block_is_read(tmp_path: Path) -> None:
    with written(tmp_path, range(3)) as journal:
        journal.append(framed(*record(3, size=200_000)))
        journal.append(framed(*record(4)))
        assert all_of(journal) == [0, 1, 2, 3, 4]


def test_what_is_acknowledged_is_forgotten(tmp_path: Path) -> None:
    with written(tmp_path, range(100)) as journal:
        before, files = journal.size, len(segments(tmp_path))
        assert sum(path.stat().st_size for path in segments(tmp_path)) == before
        all_of(journal)
        assert journal.acknowledge((4, 0))
        assert len(segments(tmp_path)) == files - 3
        assert sum(path.stat().st_size for path in segments(tmp_path)) == journal.size < before
        journal.rewind()
        rest = all_of(journal)
    (again,) = take_over(tmp_path)
    assert all_of(again) == rest and rest[0] > 0
    again.acknowledge(again.end)
    again.release()
    assert not (tmp_path / "gw:1").exists()


def test_a_torn_tail_is_cut_off_and_counted(tmp_path: Path) -> None:
    with written(tmp_path, range(5), segment_bytes=10_000):
        pass
    (only,) = segments(tmp_path)
    for cut in (1, 30, 60):
        only.write_bytes(only.read_bytes()[:-cut])
        (dead,) = take_over(tmp_path)
        assert all_of(dead) == [0, 1, 2, 3] and dead.torn == 1 and not dead.damaged_bytes
        dead.close()
        only.write_bytes(only.read_bytes()[: 4 * len(framed(*record(1)))] + framed(*record(4)))


def test_damage_before_the_end_is_counted_in_bytes(tmp_path: Path) -> None:
    with written(tmp_path, range(40)):
        pass
    first, second, *_ = segments(tmp_path)
    size = len(framed(*record(1)))
    raw = bytearray(first.read_bytes())
    raw[-size + 20] ^= 1
    first.write_bytes(raw)
    (dead,) = take_over(tmp_path)
    found = all_of(dead)
    lost = len(raw) // len(framed(*record(1))) - 1
    assert dead.damaged_bytes >= size and not dead.torn
    assert found == [n for n in range(40) if n in found] and 40 - len(found) == 1 and lost not in found
    assert second.exists()
    dead.close()


@pytest.mark.parametrize("mark", [b"", b"garbage", b"\0" * 22, b"99999999"])
def test_without_a_readable_mark_all_is_sent_again(tmp_path: Path, mark: bytes) -> None:
    with written(tmp_path, range(10)) as journal:
        all_of(journal)
        journal.acknowledge((1, len(framed(*record(1)))))
    (tmp_path / "gw:1" / "acknowledged").write_bytes(mark)
    (dead,) = take_over(tmp_path)
    assert all_of(dead) == list(range(10))
    dead.close()


def test_a_piece_of_a_record_is_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk takes a part of a write: the record is refused, and the next one is read."""
    with written(tmp_path, range(3)) as journal:
        end, real = journal.end, os.pwrite
        with monkeypatch.context() as patch:
            patch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:40], at))
            patch.setattr(os, "ftruncate", lambda fd, size: None)
            with pytest.raises(OSError) as caught:
                journal.append(framed(*record(3, size=100)))
        assert caught.value.errno == errno.ENOSPC and journal.end == end
        journal.append(framed(*record(4, size=10)))
        assert all_of(journal) == [0, 1, 2, 4]
    (dead,) = take_over(tmp_path)
    assert all_of(dead) == [0, 1, 2, 4]
    dead.close()


def test_a_living_process_keeps_its_folder(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shared.emitter.journal import *\n"
        "journal = create(Path(sys.argv[1]), 'gw:other', segment_bytes=1000, always_sync=False)\n"
        "journal.append(framed(b't', b'k', b'1', b'{}')); print('written', flush=True); sys.stdin.read()"
    )
    with written(tmp_path, range(3)):
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None and child.stdout.readline() == "written\n"
        assert take_over(tmp_path) == []
        child.kill()
        child.communicate()
        (dead,) = take_over(tmp_path)
        assert dead.source == "gw:other" and all_of(dead) == [1]
        assert take_over(tmp_path) == [], "it is ours now"
        dead.close()
    assert {journal.source for journal in take_over(tmp_path)} == {"gw:1", "gw:other"}


def test_sync_reaches_every_new_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def noted(fd: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{fd}"))
        real(fd)

    monkeypatch.setattr(os, "fsync", noted)
    with written(tmp_path, range(40)) as journal:
        journal.sync()
        assert {Path(name) for name in synced} == {*segments(tmp_path), tmp_path / "gw:1"}
        synced.clear()
        journal.sync()
        assert not synced
        journal.append(framed(*record(40)))
        journal.sync()
        assert len(synced) == 1
