"""How long a case's steps take, as measured: what the rest of a case is expected to take. Pure.

Start values are guesses; what the last cases took is better. A step that has kept us waiting longer than expected is
expected to do so for as long again: so a forecast moves before a deadline passes, whatever was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

LAST = 32
"""So many of a step's latest durations count."""
ENOUGH = 5
"""From so many on, what was measured stands alone; before, the start value is a lower bound."""
_PERCENT = 90
_NONE = timedelta(0)


@dataclass(frozen=True, slots=True)
class Speeds:
    """The last durations of each (kind of case, step), the oldest first."""

    taken: Mapping[tuple[str, str], tuple[timedelta, ...]] = field(default_factory=dict)

    def observe(self, kind: str, step: str, duration: timedelta) -> Speeds:
        """With one more duration of a step. A negative one (a clock was set back) counts as none at all."""
        before = self.taken.get((kind, step), ())
        return Speeds({**self.taken, (kind, step): (*before, max(duration, _NONE))[-LAST:]})

    def expected(self, kind: str, step: str, start_value: timedelta) -> timedelta:
        """How long a step takes: nine of ten were not slower. With few measured: the slowest, at least `start_value`."""
        taken = sorted(self.taken.get((kind, step), ()))
        if len(taken) < ENOUGH:
            return max(start_value, *taken, _NONE)
        return taken[-(-len(taken) * _PERCENT // 100) - 1]  # the nearest rank, rounded up

    def remaining(
        self, kind: str, steps_left: Sequence[tuple[str, timedelta]], in_step_since: datetime, now: datetime
    ) -> timedelta:
        """What is left of a case, never negative. `steps_left`: (step, start value), first the one it is in since then."""
        if not steps_left:
            return _NONE
        current, *later = (self.expected(kind, step, start_value) for step, start_value in steps_left)
        elapsed = max(now - in_step_since, _NONE)
        return sum(later, current - elapsed if elapsed < current else elapsed)
