"""What the columns of notifications hold about people, why, for how long, and what an erasure does to it."""

from __future__ import annotations

from datetime import timedelta

from shared.privacy.data_map import DataMap, Holding, Rows, personal, plain

# A mail's row outlives the mail so that the same cause does not send another, and that somebody can look into it.
MAIL_LIFE = timedelta(days=30)
# The address of a case's last mail: long enough to reach a server that is away for a while, and no longer.
ENVELOPE_LIFE = timedelta(days=7)

DATA_MAP: DataMap = (
    *personal(
        "address", "account",
        category="user.unique_id", use="essential.service.notifications.email", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "address", "sealed",
        category="user.contact.email", use="essential.service.notifications.email", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
        note="AES-256-GCM under the account's subject key",
    ),
    *plain("address", "learned_at"),
    *personal(
        "envelope", "case_id",
        category="user.unique_id.pseudonymous", use="essential.legal_obligation", clock_start="erasure_confirmed",
        period=ENVELOPE_LIFE, on_erasure="expire", ground="legal_obligation",
    ),
    *personal(
        "envelope", "sealed",
        category="user.contact.email", use="essential.legal_obligation", clock_start="erasure_confirmed",
        period=ENVELOPE_LIFE, on_erasure="expire", ground="legal_obligation",
        note="the address for the mail that says that all is erased, under the case's key; destroyed when that is settled",
    ),
    *plain("envelope", "created_at", "not_after"),
    *personal(
        "mail", "cause", "case_id",
        category="user.unique_id.pseudonymous", use="essential.service.notifications.email", clock_start="request",
        period=MAIL_LIFE, on_erasure="expire", ground="contract",
        note="ids of cases, which lead to nobody without the case",
    ),
    *personal(
        "mail", "account",
        category="user.unique_id", use="essential.service.notifications.email", clock_start="request",
        period=MAIL_LIFE, on_erasure="clear", ground="contract",
    ),
    *personal(
        "mail", "code_sealed",
        category="user.authorization.credentials", use="essential.service.authentication", clock_start="request",
        period=MAIL_LIFE, on_erasure="clear", ground="contract",
        note="good once and for a short time; under the ingress key of its day, gone when the mail is accepted or refused",
    ),
    *personal(
        "mail", "facts",
        category="user.privacy_preferences", use="essential.service.notifications.email", clock_start="request",
        period=MAIL_LIFE, on_erasure="clear", ground="contract",
        note="what the text says: dates, sums, ids of workspaces",
    ),
    *plain(
        "mail", "kind", "template", "by_envelope", "state", "reason", "attempts", "requested_at", "next_attempt_at",
        "give_up_at", "settled_at",
    ),
    *personal(
        "mail", "decided_by", "ticket",
        category="user.workplace", use="essential.service.operations", clock_start="request", period=MAIL_LIFE,
        on_erasure="expire", ground="legitimate_interests",
        note="which member of staff had a mail sent again, and why",
    ),
)  # fmt: skip

ROWS = (
    Rows(
        "mail",
        owners={"account": "account"},
        expires=f"requested_at + interval '{MAIL_LIFE.days} days'",
        when="requested_at",
    ),
    Rows("envelope", expires="not_after"),
    Rows("address", owners={"account": "account"}, sealed={"sealed": "address.sealed"}, corrects=("sealed",)),
)

HOLDING = Holding("notifications", DATA_MAP, ROWS)
