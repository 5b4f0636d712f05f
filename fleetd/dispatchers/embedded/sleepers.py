"""Workers that wait to be woken.

Promises: pure; one waiting job wakes one worker, not all (a herd of a thousand would ask for one job); a worker that
was woken and did not ask within `REWAKE_S` may hang or be busy with another dispatcher's job: the next one is woken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from fleetd.codecs.gearman import RES, Kind, encode
from fleetd.dispatchers.embedded.model import Function, Peer
from fleetd.dispatchers.embedded.timers import Timers

NOOP: Final = encode(Kind.NOOP, magic=RES)
REWAKE_S: Final = 0.25


@dataclass(slots=True, eq=False)
class Sleepers:
    """Who sleeps is kept in each `Function.sleepers`, in the order of falling asleep."""

    timers: Timers
    send: Callable[[Peer, bytes], None]

    def sleep(self, peer: Peer, now: float) -> None:
        """Note that a worker waits to be woken; at once where there is a job."""
        peer.asleep = True
        for function in peer.ring:
            function.sleepers[peer] = None
        if any(function.waiting for function in peer.ring):
            self._rouse(peer, now)

    def get_up(self, peer: Peer) -> None:
        """Note that a worker asks by itself."""
        peer.woken = False
        if peer.asleep:
            peer.asleep = False
            for function in peer.ring:
                function.sleepers.pop(peer, None)

    def wake(self, function: Function, now: float) -> None:
        """Wake one worker for one job that waits."""
        if function.waiting and function.sleepers:
            self._rouse(next(iter(function.sleepers)), now)

    def _rouse(self, peer: Peer, now: float) -> None:
        self.get_up(peer)
        peer.woken = True
        self.send(peer, NOOP)
        for function in peer.ring:
            if function.waiting:
                self._watch(function, now)

    def _watch(self, function: Function, now: float) -> None:
        if not function.watched and function.sleepers:
            function.watched = True
            self.timers.later(now + REWAKE_S, lambda at: self._look(function, at))

    def _look(self, function: Function, now: float) -> None:
        function.watched = False
        for peer in list(function.sleepers)[: function.waiting]:
            if peer.asleep:
                self._rouse(peer, now)
