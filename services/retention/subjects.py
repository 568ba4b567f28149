"""Whom a case is about: from the one who is named to everybody and everything that goes with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

Subject: TypeAlias = tuple[str, str]
ADMINISTRATOR = "administrator"
_SEALED_MAX = 380_000


@dataclass(frozen=True, slots=True)
class Known:
    """What the directory knows around a subject."""

    identity: str | None = None
    workspaces: Mapping[str, str] = field(default_factory=dict)
    """Workspace -> the account that owns it."""
    roles: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(workspace, member) -> role."""
    keys: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    """Key -> its workspace and its maker."""
    credit_pico: Mapping[str, int] = field(default_factory=dict)

    def administrators(self, workspace: str) -> set[str]:
        """Who may speak for a workspace."""
        return {who for (where, who), role in self.roles.items() if where == workspace and role == ADMINISTRATOR}


@dataclass(frozen=True, slots=True)
class Circle:
    """All subjects of a case, the named one first; what of it the outer world has to be told of by name."""

    subjects: tuple[Subject, ...]
    handed_over: Mapping[str, str] = field(default_factory=dict)
    """Workspace -> the member who takes it over."""

    def of(self, kind: str) -> tuple[str, ...]:
        """The ids of one kind."""
        return tuple(name for each, name in self.subjects if each == kind)


def stranger(scope: str, account: str, target: str, known: Known) -> bool:
    """Whether `account` asks for what the directory knows to be somebody else's. What it does not know may be erased:
    that can only make sure that nothing of it comes."""
    match scope:
        case "account":
            return target != account
        case "workspace":
            return known.workspaces.get(target, account) != account
        case _:
            owners = {known.workspaces.get(workspace, account) for workspace, member in known.roles if member == target}
            return bool(owners) and account not in owners


def owns(scope: str, account: str, target: str, known: Known) -> bool:
    """Whether what a right is about is the account's own, as the directory knows it: nobody gets a copy of what may be
    somebody else's."""
    return target == account if scope == "account" else known.workspaces.get(target) == account


def left_alone(scope: str, target: str, known: Known) -> tuple[str, ...]:
    """The workspaces that would be without an administrator when this member goes."""
    if scope != "member":
        return ()
    mine = {workspace for workspace, member in known.roles if member == target}
    return tuple(sorted(workspace for workspace in mine if known.administrators(workspace) == {target}))


def circle(scope: str, target: str, known: Known, successors: Mapping[str, str]) -> Circle:
    """Everybody who goes. A workspace without an administrator goes, too, unless a member of it takes it over.

    An account's own workspaces always go with it: nobody else owns them or pays for them.
    """
    handed: dict[str, str] = {}
    found: list[Subject] = [(scope, target)]
    if scope == "account":
        if known.identity is not None:
            found.append(("identity", known.identity))
        gone = {workspace for workspace, account in known.workspaces.items() if account == target}
    elif scope == "workspace":
        gone = {target}
    else:
        gone = set()
        for workspace in left_alone(scope, target, known):
            successor = successors.get(workspace)
            if successor is not None and successor != target and (workspace, successor) in known.roles:
                handed[workspace] = successor
            else:
                gone.add(workspace)
    found += [("workspace", workspace) for workspace in sorted(gone) if (scope, target) != ("workspace", workspace)]
    found += [
        ("key", key)
        for key, (workspace, maker) in sorted(known.keys.items())
        if workspace in gone or (scope == "member" and maker == target)
    ]
    return Circle(tuple(found), handed)


def too_many(subjects: Sequence[Subject]) -> bool:
    """Whether one order cannot carry so many: sealed, they would be longer than the contract lets an order be."""
    return len(json.dumps(subjects)) * 4 // 3 > _SEALED_MAX


def lost_pico(subjects: Circle, known: Known) -> int:
    """Unused credit that goes with the workspaces, in pico-US-dollars; debts are not counted against it."""
    return sum(max(0, known.credit_pico.get(workspace, 0)) for workspace in subjects.of("workspace"))
