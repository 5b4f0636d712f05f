"""An event loop in a daemon thread, and the client on it: what the client for threads stands on.

Promises: every wait ends with the loop; what a job tells is carried to the caller's thread.
"""

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, Final, TypeVar

from fleetd.client.aio import AsyncClient
from fleetd.client.claims import Files
from fleetd.dispatchers.submit import Limits
from fleetd.errors import UnreachableError

_CLOSE_S: Final = 5.0
_LOOK_S: Final = 1.0  # how often a waiting thread makes sure that the loop's thread still lives
T = TypeVar("T")


class Engine:
    """A thread with an event loop and the client on it. Does not know its owner, so that the owner can be freed."""

    def __init__(self, servers: Sequence[str] | str, limits: Limits, files: Files | None) -> None:
        self.client = AsyncClient(servers, limits=limits, files=files)
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


class Events:
    """Carries what a job tells from the loop's thread to the caller's."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()

    def taker(self, listener: Callable[..., None] | None) -> Callable[..., None] | None:
        """Return what takes a listener's call to the thread that waits."""
        if listener is None:
            return None
        return lambda *args: self._queue.put(partial(listener, *args))

    def pass_on_until(self, future: Future[bytes], engine: Engine) -> None:
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
