"""What the runtime's own tables hold about people, in every service's database."""

from __future__ import annotations

from datetime import timedelta

from shared.contract.topics import TOPICS
from shared.privacy.data_map import DataMap, Rows, personal, plain

_TRANSIT = timedelta(days=7)
_READS = timedelta(days=90)

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
        on_erasure="delete_row", ground="contract",
        note="what nobody declared, or breaks its rule, is kept as names and lengths only; card numbers are masked",
    ),
    *plain(
        "mesh_parked", "id", "grp", "topic", "part", "record_offset", "record_ms", "reason", "parked_at",
        category="system.operations",
    ),
    *personal(
        "mesh_parked", "key", "headers", "payload",
        category="user.behavior", use="essential.service.operations", clock_start="arrival", period=_TRANSIT,
        on_erasure="delete_row", ground="contract",
        note="waits behind a failed record of its key, for a person; what has to be booked waits until it is",
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
        period=_READS, on_erasure="retain", ground="legal_obligation",
        note="which member of staff read what, and why",
    ),
    *plain("mesh_read", "id", "name", "at", category="system.operations"),
    *plain(
        "mesh_expiry", "id", "table_name", "partition", "bound", "rows_estimate", "dropped_at", "policy_version",
        category="system.operations",
    ),
)  # fmt: skip

# Maxima round down: the job that deletes comes every hour, and may fail once.
_EARLIER = timedelta(hours=2)


# Topics whose events are booked, whoever they are about.
_BOOKED = ", ".join(f"'{topic.name}'" for topic in TOPICS if "book" in topic.after_erasure.values())


def _before(column: str, period: timedelta) -> str:
    return f"{column} + interval '{(period - _EARLIER) // timedelta(hours=1)} hours'"


MESH_ROWS: tuple[Rows, ...] = (
    Rows("mesh_outbox", ends="deleted when Kafka has acknowledged it"),
    # Like a dead letter that expired: it goes on counting as one. Money is not let go: no clock ends it, a person does.
    Rows(
        "mesh_parked",
        expires=f"CASE WHEN topic NOT IN ({_BOOKED}) THEN {_before('parked_at', _TRANSIT)} END",
        moves=("parked:{topic}", "dead_lettered:{topic}"),
    ),
    Rows("mesh_read", expires=_before("at", _READS)),
    # `mesh_source` stays: it names emitting instances, no person, and one that comes back after a month would seem to
    # have lost all that it had numbered before.
    Rows("mesh_expiry", expires="dropped_at + interval '400 days'"),
)
"""How rows of the runtime's own tables end. Dead letters are dropped by partition."""

# What a holder keeps beside its own tables.
HOLDER_MAP: DataMap = (
    *personal(
        "mesh_tombstone", "hash", "kind", "case_id", "at",
        category="user.unique_id.pseudonymous", use="essential.legal_obligation", clock_start="erasure_confirmed",
        period="tombstone", on_erasure="retain", ground="legal_obligation",
        note="a keyed hash: it has to outlive every copy that could bring the subject back",
    ),
    *plain("mesh_tombstone", "applied", category="system.operations"),
    *personal(
        "mesh_erasure", "sealed",
        category="user.unique_id", use="essential.legal_obligation", clock_start="erasure_confirmed",
        period="account_closure", on_erasure="shred", ground="legal_obligation",
        note="under the case's key, which ends with the certificate; NULL once the rows are treated",
    ),
    *plain(
        "mesh_erasure", "case_id", "epoch", "scope", "after", "confirmed_at", "ordered_at", "receipt", "done_at",
        category="system.operations",
    ),
    *personal(
        "mesh_held_record", "subject_hash", "sealed",
        category="user.unique_id", use="essential.legal_obligation", clock_start="arrival", period="legal_hold",
        on_erasure="retain", ground="legal_obligation",
        note="what a legal hold keeps: a copy under the hold's own key, destroyed with its release",
    ),
    *plain(
        "mesh_data_map", "table_name", "column_name", "category", "use", "on_erasure", "ground", "period_days",
        "map_version", category="system.operations",
    ),
    *plain("mesh_held_record", "id", "hold", "table_name", "placed_at", category="system.operations"),
    *personal(
        "mesh_errand", "sealed", "value",
        category="user.unique_id", use="essential.legal_obligation", clock_start="arrival", period=timedelta(days=30),
        on_erasure="shred", ground="legal_obligation",
        note="whom a copy or a correction is about, and what is right, under the case's key; NULL once it is done",
    ),
    *plain(
        "mesh_errand", "case_id", "epoch", "action", "arguments", "asked_at", "receipt", "done_at",
        category="system.operations",
    ),
    *personal(
        "mesh_export", "hash",
        category="user.unique_id.pseudonymous", use="essential.legal_obligation", clock_start="arrival",
        period=timedelta(days=7), on_erasure="delete_row", ground="legal_obligation",
        note="of whom there is a copy to be fetched, as a keyed hash: an erasure takes it along",
    ),
    *plain("mesh_export", "case_id", "epoch", "made_at", category="system.operations"),
)  # fmt: skip

HOLDER_ROWS: tuple[Rows, ...] = (
    Rows("mesh_tombstone", ends="deleted by the job mesh-forget, by the policy's life of a tombstone"),
    Rows("mesh_errand", ends="deleted by the job mesh-forget, thirty days after it was asked for"),
    Rows("mesh_export", ends="deleted by the job mesh-forget, with the copy, after seven days"),
)
"""How rows of what a holder keeps beside its own tables end, where no event ends them."""

KEY_MAP: DataMap = (
    *plain(
        "vault_key", "purpose", "id", "wrapped", "wrapped_by", "public", "created_at", category="system.operations"
    ),
    *personal(
        "vault_key", "name",
        category="user.unique_id.pseudonymous", use="essential.service.security", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
        note="of a subject's key: the subject's keyed hash; the row goes when the key is destroyed",
    ),
)  # fmt: skip
