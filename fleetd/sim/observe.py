"""From the simulated fleet to what fleetd may know of it at a tick: an Observation, and nothing beside it.

Promises: what the inputs withhold is withheld. A look costs little: what has not changed is the same object again.
"""

from collections import Counter
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final
from zoneinfo import ZoneInfo

from fleetd.config.schedule import Schedules, month
from fleetd.core.learn import leads
from fleetd.core.memory import Memory
from fleetd.core.model import (
    Blind,
    LeaseView,
    NodeId,
    Observation,
    Outcome,
    Policy,
    Reading,
    Seconds,
    Sighting,
    Work,
    World,
)
from fleetd.sim.engine import Station
from fleetd.sim.world import Box, Fleet, Ground, Setup

BLIND: Final = Blind("simulated outage")
MONDAY: Final = datetime(2026, 1, 5)  # noqa: DTZ001 - the policy's zone is put in
LEASE_TICKS: Final = 10  # a lease comes with every look, and runs out when it has not come to so many
FRESH_TICKS: Final = 5  # so many looks after a change the lists are news, then nothing in them can be
MONTH_EVERY_S: Final = 900.0  # midnight is at a full quarter of an hour in every time zone


def start_wall_s(policy: Policy, setup: Setup) -> float:
    """Return the wall clock of second 0."""
    if setup.start_wall_s is not None:
        return setup.start_wall_s
    return MONDAY.replace(tzinfo=ZoneInfo(policy.timezone)).timestamp()


@dataclass(frozen=True, slots=True)
class _Kept:
    """A pool's world as it was after so many changes: fresh `until`, then no longer."""

    changes: int
    until: Seconds
    fresh: World
    stale: World


class Lookout:
    """Looks at one simulated fleet. The observation's clock is the wall's, as it is in life."""

    def __init__(self, fleet: Fleet, policy: Policy, setup: Setup) -> None:
        self._fleet, self._policy, self._setup = fleet, policy, setup
        self._depth = setup.inputs == "depth"
        self.start_s = start_wall_s(policy, setup)
        self._fresh_s = FRESH_TICKS * setup.tick_s + FRESH_TICKS
        self._worlds: dict[str, _Kept] = {}
        self._full: dict[NodeId, LeaseView] = {}
        self._changes = -1
        self._month = ("", -1)
        self._schedules = Schedules(policy)

    def look(self, memory: Memory, outcomes: tuple[Outcome, ...]) -> Observation:
        """Return what is to be seen now; what the workers did is told once."""
        fleet, now = self._fleet, self._fleet.now
        wall_s = self.start_s + now
        readings: dict[str, Reading | Blind] = {}
        work: dict[str, Work] = {}
        blind = any(begin <= now < end for begin, end in self._setup.blind)
        for station in fleet.stations.values():
            for name, (waiting, running) in station.counts().items():
                readings[name] = BLIND if blind else Reading(name, waiting, running)
            if self._depth:
                station.forget_work()
            else:
                work |= station.take_work()
        return Observation(
            now=wall_s,
            month=self._month_of(wall_s),
            readings=readings,
            worlds={name: self._world(ground, now) for name, ground in fleet.grounds.items()},
            leases=self._leases(),
            work=work,
            floors=self._schedules.floors(wall_s, leads(self._policy, memory)) if self._policy.schedules else {},
            outcomes=outcomes,
            lease_ttl_s=LEASE_TICKS * self._setup.tick_s,
        )

    def _leases(self) -> dict[NodeId, LeaseView]:
        """Return every worker's word: as if all were as busy as they can be, but for the idle slots and the fenced.

        Of a foreign worker no more is known than that it is there, and when it has ended.
        """
        fleet = self._fleet
        changes = sum([ground.changes for ground in fleet.grounds.values()])
        if changes != self._changes:
            speaking = [box for box in fleet.boxes.values() if box.slots]
            self._full = {box.name: _view(box, len(box.slots)) for box in speaking}
            self._changes = changes
        leases = self._full.copy()
        if not self._depth:
            for station in fleet.stations.values():
                for number, free in Counter([station.owner[slot] for slot in station.idle]).items():
                    box = fleet.box(number)
                    running = len(box.slots) - free
                    leases[box.name] = _view(box, running) if running else _idle(box, station, fleet.now)
        for box in fleet.fenced.values():
            if box.slots:
                leases[box.name] = self._fenced(box)
        return leases

    def _fenced(self, box: Box) -> LeaseView:
        if box.empty_at <= self._fleet.now:
            return LeaseView(box.name, box.pool, box.app, "drained", len(box.slots), 0, 0.0, 0.0)
        running = len(box.slots) if self._depth else self._fleet.stations[box.app].busy()[box.number]
        return LeaseView(box.name, box.pool, box.app, "draining", len(box.slots), running, 0.0, 0.0)

    def _world(self, ground: Ground, now: Seconds) -> World:
        """Return the pool as its provider lists it: the same object until something changes, and no news for long."""
        name, offer = ground.pool.name, ground.offer(now)
        kept = self._worlds.get(name)
        if kept is None or kept.changes != ground.changes or kept.fresh.offer != offer:
            fresh = World(tuple([_sighting(box) for box in ground.boxes.values()]), offer)
            kept = self._worlds[name] = _Kept(ground.changes, now + self._fresh_s, fresh, replace(fresh, fresh=False))
        return kept.fresh if now <= kept.until else kept.stale

    def _month_of(self, wall_s: float) -> str:
        quarter = int(wall_s // MONTH_EVERY_S)
        if quarter != self._month[1]:
            self._month = (month(self._policy, wall_s), quarter)
        return self._month[0]


def _view(box: Box, running: int) -> LeaseView:
    """Return the word of a node that works: the same object for the same number of running jobs."""
    view = box.views.get(running)
    if view is None:
        view = LeaseView(box.name, box.pool, box.app, "working", len(box.slots), running, 0.0, 0.0)
        box.views[running] = view
    return view


def _idle(box: Box, station: Station, now: Seconds) -> LeaseView:
    slots, since = box.slots, station.since
    began = since[slots[0]] if len(slots) == 1 else max([since[slot] for slot in slots])
    return LeaseView(box.name, box.pool, box.app, "working", len(slots), 0, now - began, 0.0)


def _sighting(box: Box) -> Sighting:
    if box.sighting is None:
        box.sighting = Sighting(box.name, "up" if box.up else "booting", box.app, box.key or None)
    return box.sighting
