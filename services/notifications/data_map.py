"""What the columns of notifications hold about people, why, for how long, and what an erasure does to it."""

from __future__ import annotations

from datetime import timedelta

from services.notifications.proofs import SETTLE
from shared.privacy.data_map import DataMap, Holding, Rows, personal, plain

# A mail's row outlives the mail so that the same cause does not send another, and that somebody can look into it.
MAIL_LIFE = timedelta(days=30)
# The address of a case's last mail: long enough to reach a server that is away for a while, and no longer.
ENVELOPE_LIFE = timedelta(days=7)
# A code is good for so long at most, whatever is asked for.
CODE_LIFE = timedelta(days=30)
# For so long a code that is over is called wrong, and not unknown: as long as its confirmation can be on its way.
CODE_AFTERLIFE = timedelta(days=7)
# What a mail that was not accepted says in secret, for a person who has it sent again.
SECRET_LIFE = timedelta(days=7)
# For so long it is known that a case's codes are dead: as long as one that was made in the same moment can be good.
ENDED_LIFE = CODE_LIFE
# Even a newborn is of age (16) by then.
BAR_LIFE = timedelta(days=16 * 365 + 4)

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
    *personal(
        "address", "previous",
        category="user.contact.email", use="essential.service.authentication", clock_start="arrival",
        period=SETTLE, on_erasure="delete_row", ground="contract",
        note="the address before the latest change, under the account's subject key: codes go there until the change has settled",
    ),
    *plain("address", "learned_at", "changed_at"),
    *personal(
        "barred", "hash",
        category="user.unique_id.pseudonymous", use="essential.legal_obligation", clock_start="arrival",
        period=BAR_LIFE, on_erasure="retain", ground="legal_obligation",
        note="keyed hash of a child's address, which may have no account until its holder is of age; leads to nobody",
    ),
    *plain("barred", "barred_at", "expires_at"),
    *personal(
        "ended", "hash",
        category="user.unique_id.pseudonymous", use="essential.service.authentication", clock_start="arrival",
        period=ENDED_LIFE, on_erasure="expire", ground="contract",
        note="keyed hash of a case whose codes are dead, or of it and the account that took it back; leads to nobody",
    ),
    *plain("ended", "ended_at"),
    *personal(
        "envelope", "case_id",
        category="user.unique_id.pseudonymous", use="essential.legal_obligation", clock_start="erasure_confirmed",
        period=ENVELOPE_LIFE, on_erasure="expire", ground="legal_obligation",
    ),
    *personal(
        "envelope", "sealed",
        category="user.contact.email", use="essential.legal_obligation", clock_start="erasure_confirmed",
        period=ENVELOPE_LIFE, on_erasure="expire", ground="legal_obligation",
        note="the address for the mail that says that all is erased, under the case's key; destroyed when that is accepted",
    ),
    *plain("envelope", "created_at", "not_after"),
    *personal(
        "judgement", "event_id", "case_id",
        category="user.unique_id.pseudonymous", use="essential.service.authentication", clock_start="arrival",
        period=MAIL_LIFE, on_erasure="expire", ground="contract",
        note="ids of confirmations and cases, which lead to nobody without the case",
    ),
    *plain("judgement", "verdict", "judged_at"),
    *personal(
        "kept_address", "case_id",
        category="user.unique_id.pseudonymous", use="essential.legal_obligation", clock_start="request",
        period="legal_hold", on_erasure="retain", ground="legal_obligation",
    ),
    *personal(
        "kept_address", "sealed",
        category="user.contact.email", use="essential.legal_obligation", clock_start="request",
        period="legal_hold", on_erasure="retain", ground="legal_obligation",
        note="the address for one mail that the law does not allow yet, under the case's key; destroyed when that is accepted",
    ),
    *plain("kept_address", "created_at", "not_after"),
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
        "mail", "address_sealed",
        category="user.contact.email", use="essential.service.notifications.email", clock_start="request",
        period=MAIL_LIFE, on_erasure="clear", ground="contract",
        note="where the mail goes instead; under the account's subject key, or without an account under a key of its day, which "
        "is destroyed with its 30 days; gone when the mail is accepted, or 7 days after it was not",
    ),
    *personal(
        "mail", "code_sealed", "link_sealed",
        category="user.authorization.credentials", use="essential.service.authentication", clock_start="request",
        period=MAIL_LIFE, on_erasure="clear", ground="contract",
        note="good for a short time; under the account's subject key, gone when the mail is accepted, or 7 days after it was not",
    ),
    *personal(
        "mail", "facts",
        category="user.privacy_preferences", use="essential.service.notifications.email", clock_start="request",
        period=MAIL_LIFE, on_erasure="clear", ground="contract",
        note="what the text says: dates, sums, ids of workspaces; gone when the mail is accepted",
    ),
    *plain(
        "mail", "kind", "template", "by_envelope", "by_address", "state", "reason", "attempts", "requested_at",
        "next_attempt_at", "give_up_at", "settled_at",
    ),
    *personal(
        "mail", "decided_by", "ticket",
        category="user.workplace", use="essential.service.operations", clock_start="request", period=MAIL_LIFE,
        on_erasure="expire", ground="legitimate_interests",
        note="which member of staff had a mail sent again, and why",
    ),
    *personal(
        "proof", "cause", "case_id", "request",
        category="user.unique_id.pseudonymous", use="essential.service.authentication", clock_start="request",
        period=CODE_LIFE + CODE_AFTERLIFE, on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "proof", "account",
        category="user.unique_id", use="essential.service.authentication", clock_start="request",
        period=CODE_LIFE + CODE_AFTERLIFE, on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "proof", "code_hash",
        category="user.authorization.credentials", use="essential.service.authentication", clock_start="request",
        period=CODE_LIFE + CODE_AFTERLIFE, on_erasure="delete_row", ground="contract",
        note="keyed hash, bound to the case",
    ),
    *personal(
        "proof", "address_sealed",
        category="user.contact.email", use="essential.service.authentication", clock_start="request",
        period=CODE_LIFE + CODE_AFTERLIFE, on_erasure="delete_row", ground="contract",
        note="a new address until it has proved itself, under the account's subject key",
    ),
    *plain("proof", "template", "proves", "until", "used_at"),
)  # fmt: skip

ROWS = (
    Rows(
        "mail",
        owners={"account": "account"},
        expires=f"requested_at + interval '{MAIL_LIFE.days} days'",
        when="requested_at",
    ),
    Rows("proof", owners={"account": "account"}, expires=f"until + interval '{CODE_AFTERLIFE.days} days'"),
    Rows("judgement", expires=f"judged_at + interval '{MAIL_LIFE.days} days'"),
    Rows("ended", expires=f"ended_at + interval '{ENDED_LIFE.days} days'"),
    Rows("envelope", expires="not_after"),
    Rows("kept_address", expires="not_after"),
    Rows("barred", expires="expires_at"),
    Rows(
        "address", owners={"account": "account"}, sealed={"sealed": "address.sealed", "previous": "address.previous"},
        ends="a previous address ends with the job `forget`, when the change has settled",
    ),
)  # fmt: skip

HOLDING = Holding("notifications", DATA_MAP, ROWS)
