"""What the autoscaler does with a backlog: KEDA's and the HPA's rules played against arrivals, second by second.

Each step stops the whole group for as long as a rebalance takes, so a scaler that is quick to answer makes the lag that it
answers to. Rules as in the HPA's documentation: desired = ceil(backlog / threshold); nothing happens within a tenth of the
target; the lowest wish of the window counts upwards, the highest downwards; so many pods in so many seconds.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from deploy.k8s import scaling
from deploy.k8s.names import Doc

_SYNC_SECONDS = 15  # how often the HPA looks, and KEDA by our manifests
_TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Scaler:
    """How many pods there may be, and how fast that changes (seconds; pods a step are 1).

    `threshold`: the backlog of one pod (records); `load`: its load (records a second, averaged over `load_window` seconds).
    The higher of both wishes counts.
    """

    threshold: float
    load: float
    load_window: int
    least: int
    most: int
    up_window: int
    up_period: int
    down_window: int
    down_period: int

    @classmethod
    def of(cls, scaled: Doc, per_second: float) -> Scaler:
        """Of a ScaledObject as it is rendered, for pods that handle `per_second` records when they do nothing else."""
        spec = scaled["spec"]
        behavior = spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]
        up, down = behavior["scaleUp"], behavior["scaleDown"]
        return cls(
            threshold=float(spec["triggers"][0]["metadata"]["lagThreshold"]),
            load=scaling.SHARE * per_second,
            load_window=scaling.RATE_SECONDS,
            least=spec["minReplicaCount"],
            most=spec["maxReplicaCount"],
            up_window=up["stabilizationWindowSeconds"],
            up_period=up["policies"][0]["periodSeconds"],
            down_window=down["stabilizationWindowSeconds"],
            down_period=down["policies"][0]["periodSeconds"],
        )


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group: events a second of so many pods, how long it stands still when one joins or leaves, and how long a
    new pod takes until it joins (seconds)."""

    speed: Callable[[int], float]
    standstill: float
    startup: float


@dataclass(slots=True)
class Course:
    """What happened, a figure for each second."""

    pods: list[int] = field(default_factory=list)
    backlog: list[float] = field(default_factory=list)
    age: list[float] = field(default_factory=list)
    """How old the oldest event is that is not handled yet, in seconds."""
    steps: int = 0
    stood_still: float = 0.0

    def age_at(self, share: float) -> float:
        """The age that this share of the seconds did not exceed."""
        return sorted(self.age)[min(len(self.age) - 1, math.floor(share * len(self.age)))]


def play(arrivals: Sequence[float], scaler: Scaler, group: Group, out: range = range(0)) -> Course:
    """`arrivals`: events of each second; `out`: seconds in which nobody can work, since the database is away. Starts with the
    least pods and no backlog."""
    course = Course()
    pods, coming, still = scaler.least, 0, 0.0
    joins: deque[float] = deque()
    wishes: deque[tuple[int, int]] = deque()
    moved_up = moved_down = -math.inf
    arrived: list[float] = []
    handled: list[float] = []
    total = served = looked_at = 0.0
    oldest = 0
    for now, came in enumerate(arrivals):
        total += came
        arrived.append(total)
        while joins and joins[0] <= now:
            joins.popleft()
            pods, coming = pods + 1, coming - 1
            still = max(still, group.standstill)
            course.steps += 1
        working = max(0.0, 1.0 - still)
        course.stood_still += 1.0 - working
        still = max(0.0, still - 1.0)
        served = min(total, served + group.speed(pods) * working * (now not in out))
        handled.append(served)
        while oldest < now and arrived[oldest] <= served:
            oldest += 1
        course.pods.append(pods)
        course.backlog.append(total - served)
        course.age.append(float(now - oldest) if served < total else 0.0)
        if now % _SYNC_SECONDS:
            continue
        before = handled[max(0, now - scaler.load_window)]
        load = (served - before) / min(now or 1, scaler.load_window)
        # KEDA leaves out what nobody moved since it last looked (excludePersistentLag): more pods would not, either.
        backlog = total - served if served > looked_at else 0.0
        looked_at = served
        wish = max(_wish(backlog, scaler.threshold, pods + coming), _wish(load, scaler.load, pods + coming))
        wishes.append((now, min(max(wish, scaler.least), scaler.most)))
        while wishes[0][0] < now - max(scaler.up_window, scaler.down_window):
            wishes.popleft()
        have = pods + coming
        least = min(wish for at, wish in wishes if at >= now - scaler.up_window)
        highest = max(wish for at, wish in wishes if at >= now - scaler.down_window)
        if least > have and now - moved_up >= scaler.up_period:
            moved_up, coming = now, coming + 1
            joins.append(now + group.startup)
        elif highest < have and not coming and now - moved_down >= scaler.down_period:
            moved_down, pods = now, pods - 1
            still = max(still, group.standstill)
            course.steps += 1
    return course


def _wish(value: float, target: float, have: int) -> int:
    return have if abs(value / (target * have) - 1) <= _TOLERANCE else math.ceil(value / target)
