"""The client for threads and plain scripts: the asyncio client on an event loop of its own, in a daemon thread.

Promises: usable from any thread; every call ends by its deadline; listeners are called in the calling thread; the
thread starts with the first call, and anew in a forked child (a web server that loads first and forks then); closing
is safe twice, and a client that is thrown away ends its thread.
"""

import asyncio
import os
import threading
import weakref
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from fleetd.client.aio import (
    BATCHES_UNDER_WAY,
    DEFAULT_SUBMIT_S,
    DEFAULT_WAIT_S,
    AsyncClient,
    Outcome,
    all_taken,
    batches,
)
from fleetd.client.outcomes import JobHandle
from fleetd.client.ring import Ring
from fleetd.dispatchers.follow import OnBytes, OnProgress
from fleetd.dispatchers.jobs import JobStatus, Priority, Submission
from fleetd.dispatchers.submit import Limits
from fleetd.errors import UnreachableError

_CLOSE_S: Final = 5.0
_LOOK_S: Final = 1.0  # how often a waiting thread makes sure that the loop's thread still lives
T = TypeVar("T")


class _Engine:
    """A thread with an event loop and the client on it. Does not know its owner, so that the owner can be freed."""

    def __init__(self, servers: Sequence[str] | str, limits: Limits) -> None:
        self.client = AsyncClient(servers, limits=limits)
        self.pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end: asyncio.Event | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._main, name="fleetd-client", daemon=True)
        self._thread.start()
        self._ready.wait()

    def start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin something on the loop; raises UnreachableError once the loop has ended."""
        if self._loop is None:
            work.close()
            raise UnreachableError("client: its thread could not start an event loop")
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:
            work.close()
            raise UnreachableError("client: it is closed") from None

    def result(self, future: Future[T]) -> T:
        """Wait for what the loop bounds by a deadline. Interrupted, it does not go on behind the caller's back."""
        try:
            while True:
                try:
                    return future.result(_LOOK_S)
                except CancelledError:
                    raise UnreachableError("client: it was closed during the call") from None
                except TimeoutError:
                    if future.done():
                        raise  # a listener's own
                    self.check()
        finally:
            future.cancel()

    def check(self) -> None:
        """Raise UnreachableError where the loop has ended, and with it whatever was still to begin."""
        if not self._thread.is_alive():
            raise UnreachableError("client: it was closed during the call")

    def stop(self) -> None:
        """End the loop; what is under way fails. Safe twice."""
        if self.pid != os.getpid() or self._loop is None or self._end is None or self._loop.is_closed():
            return
        self._loop.call_soon_threadsafe(self._end.set)
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_S)

    def _main(self) -> None:
        try:
            asyncio.run(self._serve())
        finally:
            self._ready.set()  # also where no loop could be made: nobody may wait for it for ever

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._end = asyncio.Event()
        self._ready.set()
        await self._end.wait()
        await self.client.close()


class Client:
    """Submits to `servers`: "host:port" each, or a single one as text. `limits` bound each connection."""

    def __init__(self, servers: Sequence[str] | str, *, limits: Limits | None = None) -> None:
        limits = limits or Limits()
        self._servers = servers if isinstance(servers, str) else tuple(servers)
        self._limits = limits
        Ring(self._servers, limits)  # a wrong address is told here, not at the first call
        self._starting = threading.Lock()
        self._engine: _Engine | None = None
        self._of_parent: list[_Engine] = []  # kept, or a forked child would close what its parent uses
        self._closed = False

    def run(
        self,
        function: str,
        payload: bytes = b"",
        *,
        wait_s: float = DEFAULT_WAIT_S,
        unique: str | None = None,
        priority: Priority = "normal",
        on_progress: OnProgress | None = None,
        on_data: OnBytes | None = None,
        on_warning: OnBytes | None = None,
        retry_unknown: bool = False,
    ) -> bytes:
        """Run a job in the foreground and return its result. See AsyncClient.run for what it raises."""
        engine, events = self._started(), _Events()
        work = engine.client.run(
            function,
            payload,
            wait_s=wait_s,
            unique=unique,
            priority=priority,
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
        wait_s: float = DEFAULT_SUBMIT_S,
        unique: str | None = None,
        priority: Priority = "normal",
        retry_unknown: bool = False,
    ) -> JobHandle:
        """Queue a job in the background. See AsyncClient.submit for what it raises."""
        engine = self._started()
        work = engine.client.submit(
            function, payload, wait_s=wait_s, unique=unique, priority=priority, retry_unknown=retry_unknown
        )
        return engine.result(engine.start(work))

    def submit_many(
        self, jobs: Iterable[Submission], *, wait_s: float = DEFAULT_SUBMIT_S, retry_unknown: bool = False
    ) -> list[JobHandle]:
        """Queue many jobs in the background, pipelined. `jobs` is consumed in the calling thread.

        See AsyncClient.submit_many for what it raises.
        """
        engine = self._started()
        outcomes: list[Outcome] = []
        under_way: deque[Future[list[Outcome]]] = deque()
        try:
            for batch in batches(jobs):
                under_way.append(engine.start(engine.client.place(batch, wait_s=wait_s, retry_unknown=retry_unknown)))
                if len(under_way) == BATCHES_UNDER_WAY:
                    outcomes += _settled(engine, under_way)
        finally:  # also where the iterable itself raised: what was sent is seen to its end
            while under_way:
                outcomes += _settled(engine, under_way)
        return all_taken(outcomes)

    def status(self, handle: JobHandle) -> JobStatus:
        """Return what the job's dispatcher knows of it. Raises UnreachableError, ProtocolError, UsageError."""
        engine = self._started()
        return engine.result(engine.start(engine.client.status(handle)))

    def ping(self) -> dict[str, float | None]:
        """Return, by server, the seconds that an echo took; None where it could not be reached."""
        engine = self._started()
        return engine.result(engine.start(engine.client.ping()))

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

    def _started(self) -> _Engine:
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
                engine = _Engine(self._servers, self._limits)
                weakref.finalize(self, engine.stop)
                self._engine = engine
            return engine


class _Events:
    """Carries what a job tells from the loop's thread to the caller's."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def taker(self, listener: Callable[..., None] | None) -> Callable[..., None] | None:
        if listener is None:
            return None
        return lambda *args: self._queue.put(partial(listener, *args))

    def pass_on_until(self, future: Future[bytes], engine: _Engine) -> None:
        """Call the listeners here until the job has ended; an error of theirs gives the job up."""
        future.add_done_callback(lambda _: self._queue.put(None))
        try:
            while True:
                try:
                    call = self._queue.get(timeout=_LOOK_S)
                except Empty:
                    engine.check()
                    continue
                if call is None:
                    return
                call()
        except BaseException:
            future.cancel()
            raise


def _settled(engine: _Engine, under_way: deque[Future[list[Outcome]]]) -> list[Outcome]:
    return engine.result(under_way.popleft())
