"""Which machines to wake, in which order, and why no more of them can be had now.

Those that an operator named come first, then those that are on and wait, those that fare well, then the rack's rank.
Promises: pure. What the rack may draw and how many may be switched on in a minute is never exceeded.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, Literal

from fleetd.core.units import show_per_minute, show_seconds
from fleetd.providers.rack.book import Record
from fleetd.providers.rack.inventory import Machine

Seconds = float
Rank = Literal["fastest", "cheapest", "least used"]
NAMED: Final = 3  # of those that cannot be had, so many are named


@dataclass(frozen=True, slots=True)
class Candidate:
    """A machine that is not ours now. `warm`: it is on and waits; `stranger`: it is on, and not by us."""

    machine: Machine
    record: Record
    warm: bool = False
    stranger: bool = False

    def barred(self, now: Seconds) -> str:
        """Return why it is not to be had, empty where it is."""
        if self.stranger:
            return f"{self.machine.name} is on, and not by us"
        if self.record.quarantined_until > now:
            left = show_seconds(round(self.record.quarantined_until - now))
            return f"{self.machine.name} is kept out for {left}: {self.record.why}"
        return ""


@dataclass(frozen=True, slots=True)
class Room:
    """What is left of the rack's limits: watts, and machines that may be switched on now. None: no limit."""

    watts: float | None = None
    wakes: int | None = None
    watts_limit: float = 0.0
    wakes_limit: float = 0.0


def ranked(candidates: Iterable[Candidate], rank: Rank, named: Sequence[str], now: Seconds) -> list[Candidate]:
    """Return those that may be woken, the best first. An operator's word by name beats a quarantine, not a stranger."""
    wanted = frozenset(named)
    free = [one for one in candidates if not one.barred(now) or (one.machine.name in wanted and not one.stranger)]
    return sorted(free, key=lambda one: (one.machine.name not in wanted, not one.warm, *_key(one, rank)))


def _key(one: Candidate, rank: Rank) -> tuple[float, float, str]:
    record, machine = one.record, one.machine
    boots = sorted(record.boots_s)
    by: dict[Rank, float] = {
        "fastest": boots[len(boots) // 2] if boots else inf,  # one that never booted may never do so
        "cheapest": machine.watts,
        "least used": float(record.wakes),
    }
    return float(record.failures), by[rank], machine.name


def pick(free: Sequence[Candidate], count: int, room: Room) -> tuple[list[Candidate], str]:
    """Return as many as fit, in their order, and what stopped it where there were more."""
    chosen: list[Candidate] = []
    watts, wakes, why = room.watts, room.wakes, ""
    for one in free:
        if len(chosen) == count:
            break
        if watts is not None and one.machine.watts > watts and not one.warm:  # a warm one draws them already
            why = f"the rack may draw {room.watts_limit:g} W"
            continue
        if wakes is not None and wakes <= 0 and not one.warm:
            why = f"{show_per_minute(room.wakes_limit)} may be switched on"
            continue
        chosen.append(one)
        if not one.warm:
            watts = watts if watts is None else watts - one.machine.watts
            wakes = wakes if wakes is None else wakes - 1
    return chosen, why if len(chosen) < count else ""


def told(candidates: Iterable[Candidate], now: Seconds) -> str:
    """Return which machines cannot be had, and why."""
    barred = [why for one in candidates if (why := one.barred(now))]
    more = f"; and {len(barred) - NAMED} more" if len(barred) > NAMED else ""
    return "; ".join(barred[:NAMED]) + more
