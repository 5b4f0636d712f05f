"""The books of a run: series while it goes, figures at its end."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil

from fleetd.core.model import Seconds
from fleetd.sim.result import QueueResult, Result, Series
from fleetd.sim.stream import Stream
from fleetd.sim.world import Fleet, Setup


def percentile(ordered: Sequence[float], share: float, zeros: int = 0) -> float:
    """Return the nearest rank of values in order, before which stand so many zeros; 0 of nothing."""
    rank = ceil(share * (zeros + len(ordered)) - 1e-9) - zeros
    return ordered[max(rank, 1) - 1] if ordered and rank > 0 else 0.0


@dataclass(slots=True)
class Course:
    """Samples for the charts, taken at the first look in every step."""

    step_s: Seconds
    waiting: list[int] = field(default_factory=list)
    running: list[int] = field(default_factory=list)
    ready: dict[str, list[int]] = field(default_factory=dict)
    coming: dict[str, list[int]] = field(default_factory=dict)
    money: list[float] = field(default_factory=list)
    spent: float = 0.0
    due_s: Seconds = 0.0

    def sample(self, fleet: Fleet) -> None:
        """Note what is now; steps that no look fell into get the same."""
        waiting = sum(station.waiting for station in fleet.stations.values())
        running = sum(station.running for station in fleet.stations.values())
        spent = money(fleet)
        while self.due_s <= fleet.now:
            self.due_s += self.step_s
            self.waiting.append(waiting)
            self.running.append(running)
            self.money.append(spent - self.spent)
            self.spent = spent
            for name, ground in fleet.grounds.items():
                up = sum(box.up and box.speaks for box in ground.boxes.values())
                self.ready.setdefault(name, []).append(up)
                self.coming.setdefault(name, []).append(len(ground.boxes) - up)


def money(fleet: Fleet) -> float:
    """Return what all nodes cost up to now."""
    return sum(ground.billed_s(fleet.now) * ground.price_per_h for ground in fleet.grounds.values()) / 3600.0


def result(name: str, fleet: Fleet, setup: Setup, course: Course | None, notes: Sequence[str]) -> Result:
    """Return the figures of a run that ended at the fleet's now. A job that never started is late."""
    judged: list[float] = []
    zeros = late = 0
    queues: dict[str, QueueResult] = {}
    for waits in (found for station in fleet.stations.values() for found in station.waits(setup.judged_from_s)):
        objective = fleet.policy.queues[waits.queue].objective
        jobs = len(waits.started) + len(waits.unstarted)
        positive = sorted([wait for wait in waits.started if wait > 0.0])
        too_late = len(positive) - bisect_right(positive, objective.wait_s) + len(waits.unstarted)
        positive = sorted([*positive, *waits.unstarted])
        none = jobs - len(positive)
        queues[waits.queue] = QueueResult(
            jobs, too_late / max(jobs, 1), percentile(positive, 0.95, none), objective.wait_s
        )
        judged, zeros, late = judged + positive, zeros + none, late + too_late
    judged.sort()
    jobs = zeros + len(judged)
    lost = sum(stream.count - stream.head for station in fleet.stations.values() for stream in station.streams)
    grounds = fleet.grounds.values()
    return Result(
        policy=name,
        cost_worker_s=sum(ground.billed_s(fleet.now) for ground in grounds),
        cost_money=money(fleet),
        late_share=late / max(jobs, 1),
        wait_p50_s=percentile(judged, 0.5, zeros),
        wait_p95_s=percentile(judged, 0.95, zeros),
        wait_p99_s=percentile(judged, 0.99, zeros),
        launches=sum(ground.launches for ground in grounds),
        stops=sum(ground.stops for ground in grounds),
        reversals_300s=sum(ground.reversals for ground in grounds),
        jobs=jobs,
        lost=lost,
        queues=queues,
        series=None if course is None else _series(course, fleet),
        notes=(*notes, *_notes(fleet, lost)),
    )


def _notes(fleet: Fleet, lost: int) -> list[str]:
    notes = [f"{lost} jobs never started"] if lost else []
    for name, ground in fleet.grounds.items():
        if ground.launches and not ground.came_up:
            notes.append(f"pool {name}: none of its {ground.launches} nodes ever came up")
        elif ground.failed:
            notes.append(f"pool {name}: {ground.failed} of {ground.launches} nodes did not come up")
        if ground.refused:
            notes.append(f"pool {name}: {ground.refused} launches brought nothing")
    return notes


def _series(course: Course, fleet: Fleet) -> Series:
    streams = [stream for station in fleet.stations.values() for stream in station.streams]
    return Series(
        step_s=course.step_s,
        waiting=tuple(course.waiting),
        running=tuple(course.running),
        ready={name: tuple(counts) for name, counts in course.ready.items()},
        coming={name: tuple(counts) for name, counts in course.coming.items()},
        wait_p95_s=tuple(_p95(streams, step * course.step_s, course.step_s) for step in range(len(course.waiting))),
        money=tuple(course.money),
    )


def _p95(streams: Sequence[Stream], begin_s: Seconds, step_s: Seconds) -> Seconds:
    """Return the 95th percentile of the waits of the jobs submitted in a step."""
    waits: list[float] = []
    for stream in streams:
        started = len(stream.waits)
        first = bisect_left(stream.submitted, begin_s, 0, started)
        waits += stream.waits[first : bisect_left(stream.submitted, begin_s + step_s, first, started)]
    return percentile(sorted(waits), 0.95)
