"""The package: what its person opens holds every row, twice, says what it is, and nothing else can be opened from it."""

from __future__ import annotations

import csv
import gc
import hashlib
import html.parser
import io
import json
import os
import tracemalloc
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pyrage
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from deploy.cli import main
from shared.policy import policy
from shared.privacy import sheets
from shared.privacy.age import CannotOpen, Opener
from shared.privacy.blobs import Blobs, DirectoryBlobs
from shared.privacy.errands import WHERE
from shared.privacy.package import Built, Missing, NotWhole, build, case_of_package, manifest_of, opened, package_name
from shared.privacy.told import FORMAT, MAP, Told, ToldColumn, ToldTable
from shared.privacy.values import Key, Shredded, Tampered, seal_value

CASE = "019ad2a4-5b00-7000-8000-000000000001"
AT = datetime(2026, 11, 28, 12, tzinfo=UTC)
WORDS = "correct horse battery"
KEY = Key("case", CASE, "k1", os.urandom(32))
TYPES = {
    "account": "text", "at": "timestamp with time zone", "n": "bigint", "price": "numeric", "on": "boolean", "said": "text",
    "usage": "jsonb", "tags": "text[]",
}  # fmt: skip
ODD = [
    "",
    "'", "''", "plain", "=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", "'=x", "''-", "a,b", 'say "so"', "two\nlines", "x\r\ny",
    "naïve 你好 🙂", "\u202eabc", "\uff1d1", "-", " lead", "12", "null", "true", None,
]  # fmt: skip


def row(n: int) -> dict[str, Any]:
    return {
        "account": "acc-1", "at": "2026-11-28T12:00:00.5+00:00", "n": [n, None, 2**62, -n][n % 4],
        "on": [True, False, None][n % 3], "price": [Decimal("0.10"), Decimal(7), Decimal("12345678901234567890.000001")][n % 3],
        "said": ODD[n % len(ODD)], "tags": ["=x", ""] if n % 2 else [], "usage": {"b": [1, None, {"c": "d"}], "a": "=1"},
    }  # fmt: skip


def told(holder: str, tables: Mapping[str, tuple[int, int]], left_out: Sequence[str] = ()) -> Told:
    """`tables`: name -> (rows, parts)."""
    columns = tuple(
        ToldColumn(
            name, kind, True, name == "account", "user.behavior", "essential.service", "contract", "event", None, 30, ""
        )
        for name, kind in sorted(TYPES.items())
    )
    found = {name: ToldTable(rows, parts, None, columns) for name, (rows, parts) in tables.items()}
    found |= {name: ToldTable(0, 0, "range", columns) for name in left_out}
    return Told(FORMAT, holder, "v", found, {"seen": ("user.unique_id.pseudonymous",)})


async def put(blobs: Blobs, holder: str, name: str, text: str) -> None:
    await blobs.put(f"{CASE}/1/{holder}/{name}", seal_value(KEY, text, where=WHERE).encode())


async def copied(blobs: Blobs, tables: Mapping[str, int], holder: str = "metering", part: int = 1_000) -> None:
    """A holder's part of a copy, as its errand leaves it."""
    encode = msgspec.json.Encoder(decimal_format="number").encode
    parts = {}
    for table, count in tables.items():
        parts[table] = (count, -(-count // part))
        for number in range(parts[table][1]):
            lines = (encode(row(n)).decode() for n in range(number * part, min(count, (number + 1) * part)))
            await put(blobs, holder, f"{table}/{number:06d}", "\n".join(lines))
    await put(blobs, holder, f"{MAP}/000000", msgspec.json.encode(told(holder, parts)).decode())


async def packed(blobs: Blobs, holders: Sequence[str] = ("metering",), **more: Any) -> Built:
    options: dict[str, Any] = {"opener": Opener(passphrase=WORDS), "name": package_name(CASE), "key": KEY} | more
    return await build(blobs, case=CASE, epoch=1, holders=holders, made_at=AT, **options)


async def file(blobs: Blobs) -> io.BytesIO:
    return io.BytesIO(b"".join([piece async for piece in blobs.read(package_name(CASE))]))


@pytest.fixture
def blobs(tmp_path: Path) -> Blobs:
    return DirectoryBlobs(tmp_path / "blobs")


async def test_every_row_is_in_it_twice_and_all_say_the_same(blobs: Blobs) -> None:
    await copied(blobs, {"request_log": 2_345, "rollup": 1, "empty": 0})
    built = await packed(blobs)
    assert built.rows == 2_346 and built.sources == {
        "metering.empty": 0,
        "metering.request_log": 2_345,
        "metering.rollup": 1,
    }
    sealed = await file(blobs)
    assert (built.size, built.sha256) == (len(sealed.getvalue()), hashlib.sha256(sealed.getvalue()).hexdigest())
    assert (
        case_of_package(package_name(CASE)) == CASE and case_of_package(f"{CASE}/1/metering/request_log/000000") is None
    )
    with opened(sealed, passphrase=WORDS) as archive:
        assert archive.testzip() is None
        lines = archive.read("data/metering/request_log.jsonl").decode().split("\n")
        assert lines.pop() == ""
        schema = json.loads(archive.read("schema/metering.request_log.json"))
        checked = jsonschema.Draft202012Validator(schema)
        rows = [json.loads(line, parse_float=Decimal) for line in lines]
        assert len(rows) == 2_345
        for n, found in enumerate(rows):
            assert found == row(n)
            if n < 100:
                checked.validate(json.loads(lines[n]))
        sheet = archive.read("data/metering/request_log.csv").decode()
        assert "\r\n" in sheet and not sheet.startswith("\ufeff")
        read = csv.DictReader(io.StringIO(sheet, newline=""))
        assert read.fieldnames == sorted(TYPES)
        assert [{name: value_of(name, cell) for name, cell in found.items()} for found in read] == rows
        assert not [name for name in archive.namelist() if "empty" in name]


def value_of(name: str, cell: str) -> Any:
    """A cell back as its value, by its type, as a reader would."""
    if cell == "":
        return None
    if TYPES[name].startswith(("text", "timestamp")) and not TYPES[name].endswith("[]"):
        return sheets.text(cell)
    return json.loads(cell, parse_float=Decimal)


@given(st.lists(st.one_of(st.none(), st.text(), st.sampled_from(ODD)), min_size=1, max_size=4))
def test_each_text_comes_back_from_its_cell_and_none_is_a_formula(values: list[str | None]) -> None:
    columns = [str(n) for n in range(len(values))]
    row = dict(zip(columns, values, strict=True))
    text = sheets.lines(columns, [row])
    assert (
        sheets.of_json(columns, msgspec.json.encode(row)) == text == sheets.of_json(columns, json.dumps(row).encode())
    )
    (cells,) = csv.reader(io.StringIO(text, newline=""), strict=True)
    assert [sheets.text(cell) for cell in cells] == values
    assert not any(
        cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20"))
        for cell in cells
    )


async def test_the_manifest_says_what_is_there(blobs: Blobs) -> None:
    await copied(blobs, {"request_log": 10})
    await put(blobs, "insights", f"{MAP}/000000", msgspec.json.encode(told("insights", {}, ["setting"])).decode())
    await packed(blobs, ["insights", "metering"], missing=[Missing("metering.request_log", "ws-2 keeps no log.")])
    with opened(await file(blobs), passphrase=WORDS) as archive:
        said = manifest_of(archive)
        assert (said["case"], said["made_at"], said["policy"]["version"]) == (
            CASE,
            "2026-11-28T12:00:00.000Z",
            policy().version,
        )
        assert set(said["files"]) == set(archive.namelist()) - {"manifest.json"}
        for name, about in said["files"].items():
            raw = archive.read(name)
            assert about == {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        (log,) = (source for source in said["sources"] if source["table"] == "request_log")
        assert (log["rows"], len(log["files"]), len(log["columns"])) == (10, 3, len(TYPES))
        assert {"name", "category", "use", "ground", "clock_start", "days"} <= set(log["columns"][0])
        gaps = {(gap["source"], gap["why"][:20]) for gap in said["missing"]}
        assert ("metering.request_log", "ws-2 keeps no log.") in gaps and (
            "insights.setting",
            "It says how things a",
        ) in gaps
        assert {source["table"]: source["left_out"] for source in said["sources"]}["setting"] == "range"


class _Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.promise(58)
async def test_the_page_stands_alone_and_says_where_data_is(blobs: Blobs) -> None:
    """No script, nothing from elsewhere, every tag closed, every link leads to a file of the package or a place on it."""
    await copied(blobs, {"request_log": 10})
    await packed(blobs, missing=[Missing("metering.<x>", "<script>alert(1)</script>")])
    with opened(await file(blobs), passphrase=WORDS) as archive:
        text, names = archive.read("index.html").decode(), set(archive.namelist())
    found = _Page(text)
    assert found.open == [] and "<script" not in text and "&lt;script&gt;" in text
    tags = {tag for tag, _, _ in found.attributes}
    assert not tags & {"script", "link", "img", "iframe", "object", "form"}
    ids = {value for _, name, value in found.attributes if name == "id"}
    for _, name, value in found.attributes:
        if name == "href":
            assert value is not None and (value in names or value.removeprefix("#") in ids), value
        assert name != "src" and not name.startswith("on")
    assert ("html", "lang", "en") in found.attributes and policy().region == "us" and "the United States" in text
    for recipient in policy().recipients.values():
        assert recipient.title in text
    for wanted in (CASE, policy().version, "request log", "30 days", "contract", "10 rows", "erase", "SHA-256"):
        assert wanted in text


async def test_what_any_age_tool_opens_is_a_zip(blobs: Blobs) -> None:
    """By a key as well; and by an implementation that is not ours."""
    await copied(blobs, {"request_log": 5})
    identity = pyrage.x25519.Identity.generate()
    await packed(blobs, opener=Opener(recipient=str(identity.to_public())))
    sealed = await file(blobs)
    with zipfile.ZipFile(io.BytesIO(pyrage.decrypt(sealed.getvalue(), [identity]))) as archive:
        assert archive.testzip() is None and len(archive.read("data/metering/request_log.jsonl").splitlines()) == 5
    with opened(sealed, identity=str(identity)) as archive:
        assert manifest_of(archive)["case"] == CASE
    await packed(blobs)
    raw = pyrage.passphrase.decrypt((await file(blobs)).getvalue(), WORDS)
    assert zipfile.ZipFile(io.BytesIO(raw)).testzip() is None


async def test_what_is_not_whole_becomes_no_package(blobs: Blobs, tmp_path: Path) -> None:
    """A holder without a map, a part that is gone, a row too few, another case's key, a changed part: no package is there."""
    await copied(blobs, {"request_log": 2_500})
    place, first = tmp_path / "blobs" / CASE / "1" / "metering", f"{CASE}/1/metering/request_log/000000"
    whole, told_of = await blobs.get(first), await blobs.get(f"{CASE}/1/metering/{MAP}/000000")
    assert whole is not None and told_of is not None

    async def refused(why: type[Exception], **more: Any) -> None:
        with pytest.raises(why) as said:
            await packed(blobs, **more)
        assert "acc-1" not in str(said.value)
        assert not [name for name in await blobs.names() if case_of_package(name)]

    await refused(NotWhole, holders=["metering", "billing"])
    (place / "request_log" / "000001").rename(tmp_path / "aside")
    await refused(NotWhole)
    (tmp_path / "aside").rename(place / "request_log" / "000001")
    await put(blobs, "metering", "request_log/000000", json.dumps(row(0), default=str))
    await refused(NotWhole)
    await blobs.put(first, whole[:-9] + b"AAAAAAAAA")
    await refused(Tampered)
    await blobs.put(first, whole)
    await refused(Shredded, key=Key("case", CASE, "k2", KEY.secret))
    await put(blobs, "metering", f"{MAP}/000000", json.dumps({"format": "other"}))
    await refused(NotWhole)
    for name in ("../../x", "a/b", "Robert'); DROP"):
        await put(blobs, "metering", f"{MAP}/000000", msgspec.json.encode(told("metering", {name: (0, 0)})).decode())
        await refused(NotWhole)
    await blobs.put(f"{CASE}/1/metering/{MAP}/000000", told_of)
    assert (await packed(blobs)).rows == 2_500


async def test_nothing_in_the_clear_is_on_the_disk(blobs: Blobs, tmp_path: Path) -> None:
    await copied(blobs, {"request_log": 500})
    await packed(blobs)
    for path in (tmp_path / "blobs").rglob("*"):
        if path.is_file():
            raw = path.read_bytes()
            assert b"acc-1" not in raw and b"index.html" not in raw and b"PK\x03\x04" not in raw


async def test_memory_does_not_grow_with_the_rows(blobs: Blobs) -> None:
    """Twenty times the rows, at the same size of a part: the peak stays where it was."""
    identity = str(pyrage.x25519.Identity.generate().to_public())
    peaks = []
    for rows in (10_000, 200_000):
        await copied(blobs, {"request_log": rows}, part=5_000)
        gc.collect()
        tracemalloc.start()
        try:
            assert (await packed(blobs, opener=Opener(recipient=identity))).rows == rows
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0] + 2_000_000 and peaks[1] < 60_000_000, peaks


# --- the command -----------------------------------------------------------------------------------------------------


def opens(path: Path, out: Path, words: str | None = WORDS, *more: str) -> Result:
    environment = {} if words is None else {"STEWARD_PASSPHRASE": words}
    return CliRunner().invoke(main, ["package", "open", str(path), "--out", str(out), *more], env=environment)


async def test_the_command_unpacks_and_checks(blobs: Blobs, tmp_path: Path) -> None:
    await copied(blobs, {"request_log": 5})
    await packed(blobs)
    path, out = tmp_path / "package.age", tmp_path / "out"
    path.write_bytes((await file(blobs)).getvalue())
    said = opens(path, out)
    assert said.exit_code == 0 and "request_log" in said.output and (out / "index.html").is_file()
    assert len((out / "data" / "metering" / "request_log.jsonl").read_text().splitlines()) == 5
    assert opens(path, out).exit_code == 2, "there is something already"
    wrong = opens(path, tmp_path / "wrong", "another passphrase")
    assert wrong.exit_code == 1 and "passphrase" in wrong.output and not (tmp_path / "wrong").exists()
    damaged = bytearray(path.read_bytes())
    damaged[-40] ^= 1
    path.write_bytes(damaged)
    assert opens(path, tmp_path / "damaged").exit_code == 1 and not (tmp_path / "damaged").exists()
    identity = pyrage.x25519.Identity.generate()
    await packed(blobs, opener=Opener(recipient=str(identity.to_public())))
    path.write_bytes((await file(blobs)).getvalue())
    (tmp_path / "key.txt").write_text(f"# created: today\n{identity}\n")
    assert opens(path, tmp_path / "by-key", None, "--identity", str(tmp_path / "key.txt")).exit_code == 0
    (tmp_path / "key.txt").write_text("nothing\n")
    assert opens(path, tmp_path / "no-key", None, "--identity", str(tmp_path / "key.txt")).exit_code == 2


def forged(files: Iterable[tuple[str, bytes]], opener: Opener, listed: Mapping[str, bytes] | None = None) -> bytes:
    """A package as somebody would make it who wants to harm its reader."""
    from shared.privacy.age import Encrypting

    out, inner = io.BytesIO(), io.BytesIO()
    files = list(files)
    about = {
        name: {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}
        for name, raw in (listed or dict(files)).items()
    }
    said = {"format": "steward.package.v1", "case": CASE, "made_at": "x", "sources": [], "files": about}
    with zipfile.ZipFile(inner, "w") as archive:
        for name, raw in files:
            archive.writestr(name, raw)
        archive.writestr("manifest.json", json.dumps(said))
    into = Encrypting(out, opener)
    into.write(inner.getvalue())
    into.close()
    return out.getvalue()


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil", "data/../../evil", "data/x/../../../evil.csv", "data\\x\\y.csv", "evil"]
)
def test_no_name_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    path = tmp_path / "package.age"
    path.write_bytes(forged([(name, b"x")], Opener(passphrase=WORDS)))
    assert opens(path, tmp_path / "a" / "b" / "out").exit_code == 1
    assert not [found for found in tmp_path.rglob("*") if "evil" in found.name]


def test_what_the_manifest_does_not_say_is_not_given_out(tmp_path: Path) -> None:
    path = tmp_path / "package.age"
    for files, listed in (
        ([("index.html", b"changed")], {"index.html": b"as it was"}),
        ([("index.html", b"x"), ("data/a/b.csv", b"more")], {"index.html": b"x"}),
        ([("index.html", b"x")], {"index.html": b"x", "data/a/b.csv": b"missing"}),
    ):
        path.write_bytes(forged(files, Opener(passphrase=WORDS), listed))
        assert opens(path, tmp_path / "out").exit_code == 1 and not (tmp_path / "out").exists()
    with pytest.raises(CannotOpen), opened(io.BytesIO(b"no age file"), passphrase=WORDS):
        pass
