"""What a pool's instances add up to, whatever EC2's answers lack: it is consistent only in the end.

Promises: an instance that was started is listed until EC2 itself says that it ended, or denies it again and again; one
that ended never comes back; one that was told to end is not listed, unless it is still there after a while. Pure: the
time is an argument.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from fleetd.core.model import NodeId, Offer, Seconds, Sighting, World
from fleetd.providers.ec2.seen import Seen

YOUNG_S: Final = 120.0  # so long after its start EC2 may know nothing of an instance
ABSENT_S: Final = 30.0  # one that was seen before must be denied for so long
DENIALS: Final = 3
GOING_S: Final = 50.0  # told to end and still there: listed again, so that it is told again
KEPT: Final = 2000
REASONS_KEPT: Final = 200


@dataclass(slots=True)
class _Absence:
    since: Seconds
    denials: int = 0


@dataclass(slots=True)
class View:
    """The instances of a pool."""

    nodes: dict[str, Seen] = field(default_factory=dict)  # by instance id: alive, as far as is known
    young: dict[str, Seconds] = field(default_factory=dict)  # started by us and not seen yet: since when
    going: dict[str, Seconds] = field(default_factory=dict)  # told to end: since when
    ended: dict[str, str] = field(default_factory=dict)  # surely over, and why; the newest
    idle: dict[str, Seen] = field(default_factory=dict)  # stopped, not ended: they cost, and are no nodes
    gone: dict[NodeId, str] = field(default_factory=dict)
    absent: dict[str, _Absence] = field(default_factory=dict)

    def started(self, seen: Iterable[Seen], now: Seconds) -> None:
        """Take in instances that a launch was answered with."""
        for one in seen:
            if one.id not in self.ended and one.id not in self.nodes:
                self.nodes[one.id] = one
                self.young[one.id] = now

    def told(self, ids: Iterable[str], now: Seconds) -> None:
        """Take in that instances were told to end."""
        self.going.update((one, now) for one in ids if one not in self.ended)

    def take(self, listed: Sequence[Seen], now: Seconds) -> list[str]:
        """Take in a list of all; return the ids that it lacks and that are to be asked for by name."""
        self.idle = {one.id: one for one in listed if one.state in ("stopping", "stopped")}
        for one in listed:
            self.take_one(one)
        self.going = {one: at for one, at in self.going.items() if now - at < GOING_S}
        here = {one.id for one in listed}
        return [one for one in self.nodes if one not in here]

    def confirm(self, asked: Sequence[str], found: Sequence[Seen], now: Seconds) -> list[Seen]:
        """Take in what is said of those by name; return those that ended while they were coming."""
        failed = []
        for one in found:
            before = self.nodes.get(one.id)
            self.take_one(one)
            if before is not None and before.state == "pending" and not one.alive:
                failed.append(replace(before, code=one.code, why=one.why))
        for name in set(asked) - {one.id for one in found}:
            self._deny(name, now)
        return failed

    def world(self, offer: Offer, *, only: Sequence[str] | None = None) -> World:
        """Return what the pool looks like; `only`: no other instances than these."""
        found = [
            Sighting(one.node, "up" if one.state == "running" else "booting", one.app, one.key or None)
            for one in self.nodes.values()
            if one.id not in self.going and (only is None or one.id in only)
        ]
        return World(tuple(found), offer, gone=dict(self.gone))

    def of(self, key: str) -> list[Seen]:
        """Return the instances of an order that are there and not told to end."""
        return [one for one in self.nodes.values() if one.key == key and one.id not in self.going]

    @property
    def moving(self) -> bool:
        """Whether something comes or goes, so that it is worth looking often."""
        return bool(self.young or self.going or self.absent) or any(
            one.state == "pending" for one in self.nodes.values()
        )

    def take_one(self, one: Seen) -> None:
        """Take in one instance."""
        if one.id in self.ended:
            return  # an answer of before its end
        if one.alive:
            self.nodes[one.id] = one
            self.young.pop(one.id, None)
            self.absent.pop(one.id, None)
        else:
            self._end(one.id, one.why)

    def _deny(self, name: str, now: Seconds) -> None:
        absence = self.absent.setdefault(name, _Absence(now))
        absence.denials += 1
        began = self.young.get(name)
        if began is not None:
            over = now - began >= YOUNG_S
        else:
            over = absence.denials >= DENIALS and now - absence.since >= ABSENT_S
        if over:
            self._end(name, "EC2 knows nothing of it any more")

    def _end(self, name: str, why: str) -> None:
        told = name in self.going
        seen = self.nodes.pop(name, None)
        for table in (self.young, self.going, self.absent):
            table.pop(name, None)
        self.ended[name] = why
        if seen is not None and not told:
            self.gone[seen.node] = why
        for kept, most in ((self.ended, KEPT), (self.gone, REASONS_KEPT)):
            while len(kept) > most:
                del kept[next(iter(kept))]
