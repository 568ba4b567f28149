"""What a package holds, as far as it is known before the rows are read."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from shared.policy import Policy
from shared.privacy.told import ToldTable


@dataclass(frozen=True, slots=True)
class Missing:
    """What is not in the package, and why, each as a person can read it."""

    source: str
    why: str


@dataclass(frozen=True, slots=True)
class Source:
    """One table of one holder in the package."""

    holder: str
    table: str
    told: ToldTable

    @property
    def columns(self) -> list[str]:
        """Their names, in the order in which they stand in a row."""
        return [column.name for column in self.told.columns]

    @property
    def files(self) -> list[str]:
        """Its files. A table without a row has none."""
        if not self.told.rows:
            return []
        place = f"{self.holder}/{self.table}"
        return [f"data/{place}.jsonl", f"data/{place}.csv", f"schema/{self.holder}.{self.table}.json"]


@dataclass(frozen=True, slots=True)
class Contents:
    """What a package holds, as far as it is known before the rows are read: what its page says."""

    case: str
    made_at: datetime
    policy: Policy
    sources: tuple[Source, ...]
    missing: tuple[Missing, ...]
    since: str | None
    until: str | None
