"""Prices from files: judged, held, let in by a second source or a person; what was charged meanwhile is put right."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import Gateway, Sent, body
from tests.support.hands import Hands
from tests.support.world import Mesh

PROVIDER = "acme"


@pytest.fixture
async def hands(mesh: Mesh, seed: int, tmp_path: Path) -> Hands:
    """Metering and billing at work."""
    return await Hands.at_work(mesh, seed, tmp_path)


class Files:
    """Price files of two sources."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.prices: dict[str, tuple[float, float]] = {f"chat-{n}": (0.5e-6 * n, 2e-6 * n) for n in range(1, 9)}

    def litellm(self, **changed: tuple[float, float] | None) -> list[str]:
        """Arguments that import LiteLLM's file, with these prices changed or left out."""
        listed = {**self.prices, **changed}
        document: dict[str, Any] = {
            f"{PROVIDER}/{model}": {
                "litellm_provider": PROVIDER, "mode": "chat", "input_cost_per_token": both[0],
                "output_cost_per_token": both[1],
            }
            for model, both in listed.items()
            if both is not None
        }  # fmt: skip
        return self._written("litellm", document)

    def models_dev(self, **changed: tuple[float, float]) -> list[str]:
        """Arguments that import models.dev's file, which has only these models."""
        models = {
            model: {"id": model, "cost": {"input": round(both[0] * 1e6, 6), "output": round(both[1] * 1e6, 6)}}
            for model, both in changed.items()
        }
        return self._written("models-dev", {PROVIDER: {"id": PROVIDER, "models": models}})

    def _written(self, source: str, document: Any) -> list[str]:
        path = self._folder / f"{source}.json"
        path.write_text(json.dumps(document))
        return ["prices", "import", str(path), "--source", source]


def used(gateway: Gateway, model: str, **more: Any) -> Sent:
    return gateway.generation(
        "ws-1", counted=False, provider=PROVIDER, model=model, input_tokens=1000, output_tokens=100,
        tokens={"input": 1000, "output": 100}, **more,
    )  # fmt: skip


async def charged(hands: Hands, record: Sent) -> int:
    """What a generation costs, in pico-dollars, by its log row; the ledger's lines are held against that by `check`."""
    return int((await hands.json("explain", body(record)["id"]))["amount_pico"])


async def test_what_a_file_says_is_judged_before_it_rates(hands: Hands, tmp_path: Path) -> None:
    files, gateway = Files(tmp_path), hands.gateway
    # A thousand tokens' price, entered for one.
    born_wrong = files.litellm(wrong=(0.5e-3, 1.5e-3))
    dry = await hands.json(*born_wrong, "--dry-run", code=1)
    assert (dry["format"], dry["accepted"], dry["held"]) == ("LiteLLM", 8, 1)
    assert await hands.json("prices", "held") == []
    said = await hands.json(*born_wrong, code=1)
    assert (said["accepted"], said["held"], said["unchanged"]) == (8, 1, 0)
    (held,) = await hands.json("prices", "held")
    assert (held["model"], held["source"]) == ("wrong", "litellm") and held["reasons"]
    again = await hands.json(*born_wrong)
    assert (again["accepted"], again["held"], again["unchanged"]) == (0, 0, 9)

    good, waits = used(gateway, "chat-2"), used(gateway, "wrong")
    await hands.emit(good, waits)
    assert await charged(hands, good) == 1000 * 1_000_000 + 100 * 4_000_000
    assert "quarantined" in await hands.json("explain", body(waits)["id"])
    # The right price comes from elsewhere: from an implausible price to a plausible one is let through.
    assert (await hands.json(*files.models_dev(wrong=(0.5e-6, 1.5e-6))))["accepted"] == 1
    await hands.mesh.idle()
    assert await charged(hands, waits) == 1000 * 500_000 + 100 * 1_500_000
    # What a source says anew takes the place of what it said before and is held.
    await hands.json(*files.litellm(wrong=(0.6e-3, 1.5e-3)), code=1)
    superseded, (held,) = held, await hands.json("prices", "held")
    assert held["version"] != superseded["version"]
    rejected = await hands.json("prices", "reject", held["version"], "--ticket", "OPS-7")
    assert rejected["decision"] == "rejected" and await hands.json("prices", "held") == []
    assert "is held" in (await hands("prices", "release", held["version"], code=1)).output
    assert (await hands.json("check"))["ok"]


async def test_a_held_change_leaves_the_old_price_in_force_until_somebody_vouches(hands: Hands, tmp_path: Path) -> None:
    files, gateway = Files(tmp_path), hands.gateway
    await hands(*files.litellm())
    said = await hands.json(*files.litellm(**{"chat-4": (24e-6, 8e-6), "chat-5": None}), code=1)
    (held,) = (row for row in said["versions"] if row["held_since"])
    assert held["model"] == "chat-4" and [why["unit"] for why in held["reasons"]] == ["input"]
    text = (await hands("prices", "held")).output
    assert held["version"] in text and "$0.000002" in text and "$0.000024" in text
    meanwhile, other = used(gateway, "chat-4"), used(gateway, "chat-5", log_retention_days=0)
    await hands.emit(meanwhile, other)
    old, new = 1000 * 2_000_000 + 100 * 8_000_000, 1000 * 24_000_000 + 100 * 8_000_000
    assert await charged(hands, meanwhile) == old
    balance = int((await hands.json("balance", "ws-1"))["balance_pico"])

    await hands("prices", "release", held["version"], "--ticket", "OPS-8")
    await hands.mesh.idle()
    # What it would have rated is rated again, and the difference is booked.
    assert await charged(hands, meanwhile) == new
    assert int((await hands.json("balance", "ws-1"))["balance_pico"]) == balance - (new - old)
    after = used(gateway, "chat-4")
    await hands.emit(after)
    assert await charged(hands, after) == new
    books = await hands.json("check")
    assert books["ok"] and books["rerated_lines"] == 2, books


async def test_a_second_source_lets_a_change_in(hands: Hands, tmp_path: Path) -> None:
    files, gateway = Files(tmp_path), hands.gateway
    await hands(*files.litellm())
    cut = {"chat-8": (0.3e-6, 1.2e-6)}
    said = await hands.json(*files.litellm(**cut), code=1)
    assert {why["reason"] for row in said["versions"] for why in row["reasons"]} == {"jump"}
    agreed = await hands.json(*files.models_dev(**cut))
    assert agreed["accepted"] == 1 and await hands.json("prices", "held") == []
    record = used(gateway, "chat-8")
    await hands.emit(record)
    assert await charged(hands, record) == 1000 * 300_000 + 100 * 1_200_000


async def test_reported_costs_stand_beside_our_rating(hands: Hands, tmp_path: Path) -> None:
    files, gateway = Files(tmp_path), hands.gateway
    await hands(*files.litellm())
    own = 1000 * 500_000 + 100 * 2_000_000
    await hands.emit(
        *(used(gateway, "chat-1", cost_reported_pico=str(cost)) for cost in (own, own, own * 2)),
        used(gateway, "chat-1", cost_reported_pico=str(own // 20), byok=True),
        used(gateway, "chat-1", flags=["sum_mismatch"]),
        used(gateway, "chat-1", flags=["negative_bucket"]),
    )
    rows = (await hands.json("reconcile"))["rows"]
    assert [(row["explanation"], row["generations"], int(row["drift_pico"])) for row in rows] == [
        ("byok_fee", 1, own // 20), ("equal", 2, 0), ("open", 1, own),
    ]  # fmt: skip
    assert [row["explanation"] for row in (await hands.json("reconcile", "--open"))["rows"]] == ["open"]
    assert "+100.00" in (await hands("reconcile", "--provider", PROVIDER)).output
    waits = await hands.json("quarantine", "list")
    assert [(row["reason"], row["n"]) for row in waits["counts"]] == [("negative_bucket", 1)]
    books = await hands.json("check")
    assert books["ok"] and (books["rated"], books["quarantined"]) == (5, 1)
    assert (
        "generations looked at"
        in (await hands("prices", "rerate", "--from", "2026-01-01", "--to", "2036-01-01", "--dry-run")).output
    )


async def test_a_file_that_is_none_changes_nothing(hands: Hands, tmp_path: Path) -> None:
    path = tmp_path / "prices.json"
    for text, said in (
        ('{"a": {"litellm_provider": "x", ', "line 1"),
        ('{"sample": {"price": 1}}', "not a price file"),
        ('{"a": {"litellm_provider": "x", "input_cost_per_token": NaN}}', "NaN"),
        ('{"a": {"litellm_provider": "x"}, "a": {"litellm_provider": "x"}}', "twice"),
    ):
        path.write_text(text)
        assert said in (await hands("prices", "import", str(path), "--source", "s", code=2)).output
    assert await hands.json("prices", "held") == []
