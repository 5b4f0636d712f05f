"""A peer over several pools: what it wants fills the cheapest pool first, up to its max, the rest goes to the next.

Promises: peers are treated well. A node that drains comes back before one is launched; idle nodes go first, the longest
idle before the others, then what still boots; a busy node ends its jobs; a boot that failed is replaced.
"""

from math import ceil, floor
from typing import Final

from fleetd.core.model import Seconds
from fleetd.sim.engine import Station
from fleetd.sim.scaler import Scaler, View
from fleetd.sim.world import Box, Fleet, Ground

BOOT_DEADLINE: Final = 3.0  # times the longest boot: then it has failed


class Cascade:
    """One app's peer."""

    def __init__(self, fleet: Fleet, app: str, peer: Scaler) -> None:
        self._fleet, self._app, self._peer = fleet, app, peer
        self._station: Station = fleet.stations[app]
        grounds = [ground for ground in fleet.grounds.values() if app in ground.pool.apps]
        self._grounds = sorted(grounds, key=lambda g: (g.price_per_h / g.pool.slots, g.pool.name))
        self._slots = self._grounds[0].pool.slots if grounds else 1  # of a node, as the peer counts
        streams = self._station.streams
        jobs = sum(stream.count for stream in streams)
        self._mean_s = sum(stream.worked[-1] for stream in streams) / jobs if jobs else 0.0
        queues = [queue for queue in fleet.policy.queues.values() if queue.app == app]
        self._objective_s = min((queue.objective.wait_s for queue in queues), default=0.0)
        self._asked: tuple[int, Seconds] = (0, 0.0)  # arrivals and work at the last time

    def ask(self) -> None:
        """Ask the peer what it wants now, and see to it."""
        if not self._grounds:
            return
        for ground in self._grounds:
            self._give_up(ground)
        busy = self._station.busy()
        view = self._view(busy)
        left = min(max(self._peer.wanted(view), view.least), view.most) * self._slots
        for place, ground in enumerate(self._grounds):
            pool = ground.pool
            later = sum(other.pool.min_nodes * other.pool.slots for other in self._grounds[place + 1 :])
            wanted = min(max(ceil((left - later) / pool.slots), pool.min_nodes), pool.max_nodes)
            left -= wanted * pool.slots
            self._steer(ground, wanted, busy)

    def _view(self, busy: dict[int, int]) -> View:
        station, now = self._station, self._fleet.now
        boxes = [box for ground in self._grounds for box in self._serving(ground)]
        up = [box for box in boxes if box.up and box.speaks]
        arrived = sum(stream.arrived for stream in station.streams)
        worked_s = station.worked_s()
        before, self._asked = self._asked, (arrived, worked_s)
        pools = [ground.pool for ground in self._grounds]
        return View(
            now=now,
            waiting=station.waiting,
            running=station.running,
            arrived=arrived - before[0],
            ready=self._count(up),
            booting=self._count(boxes) - self._count(up),
            idle_s=tuple(sorted([self._idle_s(box) for box in up if not busy.get(box.number)], reverse=True)),
            busy_slot_s=worked_s - before[1],
            slots=self._slots,
            least=ceil(sum(pool.min_nodes * pool.slots for pool in pools) / self._slots),
            most=floor(sum(pool.max_nodes * pool.slots for pool in pools) / self._slots),
            mean_service_s=self._mean_s,
            objective_s=self._objective_s,
        )

    def _count(self, boxes: list[Box]) -> int:
        slots = sum(self._fleet.grounds[box.pool].pool.slots for box in boxes)
        return slots // self._slots

    def _serving(self, ground: Ground) -> list[Box]:
        return [box for box in ground.boxes.values() if box.app == self._app and not box.fenced]

    def _idle_s(self, box: Box) -> Seconds:
        return self._fleet.now - max([self._station.since[slot] for slot in box.slots])

    def _give_up(self, ground: Ground) -> None:
        """Stop what is past its boot deadline."""
        limit_s = BOOT_DEADLINE * ground.boot[1]
        for box in self._serving(ground):
            if not box.slots and self._fleet.now - box.ordered_at > limit_s:
                self._fleet.stop(box.name)

    def _steer(self, ground: Ground, wanted: int, busy: dict[int, int]) -> None:
        serving = self._serving(ground)
        missing = wanted - len(serving)
        if missing > 0:
            fenced = [box for box in ground.boxes.values() if box.app == self._app and box.fenced]
            for box in fenced[:missing]:
                self._fleet.unfence(box.name)
            missing -= len(fenced[:missing])
            if missing > 0:
                self._fleet.launch(ground.pool.name, self._app, missing)
        elif missing < 0:
            for box in sorted(serving, key=lambda b: self._rank(b, busy))[:-missing]:
                self._fleet.fence(box.name)
                if not box.slots or not busy.get(box.number):
                    self._fleet.stop(box.name)

    def _rank(self, box: Box, busy: dict[int, int]) -> tuple[int, float]:
        """Return what sorts first that is to go first: idle, the longest; booting, the youngest; busy, the youngest."""
        if not box.slots:
            return (1, -box.number)
        return (2, -box.number) if busy.get(box.number) else (0, -self._idle_s(box))
