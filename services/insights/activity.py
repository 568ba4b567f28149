"""What of the activity may be kept, and for how long: the stricter of the event's word and the setting known here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal, NamedTuple

from shared.policy import policy

LIFE = timedelta(days=policy().activity_days)

Verdict = Literal["kept", "opted_out", "expired", "future"]
Kind = Literal["workspace", "member"]
"""Who states settings, and the column of the activity that names it."""

_MEMBERS_OUT = "may not be complete: activity of members who have opted out for themselves is not kept"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a workspace, or a member, wants. `kept_since`: when its last opt-out ended; nothing from before is kept.
    `account`: that owns the workspace; a member's setting is nobody else's."""

    name: str
    account: str | None
    version: int
    opted_out: bool
    kept_since: datetime | None = None


class Row(NamedTuple):
    """One row of `activity`, in the order of its columns."""

    expires_on: date
    event_id: str
    occurred_at: datetime
    account: str
    workspace: str
    member: str | None
    surface: str
    action: str
    model: str | None


def judged(event: Any, settings: Iterable[Setting | None], now: datetime) -> Verdict:
    """Whether the event may leave a row, or why not. `settings`: the workspace's and the member's; either's opt-out is one.

    An opt-out comes first: of who has opted out not even a wrong clock is a reason to keep anything.
    """
    if event.data.opted_out or any(one is not None and not _wanted(event.time, one) for one in settings):
        return "opted_out"
    if event.time + LIFE <= now:
        return "expired"
    return "future" if event.time > now + policy().future else "kept"


def _wanted(at: datetime, setting: Setting) -> bool:
    return not setting.opted_out and (setting.kept_since is None or at >= setting.kept_since)


def missing(setting: Setting | None, now: datetime, *, members_out: bool) -> str | None:
    """Why activity of the time that is kept may be missing; None if nothing stands in its way. `members_out`: some members
    have opted out for themselves; whether they are in this workspace is not known here."""
    of_members = _MEMBERS_OUT if members_out else None
    if setting is None:
        return of_members
    if setting.opted_out:
        return "not kept: the workspace has opted out of activity"
    if setting.kept_since is not None and setting.kept_since > now - LIFE:
        since = setting.kept_since.astimezone(UTC).isoformat().replace("+00:00", "Z")
        return f"nothing from before {since} is kept: until then the workspace had opted out of activity"
    return of_members


def row(event: Any) -> Row:
    """The event as a row. It expires on the day of its last instant."""
    data = event.data
    return Row(
        (event.time.astimezone(UTC) + LIFE).date(), event.id, event.time, data.account, data.workspace, data.member,
        data.surface, data.action, data.model,
    )  # fmt: skip


def obeyed(known: Mapping[str, Setting], kind: Kind, stated: Iterable[Any]) -> tuple[list[Setting], list[Setting]]:
    """The settings that changed, and those of them whose earlier activity has to go.

    A version that is not higher than the known one changes nothing. Who is erased wants nothing kept.
    """
    after, purged = dict(known), set()
    for data in stated:
        name = getattr(data, kind)
        before = after.get(name)
        if before is not None and data.version <= before.version:
            continue
        out = data.activity_opt_out or data.erased
        since = None if before is None else data.changed_at if before.opted_out and not out else before.kept_since
        after[name] = Setting(name, getattr(data, "account", None), data.version, out, since)
        if out:
            purged.add(name)
    changed = [setting for name, setting in sorted(after.items()) if setting is not known.get(name)]
    return changed, [setting for setting in changed if setting.name in purged]
