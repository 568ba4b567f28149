"""The privacy policy as numbers (policy.toml), read once and validated.

Also part of the emitter's wheel: standard library and relative imports only.
"""

from __future__ import annotations

import os
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from .deadlines import Clock, Deadline, due, forecast
from .load import digest_of, load_policy, renewed
from .rules import Policy, PolicyError, Recipient

__all__ = [
    "Clock",
    "Deadline",
    "Policy",
    "PolicyError",
    "Recipient",
    "digest_of",
    "due",
    "forecast",
    "load_policy",
    "policy",
    "policy_text",
    "renewed",
]

# Another gateway's policy file, instead of the one beside this module.
VARIABLE = "STEWARD_POLICY"


def policy_text() -> str:
    """The policy file in force, as it stands. Raises PolicyError when STEWARD_POLICY names no readable file."""
    path = os.environ.get(VARIABLE)
    if not path:
        return files(__package__).joinpath("policy.toml").read_text(encoding="utf-8")
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PolicyError(f"{VARIABLE} names a file that cannot be read ({type(error).__name__}): {path}.") from error


@lru_cache(maxsize=1)
def policy() -> Policy:
    """The policy in force, read at the first call. Raises PolicyError when it may not be used: nothing starts then."""
    return load_policy(policy_text())
