"""What both modes of a pool of instances share: the way to AWS, the list and how often it is read, what a node said.

Promises: at most one DescribeInstances a pool is under way, and none where nothing can have changed (`FAST_S` and
`CALM_S`; docs/ec2.md has the table). One that is slow or fails costs no more than its own answer, until what is known
is too old. `close` leaves the instances alone.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, ClassVar, Final, Generic, TypeVar

from fleetd.core.model import NodeId, Offer, PoolPolicy, Seconds, World
from fleetd.core.ports import Nudge, WorkerLaunch
from fleetd.errors import ProviderError, RefusedError
from fleetd.providers.ec2 import names
from fleetd.providers.ec2.api import PAGE, Api
from fleetd.providers.ec2.faults import GONE, AwsError
from fleetd.providers.ec2.options import Ec2Options
from fleetd.providers.ec2.seen import LISTED, Seen, see
from fleetd.providers.ec2.view import View

FAST_S: Final = 2.0  # while something comes or goes
CALM_S: Final = 8.0
REFUSED_S: Final = 15.0  # what was refused stays so for a while
OLD_S: Final = 40.0  # what is known counts for so long, should AWS not answer
PAGES_S: Final = 30.0  # a list of many pages goes on meanwhile, and counts when it is whole
LOOK_S: Final = 4.0  # less than the loop gives a list
TROUBLE_S: Final = (2.0, 30.0)  # after a failure: the first pause, the longest
BY_NAME: Final = 200  # values that a filter may have
T = TypeVar("T")


class Flight(Generic[T]):
    """One call of a kind at a time: who asks meanwhile is given the same answer; who is cancelled cancels nobody."""

    def __init__(self) -> None:
        self._task: asyncio.Future[T] | None = None

    async def join(self, make: Callable[[], Awaitable[T]]) -> T:
        """Return what the call under way brings, or a new one."""
        return await asyncio.shield(self.begin(make))

    def begin(self, make: Callable[[], Awaitable[T]]) -> asyncio.Future[T]:
        """Have it under way."""
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(_as_task(make))
            self._task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return self._task

    @property
    def over(self) -> bool:
        """Whether nothing is under way."""
        return self._task is None or self._task.done()

    async def end(self) -> None:
        """Wait for it no longer."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)


async def _as_task(make: Callable[[], Awaitable[T]]) -> T:
    return await make()


class InstancePool:
    """The common part of a Provider; `_prepare`, `_chosen`, `_offer`, `launch` and `stop` are each mode's own."""

    Options: ClassVar[type[Ec2Options]] = Ec2Options

    def __init__(
        self, pool: PoolPolicy, options: Ec2Options, launch: WorkerLaunch, clock: Callable[[], Seconds] = time.monotonic
    ) -> None:
        """`clock`: tests have their own."""
        self._pool, self._options, self._launch, self._clock = pool, options, launch, clock
        self._place = f"pool {pool.name}"
        self.api = Api(pool.name, options)
        self.view = View()
        self._turn = asyncio.Lock()
        self._looking: Flight[None] = Flight()
        self._orders: dict[str, Flight[Any]] = {}
        self._ready = False
        self._seen_at: Seconds | None = None
        self._look_at: Seconds = 0.0
        self._failures = 0
        self._trouble: ProviderError | None = None

    # ── its own of each mode

    async def _prepare(self) -> None:
        """See that what the options name is there and fit to be used."""
        raise NotImplementedError

    def _chosen(self) -> Sequence[dict[str, Any]]:
        """Return the filters that choose the pool's instances."""
        raise NotImplementedError

    def _offer(self) -> Offer:
        """Return what more is to be had."""
        raise NotImplementedError

    async def _look_more(self) -> None:
        """Read what else is due, once the instances are read."""

    def _failed(self, seen: Sequence[Seen]) -> None:
        """Take in instances that ended while they were coming."""

    # ── the port

    async def open(self, nudge: Nudge) -> None:
        """See that all is there; nothing is launched where it is not. AWS has nothing to nudge with."""
        del nudge
        self.api.open()
        if self._ready:
            return
        if self._trouble is not None and self._clock() < self._look_at:
            raise self._trouble  # the loop opens again every second; AWS need not be asked so often
        try:
            await self._prepare()
        except ProviderError as error:
            self._note_trouble(error)
            raise
        self._ready, self._trouble, self._failures, self._look_at = True, None, 0, 0.0

    async def close(self) -> None:
        """Ask nothing more; the instances live on, and what is under way to AWS ends by itself."""
        flights = [self._looking, *self._orders.values()]
        self._orders = {}
        await asyncio.gather(*(flight.end() for flight in flights))
        self.api.close()

    async def list(self) -> World:
        """Return what is known, read anew where that is due."""
        if not self._ready:
            raise ProviderError(f"{self._place}: is not open")
        if self._clock() >= self._look_at:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._looking.join(self._look)
            except TimeoutError:
                self._note_trouble(ProviderError(f"{self._place}: AWS did not answer within {LOOK_S:.0f} s"))
            except ProviderError as error:
                self._note_trouble(error)
        if self._seen_at is None or (self._trouble is not None and self._clock() - self._seen_at > OLD_S):
            raise self._trouble or ProviderError(f"{self._place}: AWS has not answered yet")
        return self._world()

    async def logs(self, node: NodeId, last: int) -> Sequence[str]:
        """Return the last lines of an instance's console, or why it is gone."""
        if node in self.view.gone:
            return [f"gone: {self.view.gone[node]}"]
        try:
            answer = await self.api.call("get_console_output", InstanceId=names.instance_id(node))
        except AwsError as error:
            if error.code not in GONE:
                raise
            raise ProviderError(f"{self._place}: {node} is gone, and of its console nothing is kept") from None
        lines = (answer.get("Output") or "").splitlines()
        if not lines:
            raise ProviderError(f"{self._place}: {node}: EC2 has no console output of it yet; it takes minutes")
        return lines[-last:]

    # ── looking

    def _world(self) -> World:
        return self.view.world(self._offer())

    def _look_soon(self) -> None:
        self._look_at = 0.0

    async def _look(self) -> None:
        listed = await self._describe(names.filters(instance_state_name=LISTED))
        missing = self.view.take(listed, self._clock())
        if missing:
            failed = self.view.confirm(missing, await self._by_name(missing), self._clock())
            if failed:
                self._failed(failed)
        await self._look_more()
        self._seen_at, self._trouble, self._failures = self._clock(), None, 0
        self._look_at = self._seen_at + (FAST_S if self.view.moving else CALM_S)

    async def _describe(self, more: Sequence[dict[str, Any]], *, ours: bool = True) -> Sequence[Seen]:
        """Read instances; `ours`: only such as are chosen by the pool's own filters."""
        chosen = [*(self._chosen() if ours else ()), *more]
        paging = {"PageSize": PAGE}
        found = await self.api.pages(
            "describe_instances", "Reservations", limit_s=PAGES_S, Filters=chosen, PaginationConfig=paging
        )
        return [see(self._pool.name, raw) for one in found for raw in one["Instances"]]

    async def _by_name(self, ids: Sequence[str], *, ours: bool = False) -> Sequence[Seen]:
        """Ask for instances by a filter: unlike a list of ids, it may hold some that are not known.

        One that has ended may have lost its tags already, so what is known to be of the pool is not chosen by them.
        """
        parts = [ids[at : at + BY_NAME] for at in range(0, len(ids), BY_NAME)]
        return [one for part in parts for one in await self._describe(names.filters(instance_id=part), ours=ours)]

    def _note_trouble(self, error: ProviderError) -> None:
        first, most = TROUBLE_S
        pause_s = min(most, first * 2.0**self._failures) * random.uniform(0.7, 1.3)  # noqa: S311 - not in step
        if isinstance(error, RefusedError):
            pause_s = max(pause_s, REFUSED_S)
        self._failures = min(self._failures + 1, 10)
        self._trouble, self._look_at = error, self._clock() + pause_s

    # ── small things

    def _mind_app(self, name: str) -> None:
        app = self._launch.apps.get(name)
        if app is None or app.exec:
            why = "is unknown here" if app is None else "only apps with a `release` run here yet"
            raise RefusedError(f"{self._place}: app {name}: {why}")

    async def _ours(self, nodes: Iterable[NodeId]) -> Sequence[str]:
        """Return the ids of those nodes that are instances of this pool and not known to have ended."""
        ids = [names.instance_id(node) for node in dict.fromkeys(nodes)]
        ids = [one for one in ids if one.startswith("i-") and one not in self.view.ended]
        unknown = [one for one in ids if one not in self.view.nodes]
        found = (
            {one.id for one in await self._by_name(unknown, ours=True) if one.state != "terminated"}
            if unknown
            else set()
        )
        return [one for one in ids if one in self.view.nodes or one in found]
