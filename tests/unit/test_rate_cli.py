"""`steward rate`, through the command: exit codes, exact JSON, and what a person sees."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from deploy.cli import main

KEYS = {"buckets", "counts", "amount_pico", "price_version", "unit_prices", "flags", "cost_reported"}
CLAUDE: dict[str, Any] = {
    "model": "claude-sonnet-4-5",
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 3,
        "cache_read_input_tokens": 1000,
        "cache_creation_input_tokens": 10,
        "output_tokens": 100,
    },
}


def run(body: Any, *options: str) -> Result:
    """The command on its standard input; at a fixed day, unless told otherwise."""
    if "--at" not in options:
        options = (*options, "--at", "2026-11-01")
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    return CliRunner().invoke(main, ["rate", "-", *options], input=text)


def said(body: Any, *options: str, code: int = 0) -> dict[str, Any]:
    answer = run(body, *options, "--json")
    assert answer.exit_code == code, answer.output
    document: dict[str, Any] = json.loads(answer.stdout)
    assert document.keys() >= KEYS
    return document


def test_an_answer_is_priced_exactly(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text(json.dumps(CLAUDE), encoding="utf-8")
    answer = CliRunner().invoke(main, ["rate", str(path), "--provider", "anthropic", "--at", "2026-11-01", "--json"])
    assert answer.exit_code == 0
    document = json.loads(answer.stdout)
    assert document == said(CLAUDE, "--provider", "anthropic", "--at", "2026-11-01T00:00:00Z")
    assert document["buckets"] == {"input": 3, "cache_read": 1000, "cache_write_5m": 10, "output": 100}
    assert document["unit_prices"] == {
        "input": "0.000003", "cache_read": "0.0000003", "cache_write_5m": "0.00000375", "output": "0.000015"
    }  # fmt: skip
    # 3 x 3,000,000 + 1000 x 300,000 + 10 x 3,750,000 + 100 x 15,000,000 pico-dollars
    assert document["amount_pico"] == "1846500000"
    assert document["price_version"].startswith("pv_")
    assert (document["flags"], document["cost_reported"], document["counts"]) == ([], None, {})


def test_without_a_time_it_is_now() -> None:
    before = datetime.now(UTC)
    answer = CliRunner().invoke(main, ["rate", "-", "--provider", "anthropic", "--json"], input=json.dumps(CLAUDE))
    assert answer.exit_code == 0
    assert before <= datetime.fromisoformat(json.loads(answer.stdout)["at"]) <= datetime.now(UTC)


def test_the_amount_is_the_sum_of_its_lines() -> None:
    document = said({**CLAUDE, "usage": {**CLAUDE["usage"], "server_tool_use": {"web_search_requests": 2}}},
                    "--provider", "anthropic")  # fmt: skip
    assert document["counts"] == {"web_search": 2}
    used = {**document["buckets"], **document["counts"]}
    exact = sum(Fraction(price) * used[unit] for unit, price in document["unit_prices"].items()) * 10**12
    assert document["amount_pico"] == str(exact) == str(sum(Fraction(line["exact_pico"]) for line in document["lines"]))


def test_the_bare_usage_needs_a_model_and_counts_as_ended_well() -> None:
    """Metering bills nothing for a blank end without a completion; an unknown end is no blank one."""
    usage = {"prompt_tokens": 1_000_000, "completion_tokens": 0}
    assert said(usage, "--provider", "openai", "--model", "gpt-5")["amount_pico"] == "1250000000000"
    blank = said({"choices": [{"finish_reason": None}], "usage": usage}, "--provider", "openai", "--model", "gpt-5")
    assert (blank["amount_pico"], blank["rule"]) == ("0", "zero_completion")


def test_the_model_option_overrules_the_body() -> None:
    dear = said(CLAUDE, "--provider", "anthropic", "--model", "claude-opus-4-1")
    assert dear["model"] == "claude-opus-4-1"
    assert int(dear["amount_pico"]) > int(said(CLAUDE, "--provider", "anthropic")["amount_pico"])


def test_at_chooses_the_price() -> None:
    """DeepSeek's hours, as genai-prices has them."""
    body = {"prompt_tokens": 1000, "completion_tokens": 1000}
    options = ("--provider", "deepseek", "--model", "deepseek-reasoner", "--at")
    night, day = (said(body, *options, f"2025-06-01T{hour}:00:00+02:00") for hour in ("20", "04"))
    assert night["amount_pico"] != day["amount_pico"]
    assert night["price_version"] != day["price_version"]


def test_reported_cost_stays_exact_and_is_compared() -> None:
    text = json.dumps({"model": "openai/gpt-5", "usage": {"prompt_tokens": 8, "completion_tokens": 1, "cost": 7}})
    text = text.replace('"cost": 7', '"cost": 0.000020100000000000000001')
    assert said(text, "--provider", "openrouter")["cost_reported"] == "0.000020100000000000000001"
    shown = run(text, "--provider", "openrouter").output
    assert "The provider reports $0.000020100000000000000001: more than this" in " ".join(shown.split())
    same = text.replace("0.000020100000000000000001", "0.00002")
    assert "The provider reports $0.00002: the same." in run(same, "--provider", "openrouter").output


@pytest.mark.parametrize(
    ("body", "options", "flag", "missing"),
    [
        ({"prompt_tokens": 1, "completion_tokens": 1}, ("openai", "--model", "no-such-model"), "unknown_model", None),
        ({"prompt_tokens": 1, "completion_tokens": 1}, ("openai",), "unknown_model", None),
        ({"prompt_tokens": 1, "completion_tokens": 1}, ("nobody", "--model", "gpt-5"), "unknown_model", None),
        ({"service_tier": "priority", "usage": CLAUDE["usage"]}, ("anthropic", "--model", "claude-sonnet-4-5"),
         "unknown_price", "tier:priority"),
        ({"model": "whisper-1", "usage": {"prompt_tokens": 1, "completion_tokens": 1, "num_sources_used": 1}},
         ("openai",), "unknown_price", "web_search"),
        ({"model": "gpt-5", "usage": {"prompt_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}}, ("openai",),
         "negative_bucket", None),
    ],
)  # fmt: skip
def test_without_an_amount_the_json_is_whole_and_the_exit_code_1(
    body: Any, options: tuple[str, ...], flag: str, missing: str | None
) -> None:
    document = said(body, "--provider", *options, code=1)
    assert (document["amount_pico"], document["missing"]) == (None, missing)
    assert document["flags"] == [flag]
    assert document["buckets"]
    shown = run(body, "--provider", *options)
    assert shown.exit_code == 1
    assert f"No amount: {flag}" in shown.output


def test_a_mismatch_is_flagged_and_priced() -> None:
    body = {"model": "gpt-5", "usage": {"prompt_tokens": 35, "completion_tokens": 12, "total_tokens": 109}}
    document = said(body, "--provider", "openai")
    assert document["flags"] == ["total_mismatch"]
    assert document["amount_pico"] == str(35 * 1_250_000 + 12 * 10_000_000)
    assert "total_mismatch: the provider's total is not the sum" in run(body, "--provider", "openai").output


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{", "no JSON object"),
        ("", "no JSON object"),
        (b"\xff\xfe\xff", "no JSON object"),
        ("[1]", "it is no object"),
        ('{"usage": {"prompt_tokens": NaN}}', "NaN"),
        ('{"prompt_tokens": 1, "prompt_tokens": 2}', "twice"),
        ("[" * 100_000, "no JSON object"),
        ('{"prompt_tokens": ' + "9" * 5000 + "}", "no JSON object"),
        ('{"prompt_tokens": 1e999999}', "prompt_tokens is no whole number"),
        ('{"prompt_tokens": "12345"}', "prompt_tokens is no whole number"),
        ('{"secret": "12345"}', "no usage of openai in it"),
        ('{"usageMetadata": {"promptTokenCount": 1}}', "no usage of openai in it"),
    ],
)
def test_what_is_no_usage_is_exit_code_2(body: str | bytes, why: str) -> None:
    answer = run(body, "--provider", "openai", "--json")
    assert answer.exit_code == 2
    assert why in answer.output
    assert "12345" not in answer.output
    assert "secret" not in answer.output


@pytest.mark.parametrize("at", ["yesterday", "2026-11-24T21:00:00", "2026-13-01", "0001-01-01T00:00:00+14:00"])
def test_a_bad_time_is_exit_code_2(at: str) -> None:
    answer = run(CLAUDE, "--provider", "anthropic", "--at", at)
    assert answer.exit_code == 2
    assert "--at" in answer.output


def test_an_unreadable_file_and_a_missing_provider_are_exit_code_2(tmp_path: Path) -> None:
    assert CliRunner().invoke(main, ["rate", str(tmp_path / "none.json"), "--provider", "openai"]).exit_code == 2
    assert run(CLAUDE).exit_code == 2


def test_a_person_sees_units_prices_and_the_sum() -> None:
    shown = run(CLAUDE, "--provider", "anthropic").output
    for word in (
        "claude-sonnet-4-5 at anthropic",
        "cache_write_5m",
        "0.00000375",
        "1846500000",
        "It costs $0.0018465.",
    ):
        assert word in shown
    # A used second below the least that is billed.
    audio = run({"type": "duration", "seconds": 2.6}, "--provider", "groq", "--model", "whisper-large-v3").output
    assert next(line.split() for line in audio.splitlines() if " second " in line)[3:8:2] == ["3", "10", "37/1200000"]
