"""What metering's columns hold about people, why, for how long, and what an erasure does to it."""

from __future__ import annotations

from shared.policy import policy
from shared.privacy import DataMap, Holding, Rows, personal, plain

DATA_MAP: DataMap = (
    *personal(
        "seen", "key",
        category="user.unique_id.pseudonymous", use="essential.service", clock_start="id_day",
        period="deduplication_window", on_erasure="expire", ground="contract",
        note="48 bits of time and a hash of the id under its day's key; the key is destroyed with the partition",
    ),
    *personal(
        "seen", "digest",
        category="user.behavior", use="essential.service", clock_start="id_day",
        period="deduplication_window", on_erasure="expire", ground="contract",
        note="32 bits: tells same from different content, and no more",
    ),
    *personal(
        "charged", "key", "owner",
        category="user.unique_id.pseudonymous", use="essential.service", clock_start="id_day",
        period="deduplication_window", on_erasure="expire", ground="contract",
        note="the key of `seen`, and the workspace hashed under it and the day's key, which is destroyed with the partition",
    ),
    *personal(
        "charged", "occurred_at", "input_tokens", "output_tokens", "amount_pico", "tier", "rule", "quantities",
        category="user.behavior", use="essential.service", clock_start="id_day",
        period="deduplication_window", on_erasure="expire", ground="contract",
        note="what a correction reverses by, where no log row outlives de-duplication; leads to nobody",
    ),
    *plain("charged", "retention_days", "price_version"),
    *personal(
        "request_log", "generation_id", "generation_ref", "account", "workspace", "key_id", "record", "line",
        category="user.unique_id", use="essential.service", clock_start="request", period="request_log",
        on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "request_log", "occurred_at", "provider", "model", "tier", "ended", "rule", "quantities", "input_tokens",
        "output_tokens", "amount_pico",
        category="user.behavior", use="essential.service", clock_start="request", period="request_log",
        on_erasure="delete_row", ground="contract",
    ),
    *plain("request_log", "expires_on", "retention_days", "price_version"),
    *personal(
        "workspace_setting", "workspace", "account",
        category="user.unique_id", use="essential.service", clock_start="account_closed", period="account_closure",
        on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "workspace_setting", "version", "log_retention_days", "ended_before",
        category="user.privacy_preferences", use="essential.service", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
    ),
    *plain("workspace_setting", "treating", "treated", "revision"),
    *personal(
        "key_setting", "key", "account",
        category="user.unique_id", use="essential.service", clock_start="account_closed", period="account_closure",
        on_erasure="delete_row", ground="contract", note="keys whose makers keep their log shorter; not who they are",
    ),
    *personal(
        "key_setting", "version", "log_retention_days", "ended_before",
        category="user.privacy_preferences", use="essential.service", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
    ),
    *plain("key_setting", "treating", "treated", "revision"),
    *plain("setting_revision", "single", "revision"),
    *personal(
        "quarantine", "event_id", "usage", "line_key", "original_key",
        category="user.unique_id", use="essential.service", clock_start="arrival", period="account_closure",
        on_erasure="delete_row", ground="contract",
        note="usage that waits for its price; at log retention 0 without generation, key and reference",
    ),
    *personal(
        "quarantine", "event_at", "known_at", "arrived_at", "provider", "model",
        category="user.behavior", use="essential.service", clock_start="arrival", period="account_closure",
        on_erasure="delete_row", ground="contract",
    ),
    *plain("quarantine", "id", "reason", "missing", "event_type"),
    *personal(
        "stale_seen", "ident",
        category="user.unique_id.pseudonymous", use="essential.service", clock_start="arrival",
        period="deduplication_window", on_erasure="expire", ground="contract",
        note="a hash of the id under its month's key",
    ),
    *plain("stale_seen", "seen_on"),
    *plain(
        "price", "version", "provider", "model", "tier", "body", "known_from", "source", "revision", "name", "batch", "spoken",
        "reasons", "held_since", "decision", "decided_at", "ticket",
    ),
    *personal(
        "price", "decided_by",
        category="user.workplace", use="finance", clock_start="booking_year_end", period="billing_record",
        on_erasure="retain", ground="legal_obligation",
        note="which member of staff released or rejected a price: part of the proof of what was charged",
    ),
    *plain("price_revision", "single", "revision"),
    *plain(
        "rerating", "id", "ordered_at", "asked", "examined", "changed", "unpriced", "before_pico", "after_pico", "ended_at"
    ),
    *plain(
        "cost_comparison", "day", "provider", "model", "explanation", "generations", "rated_pico", "reported_pico"
    ),
    *plain("cost_pending", "day", "provider", "model", "explanation", "generations", "rated_pico", "reported_pico"),
    *plain("pending", "id"),
    *personal(
        "pending", "workspaces", "keys",
        category="user.unique_id", use="essential.service", clock_start="arrival", period="usage_rollup",
        on_erasure="delete_row", ground="contract", note="sums on their way into the rollups, a second old",
    ),
    *personal(
        "pending", "models", "hours", "generations", "input_tokens", "output_tokens", "amounts",
        category="user.behavior", use="essential.service", clock_start="arrival", period="usage_rollup",
        on_erasure="delete_row", ground="contract", note="sums on their way into the rollups, a second old",
    ),
    *personal(
        "rollup_hourly", "workspace", "key_id",
        category="user.unique_id", use="essential.service", clock_start="hour", period="usage_rollup",
        on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "rollup_hourly", "model", "hour", "generations", "input_tokens", "output_tokens", "amount_pico",
        category="user.behavior", use="essential.service", clock_start="hour", period="usage_rollup",
        on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "rollup_daily", "workspace",
        category="user.unique_id", use="essential.service", clock_start="hour", period="usage_rollup",
        on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "rollup_daily", "day", "generations", "input_tokens", "output_tokens", "amount_pico",
        category="user.behavior", use="essential.service", clock_start="hour", period="usage_rollup",
        on_erasure="delete_row", ground="contract",
    ),
)  # fmt: skip

# Usage that nobody could price is kept no longer than what is left of a closed account; hourly, and at or before.
_WAITS_HOURS = 24 * policy().closure_cap_days - 2
_OWNERS = {"account": "account", "workspace": "workspace"}
_WAITING = {kind: f"usage->>'{kind}'" for kind in ("account", "workspace")}

HOLDING = Holding(
    "metering",
    DATA_MAP,
    (
        # Added up before an erasure begins: nothing in it is anybody's by then.
        Rows("pending", ends="added to the rollups within seconds"),
        Rows(
            "quarantine",
            _WAITING,
            expires=f"arrived_at + interval '{_WAITS_HOURS} hours'",
            moves=("quarantined", "erased"),
            when="event_at",
        ),
        # A date: W has passed since the day's end.
        Rows("stale_seen", expires=f"seen_on + {policy().window.days + 1}"),
        Rows("request_log", _OWNERS, {"key": "key_id"}, when="occurred_at"),
        Rows("rollup_hourly", {"workspace": "workspace"}, {"key": "key_id"}, when="to_timestamp(hour * 3600.0)"),
        Rows("rollup_daily", {"workspace": "workspace"}, when="to_timestamp(day * 86400.0)"),
        Rows("workspace_setting", _OWNERS),
        Rows("key_setting", {"account": "account", "key": "key"}),
    ),
)
