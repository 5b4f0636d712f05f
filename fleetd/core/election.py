"""Who of several controllers acts: when a seat may be taken, and for how long it is held. Pure: time is an argument.

The seat is a record somewhere that all can reach; its port is below, an adapter is an entry point of `fleetd.leaders`.
Promises, whatever the clocks of the machines say: a record's own time stamps are never compared with a clock, only
that they changed; it has expired once it was seen unchanged for as long as it lasts. A holder counts from before it
sent its last renewal, a standby from after it saw it, and the holder's time is the shorter one: so it has stopped
before another begins, as long as neither clock runs at a pace of two thirds of the other's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final, Protocol

from fleetd.core.model import Seconds

LASTS_S: Final = 15.0  # a record that was not renewed for so long belongs to nobody
KEEP_S: Final = 10.0  # a holder that could not renew it for so long acts no more
RETRY_S: Final = 2.0
JITTER: Final = 0.2  # of RETRY_S, so that standbys do not come at one time
RELEASED_S: Final = 1.0  # what a record lasts that was given back


@dataclass(frozen=True, slots=True)
class Term:
    """What the record says. `epoch` and `instance` go from holder to holder, also where the next has an empty store.

    `renewed` is another after each renewal; `version` is the record's, for writes that must not overwrite another's.
    """

    holder: str = ""  # empty: given back
    lasts_s: Seconds = LASTS_S
    epoch: int = 0
    instance: str = ""
    renewed: str = ""
    version: str = ""


class Seat(Protocol):
    """Where it is written who acts. Made as `cls(fleet, options)`. What it raises is FleetdError with its place."""

    Options: ClassVar[type[Any]]  # a pydantic model: what stands under the adapter's key in the policy
    place: str  # what messages call it

    async def read(self) -> Term | None:
        """Return the record as it is now; None where there is none."""

    async def write(self, term: Term) -> Term:
        """Write the record and return it with its new `renewed` and `version`.

        Only over the one of that version; an empty version makes it. Raises SeatTakenError where another was quicker.
        """

    async def check(self) -> Sequence[str]:
        """Return what is lacking to read and write it, a line each; changes nothing."""

    async def close(self) -> None:
        """Let go of everything but the record; safe twice."""


@dataclass(frozen=True, slots=True)
class Seen:
    """A record, and since when it was seen just like this, by the own clock. None: there was none any more."""

    term: Term
    at: Seconds
    there: bool = True


def see(before: Seen | None, term: Term | None, now: Seconds) -> Seen | None:
    """Take in what was read. One that is gone counts as the last one seen: its holder may not know yet."""
    if term is None:
        return replace(before, there=False) if before else None
    if before is None or replace(before.term, version="") != replace(term, version=""):
        return Seen(term, now)
    return Seen(term, before.at)


def is_free(seen: Seen | None, now: Seconds) -> bool:
    """Whether the seat may be taken."""
    return seen is None or not seen.term.holder or now >= seen.at + seen.term.lasts_s


def claim(seen: Seen | None, me: str) -> Term:
    """Return the record by which the seat is taken: with an epoch beyond every one that was before."""
    if seen is None:
        return Term(me, epoch=1)
    version = seen.term.version if seen.there else ""
    return replace(seen.term, holder=me, lasts_s=LASTS_S, epoch=seen.term.epoch + 1, version=version)


def given_back(term: Term) -> Term:
    """Return the record by which the holder lets the next one begin at once."""
    return replace(term, holder="", lasts_s=RELEASED_S)
