"""Whether the controller lives, and whether it is ready: for whoever restarts it, and for whoever relies on it.

Promises: both need no token and say no more than a word; neither waits for anything. Alive: the tick goes on. A disk
that is full or a source that is away is no reason to start the controller anew, so these concern `ready` alone.
"""

from typing import Any, Final

from fleetd.control.loop import Controller
from fleetd.core.model import World
from fleetd.web.calls import Asked
from fleetd.web.wire import BusyError

STUCK_S: Final = 15.0


class Health:
    """Remembers which pools were seen: one that fails now was read once all the same."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self._seen: set[str] = set()

    async def alive(self, asked: Asked) -> dict[str, Any]:
        """Say whether the tick goes on."""
        del asked
        of = self._controller
        if of.clock() - max(of.observation.now, of.started_at) >= STUCK_S:
            raise BusyError("stuck")
        return {"ok": True}

    async def ready(self, asked: Asked) -> dict[str, Any]:
        """Say whether it leads its fleet, writes its journal, and has read every source and pool at least once."""
        if word := self._missing():
            raise BusyError(word)
        return await self.alive(asked)

    def _missing(self) -> str:
        of = self._controller
        if not of.store.writable:
            return "follower"  # the lock on the fleet's state is what makes a leader
        if of.clock() - of.memory.now >= STUCK_S:
            return "journal"  # memory moves on only once a tick is written
        read = {name for name, queue in of.memory.queues.items() if (queue.read_at or 0.0) >= of.started_at}
        self._seen |= {name for name, world in of.observation.worlds.items() if isinstance(world, World)}
        return "starting" if of.policy.queues.keys() - read or of.policy.pools.keys() - self._seen else ""
