"""What audit's own tables hold: verdicts about the books. Findings name journals, blocks and ledger numbers, no person."""

from __future__ import annotations

from shared.privacy.data_map import DataMap, personal, plain

DATA_MAP: DataMap = (
    *plain(
        "verdict", "id", "proved_at", "kind", "ok", "determined", "duration_ms", "body", category="system.operations"
    ),
    *plain(
        "scan", "attempt", "case_id", "epoch", "action", "ordered_at", "stores", "done_at",
        category="system.operations",
    ),
    *personal(
        "scan", "sealed",
        category="user.unique_id", use="essential.legal_obligation", clock_start="erasure_confirmed",
        period="account_closure", on_erasure="shred", ground="legal_obligation",
        note="whom to look for, under the case's key; NULL once they have been looked for",
    ),
)  # fmt: skip
