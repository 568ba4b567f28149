"""Every alert of the mesh, symptoms first: what customers and the law notice, then what will come to that."""

from __future__ import annotations

from deploy.observe.alerts import books, consumers, freshness, privacy, processes, work
from deploy.observe.rules import Alert, Group, Recording

GROUPS: tuple[Group, ...] = (
    freshness.GROUP, consumers.GROUP, work.GROUP, books.GROUP, privacy.GROUP, processes.GROUP,
)  # fmt: skip
ALERTS: tuple[Alert, ...] = tuple(alert for group in GROUPS for alert in group.alerts)
RECORDINGS: tuple[Recording, ...] = tuple(recording for group in GROUPS for recording in group.recordings)
