"""What security's columns hold about people, why, for how long, and what an erasure does to it."""

from __future__ import annotations

from datetime import timedelta

from shared.policy import policy
from shared.privacy.data_map import DataMap, Holding, Rows, personal, plain

_ROW = timedelta(days=policy().security_max_days)
_IP = timedelta(days=policy().ip_max_days)

DATA_MAP: DataMap = (
    *plain("access_row", "expires_on"),
    *personal(
        "access_row", "event_id",
        category="user.unique_id.pseudonymous", use="essential.service.security", clock_start="event", period=_ROW,
        on_erasure="delete_row", ground="legitimate_interests",
    ),
    *personal(
        "access_row", "account", "workspace", "member", "key_id",
        category="user.unique_id", use="essential.service.security", clock_start="event", period=_ROW,
        on_erasure="delete_row", ground="legitimate_interests",
    ),
    *personal(
        "access_row", "identity",
        category="user.unique_id.pseudonymous", use="essential.service.security", clock_start="event", period=_ROW,
        on_erasure="delete_row", ground="legitimate_interests", note="keyed hash, made by the gateway",
    ),
    *personal(
        "access_row", "session",
        category="user.device.cookie_id", use="essential.service.security", clock_start="event", period=_ROW,
        on_erasure="delete_row", ground="legitimate_interests", note="keyed hash, made by the gateway; never the token",
    ),
    *personal(
        "access_row", "occurred_at", "kind", "outcome", "agent",
        category="user.behavior", use="essential.service.security", clock_start="event", period=_ROW,
        on_erasure="delete_row", ground="legitimate_interests",
        note="the agent is one of four words: it tells no two people apart",
    ),
    *plain("access_ip", "expires_on"),
    *personal(
        "access_ip", "event_id",
        category="user.unique_id.pseudonymous", use="essential.service.security", clock_start="connection", period=_IP,
        on_erasure="delete_row", ground="legitimate_interests",
    ),
    *personal(
        "access_ip", "address", "correlate",
        category="user.device.ip_address", use="essential.service.security", clock_start="connection", period=_IP,
        on_erasure="delete_row", ground="legitimate_interests",
        note="sealed, and a keyed hash, both under the key of the connection's day, which is destroyed with it",
    ),
)  # fmt: skip

# The instant in the event's id: the row has no other, and a look into access_row for each would be far too much.
_ID_INSTANT = "to_timestamp(('x' || left(replace(event_id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)"
_OWNERS = {"account": "account", "workspace": "workspace", "identity": "identity"}

# What a person did is the person's own and goes with any of its subjects. What an API key did is the workspace's: there
# an erased member, and its key, leave a pseudonym, and only the address goes.
ROWS: tuple[Rows, ...] = (
    Rows(
        "access_ip",
        owners=_OWNERS | {"member": "member", "key": "key_id"},
        through=("event_id", "access_row", "event_id"),
        sealed={"address": "access_ip.address:{event_id}"},
        when=_ID_INSTANT,
    ),
    Rows(
        "access_row",
        owners=_OWNERS | {"member": "CASE WHEN key_id IS NULL THEN member END"},
        traces={"member": "member", "key": "key_id"},
        when="occurred_at",
    ),
)

HOLDING = Holding("security", DATA_MAP, ROWS)
