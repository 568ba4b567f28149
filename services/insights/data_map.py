"""What insights' columns hold about people, why, for how long, and what an erasure does to it."""

from __future__ import annotations

from datetime import timedelta

from shared.policy import policy
from shared.privacy.data_map import DataMap, Holding, Rows, personal, plain

_LIFE = timedelta(days=policy().activity_days)

DATA_MAP: DataMap = (
    *plain("activity", "expires_on"),
    *personal(
        "activity", "event_id",
        category="user.unique_id.pseudonymous", use="functional.service.improve", clock_start="event", period=_LIFE,
        on_erasure="delete_row", ground="legitimate_interests",
    ),
    *personal(
        "activity", "account", "workspace", "member",
        category="user.unique_id", use="functional.service.improve", clock_start="event", period=_LIFE,
        on_erasure="delete_row", ground="legitimate_interests",
    ),
    *personal(
        "activity", "occurred_at", "surface", "action", "model",
        category="user.behavior", use="functional.service.improve", clock_start="event", period=_LIFE,
        on_erasure="delete_row", ground="legitimate_interests",
        note="no prompt and no text; read raw for a support case only",
    ),
    *personal(
        "workspace_setting", "workspace", "account",
        category="user.unique_id", use="essential.service", clock_start="account_closed", period="account_closure",
        on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "workspace_setting", "version", "activity_opt_out", "kept_since",
        category="user.privacy_preferences", use="essential.service", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "member_setting", "member",
        category="user.unique_id", use="essential.service", clock_start="account_closed", period="account_closure",
        on_erasure="delete_row", ground="contract",
    ),
    *personal(
        "member_setting", "version", "activity_opt_out", "kept_since",
        category="user.privacy_preferences", use="essential.service", clock_start="account_closed",
        period="account_closure", on_erasure="delete_row", ground="contract",
    ),
)  # fmt: skip

# What a member did is the member's own, in whichever workspace: it serves nobody else's rights or books.
ROWS: tuple[Rows, ...] = (
    Rows("activity", owners={"account": "account", "workspace": "workspace", "member": "member"}, when="occurred_at"),
    Rows("workspace_setting", owners={"account": "account", "workspace": "workspace"}),
    Rows("member_setting", owners={"member": "member"}),
)

HOLDING = Holding("insights", DATA_MAP, ROWS)
