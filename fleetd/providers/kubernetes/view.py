"""What the pool's pods add up to: its nodes, those that will never come up, and whether more are to be had.

Promises: what is told of the pool costs no request. A pod that waits for a place in vain longer than `room_s`, one that
cannot start, and one whose machine does not let go of it, is no node.
"""

import time
from collections.abc import Callable, Sequence
from typing import Final, Literal

from fleetd.core.model import NodeId, Offer, Seconds, Sighting, World
from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.informer import Informer
from fleetd.providers.kubernetes.seen import Seen, Trouble, ordinal

FULL_S: Final = 60.0  # so long nothing more is offered once a pod found no room
OVERDUE_S: Final = 30.0  # past its grace, a pod that still ends is on a machine that is gone
SYNC_S: Final = 4.0
UNREAD: Final = "not read yet"
ENDED: Final = Trouble("error", "its worker ended")
REASONS_KEPT: Final = 200


class View:
    """The informers of a pool, and what they say. The later one is right about what two of them see."""

    def __init__(
        self,
        place: str,
        informers: Sequence[Informer[Seen]],
        room_s: Seconds,
        app: str | None = None,
        clock: Callable[[], Seconds] = time.monotonic,
    ) -> None:
        """`app`: what all of the pods run, where they do not say so themselves."""
        self._place, self.informers, self._room_s, self._app, self._clock = place, informers, room_s, app, clock
        self.by_ordinal = False  # the highest ordinal goes first, whoever that is
        self.hidden: set[str] = set()  # uids of pods whose launch has not answered yet
        self.gone: dict[NodeId, str] = {}  # why the newest of those that are no node went, or never came
        self._overdue_s = OVERDUE_S
        self._full_until: Seconds = 0.0
        self._waits: dict[str, Seconds] = {}  # by uid: since when a pod waits for a place, or ends

    def start(self) -> None:
        """Watch."""
        for informer in self.informers:
            informer.left = self._left
            informer.start()

    async def close(self) -> None:
        """Watch no more."""
        for informer in self.informers:
            await informer.close()

    async def synced(self, limit_s: Seconds = SYNC_S) -> None:
        """Wait until the server is in touch; raises ProviderError where it is not."""
        for informer in self.informers:
            if informer.trouble == UNREAD or limit_s > SYNC_S:
                await informer.until(lambda one=informer: one.trouble is None, limit_s)  # type: ignore[misc]
            if informer.trouble is not None:
                said = informer.trouble
                raise ProviderError(f"{self._place}: the API server has not been heard yet" if said == UNREAD else said)

    def pods(self) -> dict[NodeId, Seen]:
        """Return every pod by its node, also those that ended or will never be one."""
        return {seen.node: seen for informer in self.informers for seen in informer.items.values()}

    def nodes(self) -> dict[NodeId, Seen]:
        """Return the pods that are nodes, or will be."""
        now = self._clock()
        return {node: seen for node, seen in self.pods().items() if self.failure(seen, now) is None}

    def failure(self, seen: Seen, now: Seconds) -> Trouble | None:
        """Return why a pod is no node; None where it is one."""
        if seen.trouble is not None and seen.trouble.machine:
            return seen.trouble  # should its worker live all the same, its lease says so, and that counts for more
        if seen.leaving_s is not None and seen.phase != "ended":
            return self._overdue(seen, seen.leaving_s + self._overdue_s, now, Trouble("error", "its machine is gone"))
        if seen.trouble is not None:
            return seen.trouble
        if seen.phase == "ended":
            return ENDED
        if seen.phase == "coming" and seen.unplaced:
            return self._overdue(seen, self._room_s, now, Trouble("exhausted", f"no room for it: {seen.unplaced}"))
        self._waits.pop(seen.uid, None)
        return None

    def world(self) -> World:
        """Return what the pool looks like."""
        now, found = self._clock(), []
        pods = self.pods()
        for node, seen in pods.items():
            trouble = self.failure(seen, now)
            if trouble is None and seen.uid not in self.hidden:
                state: Literal["up", "booting"] = "up" if seen.phase == "up" else "booting"
                found.append(Sighting(node, state, self._app or seen.app, seen.key or None))
            elif trouble is not None:
                self.note(node, trouble, coming=seen.phase == "coming")
        if len(self._waits) > len(pods):
            self._waits = {seen.uid: self._waits[seen.uid] for seen in pods.values() if seen.uid in self._waits}
        offer = Offer(headroom=0 if now < self._full_until else None)
        if not self.by_ordinal:
            return World(tuple(found), offer, gone=dict(self.gone))
        nodes = sorted((one.node for one in found), key=lambda node: ordinal(pods[node].name), reverse=True)
        return World(tuple(found), offer, goes_first=tuple(nodes), gone=dict(self.gone))

    def failed(self) -> list[tuple[Seen, Trouble]]:
        """Return the pods that never came up, or ended, and are still there."""
        now = self._clock()
        told = [(seen, self.failure(seen, now)) for seen in self.pods().values() if seen.leaving_s is None]
        return [(seen, trouble) for seen, trouble in told if trouble is not None and seen.uid not in self.hidden]

    def note(self, node: NodeId, trouble: Trouble, *, coming: bool = True) -> None:
        """Take in why a pod is no node; where it was still coming and there is no room, no more are offered."""
        if coming:
            self.full(trouble)
        if trouble is not ENDED and node not in self.gone:
            self.gone[node] = trouble.reason
            while len(self.gone) > REASONS_KEPT:
                del self.gone[next(iter(self.gone))]

    def full(self, trouble: Trouble) -> None:
        """Take in that no more are to be had for a while, unless the trouble is one pod's own."""
        if trouble.kind != "error":
            self._full_until = self._clock() + FULL_S

    def _left(self, seen: Seen) -> None:
        """Keep why a pod went that was deleted before anybody looked."""
        if seen.trouble is not None:
            self.note(seen.node, seen.trouble, coming=seen.phase == "coming")

    def _overdue(self, seen: Seen, limit_s: Seconds, now: Seconds, trouble: Trouble) -> Trouble | None:
        since = self._waits.setdefault(seen.uid, now)
        return trouble if now - since >= limit_s else None
