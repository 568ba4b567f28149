"""What the directory and the cases hold about people, and how their rows lead to subjects."""

from __future__ import annotations

from datetime import timedelta

from shared.policy import policy
from shared.privacy.data_map import DataMap, Holding, Rows, personal, plain

RECORDS = timedelta(days=-(-policy().request_records_months * 1461 // 48))
"""Request records are kept for 24 months (731 days), as keyed hashes only."""


def _directory(table: str, *columns: str, note: str = "") -> DataMap:
    """Who is who: for as long as the account lives."""
    return personal(
        table, *columns,
        category="user.unique_id", use="essential.service", clock_start="account_closed", period="account_closure",
        on_erasure="delete_row", ground="contract", note=note,
    )  # fmt: skip


def _record(table: str, *columns: str, note: str = "") -> DataMap:
    """That somebody asked and what was done: a keyed hash that leads to nobody without the subject itself."""
    return personal(
        table, *columns,
        category="user.unique_id.pseudonymous", use="essential.legal_obligation", clock_start="request", period=RECORDS,
        on_erasure="retain", ground="legal_obligation", note=note,
    )  # fmt: skip


def _disclosed(table: str, *columns: str, note: str = "") -> DataMap:
    """What the law had us disclose: kept as long as other records, from the notice on."""
    return personal(
        table, *columns,
        category="user.unique_id.pseudonymous", use="third_party_sharing.legal_obligation", clock_start="event", period=RECORDS,
        on_erasure="retain", ground="legal_obligation", note=note,
    )  # fmt: skip


def _staff(table: str, *columns: str) -> DataMap:
    """Which member of staff decided what."""
    return personal(
        table, *columns,
        category="user.workplace", use="essential.legal_obligation", clock_start="request", period=RECORDS,
        on_erasure="retain", ground="legal_obligation",
        note="who answered for it: part of the proof",
    )  # fmt: skip


DATA_MAP: DataMap = (
    *_directory("account", "account", "identity", "jurisdiction", "opened_at", "closed_at"),
    *personal(
        "account", "name",
        category="user.name", use="essential.service", clock_start="account_closed", period="account_closure",
        on_erasure="delete_row", ground="contract", note="of the profile, sealed under the account's key",
    ),
    *personal(
        "account", "sale_opt_out_at",
        category="user.privacy_preferences", use="essential.legal_obligation", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="legal_obligation",
        note="nothing is sold; that somebody said so is remembered",
    ),
    *plain("account", "closure_case"),
    *_directory("workspace", "workspace", "account", "created_at"),
    *personal(
        "workspace", "version", "log_retention_days", "activity_opt_out", "changed_at",
        category="user.account.settings", use="essential.service", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
    ),
    *_directory("member", "workspace", "member", "account", "role"),
    *personal(
        "api_key", "key", "account", "workspace", "member", "name", "created_at", "revoked_at",
        category="user.authorization.credentials", use="essential.service.authentication",
        clock_start="account_closed", period="account_closure", on_erasure="delete_row", ground="contract",
        note="ids and instants, never the key or a hash of it; the name is sealed under the account's key",
    ),
    *personal(
        "restriction", "member", "version", "log_retention_days", "activity_opt_out", "changed_at", "alone_since",
        category="user.privacy_preferences", use="essential.service", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
        note="what a member wants in every workspace; its clock starts when it is in none any more and has no key",
    ),
    *personal(
        "credit_known", "workspace", "version", "balance_pico",
        category="user.behavior.purchase_history", use="essential.service", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
        note="what a confirmation must say would be lost",
    ),
    *personal(
        "privacy_case", "account", "target",
        category="user.unique_id", use="essential.legal_obligation", clock_start="arrival", period=timedelta(days=7),
        on_erasure="clear", ground="legal_obligation",
        note="plain only while somebody has to be found or written to: a deletion's until it is confirmed",
    ),
    *personal(
        "privacy_case", "sealed", "sealed_account",
        category="user.unique_id", use="essential.legal_obligation", clock_start="erasure_confirmed",
        period=timedelta(days=30), on_erasure="shred", ground="legal_obligation",
        note="who is erased, under the case's own key, which is destroyed with the certificate",
    ),
    *personal(
        "privacy_case", "details",
        category="user.privacy_preferences", use="essential.legal_obligation", clock_start="arrival", period="account_closure",
        on_erasure="shred", ground="legal_obligation",
        note="what else a request says (a range, what is right, what opens the package, a representative's address), under the "
        "case's own key, which is destroyed when the case ends",
    ),
    *_record("privacy_case", "subject_pseudonym", "owner", "wish", note="keyed hashes: tell that the same wish came twice"),
    *plain(
        "privacy_case", "id", "kind", "scope", "channel", "state", "subjects", "attempts", "requested_at",
        "confirmed_at", "completed_at", "answered_at", "ended_at", "moved_at", "due_at", "next_at", "expires_at",
        "needs_person", "key_destroyed", "regime", "state_at", "needed", "proofs", "verified_at", "lapses_at", "outcome",
        "reason", "extended_at", "escalated_to", "unanswerable", "version", "told", "entries", "parts", "risks",
        category="system.operations",
    ),
    *plain(
        "case_request", "id", "case_id", "channel", "received_at", "acknowledged_at", category="system.operations"
    ),
    *plain("case_entry", "case_id", "number", "at", "what", "state", category="system.operations"),
    *_staff("case_entry", "actor", "role", "reason"),
    *_record("package", "token_hash", note="keyed hash of a link"),
    *plain(
        "package", "case_id", "size", "sha256", "made_at", "not_after", "fetched", "gone_at", "dropped_at",
        category="system.operations",
    ),
    *plain("step_taken", "id", "kind", "step", "seconds", category="system.operations"),
    *plain(
        "case_holder", "case_id", "holder", "epoch", "done", "sends", "first_sent_at", "due_at", "faults", "offsets",
        category="system.operations",
    ),
    *_staff("case_holder", "waived_by", "ticket", "waived_at"),
    *plain(
        "case_receipt", "case_id", "holder", "action", "epoch", "hold", "body", "arrived_at",
        category="system.operations",
    ),
    *plain("case_scan", "case_id", "action", "epoch", "stores", "arrived_at", category="system.operations"),
    *plain(
        "case_mail", "cause", "case_id", "template", "asked_at", "outcome", "at", "request", category="system.operations"
    ),
    *personal(
        "tombstone", "hash",
        category="user.unique_id.pseudonymous", use="essential.legal_obligation", clock_start="erasure_confirmed",
        period="tombstone", on_erasure="retain", ground="legal_obligation",
        note="what keeps the erased erased: replayed after a restore",
    ),
    *plain("tombstone", "kind", "case_id", "at", "expires_at", category="system.operations"),
    *_record("hold", "subject_pseudonym", note="keyed hash: whose records are held"),
    *personal(
        "hold", "sealed",
        category="user.unique_id", use="essential.legal_obligation", clock_start="arrival", period=RECORDS,
        on_erasure="shred", ground="legal_obligation",
        note="whose records are held, under the hold's own key, which is destroyed with its release",
    ),
    *_staff("hold", "placed_by", "ticket", "released_by", "release_ticket"),
    *plain(
        "hold", "id", "state", "holder", "table_name", "kind", "ground", "until", "rows", "epoch", "sends", "first_sent_at",
        "due_at", "placed_at", "released_at", "ended_at", "expires_at", "key_destroyed",
        category="system.operations",
    ),
    *plain("case_hold", "case_id", "hold", category="system.operations"),
    *_disclosed("disclosure", "subject_pseudonym", "owner", note="keyed hashes: whose data, and who is told"),
    *_disclosed("disclosure", "reference", note="of the instrument: in its issuer's files it leads to somebody"),
    *_staff("disclosure", "actor", "role", "ticket", "decided_by"),
    *plain(
        "disclosure", "id", "kind", "basis", "instrument", "protects", "authority", "tables", "since", "until", "gag_until",
        "entered_at", category="system.operations",
    ),
    *personal(
        "disclosure_course", "sealed", "sealed_owner",
        category="user.unique_id", use="third_party_sharing.legal_obligation", clock_start="arrival", period=RECORDS,
        on_erasure="shred", ground="legal_obligation",
        note="whose data, and who is told, under the entry's own key, which is destroyed when both are settled",
    ),
    *plain(
        "disclosure_course", "id", "state", "gag_until", "epoch", "kept", "sends", "first_sent_at", "order_at", "asked_at",
        "told_at", "copies_until", "next_at", "needs_person", "expires_at", "key_destroyed", "parts",
        category="system.operations",
    ),
    *_staff("disclosure_event", "actor", "role", "reason"),
    *plain("disclosure_event", "number", "id", "at", "what", "detail", category="system.operations"),
    *plain(
        "disclosure_extract", "command", "id", "epoch", "tables", "since", "until", "ordered_at",
        category="system.operations",
    ),
    *plain(
        "disclosure_errand", "id", "epoch", "holder", "due_at", "sends", "first_sent_at", "done_at", "receipt",
        category="system.operations",
    ),
    *_record("certificate", "document", note="names the subject by its keyed hash alone"),
    *plain("certificate", "case_id", "number", "signed_at", category="system.operations"),
    *plain("certificate_log", "one", "size"),
    *plain("merkle_node", "level", "position", "hash"),
)  # fmt: skip

ROWS: tuple[Rows, ...] = (
    Rows("credit_known", {"workspace": "workspace"}),
    Rows(
        "api_key",
        {"account": "account", "workspace": "workspace", "member": "member", "key": "key"},
        sealed={"name": "api_key.name"},
        corrects=("name",),
    ),
    Rows("member", {"account": "account", "workspace": "workspace", "member": "member"}),
    Rows("restriction", {"member": "member"}),
    Rows("workspace", {"account": "account", "workspace": "workspace"}),
    Rows(
        "account", {"account": "account", "identity": "identity"}, sealed={"name": "account.name"}, corrects=("name",)
    ),
    Rows(
        "privacy_case",
        {
            "account": "account",
            "workspace": "CASE WHEN scope = 'workspace' THEN target END",
            "member": "CASE WHEN scope = 'member' THEN target END",
        },
        expires="expires_at",
        when="requested_at",
    ),
    Rows("hold", expires="expires_at"),
    Rows("tombstone", expires="expires_at"),
    Rows("disclosure_course", expires="expires_at"),
    *(
        Rows(table, ends="goes with its course")
        for table in ("disclosure", "disclosure_event", "disclosure_extract", "disclosure_errand")
    ),
    *(
        Rows(table, through=("case_id", "privacy_case", "id"), ends="goes with its case")
        for table in (
            "case_request",
            "case_holder",
            "case_receipt",
            "case_scan",
            "case_mail",
            "case_hold",
            "case_entry",
            "package",
            "certificate",
        )
    ),
)

HOLDING = Holding("retention", DATA_MAP, ROWS)
