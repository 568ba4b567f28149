"""What the runtime's own tables hold about people, in every service's database."""

from __future__ import annotations

from datetime import timedelta

from shared.privacy.data_map import DataMap, personal, plain

_TRANSIT = timedelta(days=7)

MESH_MAP: DataMap = (
    *plain(
        "mesh_cursor", "grp", "topic", "part", "epoch", "next_offset", "high_offset", "owner", "claimed_at",
        category="system.operations",
    ),
    *plain("mesh_outbox", "id", "shard", "topic", "part", "traceparent", "created_at", category="system.operations"),
    *personal(
        "mesh_outbox", "key", "value", "headers",
        category="user.behavior", use="essential.service.operations", clock_start="arrival", period=_TRANSIT,
        on_erasure="expire", ground="contract", note="on its way to Kafka; gone when it is acknowledged",
    ),
    *plain(
        "mesh_dead_letter", "id", "expires_on", "grp", "topic", "part", "record_offset", "stage", "reason", "detail",
        "source", "sequence", "attempts", "state", "counted", "first_failed_at",
        category="system.operations",
    ),
    *personal(
        "mesh_dead_letter", "key", "headers", "payload", "subject_hash",
        category="user.behavior", use="essential.service.operations", clock_start="arrival", period=_TRANSIT,
        on_erasure="delete_row", ground="contract", note="undeclared fields are kept as names and lengths only",
    ),
    *plain(
        "mesh_parked", "id", "grp", "topic", "part", "record_offset", "record_ms", "reason", "parked_at",
        category="system.operations",
    ),
    *personal(
        "mesh_parked", "key", "headers", "payload",
        category="user.behavior", use="essential.service.operations", clock_start="arrival", period=_TRANSIT,
        on_erasure="delete_row", ground="contract", note="waits behind a failed record of its key, for a person",
    ),
    *plain("mesh_counter", "name", "part", "value", category="system.operations"),
    *plain("mesh_source", "topic", "source", "part", "highest", "seen", category="system.operations"),
    *plain("mesh_job", "name", "next_slot", "missed", "ran_at", category="system.operations"),
    *plain(
        "mesh_task", "id", "name", "cause", "payload", "position", "attempts", "next_attempt_at", "created_at",
        category="system.operations",
    ),
    *personal(
        "mesh_read", "actor", "role", "reason",
        category="user.workplace", use="essential.service.security", clock_start="arrival",
        period=timedelta(days=90), on_erasure="retain", ground="legal_obligation",
        note="which member of staff read what, and why",
    ),
    *plain("mesh_read", "id", "name", "at", category="system.operations"),
    *personal(
        "mesh_subjects", "hash", "id",
        category="user.unique_id", use="essential.legal_obligation", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="legal_obligation",
    ),
)  # fmt: skip

KEY_MAP: DataMap = plain("day_key", "purpose", "day", "id", "key", "created_at", category="system.operations")
