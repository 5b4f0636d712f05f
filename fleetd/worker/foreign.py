"""A foreign worker's supervisor: any other program under the same lease, the same orders and the same drain.

Promises: the program runs at most once at a time; it is told to finish by the policy's signals alone, the gentlest
first, and is drained when its processes have ended; one that ends unasked is started anew, later each time; nothing
that fails on the way to the controller or to a probe reaches it. Where nobody tells how busy it is, it counts as busy
for as long as it lives.
"""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, Final, Literal

from fleetd.codecs.lease import Lease, WorkerOrder
from fleetd.errors import FleetdError
from fleetd.worker import cgroup
from fleetd.worker.backoff import backoff_s
from fleetd.worker.children import TOKEN_VARIABLE
from fleetd.worker.foreign_gauge import make_gauge
from fleetd.worker.foreign_ladder import Ladder
from fleetd.worker.foreign_process import Reaper, Run, others, weight
from fleetd.worker.foreign_redis import PASSWORD_VARIABLE
from fleetd.worker.foreign_settings import ForeignSettings
from fleetd.worker.foreign_watch import Watched
from fleetd.worker.lease import Controller, keep_lease, keep_orders
from fleetd.worker.logs import LOG, event
from fleetd.worker.supervisor import LAST_LEASE_S, adopt_orphans

PROBE_S: Final = 1.0
WATCH_S: Final = 1.0
STEADY_S: Final = 60.0
BACKOFF_CAP_S: Final = 30.0
CANNOT_START: Final = 127
IDLE_LOOKS: Final = 2  # one may fall between a job's delivery and its start
FORWARDED: Final = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGTTIN)
Fence = Literal["signal", "order"]


class Foreign:
    """One program under supervision, from the first start to the exit code."""

    def __init__(self, settings: ForeignSettings, controller: Controller | None) -> None:
        """Raises UsageError for a probe that is none."""
        self.changed = asyncio.Event()
        self.order = 0
        self._settings, self._controller = settings, controller
        self._reaper, self._aside = Reaper(), set[int]()
        self._gauge = make_gauge(settings, self._reaper, self._aside)
        self._groups = cgroup.find() if settings.memory else None
        self._run: Run | None = None
        self._ladder: Ladder | None = None
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._fences: set[Fence] = set()
        self._stopping = False
        self._crashes = self._code = 0
        self._idle_since = time.monotonic()  # of the time without a program

    async def run(self) -> int:
        """Supervise until told to stop; returns the exit code."""
        loop = asyncio.get_running_loop()
        adopt_orphans()
        for number, action in self._signals().items():
            loop.add_signal_handler(number, action)
        async with asyncio.TaskGroup() as tasks:
            keeps = [self._go_on(self._look), self._go_on(self._watch)]
            if self._controller is not None:
                of = self._controller
                keeps += [self._go_on(keep_lease, of, self), self._go_on(keep_orders, of, self), self._mind_orphan(of)]
            running = [tasks.create_task(keep) for keep in keeps]
            await self._keep_running()
            for task in running:
                task.cancel()
        await self._say_last()
        self._gauge.close()
        return self._code

    # ── the program

    async def _keep_running(self) -> None:
        failures = 0
        while not self._stopping:
            await self._wanted.wait()
            if self._stopping:
                return
            begun = time.monotonic()
            code, told = await self._once()
            if self._stopping:
                event(logging.INFO, "ended", code=code)
            elif told:
                event(logging.INFO, "ended as told", code=code)
                failures = 0
            else:
                failures = 1 if time.monotonic() - begun > STEADY_S else failures + 1
                if code == CANNOT_START and failures == 1 and not self._crashes:
                    event(logging.CRITICAL, "cannot be started, see the line before", program=self._settings.command[0])
                    self._code = 1
                    return
                self._crashes += 1
                wait_s = backoff_s(failures + 2, BACKOFF_CAP_S)
                event(logging.WARNING, "ended by itself: it is started anew", code=code, wait_s=wait_s)
                await self._rest(wait_s)

    async def _once(self) -> tuple[int, bool]:
        """Run it from its start to its end; returns its exit code and whether it was told to end."""
        settings = self._settings
        group = self._groups.make(settings.memory * settings.slots) if self._groups else None
        run = self._run = Run(settings.command, self._environment(), settings.ladder[0], group)
        ladder = self._ladder = Ladder(
            settings.ladder, lambda number: run.signal(number, self._aside), self._gauge.told
        )
        event(logging.INFO, "program started", pid=run.pid, busy_by=self._gauge.by)
        self._gauge.reset()
        self._say()
        code = await run.end(self._reaper, self._aside)
        ladder.close()
        self._run = self._ladder = None
        self._idle_since = time.monotonic()
        if group is not None:
            if group.killed():
                event(logging.WARNING, "the kernel killed some of it: more memory than allowed", limit=settings.memory)
            group.close()
        self._say()
        if self._rests:
            event(logging.INFO, "drained: it has ended")
        return code, ladder.begun

    async def _rest(self, wait_s: float) -> None:
        """Wait before the next start; a stop ends it at once."""
        give_up_at = time.monotonic() + wait_s
        while time.monotonic() < give_up_at and not self._stopping:  # noqa: ASYNC110 - it is time that passes
            await asyncio.sleep(min(0.1, wait_s))

    def _environment(self) -> dict[str, str]:
        """Its own, without our tokens, and with what tells it which node it is."""
        secret = (TOKEN_VARIABLE, PASSWORD_VARIABLE)
        given = {name: value for name, value in os.environ.items() if name not in secret}
        return {**given, "FLEETD_NODE": self._settings.node, "FLEETD_SLOTS": str(self._settings.slots)}

    def _finish(self, deadline_s: float | None, why: str) -> None:
        """Tell the program to finish; without one there is nothing to do."""
        if self._ladder is not None:
            if not self._ladder.begun:
                event(logging.INFO, "it is to finish what it runs", why=why, busy=self._gauge.told())
            self._ladder.begin(deadline_s)
        self._say()

    # ── signals and orders

    def _signals(self) -> dict[signal.Signals, Callable[[], None]]:
        actions: dict[signal.Signals, Callable[[], None]] = {
            signal.SIGCHLD: self._reaper.reap,
            signal.SIGTERM: lambda: self._terminate("SIGTERM"),
            signal.SIGINT: lambda: self._terminate("SIGINT"),
            signal.SIGQUIT: self._abort,
            signal.SIGHUP: lambda: self.renew("SIGHUP"),
            signal.SIGTSTP: lambda: self._raise_fence("signal", self._settings.drain_deadline_s),
            signal.SIGCONT: lambda: self._lift_fence("signal"),
        }
        return actions | {number: self._forwarding(number) for number in FORWARDED}

    def _forwarding(self, number: signal.Signals) -> Callable[[], None]:
        return lambda: self._run.signal(number, self._aside) if self._run else None

    def _terminate(self, why: str) -> None:
        if self._stopping and self._ladder is not None:
            self._ladder.hurry()
        else:
            self.stop(why, self._settings.drain_deadline_s)

    def _abort(self) -> None:
        self.stop("SIGQUIT", None)
        if self._ladder is not None:
            self._ladder.hurry()

    def stop(self, why: str, deadline_s: float | None) -> None:
        """Have it finish, then end."""
        self._stopping = True
        self._wanted.set()
        self._finish(deadline_s, why)

    def renew(self, why: str) -> None:
        """Have it finish, then start it anew."""
        if not self._rests:
            self._finish(self._settings.drain_deadline_s, f"{why}: it is started anew")

    def obey(self, order: WorkerOrder) -> None:
        """Do what the controller says. An old order is passed over; the newest counts."""
        if order.number <= self.order:
            return
        self.order = order.number
        event(logging.INFO, "order", number=order.number, state=order.state, deadline_s=order.deadline_s)
        match order.state:
            case "work":
                self._lift_fence("order")
            case "drain":
                self._raise_fence("order", order.deadline_s)
            case "stop":
                self.stop("order", order.deadline_s)
        self._say()

    def _raise_fence(self, by: Fence, deadline_s: float | None) -> None:
        self._fences.add(by)
        if not self._stopping:
            self._wanted.clear()
            self._finish(deadline_s, f"fenced by {by}")

    def _lift_fence(self, by: Fence) -> None:
        if by not in self._fences or self._stopping:
            return
        self._fences.discard(by)
        if self._fences:
            return
        self._wanted.set()
        run, ladder, undo = self._run, self._ladder, self._settings.undo
        if run is None or ladder is None or not ladder.begun:
            return
        if undo is None or not ladder.gentle:
            event(logging.INFO, "fence lifted: it has been told to end, and is started anew after that", by=by)
            return
        event(logging.INFO, "fence lifted: it takes jobs again", by=by, told_by=undo.name)
        ladder.close()
        self._ladder = Ladder(self._settings.ladder, lambda number: run.signal(number, self._aside), self._gauge.told)
        run.signal(undo, self._aside)

    # ── what is

    @property
    def _rests(self) -> bool:
        return self._stopping or bool(self._fences)

    @property
    def state(self) -> Literal["starting", "working", "draining", "drained"]:
        """What the worker is: drained once its processes are gone."""
        if self._run is None:
            return "drained" if self._rests else "starting"
        if self._rests or (self._ladder is not None and self._ladder.begun):
            return "draining"
        return "working" if self._gauge.ready else "starting"

    @property
    def _idle_s(self) -> float:
        return time.monotonic() - self._idle_since if self._run is None else self._gauge.idle_s

    def lease(self, boot: str, seq: int, node: str) -> Lease:
        """Say what is."""
        settings, busy = self._settings, self._gauge.busy
        if self._run is None:
            busy = 0
        elif busy is None:
            busy = settings.slots
        return Lease(
            fleet=settings.fleet,
            pool=settings.pool,
            node=node,
            boot=boot,
            seq=seq,
            app=settings.app_name,
            state=self.state,
            slots=settings.slots,
            busy=min(busy, settings.slots),
            busy_by=self._gauge.by,
            idle_s=self._idle_s,
            key=settings.order_key,
            crashes=self._crashes,
            order=self.order,
        )

    def _say(self) -> None:
        self.changed.set()

    async def _look(self) -> None:
        """Ask the probe, and mind age and memory. Runs for ever."""
        while True:
            await asyncio.sleep(PROBE_S)
            run = self._run
            if run is None:
                continue
            pids = await asyncio.to_thread(others, self._aside)
            told = await self._gauge.look(pids)
            if run is self._run:  # else the answer is about one that has ended meanwhile
                if self._gauge.learn(*told):
                    self._say()
                self._mind_wear(run, pids)

    def _mind_wear(self, run: Run, pids: list[int]) -> None:
        settings, age_s = self._settings, time.monotonic() - run.since
        if self._ladder is None:
            return
        if self._ladder.begun:
            if self._gauge.idle_looks >= IDLE_LOOKS:
                self._ladder.idle()
            return
        if settings.recycle_s and age_s > settings.recycle_s:
            self.renew(f"{age_s:.0f} s old")
        elif settings.recycle_memory and (held := weight(pids)) > settings.recycle_memory * settings.slots:
            self.renew(f"holds {held >> 20} MiB")

    async def _watch(self) -> None:
        """Renew the program when its code changes. Runs for ever."""
        watched = await asyncio.to_thread(Watched, self._settings.watch)
        while True:
            await asyncio.sleep(WATCH_S)
            if await asyncio.to_thread(watched.changed):
                self.renew("its code has changed")

    # ── the end

    async def _go_on(self, keep: Callable[..., Coroutine[Any, Any, None]], *of: object) -> None:
        """Keep at what is beside the program, whatever happens: a fault of ours there must not end a job."""
        failures = 0
        while True:
            try:
                await keep(*of)
            except Exception:  # noqa: BLE001 - the boundary to all that is outside
                failures += 1
                LOG.exception("%s failed; it starts anew", keep.__name__)
                await asyncio.sleep(backoff_s(failures))

    async def _mind_orphan(self, controller: Controller) -> None:
        """End a worker whose controller is gone and that is known to be idle: it would only cost."""
        limit_s = self._settings.orphan_after_s
        while True:
            await asyncio.sleep(min(1.0, limit_s / 4))
            silent_s = time.monotonic() - controller.heard_at
            if min(silent_s, self._idle_s) >= limit_s and not self._stopping:
                self.stop(f"no controller for {limit_s:.0f} s, and no job either", self._settings.drain_deadline_s)

    async def _say_last(self) -> None:
        """Let the controller know at once that this worker has drained, if it can be told quickly."""
        if self._controller is not None:
            with suppress(TimeoutError, OSError, FleetdError):
                async with asyncio.timeout(LAST_LEASE_S):
                    await self._controller.say(self)
            self._controller.abort()
