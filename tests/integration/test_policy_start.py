"""A policy that cannot be kept starts nothing: real processes, `python -m deploy.serve`, with their settings given."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import services.metering.data_map
from deploy import checkout, rooms, serve
from deploy.rooms import ROOMS
from tests.support.policies import NEW_DATE, changed, sealed


def start(room: str, file: Path, settings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Starts a service that is expected not to come up."""
    return subprocess.run(
        (sys.executable, "-m", "deploy.serve", room),
        env={**os.environ, **settings, "STEWARD_POLICY": str(file)},
        cwd=checkout.root(),
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where the other policy is written."""
    return tmp_path / "policy.toml"


REFUSED = [
    pytest.param(
        changed(("rollup.months", "12")), "changed without a new effective date (promise 66)",
        marks=pytest.mark.promise(66), id="change-without-date",
    ),
    pytest.param(
        sealed(changed(("recipients.mail.use", '"marketing"'))),
        "recipient mail uses personal data for 'marketing'; the policy rules 'marketing' out",
        marks=pytest.mark.promise(24, 73), id="recipient-for-marketing",
    ),
    pytest.param(
        sealed(changed(("recipients.payments.use", '"third_party_sharing.personalized_advertising"'))),
        "the policy rules 'third_party_sharing.personalized_advertising' out",
        marks=pytest.mark.promise(24, 73), id="recipient-for-advertising",
    ),
    pytest.param(
        sealed(changed(("recipients.hosting.use", '"analytics"'))), "which is not in [uses] allowed",
        marks=pytest.mark.promise(24, 73), id="recipient-for-another-commerce",
    ),
    pytest.param(
        sealed(changed(("readers.insights", '["train_ai_system"]'))),
        "reader insights uses personal data for 'train_ai_system'",
        marks=pytest.mark.promise(73), id="reader-for-training",
    ),
    pytest.param(
        sealed(changed(("readers.metering", '["essential.service"]'))),
        "metering uses personal data for 'finance', for which [readers] do not declare it",
        marks=pytest.mark.promise(73), id="reader-beyond-its-declaration",
    ),
    pytest.param(
        sealed(changed(("readers.metering", ""))), "metering is not among the policy's [readers]",
        marks=pytest.mark.promise(73), id="reader-undeclared",
    ),
    pytest.param(sealed(changed(("ip.max_days", "31"))), "ip.max_days is 31, above the 30", id="ip-too-long"),
    pytest.param(
        sealed(changed(("stores.keys", '"eu"'))), "stores.keys is in 'eu'", marks=pytest.mark.promise(58), id="store-abroad"
    ),
]  # fmt: skip


@pytest.mark.parametrize(("text", "says"), REFUSED)
def test_a_broken_policy_starts_no_service(text: str, says: str, file: Path) -> None:
    file.write_text(text, encoding="utf-8")
    done = start("metering", file, {})
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    # A sentence for the operator, not a traceback.
    assert len(done.stderr.splitlines()) == 1


def test_without_its_fault_the_same_policy_starts(file: Path) -> None:
    """What the refusals above are compared with: it gets as far as asking where Kafka is."""
    file.write_text(sealed(changed(*NEW_DATE, ("rollup.months", "12"))), encoding="utf-8")
    for room in ROOMS:
        done = start(room, file, {"STEWARD_KAFKA_BOOTSTRAP_SERVERS": ""})
        assert (done.returncode, "STEWARD_KAFKA_BOOTSTRAP_SERVERS is not set" in done.stderr) == (2, True)


def test_another_policy_is_allowed_in_production(file: Path) -> None:
    file.write_text(changed(("rollup.months", "12")), encoding="utf-8")
    assert "promise 66" in start("billing", file, {"STEWARD_ENV": "production"}).stderr
    file.write_text(sealed(changed(("rollup.months", "12"))), encoding="utf-8")
    done = start("billing", file, {"STEWARD_ENV": "production", "STEWARD_KAFKA_BOOTSTRAP_SERVERS": ""})
    assert "STEWARD_KAFKA_BOOTSTRAP_SERVERS is not set" in done.stderr


@pytest.mark.promise(73)
@pytest.mark.parametrize(
    ("use", "says"),
    [
        ("marketing.advertising", "use: not in the vocabulary"),
        ("essential.service.security", "do not declare it"),
    ],
)
def test_a_column_with_another_use_starts_no_service(
    use: Any, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In this process, since the file of a service would have to be changed."""
    monkeypatch.setattr(serve, "_serve", lambda room: 0)
    assert serve.main(["metering"]) == 0
    sound = services.metering.data_map.DATA_MAP
    personal = next(column for column in sound if column.personal)
    bent = [replace(column, use=use) if column is personal else column for column in sound]
    monkeypatch.setattr(services.metering.data_map, "DATA_MAP", tuple(bent))
    assert serve.main(["metering"]) == 2
    assert says in capsys.readouterr().err


def test_every_room_goes_with_this_trees_policy() -> None:
    assert {room: rooms.refusals(room) for room in ROOMS} == dict.fromkeys(ROOMS, ())
