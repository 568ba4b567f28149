"""Others' price files become statements of the contract: what is understood, exactly; the rest is counted."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metering.price_files import PriceFile, read_price_file
from services.metering.price_version import UNITS, from_event
from services.metering.seed import GenaiPrices
from shared.contract import events
from tests.unit.test_reconcile import AT


def read(document: Any) -> PriceFile:
    return read_price_file(document if isinstance(document, bytes) else json.dumps(document).encode())


def litellm(**fields: Any) -> dict[str, Any]:
    """The statements of one model, by tier."""
    found = read({"acme/m": {"litellm_provider": "acme", "mode": "chat"} | fields})
    return {stated["tier"]: stated for stated in found.lists}


def test_what_litellm_says_of_a_model_is_taken_apart_by_tier_and_context() -> None:
    tiers = litellm(
        input_cost_per_token=3e-06, output_cost_per_token=1.5e-05, cache_read_input_token_cost=3e-07,
        cache_creation_input_token_cost=3.75e-06, cache_creation_input_token_cost_above_1hr=6e-06,
        input_cost_per_token_above_200k_tokens=6e-06, output_cost_per_token_above_200k_tokens=2.25e-05,
        input_cost_per_token_batches=1.5e-06, output_cost_per_token_batches=7.5e-06, max_tokens=64000,
        supports_vision=True, input_cost_per_pixel=1e-9,
    )  # fmt: skip
    standard = tiers["standard"]
    prices = standard["prices"]
    assert (standard["provider"], standard["model"], standard["complete"]) == ("acme", "m", False)
    assert (prices["input"], prices["cache_read"], prices["cache_write_1h"]) == ("0.000003", "0.0000003", "0.000006")
    (above,) = standard["context_tiers"]
    assert above["above_input_tokens"] == 200_000
    assert above["prices"] == {"input": "0.000006", "output": "0.0000225"}
    assert (tiers["batch"]["prices"]["output"], "context_tiers" in tiers["batch"]) == ("0.0000075", False)
    # Nothing is stated that the file does not state.
    assert prices.keys() == {"input", "output", "cache_read", "cache_write_5m", "cache_write_1h"}


def test_models_dev_prices_a_million_tokens() -> None:
    cost = {
        "input": 1.25, "output": 10, "cache_read": 0.125, "context_over_200k": {"input": 2.5, "output": 15},
        "tiers": [{"tier": {"type": "context", "size": 400000}, "input": 5, "output": 20}],
    }  # fmt: skip
    found = read({"amazon-bedrock": {"id": "x", "models": {"m": {"cost": cost}, "bare": {}}}})
    (stated,) = found.lists
    assert found.format == "models.dev" and found.left_out == {"a model without a price": 1}
    assert (stated["provider"], stated["prices"]["input"], stated["prices"]["output"]) == (
        "aws", "0.00000125", "0.00001",
    )  # fmt: skip
    assert [(tier["above_input_tokens"], tier["prices"]["input"]) for tier in stated["context_tiers"]] == [
        (200_000, "0.0000025"), (400_000, "0.000005"),
    ]  # fmt: skip


def test_genai_prices_data_is_read_as_the_seed_is() -> None:
    document = [
        {
            "id": "acme", "name": "Acme", "api_pattern": "acme", "models": [
                {
                    "id": "m", "match": {"equals": "m"}, "prices": {
                        "input_mtok": {"base": 1, "tiers": [{"start": 1000, "price": 2}]}, "output_mtok": 4,
                    },
                },
            ],
        },
    ]  # fmt: skip
    found = read(document)
    (stated,) = found.lists
    version = from_event(stated | {"source": "s", "valid_from": "2026-01-01T00:00:00Z"}, AT, "pv_1")
    (seeded,) = GenaiPrices.from_raw(document).all_versions()
    for unit in UNITS:
        for tokens in (0, 1001):
            assert version.unit_price(unit, tokens) == seeded.unit_price(unit, tokens), unit
    with pytest.raises(ValueError, match="genai-prices"):
        read([{"no": "provider"}])


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"input_cost_per_token": "soon"}, "a price that is no number"),
        ({"input_cost_per_token": True}, "a price that is no number"),
        ({"input_cost_per_token": -1e-6}, "a price below 0"),
        ({"input_cost_per_token": 1e-26}, "a price with more than 24 decimal places"),
        ({"input_cost_per_pixel": 1e-9}, "a price in a unit that is not counted here"),
        ({"input_cost_per_token_above_200k_tokens": 1e-6}, "a tier with prices for long requests only"),
        ({"max_tokens": 5}, "a model without a price"),
    ],
)
def test_what_is_not_taken_is_counted(entry: dict[str, Any], why: str) -> None:
    good = {"litellm_provider": "acme", "input_cost_per_token": 1e-6}
    found = read({"acme/good": good, "acme/m": {"litellm_provider": "acme"} | entry})
    assert [stated["model"] for stated in found.lists] == ["good"]
    assert found.left_out[why] == 1


def test_of_two_prices_of_one_model_the_first_is_taken() -> None:
    prices = {"gemini/m": ("gemini", 1e-6), "vertex_ai/m": ("vertex_ai-language-models", 2e-6)}
    found = read({key: {"litellm_provider": p, "input_cost_per_token": n} for key, (p, n) in prices.items()})
    assert [(stated["provider"], stated["prices"]["input"]) for stated in found.lists] == [("google", "0.000001")]
    assert sum(found.left_out.values()) == 1


@given(
    st.dictionaries(
        st.sampled_from([
            "input_cost_per_token", "output_cost_per_token", "cache_read_input_token_cost", "input_cost_per_second",
            "output_cost_per_reasoning_token", "input_cost_per_audio_token", "input_cost_per_token_above_128k_tokens",
            "output_cost_per_token_batches", "input_cost_per_token_priority", "output_cost_per_image",
            "cache_read_input_token_cost_above_200k_tokens_priority",
        ]),
        st.decimals(0, 1, places=12), min_size=1,
    )
)  # fmt: skip
def test_every_statement_obeys_the_contract_and_makes_a_version(prices: dict[str, Decimal]) -> None:
    fields = ", ".join(f'"{name}": {price:f}' for name, price in prices.items())
    raw = '{"good": {"litellm_provider": "acme", "input_cost_per_token": 1}, "m": {"litellm_provider": "acme", %s}}'
    for stated in read((raw % fields).encode()).lists:
        said = stated | {"source": "s", "valid_from": "2026-01-01T00:00:00Z"}
        events.PriceList.model_validate_json(json.dumps(said))
        version = from_event(said, AT, "pv_1")
        if (version.model, version.tier) == ("m", "standard"):
            for name, unit in (("input_cost_per_token", "input"), ("output_cost_per_image", "image")):
                assert version.prices.get(unit) == prices.get(name)
