"""A certificate is valid as it was signed, and in no other way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.cli import main
from shared.privacy import certificate as c
from shared.privacy import merkle

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(1, 33)))
TRUSTED = [KEY.public_key()]


def body(number: int) -> dict[str, Any]:
    """A certificate without its place in the log."""
    return {
        "type": c.TYPE,
        "case": f"019ab7d4-1e5a-7f00-8a1b-2c3d4e5f6a{number:02x}",
        "scope": "account",
        "subject": "9f86d081884c7d659a2feaa0c55ad015",
        "policy": {"version": "2026-11-28", "digest": "2026-11-28:073b"},
        "requested_at": "2026-11-24T21:00:00Z",
        "confirmed_at": "2026-11-24T22:00:00Z",
        "completed_at": "2026-11-24T22:00:09Z",
        "certified_at": "2026-11-25T02:00:00Z",
        "expected": ["billing", "metering"],
        "holders": [
            {
                "holder": holder,
                "epoch": 1,
                "map_version": "0123456789abcdef",
                "code_version": "0.1.0",
                "tables": [
                    {
                        "table": "request_log",
                        "action": "delete_row",
                        "columns": ["account"],
                        "rows": 12,
                        "remaining": 0,
                    },
                    {
                        "table": "journal",
                        "action": "retain",
                        "columns": ["cause"],
                        "rows": 3,
                        "remaining": 0,
                        "retained": {"ground": "legal_obligation", "until": "2034-01-01T00:00:00Z"},
                    },
                ],
            }
            for holder in ("billing", "metering")
        ],
        "waived": [],
        "held": [],
        "scanned_at": "2026-11-25T01:59:00Z",
        "scan": [
            {"holder": holder, "store": "request_log", "verdict": "clean", "count": 0}
            for holder in ("billing", "metering")
        ],
    }


def issued(n: int, **changes: Any) -> list[bytes]:
    """`n` certificates of one log; `changes` go into the last one."""
    nodes: dict[tuple[int, int], bytes] = {}

    def get(level: int, position: int) -> bytes:
        return nodes[level, position]

    found = []
    for index in range(n):
        document = body(index) | (changes if index == n - 1 else {})
        before = merkle.root(index, get)
        for level, position, digest in merkle.appended(index, c.leaf(document), get):
            nodes[level, position] = digest
        document["log"] = {
            "index": index,
            "head": {"size": index + 1, "root": merkle.root(index + 1, get).hex()},
            "inclusion": [h.hex() for h in merkle.inclusion(index, index + 1, get)],
            "previous": {"size": index, "root": before.hex()},
            "consistency": [h.hex() for h in merkle.consistency(index, index + 1, get)],
        }
        found.append(json.dumps(c.sign(document, KEY)).encode())
    return found


ISSUED = issued(6)


def test_a_certificate_is_valid_and_follows_the_one_before_it() -> None:
    for number, raw in enumerate(ISSUED):
        assert c.verify(raw, TRUSTED) == c.Judgement("valid")
        if number:
            assert c.verify(raw, TRUSTED, ISSUED[number - 1]) == c.Judgement("valid")
    assert c.verify(ISSUED[5], TRUSTED, ISSUED[2]).verdict == "cannot tell"
    elsewhere = issued(3, scope="member")[2]
    assert c.verify(ISSUED[3], TRUSTED, elsewhere).verdict == "invalid"


def test_what_cannot_be_told() -> None:
    assert c.verify(ISSUED[0], [OTHER.public_key()]).verdict == "cannot tell"
    twice = ISSUED[0].replace(b'"scope"', b'"scope": "member", "scope"', 1)
    for raw in (b"", b"[]", b"{}", b"\xef\xbb\xbf" + ISSUED[0], b"1" * 5000, ISSUED[0][:-1], twice, b'{"type": NaN}'):
        assert c.verify(raw, TRUSTED).verdict == "cannot tell"


@settings(max_examples=300)
@given(st.integers(0, len(ISSUED[4]) - 1), st.integers(0, 7))
def test_a_changed_bit_is_never_valid(place: int, bit: int) -> None:
    raw = bytearray(ISSUED[4])
    raw[place] ^= 1 << bit
    judged = c.verify(bytes(raw), TRUSTED)
    # White space and escapes can be written otherwise: then it is still the same document.
    try:
        same = json.loads(raw) == json.loads(ISSUED[4])
    except ValueError:
        same = False
    assert judged.verdict == "valid" if same else judged.verdict != "valid"


@pytest.mark.promise(45)
@pytest.mark.parametrize(
    "changes",
    [
        {"expected": ["billing", "metering", "security"]},
        {"scan": [{"holder": "billing", "store": "note", "verdict": "residue", "count": 1}]},
        {"scan": [{"holder": "billing", "store": "note", "verdict": "not_scanned", "count": 0}]},
        {"scan": [{"holder": "billing", "store": "note", "verdict": "expiring", "count": 1}]},
        {"scan": [{"holder": "billing", "store": "note", "verdict": "clean", "count": 0}]},
        {"certified_at": "2026-11-24T21:30:00Z"},
        {"expected": []},
    ],
    ids=["no receipt", "residue", "not scanned", "expiring", "a holder not scanned", "order of instants", "nobody"],
)
def test_an_untrue_certificate_cannot_be_given(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="no certificate can be given"):
        issued(1, **changes)


def test_a_waived_holder_is_named_and_lets_it_pass() -> None:
    waiver = {"holder": "security", "by": "op-ines", "ticket": "OPS-1", "at": "2026-11-24T23:00:00Z"}
    (raw,) = issued(1, expected=["billing", "metering", "security"], waived=[waiver])
    assert c.verify(raw, TRUSTED).verdict == "valid"


def test_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: str | Path) -> tuple[int, str]:
        result = CliRunner().invoke(main, ["certificate", *map(str, arguments)])
        return result.exit_code, result.output

    key, other, wrong = tmp_path / "key.pem", tmp_path / "other.pem", tmp_path / "wrong.pem"
    key.write_bytes(c.public_pem(KEY))
    other.write_bytes(c.public_pem(OTHER))
    wrong.write_text("no key")
    first, second, changed = tmp_path / "1.json", tmp_path / "2.json", tmp_path / "3.json"
    first.write_bytes(ISSUED[0])
    second.write_bytes(ISSUED[1])
    changed.write_bytes(ISSUED[1].replace(b'"rows": 12', b'"rows": 13', 1))
    assert run("verify", second, "--trust", key, "--previous", first) == (0, "valid\n")
    assert run("verify", second, "--trust", other)[0] == 2
    assert run("verify", second, "--trust", other, "--trust", key)[0] == 0
    assert run("verify", changed, "--trust", key)[0] == 1
    assert run("verify", wrong, "--trust", key)[0] == 2
    assert run("verify", second, "--trust", wrong)[0] == 2
    code, text = run("show", second)
    assert code == 0 and "request_log" in text and "legal obligation" in text and "2034" in text
    assert json.loads(run("show", second, "--json")[1])["case"].startswith("019ab7d4")
    assert run("show", wrong)[0] == 2


def test_the_page_tells_how_to_verify_it_without_this_code(tmp_path: Path) -> None:
    page = (Path(c.__file__).parent / "CERTIFICATE.md").read_text(encoding="utf-8")
    program = "\n".join(line[4:] for line in page.splitlines() if line.startswith("    "))
    (tmp_path / "verify.py").write_text(program, encoding="utf-8")
    (tmp_path / "key.pem").write_bytes(c.public_pem(KEY))

    def run(raw: bytes) -> int:
        (tmp_path / "certificate.json").write_bytes(raw)
        files = [str(tmp_path / name) for name in ("verify.py", "certificate.json", "key.pem")]
        return subprocess.run([sys.executable, *files], capture_output=True, check=False).returncode

    assert [run(raw) for raw in ISSUED] == [0] * len(ISSUED)
    assert run(ISSUED[3].replace(b'"rows": 12', b'"rows": 13', 1)) != 0
    assert run(ISSUED[3].replace(b'"index": 3', b'"index": 2', 1)) != 0
