"""The supervisor: obeys signals and orders, and says what the worker is.

Promises: it never runs the app's code; nothing that fails on the way to the controller reaches a job; its own death
ends no job. A fence is lifted only by who raised it: an order does not undo a signal. Which release runs is the
controller's word, or, with an app by its path, a HUP's, which reads that path anew.
"""

import asyncio
import ctypes
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Literal

from fleetd.codecs.lease import Lease, WorkerOrder
from fleetd.dispatchers.credentials import Credentials
from fleetd.errors import FleetdError
from fleetd.worker import cgroup
from fleetd.worker.backoff import backoff_s
from fleetd.worker.cell import Want
from fleetd.worker.fetch import Releases
from fleetd.worker.generations import Generations
from fleetd.worker.imds import Imds
from fleetd.worker.lease import Controller, keep_lease, keep_orders
from fleetd.worker.logs import LOG, event
from fleetd.worker.notice import Notice, watch
from fleetd.worker.settings import Settings
from fleetd.worker.swaps import Swaps

LAST_LEASE_S: Final = 2.0
MARGIN_S: Final = 10.0  # between the last job handed back and the end of the machine
_PR_SET_CHILD_SUBREAPER: Final = 36
Fence = Literal["signal", "order", "notice"]
Keep = Callable[..., Coroutine[Any, Any, None]]


class Supervisor:
    """One worker, from its start to its exit code. `changed` is set where the controller should hear of it at once."""

    def __init__(self, settings: Settings, controller: Controller | None, credentials: Credentials) -> None:
        self.changed = asyncio.Event()
        self.order = 0
        self._settings = settings
        self._controller = controller
        groups = cgroup.find() if settings.slot_memory else None
        self._crew = Generations(credentials, self._changed, self._failed, groups)
        self._swaps = Swaps(self._crew)
        self._releases = Releases(settings, controller, self._crew, self._swaps)
        self._fences: set[Fence] = set()
        self._stopping = False
        self._deadline: asyncio.TimerHandle | None = None
        self._notice: Notice | None = None
        self._ends_at = 0.0  # of the loop's clock: the end of this machine, where the notice sets one
        self._last_call: asyncio.TimerHandle | None = None  # beside the deadline, which orders move
        self._was_drained = False
        self._up = asyncio.Event()
        self._on_terminal = os.isatty(0)

    async def run(self) -> int:
        """Work until told to stop; returns the exit code."""
        self._loop = asyncio.get_running_loop()
        self._finished: asyncio.Future[int] = self._loop.create_future()
        adopt_orphans()
        for number, action in self._signals().items():
            self._loop.add_signal_handler(number, action)
        if self._settings.app is not None:
            self._swaps.start(self._settings)
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(self._crew.watch()), tasks.create_task(self._swaps.run())]
            running.append(tasks.create_task(self._releases.run()))
            if self._controller is not None:
                running.append(tasks.create_task(self._go_on(keep_lease, self._controller, self)))
                running.append(tasks.create_task(self._go_on(keep_orders, self._controller, self)))
                running.append(tasks.create_task(self._end_as_orphan(self._controller)))
            if self._settings.watch_instance:
                imds = Imds(self._settings.watch_instance)
                running.append(tasks.create_task(self._go_on(watch, imds, self.warn)))
            code = await self._finished
            for task in running:
                task.cancel()
        await self._say_last()
        # Not in a `finally`: should this process fail, its slots finish their jobs and end by themselves.
        await self._crew.close()
        return code

    # ── signals and orders

    def _signals(self) -> dict[signal.Signals, Callable[[], None]]:
        return {
            signal.SIGCHLD: self._crew.reap,
            signal.SIGTERM: lambda: self._terminate("SIGTERM"),
            signal.SIGINT: lambda: self._terminate("SIGINT"),
            signal.SIGHUP: self._hang_up,
            signal.SIGQUIT: self._abort,
            signal.SIGTSTP: lambda: self._raise_fence("signal"),
            signal.SIGCONT: lambda: self._lift_fence("signal"),
        }

    def _terminate(self, why: str) -> None:
        if self._stopping:
            event(logging.WARNING, "deadline now: running jobs go back to their dispatchers", why=why)
            self._crew.release()
        else:
            self.stop(why)

    def _hang_up(self) -> None:
        """Load the code anew; but where a terminal had started this and hung up, end with it."""
        if self._on_terminal:
            self._terminate("SIGHUP")
        elif self._settings.app is not None:
            self._releases.look_again(self._settings.app)
        else:
            event(logging.WARNING, "SIGHUP: which release runs here is the controller's word")

    def _abort(self) -> None:
        self.stop("SIGQUIT")
        event(logging.WARNING, "abort: running jobs go back to their dispatchers")
        self._crew.release()

    def stop(self, why: str, deadline_s: float | None = None) -> None:
        """Drain, then end."""
        if not self._stopping:
            event(logging.INFO, "stopping: running jobs are finished first", why=why)
            self._stopping = True
            self._crew.want(Want.STOP)
            deadline_s = self._settings.drain_deadline_s if deadline_s is None else deadline_s
        if deadline_s is not None:  # else one that an earlier order set holds
            self._set_deadline(deadline_s)
        self._changed()

    def obey(self, order: WorkerOrder) -> None:
        """Do what the controller says. An old order is passed over; the newest counts."""
        if order.number <= self.order:
            return
        self.order = order.number
        event(
            logging.INFO,
            "order",
            number=order.number,
            state=order.state,
            deadline_s=order.deadline_s,
            release=order.release[:12],
        )
        if order.pardoned:
            self._swaps.pardon(order.pardoned)
        if order.release and self._settings.app is None:
            self._releases.want(order.release)
        match order.state:
            case "work":
                self._lift_fence("order")
            case "drain":
                self._raise_fence("order", order.deadline_s)
            case "stop":
                self.stop("order", order.deadline_s)
        self._changed()

    def warn(self, notice: Notice | None) -> None:
        """Take in that this machine goes by itself, or that it does not go after all."""
        if self._last_call is not None:
            self._last_call.cancel()
            self._last_call = None
        self._notice = notice
        if notice is None:
            event(logging.INFO, "the notice holds no more")
            self._lift_fence("notice")
            return
        event(logging.WARNING, "notice: this machine goes", why=notice.why, left_s=notice.left_s)
        if notice.left_s is not None:
            self._ends_at = self._loop.time() + notice.left_s
            deadline_s = max(0.0, notice.left_s - MARGIN_S)
            self._last_call = self._loop.call_later(deadline_s, self._too_late, deadline_s)
        self._fence("notice")
        self._changed()

    def _raise_fence(self, by: Fence, deadline_s: float | None = None) -> None:
        self._fence(by)
        if not self._stopping:
            self._set_deadline(deadline_s)
        self._changed()

    def _fence(self, by: Fence) -> None:
        if by not in self._fences and not self._stopping:
            event(logging.INFO, "fenced: no new jobs are taken", by=by)
            self._fences.add(by)
            self._crew.want(Want.FENCE)

    def _lift_fence(self, by: Fence) -> None:
        if by not in self._fences or self._stopping:
            return
        self._fences.discard(by)
        if by != "notice":  # it set none of these
            self._set_deadline(None)
        if not self._fences:
            event(logging.INFO, "fence lifted: jobs are taken again", by=by)
            self._crew.want(Want.WORK)
        self._changed()

    def _set_deadline(self, deadline_s: float | None) -> None:
        """After it, running jobs go back to their dispatchers."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if deadline_s is not None:
            self._deadline = self._loop.call_later(deadline_s, self._too_late, deadline_s)

    def _too_late(self, deadline_s: float) -> None:
        event(logging.WARNING, "drain deadline: running jobs go back to their dispatchers", deadline_s=deadline_s)
        self._crew.release()

    # ── what is

    @property
    def state(self) -> Literal["starting", "working", "draining", "drained"]:
        """What the worker is, on its slots' own word."""
        if not (self._up.is_set() or self._stopping):
            return "starting"
        if not (self._fences or self._stopping):
            return "working"
        return "drained" if self._crew.at_rest else "draining"

    def lease(self, boot: str, seq: int, node: str) -> Lease:
        """Say what is."""
        settings, busy = self._settings, self._crew.busy()
        notice = self._notice
        timed = notice is not None and notice.left_s is not None
        return Lease(
            fleet=settings.fleet,
            pool=settings.pool,
            node=node,
            boot=boot,
            seq=seq,
            app=settings.app_name,
            state=self.state,
            slots=settings.lanes,
            busy=min(len(busy), settings.lanes),
            idle_s=self._crew.idle_s(),
            key=settings.order_key,
            digest=self._crew.digest,
            refused=self._swaps.refused,
            releases=self._crew.releases(),
            crashes=self._crew.crashes,
            order=self.order,
            leaving=notice.why if notice else "",
            leaving_s=max(0.0, self._ends_at - self._loop.time()) if timed else None,
            jobs=self._crew.counts(),
        )

    def _changed(self) -> None:
        self.changed.set()
        if self._crew.up:
            self._up.set()
        drained = self.state == "drained"
        if drained and not self._was_drained:
            event(logging.INFO, "drained: nothing runs and nothing is taken")
        self._was_drained = drained
        if self._stopping and self._crew.gone:
            self._finish(0)

    def _finish(self, code: int) -> None:
        if not self._finished.done():
            self._finished.set_result(code)

    def _failed(self, reason: str, traceback: str) -> None:
        event(logging.CRITICAL, "the app cannot be served", reason=reason)
        sys.stderr.write(traceback)
        if self._settings.app is not None:
            self._finish(1)
        else:  # the controller hears of it, and may know another release
            self._swaps.refuse(self._crew.digest, reason)

    # ── the end

    async def _go_on(self, keep: Keep, *of: object) -> None:
        """Keep in touch with what is outside, whatever happens: a fault of ours there must not end a job."""
        if self._settings.app is not None:
            await self._up.wait()  # what cannot be served is told by the end of the worker
        failures = 0
        while True:
            try:
                await keep(*of)
            except Exception:  # noqa: BLE001 - the boundary to the controller and the metadata service
                failures += 1
                LOG.exception("%s failed; it starts anew", keep.__name__)
                await asyncio.sleep(backoff_s(failures))

    async def _end_as_orphan(self, controller: Controller) -> None:
        """End a worker whose controller is gone and that has nothing to do: it would only cost."""
        limit_s = self._settings.orphan_after_s
        while True:
            await asyncio.sleep(min(1.0, limit_s / 4))
            silent_s = time.monotonic() - controller.heard_at
            if min(silent_s, self._crew.idle_s()) >= limit_s and not self._stopping:
                self.stop(f"no controller for {silent_s:.0f} s, and no job either")

    async def _say_last(self) -> None:
        """Let the controller know at once that this worker has drained, if it can be told quickly."""
        if self._controller is None or not self._up.is_set():
            return
        with suppress(TimeoutError, OSError, FleetdError):
            async with asyncio.timeout(LAST_LEASE_S):
                await self._controller.say(self)
        self._controller.abort()


def adopt_orphans() -> None:
    """Become the parent of every descendant whose parent ends: the slots, whose forks' parents end at once."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")
