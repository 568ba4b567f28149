"""Which role of staff may do which action on a case. Pure; policy.toml says who, this says what there is to be done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

ROLES = ("support", "privacy", "legal", "operations")
ACTIONS = (
    "triage",  # say which right a request is about
    "deny", "extend", "escalate", "answer",
    "decide_child",  # whether a report about a child is true
    "waive", "retry", "sweep",  # get a case on that does not by itself
    "hold", "disclose",
    "read",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Roles:
    """What each role may do. Nobody may do what does not stand here."""

    actions: Mapping[str, tuple[str, ...]]

    def refusal(self, role: str, action: str) -> str | None:
        """Why `role` may not do `action`, a sentence; None when it may. Whatever is unknown is refused."""
        if role not in self.actions:
            return f"{role!r} is none of the policy's [roles]: take one of {', '.join(self.actions)}"
        if action not in ACTIONS:
            return f"{action!r} is no action on a case: take one of {', '.join(ACTIONS)}"
        if action in self.actions[role]:
            return None
        others = [name for name, its in self.actions.items() if action in its]
        return f"the role {role!r} may not {action!r} (promise 62): ask {' or '.join(others)}"

    def troubles(self) -> Iterator[str]:
        """Everything in the table that cannot be kept, a sentence each."""
        for role, its in self.actions.items():
            for action in its:
                if action not in ACTIONS:
                    yield f"roles.{role} may {action!r}, which is no action on a case: take one of {', '.join(ACTIONS)}"
        for action in ACTIONS:
            if not any(action in its for its in self.actions.values()):
                yield f"no role may {action!r}, so that a case which needs it waits for ever: give it to one of [roles]"
