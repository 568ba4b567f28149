"""What audit's own tables hold: verdicts about the books. Findings name journals, blocks and ledger numbers, no person."""

from __future__ import annotations

from shared.privacy.data_map import DataMap, plain

DATA_MAP: DataMap = plain(
    "verdict", "id", "proved_at", "kind", "ok", "determined", "duration_ms", "body", category="system.operations"
)
