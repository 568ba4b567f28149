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
class Disclosed:
    """What was disclosed of the person to somebody outside, as they may know it. `date`: RFC 3339."""

    date: str
    recipient: str
    basis: str
    instrument: str
    scope: str


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
        """Its files. A table without a row has none, nor has one whose rows were not asked for."""
        if not self.told.parts:
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
    disclosed: tuple[Disclosed, ...] = ()

    @property
    def rows_asked_for(self) -> bool:
        """Whether it holds the rows themselves, or only says what there is."""
        return any(source.files for source in self.sources) or not any(source.told.rows for source in self.sources)
