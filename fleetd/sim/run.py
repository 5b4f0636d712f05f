"""One policy, one trace, one run: the live `decide` (or a peer) over a simulated fleet under a virtual clock.

Promises: the same policy, traces and setup give the same result to the last digit. The run ends when the last job has;
jobs that nothing will ever start are reported as lost.
"""

from collections.abc import Callable, Mapping
from math import inf
from typing import Final

from fleetd.core.decide import decide
from fleetd.core.learn import prime
from fleetd.core.memory import Memory, Node, PoolMemory
from fleetd.core.model import (
    Drain,
    Launch,
    Outcome,
    Phase,
    Plan,
    Policy,
    Seconds,
    Stop,
    Stopped,
    Undrain,
)
from fleetd.errors import UsageError
from fleetd.sim.cascade import Cascade
from fleetd.sim.observe import Lookout
from fleetd.sim.result import Result
from fleetd.sim.scaler import Scaler
from fleetd.sim.tally import Course, result
from fleetd.sim.trace import Trace
from fleetd.sim.warn import warn
from fleetd.sim.world import Fleet, Setup

__all__ = ["Setup", "simulate", "simulate_peer", "warn"]

NUDGE_S: Final = 0.1  # an empty fenced node wakes the tick, as its worker's word does in life
GIVE_UP_S: Final = 6 * 3600.0  # so long, and ten boots, after the last job has started what waits is lost
GIVE_UP_BOOTS: Final = 10.0
BOOTS_KNOWN: Final = 20
Say = Callable[[float], None]


def simulate(policy: Policy, traces: Mapping[str, Trace], setup: Setup, say: Say | None = None) -> Result:
    """Run fleetd's own policy. `say` hears the share done, at most a hundred times. Raises UsageError."""
    _check(policy, traces, setup)
    fleet = Fleet(policy, traces, setup)
    lookout, pace = Lookout(fleet, policy, setup), _Pace(fleet, setup, say)
    memory, outcomes, tick = _memory(fleet, lookout.start_s, setup), list[Outcome](), 0
    while pace.goes_on(min(tick * setup.tick_s, fleet.empties_at() + NUDGE_S)):
        fleet.take_empty()
        if fleet.now >= tick * setup.tick_s:
            tick += 1
        plan, memory = decide(lookout.look(memory, tuple(outcomes)), policy, memory)
        outcomes = _apply(plan, fleet)
    return result("fleetd", fleet, setup, pace.course, warn(policy, traces))


def simulate_peer(
    policy: Policy, traces: Mapping[str, Trace], setup: Setup, peer: type[Scaler], say: Say | None = None
) -> Result:
    """Run a peer over the policy's pools, the cheapest first, at the peer's own pace."""
    _check(policy, traces, setup)
    fleet = Fleet(policy, traces, setup, recent_first=peer.recent_first)
    pace, asked = _Pace(fleet, setup, say), 0
    cascades = [Cascade(fleet, app, peer()) for app, station in fleet.stations.items() if station.streams]
    while pace.goes_on(min(asked * peer.every_s, fleet.empties_at())):
        for box in fleet.take_empty():
            fleet.stop(box.name)
        if fleet.now >= asked * peer.every_s:
            asked += 1
            if not any(begin <= fleet.now < end for begin, end in setup.blind):
                for cascade in cascades:
                    cascade.ask()
    return result(peer.name, fleet, setup, pace.course, warn(policy, traces))


class _Pace:
    """Lets time pass until the run is over; samples and says on the way."""

    def __init__(self, fleet: Fleet, setup: Setup, say: Say | None) -> None:
        self._fleet, self._say, self._said = fleet, say, 0
        self.course = Course(setup.series_step_s) if setup.series_step_s else None
        self._last_s = max((station.last_s for station in fleet.stations.values()), default=0.0)
        self._progress = (0, max([self._last_s, *(until for _, until in setup.blind)]))  # jobs started, and since when
        slowest_s = max((ground.boot[1] for ground in fleet.grounds.values()), default=0.0)
        self._patience_s = GIVE_UP_S + GIVE_UP_BOOTS * slowest_s

    def goes_on(self, now: Seconds) -> bool:
        """Let time pass to `now` and return True, or to the end of the run and return False."""
        fleet = self._fleet
        fleet.advance(now)
        if self._say and self._last_s and (percent := int(100.0 * min(now / self._last_s, 1.0))) > self._said:
            self._said = percent
            self._say(percent / 100.0)
        if now >= self._last_s and (end_s := self._over(now)) is not None:
            fleet.now = end_s
            if self.course:
                self.course.sample(fleet)
            return False
        if self.course and now >= self.course.due_s:
            self.course.sample(fleet)
        return True

    def _over(self, now: Seconds) -> Seconds | None:
        """Return when the run ended, or None: it goes on while something runs or may still start."""
        stations = self._fleet.stations.values()
        if any(station.running for station in stations):
            return None
        if not any(station.waiting for station in stations):
            return max([self._last_s, *(station.last_end_s for station in stations)])
        started = sum(stream.head for station in stations for stream in station.streams)
        if started != self._progress[0]:
            self._progress = (started, max(now, self._progress[1]))
        return now if now - self._progress[1] > self._patience_s else None


def _apply(plan: Plan, fleet: Fleet) -> list[Outcome]:
    """Carry out a plan and return its outcomes."""
    outcomes: list[Outcome] = []
    for intent in plan.intents:
        match intent:
            case Launch(order):
                outcomes.append(fleet.launch(order.pool, order.app, order.count, order.key))
            case Drain(_, node):
                if node in fleet.boxes:
                    fleet.fence(node)
            case Undrain(_, node):
                if node in fleet.boxes:
                    fleet.unfence(node)
            case Stop(_, nodes):
                for node in nodes:
                    if node in fleet.boxes:
                        fleet.stop(node)
                outcomes.append(Stopped(nodes))
    return outcomes


def _memory(fleet: Fleet, now: Seconds, setup: Setup) -> Memory:
    """Return what a controller knows that has run this fleet before: its nodes, how long they boot, its history.

    With no node there and no history it has not: then it has all to learn.
    """
    nodes = {
        box.name: Node(box.name, box.pool, box.app, Phase.READY, now, now, len(box.slots), heard_at=now)
        for box in fleet.boxes.values()
    }
    pools = {
        name: PoolMemory(boots_s=tuple(ground.chances["learned"].uniform(*ground.boot) for _ in range(BOOTS_KNOWN)))
        for name, ground in fleet.grounds.items()
        if (ground.boxes or setup.history) and name not in setup.never_up
    }
    memory = Memory(epoch=1, now=now, nodes=nodes, pools=pools)
    for queue, history in sorted(setup.history.items()):
        rows = [(now + start_s, arrivals) for start_s, arrivals in history.rows]
        memory = prime(memory, queue, rows, history.step_s)
    return memory


def _check(policy: Policy, traces: Mapping[str, Trace], setup: Setup) -> None:
    for what, names, known in (
        ("trace of queue", traces, policy.queues),
        ("history of queue", setup.history, policy.queues),
        ("boot of pool", setup.boots, policy.pools),
        ("never up: pool", setup.never_up, policy.pools),
    ):
        for name in names:
            if name not in known:
                raise UsageError(f"{what} {name}: is not in the policy, which has {', '.join(sorted(known)) or 'none'}")
    if not 0.0 < setup.tick_s < inf:
        raise UsageError(f"tick {setup.tick_s:g}: is to be more than zero seconds")
