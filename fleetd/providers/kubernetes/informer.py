"""Keeps what a selection of objects looks like now: one list, then a watch that goes on where it was cut.

Promises: while the server is in touch, `items` is what it has; while it is not, `trouble` says why, and what is held is
not to be relied on. A tick costs no request. Bookmarks keep the place in the stream young; where it is lost all the
same (410), the list is read anew, and so it is every `RESYNC_S` seconds, in pages.
"""

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from typing import Final, Generic, TypeVar

from fleetd.core.model import Seconds
from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.api import Api, Json
from fleetd.providers.kubernetes.faults import AnswerError

PAGE: Final = 500
WATCH_S: Final = 40  # the server ends a watch after so long; one that it does not end is a dead connection
RESYNC_S: Final = 600.0
BACK_OFF_S: Final = (0.05, 5.0)
STEADY_S: Final = 1.0
LOST: Final = (410, 504)  # the place in the stream is too old; or newer than what a restored server knows
T = TypeVar("T")


class Informer(Generic[T]):
    """The objects under `path` that `chosen` (a label or field selector) chooses, each made into a T, by uid."""

    def __init__(
        self, api: Api, path: str, chosen: Mapping[str, str], make: Callable[[Json], T], news: Callable[[], None]
    ) -> None:
        """`news` is called whenever something has changed."""
        self._api, self._path, self._chosen, self._make, self._news = api, path, chosen, make, news
        self.items: dict[str, T] = {}
        self.left: Callable[[T], None] = lambda _: None  # called with the last state of an object that was deleted
        self.trouble: str | None = "not read yet"
        self._version: str | None = None
        self._listed_at: Seconds = 0.0
        self._heard_at: Seconds | None = None  # when the server took the watch
        self._bell = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; goes on until `close`."""
        if self._task is None:
            self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        """End; safe twice."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def until(self, check: Callable[[], bool], limit_s: Seconds) -> bool:
        """Wait until it holds, looking at each change; return whether it does."""
        try:
            async with asyncio.timeout(limit_s):
                while not check():
                    await self._bell.wait()
        except TimeoutError:
            return check()
        return True

    def put(self, item: Json) -> None:
        """Take in an object that a request of ours has answered with, ahead of the watch."""
        uid = item["metadata"]["uid"]
        if uid not in self.items:
            self.items[uid] = self._make(item)
            self._ring()

    async def _run(self) -> None:
        failures = 0
        while True:
            self._heard_at = None
            try:
                if self._version is None or time.monotonic() - self._listed_at > RESYNC_S:
                    await self._list()
                await self._watch(self._version or "")
                failures = 0
            except ProviderError as error:
                if isinstance(error, AnswerError) and error.status in LOST and self._version:
                    self._version = None
                    continue
                steady = self._heard_at is not None and time.monotonic() - self._heard_at > STEADY_S
                failures = 1 if steady else failures + 1
                if isinstance(error, AnswerError):
                    self._version = None
                if failures > 1 or self._version is None:  # a watch that is cut once is taken up again, nothing else
                    self.trouble = str(error)
                    self._ring()
                wait_s = min(BACK_OFF_S[1], BACK_OFF_S[0] * 2.0 ** min(failures, 10))
                await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - so that not all come at once

    async def _list(self) -> None:
        found: dict[str, T] = {}
        query: dict[str, str | int] = {**self._chosen, "limit": PAGE}
        while True:
            page = await self._api.call("GET", self._path, query=query)
            found |= {item["metadata"]["uid"]: self._make(item) for item in page["items"]}
            if not page["metadata"].get("continue"):
                break
            query["continue"] = page["metadata"]["continue"]
        self._version, self._listed_at = page["metadata"]["resourceVersion"], time.monotonic()
        self.items, self.trouble = found, None
        self._ring()

    async def _watch(self, version: str) -> None:
        query = {
            **self._chosen,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": WATCH_S,
        }
        async for event in self._api.watch(self._path, query, WATCH_S + 10.0):
            if not event:
                self._heard_at = time.monotonic()
                if self.trouble is not None:
                    self.trouble = None
                    self._ring()
                continue
            thing = event["object"]
            if event["type"] == "ERROR":
                raise AnswerError(f"{self._api.place}: {thing.get('message')}", int(thing.get("code") or 500))
            self._version = thing["metadata"]["resourceVersion"]
            if event["type"] == "BOOKMARK":
                continue
            uid = thing["metadata"]["uid"]
            if event["type"] == "DELETED":
                self.items.pop(uid, None)
                self.left(self._make(thing))
            else:
                self.items[uid] = self._make(thing)
            self._ring()

    def _ring(self) -> None:
        bell, self._bell = self._bell, asyncio.Event()
        bell.set()
        self._news()
