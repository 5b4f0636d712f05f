"""The controller: one tick a second, and at once on a nudge. Observe, decide, write down, act.

Promises: nothing is done that was not written down before; a failing adapter costs its own pool or queues, never the
tick; the end of the controller ends no worker. The only catch-all is at the boundary of an act.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any, Final, TypeVar

from fleetd.codecs.lease import Lease, LeaseAnswer
from fleetd.config.schedule import Schedules, month
from fleetd.control.history import Recorder
from fleetd.control.leases import TTL_S, LeaseBook
from fleetd.control.metrics_count import Counts, count_plan, count_row, count_tick, prepare
from fleetd.control.metrics_names import JOURNAL, JOURNAL_SECONDS, OTHER, TICK, TICK_FAILED, TICK_LATE
from fleetd.control.outlook import CLOSE_TIMEOUT_S, Adapters, Outlook
from fleetd.control.uncollected import uncollected
from fleetd.control.watch import TIMEOUT_S, one_line
from fleetd.core.decide import decide, resume
from fleetd.core.learn import leads
from fleetd.core.memory import Memory
from fleetd.core.model import (
    Command,
    Drain,
    DrainCommand,
    Intent,
    Launch,
    LaunchFailed,
    Observation,
    Order,
    Outcome,
    Plan,
    Policy,
    PoolPolicy,
    Reload,
    Seconds,
    Stop,
    StopFailed,
    Undrain,
)
from fleetd.core.ports import Provider
from fleetd.errors import ExhaustedError, FleetdError, RefusedError
from fleetd.store.sqlite import Entry, Store

TICK_S: Final = 1.0
SAY_S: Final = 60.0  # how often the sentences are written down where nothing changes: `explain --at` finds them
LEAST_TICK_S: Final = 0.1  # nudges come in showers; this is how close two ticks may be
LAUNCH_TIMEOUT_S: Final = 25.0
RELOAD_LOOK_S: Final = 1.0  # a reload waits so long for the new adapters' first answers

T = TypeVar("T")
Say = Callable[[str, str], None]  # (kind, text): a line for the log


Make = Callable[[Policy], Adapters]


class Controller:
    """One fleet under control. `run` is its life; `submit` takes an operator's command; the rest is for looking."""

    def __init__(
        self,
        policy: Policy,
        store: Store,
        make: Make,
        say: Say,
        *,
        epoch: int = 0,
        mind: Callable[[], None] = lambda: None,
    ) -> None:
        """`make` turns a policy into adapters; it is called again when the policy is reloaded.

        The epoch is `epoch` at least. `mind` is called before each act, and does not return where it may not be.
        """
        self._make, self.store, self._say, self._mind = make, store, say, mind
        before = store.memory() or Memory(epoch=store.epoch())
        if before.epoch and not before.now:
            say("error", "the memory cannot be read, another version wrote it: the nodes are adopted as strays")
        self._base_s = max(time.time(), before.now) - time.monotonic()
        self.policy, self._schedules = policy, Schedules(policy)
        self.memory = self._without_strangers(resume(replace(before, epoch=max(before.epoch, epoch - 1)), self.clock()))
        self._saved_at = self._said_at = 0.0
        self._nudged = asyncio.Event()
        self.counts = Counts()
        prepare(self.counts, policy)
        self.leases = LeaseBook(self.memory.epoch, policy, self.clock, self.nudge, self.counts)
        self.leases.rollouts = self.memory.rollouts
        self.leases.adopt(self.memory.nodes)
        self.plan = Plan()
        self.observation = Observation(now=self.memory.now)
        self.basis = (self.observation, self.policy, self.memory)  # what the plan was made of
        self.started_at = self.clock()
        self.ticked = asyncio.Event()
        self._recorder = Recorder()
        self._outcomes: list[Outcome] = []
        self._commands: list[Command] = self._outdated()
        self._acts: set[asyncio.Task[None]] = set()
        self._outlook = Outlook(Adapters({}, {}), self.clock, self.nudge)
        self._dropped: frozenset[str] = frozenset()  # pools that the policy no longer has, draining
        self._turn = asyncio.Lock()  # a reload comes between two ticks, never into one
        # Of its own: the shared threads may all be held up by a wedged adapter.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="fleetd-store")

    def clock(self) -> Seconds:
        """Return the steady clock: it began as the wall's and never steps."""
        return self._base_s + time.monotonic()

    def nudge(self) -> None:
        """Wake the tick."""
        self._nudged.set()

    def submit(self, command: Command) -> None:
        """Hand in an operator's command; the next tick, which comes at once, takes it."""
        self._commands.append(command)
        self.nudge()

    async def taken(self, commands: Sequence[Command], limit_s: Seconds) -> bool:
        """Wait until a tick has taken these commands, by identity; return whether one has within `limit_s`."""
        ours = {id(command) for command in commands}
        try:
            async with asyncio.timeout(limit_s):
                while any(id(waiting) in ours for waiting in self._commands):
                    await self.ticked.wait()
        except TimeoutError:
            return False
        return True

    @property
    def providers(self) -> Mapping[str, Provider]:
        """The adapters of the pools, by name."""
        return self._outlook.adapters.providers

    def events(self, last: int) -> list[Entry]:
        """Return the newest lines of the journal, oldest first."""
        return self.store.journal(last=last)

    def count_dead(self) -> int:
        """Return how many dead letters are kept."""
        return self.store.count_dead()

    async def accept(self, lease: Lease) -> LeaseAnswer:
        """Take a worker's lease, and its dead letters into the store, which the answer confirms."""
        answer = self.leases.accept(lease)
        if not lease.dead:
            return answer
        try:
            kept = await self.on_disk(self.store.add_dead, lease.pool, lease.node, lease.dead)
        except FleetdError as error:  # unconfirmed, they come again; that the worker is alive counts all the same
            self._say("error", str(error))
            return answer
        for letter in lease.dead:
            self.counts.buried(self.leases.queue_of(letter.function) or OTHER, letter.id)
            self._say("dead", f"{lease.node}: {letter.function} {letter.unique}: {letter.reason}")
        return replace(answer, dead=kept)

    async def run(self) -> None:
        """Tick until cancelled, or until a fleet that was told to end has ended."""
        self._outlook = Outlook(self._make(self.policy), self.clock, self.nudge, self.counts)
        self._outlook.start()
        try:
            # The first look is waited for, so that a fleet that was there is seen before anything is decided.
            await self._outlook.look(TIMEOUT_S)
            self._send_again()
            while not (self.memory.ending and not self.memory.nodes and not self.memory.orders and not self._acts):
                try:
                    await self.tick()
                except FleetdError as error:  # the journal cannot be written: nothing is done, all is held
                    self.counts.add(TICK_FAILED)
                    self._say("error", str(error))
                due = time.monotonic() + TICK_S
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S):
                        await self._nudged.wait()
                    await asyncio.sleep(LEAST_TICK_S)
                self.counts.observe(TICK_LATE, value=max(0.0, time.monotonic() - due))
        finally:
            await self._close(self._outlook)
            for act in self._acts:
                act.cancel()

    async def reload(self, policy: Policy) -> None:
        """Take a new policy, or raise and keep the old. Pools that it dropped drain while they have nodes or orders."""
        async with self._turn:
            orders = {pending.order.pool for pending in self.memory.orders.values()}
            left = ({node.pool for node in self.memory.nodes.values()} | orders) - policy.pools.keys()
            kept: dict[str, PoolPolicy] = {
                name: replace(self.policy.pools[name], min_nodes=0, max_nodes=0)
                for name in left & self.policy.pools.keys()
            }
            apps = {app: self.policy.apps[app] for pool in kept.values() for app in pool.apps}
            policy = replace(policy, pools={**policy.pools, **kept}, apps={**apps, **policy.apps})
            before, self._outlook = self._outlook, Outlook(self._make(policy), self.clock, self.nudge, self.counts)
            self._outlook.start()
            self.policy = self.leases.policy = policy
            prepare(self.counts, policy)
            self._schedules = Schedules(policy)
            back = self._dropped & (policy.pools.keys() - kept.keys())
            pools = {
                name: replace(pool, drained_until=0.0) if name in back else pool
                for name, pool in self.memory.pools.items()
            }
            self.memory = replace(self.memory, pools=pools)
            self._commands += [DrainCommand(name) for name in kept.keys() - self._dropped]
            self._commands += self._outdated()
            self._dropped = frozenset(kept)
            await self._outlook.look(RELOAD_LOOK_S)
        self.nudge()
        await self._close(before)

    def _without_strangers(self, memory: Memory) -> Memory:
        """Leave out nodes of pools that the policy no longer has: no provider reaches them, their leases end them."""
        strangers = [node for node in memory.nodes.values() if node.pool not in self.policy.pools]
        for node in strangers:
            self._say(
                "event", f"node {node.id}: the policy has no pool {node.pool}: its worker is told to drain and end"
            )
        return replace(memory, nodes={n.id: n for n in memory.nodes.values() if n.pool in self.policy.pools})

    def _outdated(self) -> list[Command]:
        """Return commands that drain the nodes of apps that their pools no longer run."""
        pools = self.policy.pools
        return [
            DrainCommand(node.pool, node.id)
            for node in self.memory.nodes.values()
            if node.pool in pools and node.app not in pools[node.pool].apps
        ]

    # ── a tick

    async def tick(self) -> None:
        """Observe, decide, write down, act."""
        async with self._turn:
            began = time.monotonic()
            self._nudged.clear()
            self.observation = self.observe()
            with uncollected():
                plan, memory = self.decide()
            events = [*plan.events, *self._outlook.take_news()]
            entries = [Entry("event", event) for event in events]
            if plan.intents or memory.now - self._said_at >= SAY_S:
                self._said_at = memory.now
                entries += [Entry("sentence", f"{about}: {text}") for about, text in plan.sentences.items()]
            try:
                if entries or memory.now - self._saved_at >= TICK_S:  # nudged ticks that change nothing are not written
                    await self._write_down(memory, entries, durable=bool(plan.intents))
                    self._saved_at = memory.now
            except FleetdError:
                self.leases.give_back(self.observation.work)
                raise
            self.basis = (self.observation, self.policy, self.memory)
            count_tick(self.counts, self.observation, self.policy, (self.memory, memory))
            count_plan(self.counts, plan, self.observation.commands)
            self.plan, self.memory = plan, memory
            self.leases.rollouts = memory.rollouts
            del self._outcomes[: len(self.observation.outcomes)]
            del self._commands[: len(self.observation.commands)]
            for event in events:
                self._say("event", event)
            for intent in plan.intents:
                self._carry_out(intent)
            self._outlook.tell(plan, memory, self.policy, self.observation.leases)
            self.leases.forget(memory.nodes)
            row = self._recorder.note(self.observation, self.policy, memory)
            if row:
                count_row(self.counts, row, self.observation, self.policy)
            self.counts.observe(TICK, value=time.monotonic() - began)
        self.ticked.set()
        self.ticked = asyncio.Event()
        if row:
            await self.on_disk(self.store.add_history, row)

    async def _write_down(self, memory: Memory, entries: Sequence[Entry], *, durable: bool) -> None:
        began = time.monotonic()
        try:
            await self.on_disk(self.store.commit, memory, entries, durable=durable)
        except FleetdError:
            self.counts.add(JOURNAL, "error")
            raise
        self.counts.add(JOURNAL, "ok")
        self.counts.observe(JOURNAL_SECONDS, value=time.monotonic() - began)

    def decide(self) -> tuple[Plan, Memory]:
        """Return what to do about the observation, and what to remember. A shadow decides what it would do."""
        return decide(self.observation, self.policy, self.memory)

    async def on_disk(self, write: Callable[..., T], *values: Any, **named: Any) -> T:
        """Write to the store in the thread that does so, one write after the other."""
        return await asyncio.get_running_loop().run_in_executor(self._disk, partial(write, *values, **named))

    def observe(self) -> Observation:
        """Gather the latest word of everybody; waits for nobody."""
        wall_s = time.time()
        return Observation(
            now=self.clock(),
            month=month(self.policy, wall_s),
            readings=self._outlook.readings(self.policy),
            worlds=self._outlook.worlds(),
            leases=self.leases.views(),
            work=self.leases.take_work(),
            floors=self._schedules.floors(wall_s, leads(self.policy, self.memory)),
            outcomes=tuple(self._outcomes),
            commands=tuple(self._commands),
            lease_ttl_s=TTL_S,
        )

    # ── acting

    def _carry_out(self, intent: Intent) -> None:
        self._mind()
        match intent:
            case Launch(order, reason):
                self._say("launch", f"{order.pool}: {order.count} for {order.app} (order {order.key}): {reason}")
                self._start(self._launch(order))
            case Drain(pool, node, deadline_s, reason):
                self._say("drain", f"{pool}: {node}: {reason}")
                self.leases.order(node, "drain", deadline_s)
            case Undrain(pool, node, reason):
                self._say("undrain", f"{pool}: {node}: {reason}")
                self.leases.order(node, "work")
            case Stop(pool, nodes, _, reason):
                self._say("stop", f"{pool}: {', '.join(nodes)}: {reason}")
                self._start(self._stop(intent))
            case Reload(pool, node, digest, reason, pardoned):
                self._say("reload", f"{pool}: {node}: {reason}")
                self.leases.reload(node, digest, pardoned)

    def _send_again(self) -> None:
        """Send the orders that a restart left unanswered: their keys make sure that nothing is started twice."""
        for pending in self.memory.orders.values():
            if pending.order.pool in self.policy.pools:
                self._start(self._launch(replace(pending.order, epoch=self.memory.epoch)))

    def _start(self, act: Awaitable[Outcome]) -> None:
        async def carry() -> None:
            self._outcomes.append(await act)
            self.nudge()

        task = asyncio.create_task(carry())
        self._acts.add(task)
        task.add_done_callback(self._acts.discard)

    async def _launch(self, order: Order) -> Outcome:
        try:
            self._mind_release(order.app)
            provider = self._outlook.adapters.providers[order.pool]
            self._mind()
            with self.counts.call("pool", order.pool, "launch"):
                async with asyncio.timeout(LAUNCH_TIMEOUT_S):
                    launched = await provider.launch(order)
        except ExhaustedError as error:
            return LaunchFailed(order.key, "exhausted", one_line(error))
        except RefusedError as error:
            return LaunchFailed(order.key, "refused", one_line(error))
        except TimeoutError:
            return LaunchFailed(order.key, "error", f"no answer within {LAUNCH_TIMEOUT_S:.0f} s")
        except FleetdError as error:
            return LaunchFailed(order.key, "error", one_line(error))
        except Exception as error:  # noqa: BLE001 - whatever an adapter does wrong is an outcome, and its pool's alone
            return LaunchFailed(order.key, "error", f"{type(error).__name__}: {one_line(error)}")
        self._outlook.look_again(order.pool)
        return launched

    def _mind_release(self, name: str) -> None:
        app = self.policy.apps.get(name)
        if app is not None and not (app.exec or app.path) and name not in self.memory.rollouts:
            raise RefusedError(f"app {name} has no active release: push one with `fleetd release push`, activate it")

    async def _stop(self, stop: Stop) -> Outcome:
        try:
            provider = self._outlook.adapters.providers[stop.pool]
            self._mind()
            for node in stop.nodes if getattr(provider, "stops_by_order", False) else ():
                self.leases.order(node, "stop")
            with self.counts.call("pool", stop.pool, "stop"):
                async with asyncio.timeout(stop.grace_s + LAUNCH_TIMEOUT_S):
                    stopped = await provider.stop(stop.nodes, stop.grace_s)
        except TimeoutError:
            return StopFailed(stop.nodes, "no answer in time")
        except FleetdError as error:
            return StopFailed(stop.nodes, one_line(error))
        except Exception as error:  # noqa: BLE001 - as above
            return StopFailed(stop.nodes, f"{type(error).__name__}: {one_line(error)}")
        self._outlook.look_again(stop.pool)
        return stopped

    async def _close(self, outlook: Outlook) -> None:
        if self._acts:
            await asyncio.wait(self._acts, timeout=CLOSE_TIMEOUT_S)
        for trouble in await outlook.close():
            self._say("error", f"closing: {trouble}")
