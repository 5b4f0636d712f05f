"""Brings slots into the world: holds the generation's process, or starts slots afresh where forking is unsafe.

Promises: a generation that dies is replaced, with back-off, while running slots go on; only the failure of its first
process to import the app and to prove its health is the generation's failure. A health check that takes too long is
one as well.
"""

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from fleetd.worker import settings as settings_text
from fleetd.worker.app import AppError, find_app
from fleetd.worker.backoff import backoff_s
from fleetd.worker.children import SlotProcess, spawn
from fleetd.worker.control import Control, pair
from fleetd.worker.logs import event
from fleetd.worker.settings import Settings

IMPORT_S: Final = 300.0


class Nursery:
    """`names` and `attempts` of the jobs are known once `ready`; `on_ready` is called then, each time anew.

    `on_failed(reason, traceback)` is called, once, where the first process cannot serve the app.
    """

    def __init__(self, settings: Settings, on_ready: Callable[[], None], on_failed: Callable[[str, str], None]) -> None:
        self.settings = settings
        self._on_ready = on_ready
        self._on_failed = on_failed
        self._control: Control | None = None
        self._limit: asyncio.TimerHandle | None = None
        self._failures = 0
        self._closed = False
        self._afresh = False
        self._failed = False
        self.pid = 0
        self.ready = False
        self.proven = False
        self.names: list[str] = []
        self.attempts: list[int] = []

    @property
    def text(self) -> str:
        """The settings as a process gets them."""
        return settings_text.dump(self.settings)

    @property
    def digest(self) -> str:
        """The first digits of the digest of the code that the newest process imported."""
        return self.settings.digest[:12]

    def start(self) -> None:
        """Start the process; `on_ready` follows once it has imported the app."""
        if self._closed:
            return
        self._control, theirs = pair()
        try:
            self._control.send({"settings": self.text})
            self.pid = spawn(self.settings.app, self.settings.python, theirs)
        except OSError as error:
            self._fail(f"its process cannot be started: {error.strerror}", "")
            return
        finally:
            theirs.close()
        asyncio.get_running_loop().add_reader(self._control.fileno(), self._hear)
        self._give(IMPORT_S, "import")

    def bring(self, slot: SlotProcess) -> bool:
        """Start the slot's process; its first word tells the pid."""
        try:
            if self._afresh:
                slot.pid = spawn(self.settings.app, self.settings.python, slot.theirs)
                return True
            assert self._control is not None
            return self._control.send({"fork": slot.index}, slot.theirs.fileno())
        except OSError as error:
            event(logging.ERROR, "slot cannot be started", slot=slot.index, error=error.strerror)
            return False
        finally:
            slot.theirs.close()

    def ended(self, code: int) -> None:
        """The generation's process has ended and was reaped."""
        self.pid = 0
        self._hear()  # its last words
        self._drop()
        if self._closed:
            return
        if self._afresh:  # it has shown what it had to
            self.ready = True
            return
        self._failures += 1
        if not self.proven:
            self._fail(f"the app's process ended with {code} while importing it", "")
            return
        delay_s = backoff_s(self._failures)
        event(logging.WARNING, "generation ended; a new one starts", code=code, delay_s=delay_s)
        asyncio.get_running_loop().call_later(delay_s, self._start_anew)

    def close(self) -> None:
        """End the generation; it ends by itself on the end of its control socket. Safe twice."""
        self._closed = True
        self._drop()
        self._kill()

    def _start_anew(self) -> None:
        """Start again from the code as it is now on the disk, and say which that is."""
        assert self.settings.app is not None, "a process of ours had an app"
        try:
            digest = find_app(self.settings.app).digest
        except AppError as error:
            event(logging.ERROR, "app is gone", error=error)
            self.ended(error.exit_code)
            return
        self.settings = replace(self.settings, digest=digest)
        self.start()

    def _give(self, limit_s: float, what: str) -> None:
        """Limit the step that the process is at now."""
        if self._limit is not None:
            self._limit.cancel()
        self._limit = asyncio.get_running_loop().call_later(limit_s, self._too_slow, limit_s, what)

    def _drop(self) -> None:
        self.ready = False
        if self._limit is not None:
            self._limit.cancel()
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None

    def _too_slow(self, limit_s: float, what: str) -> None:
        reason = f"the app's {what} took longer than {limit_s:g} s; killed"
        event(logging.ERROR, reason)
        if not self.proven:
            self._fail(reason, "")
        self._kill()

    def _kill(self) -> None:
        if self.pid:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)

    def _fail(self, reason: str, traceback: str) -> None:
        if not self._failed:
            self._failed = True
            self._on_failed(reason, traceback)

    def _hear(self) -> None:
        while self._control is not None:
            try:
                message = self._control.receive()
            except BlockingIOError:
                return
            if message is None:  # its end is seen as a child's end
                asyncio.get_running_loop().remove_reader(self._control.fileno())
                return
            self._understand(message.body)

    def _understand(self, body: dict[str, object]) -> None:
        if "failed" in body:
            reason, traceback = str(body["failed"]), str(body.get("traceback", ""))
            if self.proven:
                event(logging.ERROR, "new generation failed", reason=reason)
            else:
                self._fail(reason, traceback)
        elif "imported" in body:
            self._give(self.settings.health_s, "health check")
        elif "fork_failed" in body:
            event(logging.ERROR, "slot cannot be forked", slot=body["fork_failed"])
        elif isinstance(jobs := body.get("ready"), list):
            self._proved(jobs, body.get("threads") or [])

    def _proved(self, jobs: list[tuple[str, int | None]], threads: object) -> None:
        self.names = [name for name, _ in jobs]
        self.attempts = [attempts or self.settings.attempts for _, attempts in jobs]
        self._afresh = bool(threads)
        if threads:
            event(
                logging.WARNING,
                "threads are alive after the import, and forking would lose them: each slot imports the app itself",
                threads=threads,
            )
        if self._limit is not None:
            self._limit.cancel()
        self._failures = 0
        self.ready = self.proven = True
        self._on_ready()
