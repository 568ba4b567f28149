"""What every column of billing holds. The books are kept because the law wants them; what leads from them to a
workspace is apart, and can be erased."""

from __future__ import annotations

from datetime import timedelta

from shared.privacy.data_map import DataMap, Holding, Rows, personal, plain


def _books(table: str, *columns: str, note: str = "") -> DataMap:
    """Columns of the books: about a payer who has a number and no name; kept as long as the payer's legal class wants."""
    return personal(
        table,
        *columns,
        category="user.behavior.purchase_history",
        use="finance",
        clock_start="booking_year_end",
        period="billing_record",
        on_erasure="retain",
        ground="legal_obligation",
        note=note,
    )


DATA_MAP: DataMap = (
    # The way from a workspace to its number in the ledger, and the account that owns it.
    *personal(
        "workspace_ref",
        "workspace",
        "id",
        "account",
        "class",
        category="user.unique_id",
        use="essential.service.payment_processing",
        clock_start="account_closed",
        period="account_closure",
        on_erasure="delete_row",
        ground="contract",
    ),
    *_books("ledger_account", "workspace_id"),
    *plain("ledger_account", "id", "class", "kind"),
    *_books(
        "balance",
        "workspace_id",
        "version",
        "purchased_pico",
        "granted_pico",
        "receivable_pico",
        "changed_at",
        "class",
        "class_stated",
        "purchased_account",
        "granted_account",
        "receivable_account",
        "erased",
    ),
    *_books("journal", "workspace_id", "period", "booked_at", "event_at", "adjusts_period", "lines_digest"),
    *_books("journal", "cause", note="the id of a payment, refund, dispute or grant, or of a rated record"),
    *plain("journal", "id", "class", "booking_year", "kind", "block"),
    *_books("entry", "account", "amount_pico"),
    *plain("entry", "journal", "class", "booking_year"),
    *_books(
        "charge_line",
        "record",
        "line",
        "workspace_id",
        "hour",
        "price_version",
        "tier",
        "terms",
        "quantities",
        "amount_pico",
        "list_pico",
        "journal",
        note="no generation, no key, no instant: a place in a rated record, and an hour",
    ),
    *plain("charge_line", "class", "booking_year"),
    *_books("charged_record", "record", note="what makes usage unique, for as long as it is kept"),
    *plain("charged_record", "booking_year", "first_journal", "last_journal"),
    *_books("journal_cause", "cause", "digest", note="what makes a booking unique, for as long as it is kept"),
    *plain("journal_cause", "journal", "class", "booking_year"),
    *plain(
        "checkpoint",
        "class",
        "through_year",
        "block",
        "hash",
        "ahead",
        "journals",
        "lines",
        "charged_pico",
        "prev",
        "digest",
        "made_at",
        "policy_version",
    ),
    *_books("carried", "account", "amount_pico", note="what an account's dropped entries sum to"),
    *plain("carried", "class"),
    *plain("carried_byok", "class", "month", "list_pico", "fee_pico"),
    *plain("chain", "class", "block", "prev", "hash", "journals", "booked_at"),
    *plain("chain_head", "class", "block", "hash"),
    *personal(
        "line_seen",
        "line_id",
        category="user.unique_id.pseudonymous",
        use="essential.service.payment_processing",
        clock_start="id_day",
        period="deduplication_window",
        on_erasure="expire",
        ground="contract",
        note="the time and a keyed hash of a generation's id; the key is destroyed with the day",
    ),
    *plain("line_seen", "digest"),
    *personal(
        "line_late",
        "line_id",
        category="user.unique_id.pseudonymous",
        use="essential.service.payment_processing",
        clock_start="arrival",
        period="deduplication_window",
        on_erasure="expire",
        ground="contract",
        note="lines that a person released after their window",
    ),
    *plain("line_late", "digest", "seen_on"),
    *personal(
        "byok_month",
        "account",
        "month",
        "list_pico",
        category="user.behavior.purchase_history",
        use="essential.service.payment_processing",
        clock_start="account_closed",
        period="account_closure",
        on_erasure="delete_row",
        ground="contract",
    ),
    *_books("byok_erased", "month", "list_pico", note="an erased account's month, without the account"),
    *plain("byok_erased", "id"),
    *plain("period", "class", "period", "closes_at", "closed_at"),
    *_books("period_total", "workspace_id", "charged_pico", "adjusted_pico", "journals"),
    *plain("period_total", "class", "period"),
    *_books("purchase", "payment", "workspace_id", "credit_pico", "fee_pico", "taken_pico", "settled_at"),
    *_books("dispute", "dispute", "payment", "workspace_id", "taken_pico", "suspense_pico", "state"),
    *_books(
        "waiting_payment",
        "cause",
        "kind",
        "payment",
        "dispute",
        "workspace_id",
        "credit_pico",
        "outcome",
        "digest",
        "event_at",
        "arrived_at",
        "position",
        "state",
    ),
    *_books(
        "credit_grant",
        "grant_id",
        "workspace_id",
        "credit_pico",
        "remaining_pico",
        "priority",
        "expires_at",
        "granted_at",
    ),
    *personal(
        "note",
        "note",
        "workspace_id",
        "text",
        "added_at",
        category="user.content.private",
        use="essential.service.payment_processing",
        clock_start="account_closed",
        period="account_closure",
        on_erasure="delete_row",
        ground="contract",
        note="free text, sealed; beside the ledger, so that it can go and the books stay",
    ),
    *personal(
        "payment_method",
        "workspace",
        "method",
        "account",
        "token",
        "saved_at",
        category="user.payment",
        use="essential.service.payment_processing",
        clock_start="account_closed",
        period="account_closure",
        on_erasure="delete_row",
        ground="contract",
        note="the processor's token, sealed under the workspace's key: it leads to no card number",
    ),
    *plain("balance_round", "one", "position", "started_at"),
    *personal(
        "erased_workspace",
        "workspace",
        category="user.unique_id",
        use="essential.service.payment_processing",
        clock_start="erasure_confirmed",
        period=timedelta(days=1),
        on_erasure="expire",
        ground="legal_obligation",
        note="until its receipt is written and its key on the balances topic is ended",
    ),
    *plain("erased_workspace", "published", "erased_at", "kept_until"),
)

HOLDING = Holding(
    "billing",
    DATA_MAP,
    (
        # A workspace that outlives its account belongs to whoever has taken it over, and so does its way into the books.
        Rows(
            "note",
            {"workspace": "workspace"},
            through=("workspace_id", "workspace_ref", "id"),
            sealed={"text": ""},
            when="added_at",
        ),
        Rows("byok_month", {"account": "account"}, when="(month || '-01')::timestamptz"),
        Rows("payment_method", {"workspace": "workspace", "account": "account"}),
        # What leads to the numbers of the books goes last.
        Rows("workspace_ref", {"workspace": "workspace"}),
        Rows("line_late", ends="deleted by the job forget-late-lines, W after they came"),
        Rows("erased_workspace", ends="taken by the job end-erased-balances, when their last word is out"),
    ),
    # A person's billing history: what was bought, granted, disputed and charged, by month. Single charges stand in the request
    # log, for as long as the workspace keeps one.
    kept=tuple(
        Rows(table, {"workspace": "workspace"}, through=("workspace_id", "workspace_ref", "id"), when=when)
        for table, when in (
            ("balance", None),
            ("purchase", "settled_at"),
            ("credit_grant", "granted_at"),
            ("dispute", None),
            ("waiting_payment", "event_at"),
            ("period_total", None),
        )
    ),
)


def kept_tables() -> list[tuple[str, list[str]]]:
    """(table, columns) of what the law keeps, of those who are erased too."""
    found: dict[str, list[str]] = {}
    for column in DATA_MAP:
        if column.on_erasure == "retain":
            found.setdefault(column.table, []).append(column.column)
    return sorted((table, sorted(columns)) for table, columns in found.items())
