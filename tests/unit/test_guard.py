"""The price guard's rules, one small market each, and what must hold for any import."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metering.guard import Change, Verdict, judge
from services.metering.market import Market, PriceKey, level
from services.metering.model_names import family, says_free, size_class

OURS = "ours"


def key(model: str, unit: str = "input", provider: str = "alpha", tier: str = "standard", above: int = 0) -> PriceKey:
    return PriceKey(provider, model, tier, unit, above)


def market(prices: Iterable[tuple[PriceKey, str]] = ()) -> Market:
    """Ten small and ten large models of one provider, and whatever a test adds."""
    made = Market()
    for nth in range(10):
        made.put(key(f"a{nth}-8b", "input", "beta"), Decimal("0.0000001") + nth * Decimal("0.00000001"))
        made.put(key(f"a{nth}-8b", "output", "beta"), Decimal("0.0000002") + nth * Decimal("0.00000001"))
        made.put(key(f"a{nth}-pro", "input", "beta"), Decimal("0.000003") + nth * Decimal("0.0000001"))
        made.put(key(f"a{nth}-pro", "output", "beta"), Decimal("0.000015") + nth * Decimal("0.0000001"))
    for each, price in prices:
        made.put(each, Decimal(price))
    return made


def changes(known: Market, **new: str | None) -> list[Change]:
    """Of model x-8b, by unit."""
    return [
        Change(key("x-8b", unit), known.price(key("x-8b", unit)), None if price is None else Decimal(price))
        for unit, price in new.items()
    ]


def reasons(verdicts: Iterable[Verdict]) -> list[str]:
    return [verdict.reason if verdict.held else "" for verdict in verdicts]


def change_of(old: str, new: str | None, also: Iterable[tuple[PriceKey, str]] = ()) -> Verdict:
    known = market([(key("x-8b"), old), *also])
    [verdict] = judge(known, changes(known, input=new), OURS)
    return verdict


# ---- changes


@pytest.mark.parametrize("new", ["0.00000009", "0.0000002", "0.00000089", "0.0000000113"])
def test_a_change_below_nine_times_is_ordinary(new: str) -> None:
    assert change_of("0.0000001", new) == Verdict(False, "ordinary")


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ("0.0000009", "unit_slip"),
        ("0.000001", "unit_slip"),
        ("0.000003", "jump"),
        ("0.0001", "unit_slip"),
        ("0.00000001", "unit_slip"),
        ("0.000000003", "jump"),
        ("0", "to_zero"),
        ("-1", "negative"),
        (None, "vanished"),
    ],
)
def test_what_is_held_of_a_change(new: str | None, reason: str) -> None:
    verdict = change_of("0.0000001", new)
    assert (verdict.held, verdict.reason) == (True, reason)


def test_from_zero_is_held() -> None:
    assert change_of("0", "0.0000001").reason == "from_zero"


def test_a_jump_from_an_implausible_to_a_plausible_price_passes_and_not_the_other_way() -> None:
    assert change_of("0.0001", "0.0000001") == Verdict(
        False, "correction", "the price in force was 670x the median of its class"
    )
    assert change_of("0.0000001", "0.0001").held


def test_prices_that_change_together_are_no_evidence_for_each_other() -> None:
    wrong = {key("x-8b"): "0.0001", key("x-8b", tier="flex"): "0.0001"}
    known = market(wrong.items())
    new = [Change(each, Decimal(price), Decimal("0.0000001")) for each, price in wrong.items()]
    assert [verdict.reason for verdict in judge(known, new, OURS)] == ["correction"] * 2


def test_a_jump_that_the_same_model_confirms_elsewhere_passes_only_from_an_implausible_price() -> None:
    elsewhere = [(key("x-8b", provider="gamma"), "0.000001"), (key("x-8b", provider="delta"), "0.000001")]
    assert change_of("0.00003", "0.000001", elsewhere).reason == "correction"
    assert change_of("0.0000001", "0.000001", elsewhere).reason == "unit_slip"


def test_what_vanished_and_was_never_in_force_is_nothing() -> None:
    known = market()
    assert judge(known, changes(known, input=None), OURS) == [Verdict(False, "gone")]


# ---- first prices


def test_first_prices_like_those_of_the_class_pass() -> None:
    known = market()
    verdicts = judge(known, changes(known, input="0.00000005", output="0.0000003", cache_read="0.00000001"), OURS)
    assert verdicts == [Verdict(False, "plausible")] * 3


@pytest.mark.parametrize("times", ["1000", "1000000", "0.001"])
def test_a_slip_of_units_is_held_at_birth(times: str) -> None:
    known = market()
    wrong = {"input": Decimal("0.00000005"), "output": Decimal("0.0000003")}
    verdicts = judge(known, changes(known, **{unit: str(p * Decimal(times)) for unit, p in wrong.items()}), OURS)
    assert reasons(verdicts) == ["implausible_first"] * 2


def test_the_same_model_elsewhere_is_better_evidence_than_its_class() -> None:
    dear = [(key("beta/x-8b-instruct", provider="beta"), "0.000005")]
    known = market(dear)
    assert not judge(known, changes(known, input="0.000006"), OURS)[0].held
    assert judge(known, changes(known, input="0.0000001"), OURS)[0].detail == "1/50 what the model costs elsewhere"


def test_one_other_new_price_is_no_evidence_and_two_are() -> None:
    def born(provider: str, price: str) -> Change:
        return Change(key("y-8b", provider=provider), None, Decimal(price))

    two = [born("alpha", "0.00000002"), born("gamma", "0.000002")]
    assert reasons(judge(market(), two, OURS)) == ["", ""]
    three = [*two, born("delta", "0.000002")]
    assert reasons(judge(market(), three, OURS)) == ["implausible_first", "", ""]
    assert reasons(judge(market(), [*three, born("epsilon", "0.000002")], OURS)) == ["implausible_first", "", "", ""]


def test_without_a_class_the_usual_price_of_the_unit_decides() -> None:
    known = Market()
    assert reasons(judge(known, changes(known, input="0.000002", page="0.001", second="0.0001"), OURS)) == [""] * 3
    assert (
        reasons(judge(known, changes(known, input="0.002", page="1", second="0.1"), OURS)) == ["implausible_first"] * 3
    )


def test_an_unknown_unit_without_company_is_believed() -> None:
    known = Market()
    assert reasons(judge(known, changes(known, input_cost_per_widget="1000"), OURS)) == [""]


def test_the_stranger_of_input_and_output_is_held_and_its_card_with_it() -> None:
    known = market()
    new = changes(known, input="0.0000001", output="0.000006", cache_read="0.00000001", second="0.0001")
    assert reasons(judge(known, new, OURS)) == ["card_slip", "output_against_input", "card_slip", ""]


def test_a_provider_in_doubt_is_held_whole_save_what_others_confirm() -> None:
    known = market([(key("agreed", provider="gamma"), "0.000004")])

    def born(model: str, price: str) -> Change:
        return Change(key(model), None, Decimal(price))

    wrong = [born(f"wrong{nth}-8b", "0.0001") for nth in range(3)]
    new = [*wrong, born("cheap-pro", "0.00003"), born("agreed", "0.000005")]
    assert reasons(judge(known, new, OURS)) == ["implausible_first"] * 3 + ["provider_slip", ""]
    assert reasons(judge(known, new[1:], OURS)) == ["implausible_first"] * 2 + ["", ""]


@pytest.mark.parametrize(
    ("model", "held"),
    [("x-8b", True), ("x-8b:free", False), ("x-exp-0801", False), ("x-embed", False), ("omni-moderation", False)],
)
def test_free_is_held_unless_the_name_says_it_or_such_work_often_is(model: str, held: bool) -> None:
    known = market((key(f"paid{nth}"), "0.000001") for nth in range(3))
    new = [Change(key(model, unit), None, Decimal(0)) for unit in ("input", "output")]
    assert reasons(judge(known, new, OURS)) == ["zero_first" if held else ""] * 2


def test_a_provider_that_gives_models_away_is_believed() -> None:
    known = market([(key("one"), "0"), (key("two"), "0")])
    assert reasons(judge(known, changes(known, input="0"), OURS)) == [""]


def test_output_may_be_free_beside_an_input_that_is_not() -> None:
    known = market([(key("paid"), "0.000001")])
    assert reasons(judge(known, changes(known, input="0.0000001", output="0"), OURS)) == ["", ""]


# ---- other sources


def test_a_second_source_releases_within_one_percent() -> None:
    known = market([(key("x-8b"), "0.0000001")])
    known.quote("theirs", key("x-8b"), Decimal("0.00001009"))
    assert judge(known, changes(known, input="0.00001"), OURS)[0].reason == "agreed"
    known.quote("theirs", key("x-8b"), Decimal("0.0000102"))
    assert judge(known, changes(known, input="0.00001"), OURS)[0].held


def test_a_source_does_not_agree_with_itself() -> None:
    known = market([(key("x-8b"), "0.0000001")])
    known.quote(OURS, key("x-8b"), Decimal("0.00001"))
    assert judge(known, changes(known, input="0.00001"), OURS)[0].held


def test_a_first_price_that_another_source_contradicts_is_held() -> None:
    known = market()
    known.quote("theirs", key("x-8b"), Decimal("0.0000020"))
    assert judge(known, changes(known, input="0.0000002"), OURS)[0].detail == "1/10 what other sources say"
    known.quote("theirs", key("x-8b"), None)
    assert not judge(known, changes(known, input="0.0000002"), OURS)[0].held


# ---- cross-checks, units, many


@pytest.mark.parametrize(
    ("changed", "beside", "reason"),
    [
        (key("x-8b", "cache_read"), key("x-8b"), "cache_above_input"),
        (key("x-8b", tier="batch"), key("x-8b"), "batch_above_standard"),
        (key("x-8b"), key("x-8b", above=200_000), "long_below_base"),
    ],
)
def test_broken_cross_checks_are_held_from_either_side(changed: PriceKey, beside: PriceKey, reason: str) -> None:
    low, high = Decimal("0.00000010"), Decimal("0.00000012")
    known = market([(changed, str(low)), (beside, str(low))])
    assert judge(known, [Change(changed, low, high)], OURS)[0].reason == reason
    known = market([(changed, str(high)), (beside, str(high))])
    assert judge(known, [Change(beside, high, low)], OURS)[0].reason == reason
    both = [Change(changed, high, Decimal("0.00000013")), Change(beside, high, Decimal("0.00000013"))]
    assert reasons(judge(known, both, OURS)) == ["", ""]


def test_another_measure_for_a_model_is_held() -> None:
    known = market([(key("x-8b", "character"), "0.000001")])
    verdicts = judge(known, changes(known, character=None, input="0.0000001"), OURS)
    assert reasons(verdicts) == ["vanished", "changed_unit"]


@pytest.mark.parametrize(("models", "held"), [(29, False), (30, True)])
def test_many_models_at_once_are_held(models: int, held: bool) -> None:
    many = [key(f"m{nth}-8b", provider="gamma") for nth in range(40)]
    known = market((each, "0.0000001") for each in many)
    new = [Change(each, Decimal("0.0000001"), Decimal("0.0000003")) for each in many[:models]]
    assert {verdict.reason for verdict in judge(known, new, OURS)} == {"many_models" if held else "ordinary"}


def test_a_price_named_twice_is_refused() -> None:
    known = market()
    with pytest.raises(ValueError, match="names one price twice"):
        judge(known, changes(known, input="0.0000001") * 2, OURS)


# ---- any import

prices = st.decimals(min_value=0, max_value=1, places=9, allow_nan=False)
keys = st.builds(
    PriceKey,
    st.sampled_from(["alpha", "gamma"]),
    st.sampled_from(["x-8b", "y-8b", "z-pro", "w"]),
    st.sampled_from(["standard", "batch"]),
    st.sampled_from(["input", "output", "cache_read", "second"]),
    st.sampled_from([0, 200_000]),
)
imports = st.dictionaries(keys, st.tuples(st.none() | prices, st.none() | prices), max_size=25)


@given(imports, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_nothing_changes(
    moves: dict[PriceKey, tuple[Decimal | None, Decimal | None]], random: object
) -> None:
    known = market((each, str(old)) for each, (old, _) in moves.items() if old is not None)
    new = [Change(each, old, price) for each, (old, price) in moves.items()]
    first = dict(zip(moves, judge(known, new, OURS), strict=True))
    shuffled = list(new)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    again = dict(zip([change.key for change in shuffled], judge(known, shuffled, OURS), strict=True))
    assert first == again


@given(prices.filter(bool), prices.filter(bool))
def test_a_change_far_from_any_evidence_is_judged_alike_in_both_directions(one: Decimal, other: Decimal) -> None:
    there, back = (
        judge(Market(), [Change(key("x", "widgets"), old, new)], OURS)[0] for old, new in ((one, other), (other, one))
    )
    assert there.held == back.held
    assert (
        there.held == (max(one, other) >= Decimal("8.99") * min(one, other))
        or abs(abs(level(one) - level(other)) - 954) <= 1
    )


@given(imports, st.sampled_from([-3, 3]))
def test_changes_are_judged_by_ratio_not_by_size(
    moves: dict[PriceKey, tuple[Decimal | None, Decimal | None]], power: int
) -> None:
    """In a market of outside units, where nothing has a usual price."""

    def judged(shift: int) -> list[Verdict]:
        known = Market()
        new = []
        for each, (old, price) in moves.items():
            if old is not None and price is not None:
                outside = each._replace(unit="widgets_of_" + each.unit.replace("cache_read", "stock"))
                known.put(outside, old.scaleb(shift))
                new.append(Change(outside, old.scaleb(shift), price.scaleb(shift)))
        return judge(known, new, OURS)

    assert reasons(judged(0)) == reasons(judged(power))


@given(st.lists(st.tuples(keys, st.none() | prices), max_size=40))
def test_a_market_forgets_what_it_is_told_to_forget(puts: list[tuple[PriceKey, Decimal | None]]) -> None:
    known, last = market(), dict(puts)
    for each, price in puts:
        known.put(each, price)
    for each in last:
        known.put(each, None)
    fresh = market()
    assert not any(known.longer(each) for each in last)
    probe = [Change(each, None, Decimal("0.00001")) for each in last]
    assert known.model_count == fresh.model_count
    assert judge(known, probe, OURS) == judge(fresh, probe, OURS)


# ---- names


@pytest.mark.parametrize(
    "name",
    [
        "claude-3-5-sonnet-20241022",
        "bedrock/us.anthropic.claude-3-5-sonnet-20240620-v1:0",
        "openrouter/anthropic/claude-3.5-sonnet:beta",
        "vertex_ai/claude-3-5-sonnet@20240620",
    ],
)
def test_resellers_names_are_one_family(name: str) -> None:
    assert family(name) == "claude35sonnet"


def test_other_models_are_other_families() -> None:
    names = [
        "gpt-4o",
        "gpt-4o-mini",
        "gpt-4.1",
        "gpt-4",
        "llama-3.1-8b",
        "llama-3.1-70b",
        "llama-3-70b",
        "o1",
        "o1-pro",
    ]
    assert len({family(name) for name in names}) == len(names)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("gemini-2.5-pro", "large"),
        ("gemini-2.5-flash", "small"),
        ("meta-llama/Llama-3.3-70B-Instruct-Turbo", "b5"),
        ("mixtral-8x7b", "b5"),
        ("together_ai/baai/bge-base-en-v1.5", "embed"),
        ("whisper-large-v3", "speech"),
        ("mistral-medium", ""),
    ],
)
def test_size_classes(name: str, size: str) -> None:
    assert size_class(name) == size


def test_names_that_say_free() -> None:
    assert says_free("qwen/qwen3-8b:free") and says_free("gemini-2.0-flash-exp")
    assert not says_free("gpt-4o") and not says_free("expert-7b")
