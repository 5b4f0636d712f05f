"""What fleetd writes down beside the pods, for those who look with kubectl: Events, a ConfigMap, marks on busy pods.

Promises: none of it is needed to act, so no failure of it is one of the pool; it is written in the background, at a
bounded rate, and only what has changed.
"""

import asyncio
import datetime as dt
import json
import time
from collections import deque
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, Final

from fleetd.core.model import NodeId, Seconds
from fleetd.errors import ProviderError
from fleetd.providers.kubernetes import names
from fleetd.providers.kubernetes.api import Api
from fleetd.providers.kubernetes.manifest import Maker
from fleetd.providers.kubernetes.seen import Seen
from fleetd.providers.kubernetes.view import View

STATUS_S: Final = 5.0  # between two writes of the ConfigMap
EVENTS_KEPT: Final = 50  # that wait to be written; more at once say nothing more
BEAT_S: Final = 0.5
MARKS_AT_ONCE: Final = 20
IDLE_S: Final = 60.0


class Notes:
    """The writer of one pool's notes."""

    def __init__(self, api: Api, maker: Maker, view: View, about: Mapping[str, Any]) -> None:
        """`about`: the object that Events are told of."""
        self._api, self._maker, self._view, self._about = api, maker, view, dict(about)
        self._events: deque[tuple[str, str, str]] = deque(maxlen=EVENTS_KEPT)
        self._last: tuple[str, str] = ("", "")
        self._sentence = self._written = ""
        self._written_at: Seconds = -STATUS_S
        self._idle_since: dict[NodeId, Seconds] = {}
        self._busy: frozenset[NodeId] | None = None  # None: nobody has told yet
        self._kept = False  # the Secret is there
        self._task: asyncio.Task[None] | None = None
        self.counts: dict[str, int] = {}

    def say(self, reason: str, message: str, *, bad: bool = False) -> None:
        """Have an Event written; the same again is said once."""
        if (reason, message) != self._last:
            self._last = (reason, message)
            self._events.append((reason, message, "Warning" if bad else "Normal"))

    def hear(self, sentence: str, busy: Collection[NodeId]) -> None:
        """Take in why the pool is as it is, and which of its nodes run jobs."""
        self._sentence, self._busy = sentence, frozenset(busy)

    def start(self) -> None:
        """Begin to write; not before somebody acts, for a dry run or a shadow only looks."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Write no more; safe twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def keep_secret(self) -> None:
        """See that the Secret with the join token is there, unless the owner keeps it."""
        if self._maker.options.join_secret is None and not self._kept:
            path = f"/api/v1/namespaces/{self._maker.namespace}/secrets/{self._maker.secret}"
            await self._api.apply(path, self._maker.secret_object())
            self._kept = True

    def learn(self, reason: str) -> None:
        """Take in why a pod did not come up: where somebody has deleted the Secret, it is made anew."""
        if f'secret "{self._maker.secret}" not found' in reason:
            self._kept = False

    async def _run(self) -> None:
        while True:
            with suppress(ProviderError):  # the pool itself says what is wrong with the server
                await self.write()
            await asyncio.sleep(BEAT_S)

    async def write(self) -> None:
        """Write what is new."""
        if self._events:
            reason, message, kind = self._events.popleft()
            at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            event = self._maker.event(self._about, reason, message, kind, at)
            await self._api.call("POST", f"/api/v1/namespaces/{self._maker.namespace}/events", event)
        await self._mark()
        status = self._status()
        if status != self._written and time.monotonic() - self._written_at >= STATUS_S:
            self._written_at = time.monotonic()
            with suppress(ProviderError):  # a target may have pods before the first launch, which cannot begin without
                await self.keep_secret()
            path = f"/api/v1/namespaces/{self._maker.namespace}/configmaps/{names.kept_name(self._maker.pool.name)}"
            await self._api.apply(path, self._maker.status_object({"status": status}))
            self._written = status

    def _status(self) -> str:
        pods = list(self._view.pods().values())
        states = {phase: sum(seen.phase == phase for seen in pods) for phase in ("coming", "up", "ended")}
        failed = self._view.failed()
        for _, trouble in failed:
            self.learn(trouble.reason)
        troubles = sorted({f"{trouble.kind}: {trouble.reason}" for _, trouble in failed})[:5]
        told = {"because": self._sentence, "pods": states, "troubles": troubles, **self.counts}
        return json.dumps(told, sort_keys=True)

    async def _mark(self) -> None:
        """Mark the pods that run jobs at once; take the mark from those that run none for a while.

        Else each short job would cost two requests.
        """
        if self._busy is None:
            return
        up = {node: seen for node, seen in self._view.pods().items() if seen.phase == "up" and seen.leaving_s is None}
        now = time.monotonic()
        idle = up.keys() - self._busy
        self._idle_since = {node: self._idle_since.get(node, now) for node in idle}
        long_idle = {node for node, since in self._idle_since.items() if now - since >= IDLE_S}
        wrong = [seen for node, seen in up.items() if (node in long_idle if seen.busy else node in self._busy)]
        await asyncio.gather(*(self._mark_one(seen) for seen in wrong[:MARKS_AT_ONCE]))

    async def _mark_one(self, seen: Seen) -> None:
        marks = dict.fromkeys(names.BUSY) if seen.busy else dict(names.BUSY)
        path = f"/api/v1/namespaces/{self._maker.namespace}/pods/{seen.name}"
        with suppress(ProviderError):  # it may be gone
            await self._api.merge(path, {"metadata": {"uid": seen.uid, "annotations": marks}})
