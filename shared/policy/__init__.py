"""The privacy policy as numbers (policy.toml), read once and validated."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import date, timedelta
from functools import lru_cache
from importlib.resources import files


@dataclass(frozen=True, slots=True)
class Policy:
    """The numbers of policy.toml; see the file for what each one means."""

    version: str
    effective_date: date
    region: str
    window: timedelta
    future: timedelta
    request_log_default_days: int
    request_log_max_days: int
    activity_days: int
    topic_max: timedelta
    rollup_months: int
    allow_plain_sealed: bool

    def __post_init__(self) -> None:
        if not 0 <= self.request_log_default_days <= self.request_log_max_days <= 90:
            raise ValueError("policy.toml: request_log needs 0 <= default_days <= max_days <= 90")
        if self.topic_max > timedelta(days=7):
            raise ValueError("policy.toml: topics.max_days is above the 7 days that the policy promises")
        if self.window <= self.topic_max:
            raise ValueError("policy.toml: deduplication.window_days must outlive the topics it protects")


@lru_cache(maxsize=1)
def policy() -> Policy:
    """The policy in force. Raises ValueError when its numbers contradict each other."""
    raw = tomllib.loads(files(__package__).joinpath("policy.toml").read_text(encoding="utf-8"))
    return Policy(
        version=raw["version"],
        effective_date=raw["effective_date"],
        region=raw["region"],
        window=timedelta(days=raw["deduplication"]["window_days"]),
        future=timedelta(minutes=raw["deduplication"]["future_minutes"]),
        request_log_default_days=raw["request_log"]["default_days"],
        request_log_max_days=raw["request_log"]["max_days"],
        activity_days=raw["activity"]["days"],
        topic_max=timedelta(days=raw["topics"]["max_days"]),
        rollup_months=raw["rollup"]["months"],
        allow_plain_sealed=raw["sealed"]["allow_plain"],
    )
