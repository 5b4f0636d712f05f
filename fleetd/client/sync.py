"""The client for threads and plain scripts: the asyncio client on an event loop of its own, in a daemon thread.

Promises: usable from any thread; every call ends by its deadline; listeners are called in the calling thread; the
thread starts with the first call, and anew in a forked child (a web server that loads first and forks then); closing
is safe twice, and a client that is thrown away ends its thread.
"""

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from fleetd.client.aio import (
    BATCHES_UNDER_WAY,
    DEFAULT_FILE_S,
    DEFAULT_SUBMIT_S,
    AsyncClient,
    all_taken,
    batches,
)
from fleetd.client.claims import EVERY_S, Claims, Files
from fleetd.client.engine import Engine, Events
from fleetd.client.outcomes import JobHandle, JobState, Stopped
from fleetd.client.placing import Outcome
from fleetd.client.ring import Ring
from fleetd.dispatchers.follow import OnBytes, OnProgress
from fleetd.dispatchers.jobs import JobStatus, Priority, Submission
from fleetd.dispatchers.submit import Limits
from fleetd.errors import UnreachableError

T = TypeVar("T")


class Client:
    """Submits to `servers`: "host:port" each, or a single one as text. `limits` bound each connection.

    `files`: the fleet's store.
    """

    def __init__(
        self, servers: Sequence[str] | str, *, limits: Limits | None = None, files: Files | None = None
    ) -> None:
        limits = limits or Limits()
        Claims(files, limits)
        self._files = files
        self._servers = servers if isinstance(servers, str) else tuple(servers)
        self._limits = limits
        Ring(self._servers, limits)  # a wrong address is told here, not at the first call
        self._starting = threading.Lock()
        self._engine: Engine | None = None
        self._of_parent: list[Engine] = []  # kept, or a forked child would close what its parent uses
        self._closed = False

    def run(
        self,
        function: str,
        payload: bytes = b"",
        *,
        wait_s: float | None = None,
        unique: str | None = None,
        priority: Priority = "normal",
        file: Path | None = None,
        into: Path | None = None,
        on_progress: OnProgress | None = None,
        on_data: OnBytes | None = None,
        on_warning: OnBytes | None = None,
        retry_unknown: bool = False,
    ) -> bytes:
        """Run a job in the foreground and return its result. See AsyncClient.run for what it raises."""
        engine, events = self._started(), Events()
        work = engine.client.run(
            function,
            payload,
            wait_s=wait_s,
            unique=unique,
            priority=priority,
            file=file,
            into=into,
            on_progress=events.taker(on_progress),
            on_data=events.taker(on_data),
            on_warning=events.taker(on_warning),
            retry_unknown=retry_unknown,
        )
        future = engine.start(work)
        if on_progress or on_data or on_warning:
            events.pass_on_until(future, engine)
        return engine.result(future)

    def submit(
        self,
        function: str,
        payload: bytes = b"",
        *,
        wait_s: float | None = None,
        unique: str | None = None,
        priority: Priority = "normal",
        file: Path | None = None,
        keep_result_s: float | None = None,
        tell: str = "",
        retry_unknown: bool = False,
    ) -> JobHandle:
        """Queue a job in the background. See AsyncClient.submit for its options and what it raises."""
        return self._done(
            self._client.submit(
                function,
                payload,
                wait_s=wait_s,
                unique=unique,
                priority=priority,
                file=file,
                keep_result_s=keep_result_s,
                tell=tell,
                retry_unknown=retry_unknown,
            )
        )

    def submit_many(
        self,
        jobs: Iterable[Submission],
        *,
        wait_s: float = DEFAULT_SUBMIT_S,
        keep_result_s: float | None = None,
        retry_unknown: bool = False,
    ) -> list[JobHandle]:
        """Queue many jobs in the background, pipelined. `jobs` is consumed in the calling thread.

        See AsyncClient.submit_many for what it raises.
        """
        engine = self._started()
        outcomes: list[Outcome] = []
        under_way: deque[Future[list[Outcome]]] = deque()
        try:
            for batch in batches(jobs):
                placing = engine.client.place(
                    batch, wait_s=wait_s, keep_result_s=keep_result_s, retry_unknown=retry_unknown
                )
                under_way.append(engine.start(placing))
                if len(under_way) == BATCHES_UNDER_WAY:
                    outcomes += _settled(engine, under_way)
        finally:  # also where the iterable itself raised: what was sent is seen to its end
            while under_way:
                outcomes += _settled(engine, under_way)
        return all_taken(outcomes)

    # ── later

    def status(self, handle: JobHandle) -> JobStatus:
        """Return what the job's dispatcher knows of it. Raises UnreachableError, ProtocolError, UsageError."""
        return self._done(self._client.status(handle))

    def state(self, job: JobHandle | str, *, function: str = "") -> JobState:
        """Return how far a job is. See AsyncClient.state."""
        return self._done(self._client.state(job, function=function))

    def result(
        self, job: JobHandle | str, *, function: str = "", wait_s: float = 0.0, into: Path | None = None
    ) -> bytes:
        """Return the result of a job that was submitted with `keep_result_s`. See AsyncClient.result."""
        return self._done(self._client.result(job, function=function, wait_s=wait_s, into=into))

    def follow(
        self, job: JobHandle | str, *, function: str = "", wait_s: float = DEFAULT_FILE_S, every_s: float = EVERY_S
    ) -> Iterator[JobState]:
        """Yield the job's state whenever it has changed, until it ended, nobody knows it, or `wait_s` is over."""
        end_at, before = time.monotonic() + wait_s, None
        while True:
            now = self.state(job, function=function)
            if now != before:
                yield now
            before = now
            if now.over or time.monotonic() + every_s > end_at:
                return
            time.sleep(every_s)

    def cancel(self, job: JobHandle) -> Stopped:
        """Take a job out of its queue, or ask it to end. See AsyncClient.cancel."""
        return self._done(self._client.cancel(job))

    def ping(self) -> dict[str, float | None]:
        """Return, by server, the seconds that an echo took; None where it could not be reached."""
        return self._done(self._client.ping())

    def close(self) -> None:
        """Close every connection and end the thread; calls under way fail. Safe twice."""
        with self._starting:
            self._closed = True
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def _client(self) -> AsyncClient:
        return self._started().client

    def _done(self, work: Coroutine[Any, Any, T]) -> T:
        engine = self._started()
        return engine.result(engine.start(work))

    def _started(self) -> Engine:
        engine = self._engine
        if engine is not None and engine.pid == os.getpid():
            return engine
        with self._starting:
            if self._closed:
                raise UnreachableError("client: it is closed")
            engine = self._engine
            if engine is not None and engine.pid != os.getpid():
                self._of_parent.append(engine)
                engine = None
            if engine is None:
                engine = Engine(self._servers, self._limits, self._files)
                weakref.finalize(self, engine.stop)
                self._engine = engine
            return engine


def _settled(engine: Engine, under_way: deque[Future[list[Outcome]]]) -> list[Outcome]:
    return engine.result(under_way.popleft())
