"""The price guard's numbers, and how each was chosen.

Levels are 1000 times the decimal logarithm of a price, so that a distance of 1000 is a factor of ten. "The public
history" is LiteLLM's price file from February to October 2025; what came later had no say.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from types import MappingProxyType

from services.metering.market import level
from services.metering.price_version import BUCKETS


@dataclass(frozen=True, slots=True)
class Parameters:
    """One set of numbers; the defaults are those in use."""

    jump: int = 1000
    """A change of 10x or more is held: the owner's rule."""
    slip: int = 46
    """A change within 11 % of a power of ten is a slip of units too, so from 9x on: prices get rounded."""
    kin_apart: int = 1300
    """A first price 20x or more from what other providers take for the model is held. Honest providers differ by up
    to 17x in the public history; a slip of units is 1000x."""
    kin_agree: int = 500
    """A first price within 3x of what others take is plausible, whatever its class costs: the same model is better
    evidence than similar ones."""
    class_high: int = 1500
    """A token's first price 32x above the median of its unit and size class is held. Of the honest prices of the
    history only Aleph Alpha's and o1-pro's are dearer; a price per thousand stands 1000x too high."""
    class_low: int = 2000
    """100x below is held too. The border is wider than above, because every born mistake of the history was too high
    and honest prices fall year by year."""
    class_other: int = 2200
    """160x either way for seconds, images and all that is no token: a second of speech and a second of film are one
    unit."""
    class_least: int = 8
    """Fewer prices than this make no class: their median would be an accident."""
    usual_high: int = 2000
    """Without a class, a token's price 100x above the usual one is held, and one 160x below (`class_other`)."""
    outside_apart: int = 2600
    """An outside kind of token is held 400x from a usual token price: some are priced in the provider's own money."""
    output_least: int = -1000
    """Output at less than a tenth of input is held: honest models of the history are above a fifth."""
    output_most: int = 1600
    """Output at more than 40x input is held: chat models are below 30x, and only image models in tokens reach
    100x."""
    free_models: int = 2
    """From 2 free models on, which are half of its models, a provider gives models away (ollama, lemonade)."""
    provider_models: int = 3
    """From 3 models with implausible first prices in one import on, the provider itself is in doubt ..."""
    provider_share: int = 50
    """... if they are half of its new models (percent): then its other first prices wait too, unless others take
    the same."""
    many_models: int = 30
    """From 30 models on that change 2x or more in one import, all of these changes are held ..."""
    many_share: int = 25
    """... if they are a quarter (percent) of all models, or of the provider's. The largest honest import of the
    history changed 25 models; a whole catalogue in another currency changes all."""
    many_change: int = 300
    """What counts as changed for that rule: 2x."""
    agree_percent: int = 1
    """Two sources agree when their prices differ by 1 % at most: OpenMeter's tolerance."""


PARAMETERS = Parameters()

USUAL: Mapping[str, int] = MappingProxyType(
    {
        unit: level(Decimal(price))
        for unit, price in {
            **dict.fromkeys(BUCKETS, "0.000002"),
            "input": "0.000001",
            "output": "0.000003",
            "cache_read": "0.0000003",
            "input_audio": "0.000005",
            "output_audio": "0.00003",
            "output_image": "0.00003",
            "request": "0.005",
            "web_search": "0.01",
            "image": "0.04",
            "second": "0.0003",
            "character": "0.000003",
            "page": "0.002",
        }.items()
    }
)
"""Levels of what a unit usually costs in US dollars, where too few prices are known: medians of the public history,
rounded, and of the providers' own lists for searches and pages. Outside units have none."""

USUAL_TOKEN = USUAL["reasoning"]
"""For kinds of tokens that the contract does not count."""
