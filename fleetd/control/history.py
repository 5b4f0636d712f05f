"""Writes down, row by row, what `simulate --from-journal` and `replay` need: what came, what it took, what it cost.

Promises: a row is some ten seconds of the life of the fleet and is given out once it is over, so an end of the
controller loses no more than the row under way. Everything is counted once, whatever order the words come in. Changes
nothing and decides nothing.

Arrivals are those that the source counts, otherwise starts plus the growth of the waiting. A worker's word of a start
may come later than the reading that shows it: what such a moment lacks is owed to the next.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Final

from fleetd.codecs.history import HistoryRow, PoolRow, QueueRow
from fleetd.core.budget import price
from fleetd.core.lifecycle import COMING
from fleetd.core.memory import Memory
from fleetd.core.model import (
    Launched,
    Observation,
    Phase,
    Policy,
    QueuePolicy,
    Reading,
    Seconds,
    Stopped,
    Work,
)

ROW_S: Final = 10.0
GOING: Final = (Phase.DRAINING, Phase.STOPPING)


@dataclass(slots=True)
class _Queue:
    """What was seen of a queue in this row, and what outlives the row: the last reading, and what is owed."""

    last: Reading | None = None
    arrived: float = 0.0  # below zero: starts that no worker told of yet
    started: float = 0.0
    done: float = 0.0
    failed: int = 0
    ended: Counter[int] = field(default_factory=Counter)
    blind: bool = True


@dataclass(slots=True)
class _Pool:
    """What a pool cost in this row, and how many nodes it held when last looked at."""

    held: int = 0
    launched: int = 0
    stopped: int = 0
    node_s: float = 0.0
    money: float = 0.0


@dataclass(slots=True)
class Recorder:
    """The row under way. `untold`: no worker leases here, so all are known by their source alone, as foreign ones."""

    untold: bool = False
    began_s: Seconds | None = None
    noted_s: Seconds = 0.0
    queues: dict[str, _Queue] = field(default_factory=lambda: defaultdict(_Queue))
    pools: dict[str, _Pool] = field(default_factory=lambda: defaultdict(_Pool))

    def note(self, observation: Observation, policy: Policy, memory: Memory) -> HistoryRow | None:
        """Take in one tick that was carried out; return a row when it is full. `memory` is what the tick left."""
        now = memory.now
        elapsed_s = now - self.noted_s if self.began_s is not None else 0.0
        self.noted_s = now
        if self.began_s is None:
            self.began_s = now
        for name, queue in policy.queues.items():
            foreign = self.untold or bool(policy.apps[queue.app].exec)
            self._queue(name, queue, observation, elapsed_s, foreign=foreign)
        phases = self._pools(observation, policy, memory, elapsed_s)
        if now // ROW_S == self.began_s // ROW_S:
            return None
        row = HistoryRow(
            self.began_s,
            now - self.began_s,
            {name: _queue_row(self.queues[name]) for name in policy.queues},
            {name: _pool_row(self.pools[name], phases[name]) for name in policy.pools},
        )
        self.began_s = now
        return row

    def _queue(
        self, name: str, policy: QueuePolicy, observation: Observation, elapsed_s: Seconds, *, foreign: bool
    ) -> None:
        queue, reading = self.queues[name], observation.readings.get(name)
        work = observation.work.get(name, Work())
        queue.started += work.started
        queue.done += work.done
        queue.failed += work.failed
        queue.ended.update(work.ended)
        before, queue.blind = queue.last, not isinstance(reading, Reading)
        if not isinstance(reading, Reading):
            # A source that counts arrivals makes up for them itself once it can be read again.
            queue.arrived += work.started if before is None or before.arrived_total is None else 0
            return
        queue.last = reading
        if before is None:
            return  # what waited before the first look came unseen
        if foreign:
            done = _done(before, reading, policy, elapsed_s)
            started = done + reading.running - before.running
            queue.done += done
            queue.started += started
        else:
            started = work.started
        queue.arrived += _counted(
            before.arrived_total, reading.arrived_total, started + reading.waiting - before.waiting
        )

    def _pools(
        self, observation: Observation, policy: Policy, memory: Memory, elapsed_s: Seconds
    ) -> dict[str, Counter[Phase]]:
        phases: dict[str, Counter[Phase]] = defaultdict(Counter)
        for node in memory.nodes.values():
            phases[node.pool][node.phase] += 1
        for outcome in observation.outcomes:
            if isinstance(outcome, (Launched, Stopped)):
                for name in outcome.nodes:
                    pool = self.pools[name.partition("/")[0]]
                    pool.launched += isinstance(outcome, Launched)
                    pool.stopped += isinstance(outcome, Stopped)
        for name, rule in policy.pools.items():
            pool = self.pools[name]
            pool.node_s += pool.held * elapsed_s
            pool.money += pool.held * elapsed_s * price(rule, observation) / 3600.0
            pool.held = phases[name].total()
        return phases


def _counted(before: int | None, now: int | None, otherwise: float) -> float:
    """Return the growth of a source's own counter; `otherwise` where it has none, or one that began anew."""
    return now - before if before is not None and now is not None and now >= before else otherwise


def _done(before: Reading, reading: Reading, policy: QueuePolicy, elapsed_s: Seconds) -> float:
    """Return how many jobs foreign workers ended: as the source counts, or what the hint at their length makes likely.

    Without either, ends are seen only where the number of the running falls.
    """
    likely = 0.0
    if policy.service_s:
        likely = 0.5 * (before.running + reading.running) * elapsed_s / policy.service_s
    return _counted(before.done_total, reading.done_total, max(likely, before.running - reading.running))


def _queue_row(queue: _Queue) -> QueueRow:
    """Return the row, and begin the next: fractions of jobs and arrivals below zero are left to it."""
    last = queue.last
    counts: dict[str, int] = {}
    for name in ("arrived", "started", "done"):
        whole = max(0, int(getattr(queue, name)))
        setattr(queue, name, getattr(queue, name) - whole)
        counts[name] = whole
    row = QueueRow(
        waiting=last.waiting if last else 0,
        running=last.running if last else 0,
        failed=queue.failed,
        ended=dict(queue.ended),
        blind=queue.blind,
        **counts,
    )
    queue.failed = 0
    queue.ended.clear()
    return row


def _pool_row(pool: _Pool, phases: Counter[Phase]) -> PoolRow:
    """Return the row, and begin the next."""
    row = PoolRow(
        ready=phases[Phase.READY],
        coming=sum(phases[phase] for phase in COMING),
        draining=sum(phases[phase] for phase in GOING),
        launched=pool.launched,
        stopped=pool.stopped,
        node_s=pool.node_s,
        money=pool.money,
    )
    pool.launched = pool.stopped = 0
    pool.node_s = pool.money = 0.0
    return row
