"""Mode `asg`: the instances of an owner's Auto Scaling group.

Promises: the desired capacity is raised, within MaxSize, by what is missing after counting what the group has or will
have and no order has claimed, so that an order sent twice raises it once; it is lowered by the exact instance that was
drained, or by what AWS says that it cannot give. Every instance is protected from scale-in from its start to its end:
the group itself ends none of them. A group that somebody else scales too is refused.

The group is the truth: nothing is kept on this disk. Which order an instance is from is a tag on it.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from fleetd.core.model import Launched, NodeId, Offer, Order, PoolPolicy, Seconds, Stopped, World
from fleetd.core.ports import Known, WorkerLaunch
from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from fleetd.providers.ec2 import names
from fleetd.providers.ec2.faults import AwsError, DeniedError
from fleetd.providers.ec2.options import Ec2Options
from fleetd.providers.ec2.pool import Flight, InstancePool
from fleetd.providers.ec2.seen import LISTED, Seen
from fleetd.providers.ec2.state import State, lacking_for, mind, read_state

APPEAR_S: Final = 18.0  # so long a launch waits for what it raised; what comes later is a stray, and adopted
APPEAR_POLL_S: Final = 1.5
STATE_S: Final = 15.0  # how old the group's own numbers may be
RIVALS_S: Final = 60.0
PROTECT_AT_ONCE: Final = 50  # of SetInstanceProtection
STOPS_AT_ONCE: Final = 4
BUSY_AGAIN_S: Final = 2.0
ACTIVITIES: Final = 50


class Group(InstancePool):
    """A Provider, as `core.ports` describes it."""

    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "exact"

    def __init__(self, pool: PoolPolicy, options: Ec2Options, launch: WorkerLaunch, **given: Any) -> None:
        super().__init__(pool, options, launch, **given)
        self._name = options.group or ""
        self._state: State | None = None
        self._rivals_at: Seconds | None = None
        self._full: tuple[Seconds, str] = (0.0, "")
        self._claims: dict[str, str] = {}  # by instance id, the newest: a list may not show their tags yet
        self._claiming = False
        self._protecting: Flight[None] = Flight()

    async def close(self) -> None:
        """Ask nothing more; the instances live on."""
        await self._protecting.end()
        await super().close()

    def hear(self, sentence: str, nodes: Mapping[NodeId, Known]) -> None:
        """Protect whatever is not proven empty, and not protected yet."""
        del sentence
        state = self._state
        if state is None or not self._ready or not self._protecting.over:
            return
        drained = {names.instance_id(node) for node, known in nodes.items() if known.state == "drained"}
        bare = sorted(state.bare - drained)
        if bare:
            self._protecting.begin(lambda: self._protect(bare))

    async def launch(self, order: Order) -> Launched:
        """Raise the group by what is missing of the order, and claim what comes. Cancelled, it goes on."""
        self._mind_app(order.app)
        if order.app != self._pool.apps[0]:
            raise RefusedError(f"{self._place}: app {order.app}: the group's user data runs {self._pool.apps[0]}")
        for key in [key for key, flight in self._orders.items() if flight.over]:
            del self._orders[key]
        flight = self._orders.setdefault(order.key, Flight())
        launched: Launched = await flight.join(lambda: self._launch_in_turn(order))
        return launched

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        """Terminate each by name, with the desired capacity lowered by it."""
        del grace_s, order
        ids = await self._ours(nodes)
        if ids:
            async with self._turn:
                state = await self._read()
                await self._alone()
                here = [one for one in ids if one in state.members]
                mind(self._place, state, ending=len(here))
                gate = asyncio.Semaphore(STOPS_AT_ONCE)
                results = await asyncio.gather(*(self._end(one, gate) for one in here), return_exceptions=True)
            self._look_soon()
            for result in results:
                if isinstance(result, BaseException):
                    raise result
            self._mind_left(set(ids) - set(here) - self.view.going.keys())
        return Stopped(tuple(nodes))

    # ── looking

    def _chosen(self) -> Sequence[dict[str, Any]]:
        return [{"Name": f"tag:{names.GROUP}", "Values": [self._name]}]

    def _world(self) -> World:
        only = None
        if self._claiming:  # what the launch under way is about to claim is not a stray
            only = [one.id for one in self.view.nodes.values() if self._key_of(one)]
        world = self.view.world(self._offer(), only=only)
        apps = self._pool.apps[0]
        found = []
        for sighting in world.sightings:
            key = self._claims.get(names.instance_id(sighting.node)) or sighting.key
            found.append(type(sighting)(sighting.node, sighting.state, apps, key))
        return World(tuple(found), world.offer, gone=world.gone)

    def _offer(self) -> Offer:
        until, why = self._full
        if self._clock() < until:
            return Offer(0, self._price, why)
        state = self._state
        if state is None:
            return Offer(None, self._price)
        return Offer(max(0, state.most - state.desired), self._price, f"the group's MaxSize is {state.most}")

    @property
    def _price(self) -> float | None:
        prices = self._options.prices.values()
        return max(prices) if prices else None

    async def _prepare(self) -> None:
        """See that the group is there, fit for this, and nobody else's."""
        if len(self._pool.apps) != 1:
            told = ", ".join(self._pool.apps)
            raise RefusedError(f"{self._place}: mode asg runs one app, that of its group's user data, not {told}")
        state = await self._read()
        if not state.protects:
            why = "new instances are not protected from scale-in, so that it may end busy ones"
            fix = "set NewInstancesProtectedFromScaleIn"
            raise DeniedError(f"{self._place}: group {self._name}: {why}; {fix}", "NewInstancesProtectedFromScaleIn")
        if state.least > self._pool.min_nodes:
            why = f"its MinSize {state.least} is more than the pool's `min: {self._pool.min_nodes}`"
            raise DeniedError(f"{self._place}: group {self._name}: {why}; lower the one or raise the other", "MinSize")
        await self._alone()

    async def _look_more(self) -> None:
        if self._state is None or self._state.bare or self._clock() - self._state.at >= STATE_S or self.view.moving:
            await self._read()

    async def _read(self) -> State:
        """Read the group."""
        named: dict[str, Any] = {"service": "autoscaling", "AutoScalingGroupNames": [self._name]}
        found = await self.api.pages("describe_auto_scaling_groups", "AutoScalingGroups", **named)
        if not found:
            raise DeniedError(f"{self._place}: there is no Auto Scaling group {self._name}; change `group:`", "NoGroup")
        self._state = read_state(found[0], self._clock())
        return self._state

    async def _alone(self) -> None:
        """Refuse a group that a policy or a schedule scales, too, or whose instances are being replaced."""
        if self._rivals_at is not None and self._clock() - self._rivals_at < RIVALS_S:
            return
        place = f"{self._place}: group {self._name}"
        policies = await self._all("describe_policies", "ScalingPolicies")
        active = [one["PolicyName"] for one in policies if one.get("Enabled", True)]
        planned = await self._all("describe_scheduled_actions", "ScheduledUpdateGroupActions")
        active += [one["ScheduledActionName"] for one in planned]
        if active:
            raise DeniedError(f"{place}: {', '.join(sorted(active))} scales it, too; remove one owner", "TwoOwners")
        refreshes = await self._ask("describe_instance_refreshes")
        under_way = ("Pending", "InProgress", "Cancelling", "RollbackInProgress")
        if any(one["Status"] in under_way for one in refreshes["InstanceRefreshes"]):
            raise ProviderError(f"{place}: an instance refresh is under way, which ends busy ones; it is left alone")
        self._rivals_at = self._clock()

    # ── launching

    async def _launch_in_turn(self, order: Order) -> Launched:
        async with self._turn:
            self._claiming = True
            try:
                return await self._raise(order)
            finally:
                self._claiming = False
                self._look_soon()

    async def _raise(self, order: Order) -> Launched:
        state = await self._read()
        await self._alone()
        mind(self._place, state, ending=0)
        await self._list_now()
        missing = order.count - len(self._of(order.key))
        free = state.desired - sum(1 for one in self._present(state) if self._key_of(one))
        lacking = 0
        if missing > max(0, free):
            target = min(state.desired + missing - max(0, free), state.most)
            before = await self._activities()
            if target > state.desired:
                await self._ask("set_desired_capacity", DesiredCapacity=target, HonorCooldown=False)
            wanted = min(missing, target - state.desired + max(0, free))
            lacking = await self._appear(order, wanted, target, {one["ActivityId"] for one in before})
        elif missing > 0:
            lacking = await self._appear(order, missing, state.desired, None)
        nodes = [one.node for one in self._of(order.key)][: order.count]
        if nodes:
            return Launched(order.key, tuple(nodes))
        raise self._nothing(state, lacking)

    async def _appear(self, order: Order, wanted: int, target: int, before: set[str] | None) -> int:
        """Claim instances as they come; give back what the group says will not come. Returns how many lack."""
        deadline, left = self._clock() + APPEAR_S, wanted
        while True:
            await self._list_now()
            state = await self._read()
            fresh = [one for one in self._present(state) if not self._key_of(one)][:left]
            if fresh:
                await self._claim(fresh, order)
                left -= len(fresh)
            if left <= 0:
                return 0
            newest = await self._activities()  # of an order sent again it is not known which were before it
            why = lacking_for(
                newest[:1] if before is None else [one for one in newest if one["ActivityId"] not in before]
            )
            if why:
                await self._give_back(state, target, why)
                return left
            if self._clock() + APPEAR_POLL_S >= deadline:
                return left
            await asyncio.sleep(APPEAR_POLL_S)

    async def _claim(self, fresh: Sequence[Seen], order: Order) -> None:
        """Mark instances as the order's."""
        ids = [one.id for one in fresh]
        tags = names.as_list(names.tags_for(self._pool, self._launch, order))
        deadline = self._clock() + APPEAR_S / 2
        while True:
            try:
                await self.api.call("create_tags", Resources=ids, Tags=tags)
                break
            except AwsError as error:  # EC2 may not know it yet, though the group names it
                if error.code != "InvalidInstanceID.NotFound" or self._clock() >= deadline:
                    raise
                await asyncio.sleep(1.0)
        self._claims.update(dict.fromkeys(ids, order.key))

    async def _give_back(self, state: State, target: int, why: str) -> None:
        """Lower the desired capacity to what is there: else the group tries on, for hours, and comes too late."""
        self._full = self._clock() + self._options.stockout, why
        there = max(state.least, len(state.members))
        if there < min(target, state.desired):
            if state.bare:
                await self._protect(sorted(state.bare))
            await self._ask("set_desired_capacity", DesiredCapacity=there, HonorCooldown=False)

    async def _activities(self) -> Sequence[dict[str, Any]]:
        """Return the newest scaling activities; those of one launch are no more than a page."""
        answer = await self._ask("describe_scaling_activities", MaxRecords=ACTIVITIES)
        found: Sequence[dict[str, Any]] = answer["Activities"]
        return found

    def _nothing(self, state: State, lacking: int) -> ProviderError:
        until, why = self._full
        if self._clock() < until:
            return ExhaustedError(f"{self._place}: group {self._name}: {why}")
        if state.desired >= state.most:
            full = f"is full: its MaxSize is {state.most}; raise it, or lower the pool's `max:`"
            return ExhaustedError(f"{self._place}: group {self._name} {full}")
        told = f"{lacking} instances have not appeared within {APPEAR_S:.0f} s"
        return ProviderError(f"{self._place}: group {self._name}: {told}; they are adopted when they come")

    # ── ending

    async def _end(self, name: str, gate: asyncio.Semaphore) -> None:
        """Terminate an instance and lower the desired capacity by it, as soon as the group can."""
        how: dict[str, Any] = {"InstanceId": name, "ShouldDecrementDesiredCapacity": True}
        deadline = self._clock() + APPEAR_S
        async with gate:
            while True:
                try:
                    await self.api.once("terminate_instance_in_auto_scaling_group", how, service="autoscaling")
                    break
                except AwsError as error:
                    if "not found" in str(error).lower():
                        break  # it has left the group since
                    if not error.again or self._clock() + BUSY_AGAIN_S >= deadline:
                        raise
                    await asyncio.sleep(BUSY_AGAIN_S)
                    if name not in (await self._read()).members:
                        break  # the answer was lost: sent again, it might lower the number twice
            self.view.told([name], self._clock())
            self._claims.pop(name, None)

    def _mind_left(self, ids: set[str]) -> None:
        """Refuse to end what is alive and no longer of the group: it was detached, and is its owner's."""
        alive = sorted(one for one in ids if one in self.view.nodes)
        if alive:
            said = f"{', '.join(alive)} is not in the group {self._name} any more; it is yours to end"
            raise ProviderError(f"{self._place}: {said}")

    async def _protect(self, ids: Sequence[str]) -> None:
        """Protect instances from scale-in. Nothing here ever takes that away."""
        for at in range(0, len(ids), PROTECT_AT_ONCE):
            part = list(ids[at : at + PROTECT_AT_ONCE])
            try:
                await self._ask("set_instance_protection", InstanceIds=part, ProtectedFromScaleIn=True)
            except AwsError:  # one of them has just ended; the next look tells which are still bare
                self._look_soon()
                return
            if self._state is not None:
                self._state.bare.difference_update(part)

    # ── small things

    async def _ask(self, operation: str, **given: Any) -> dict[str, Any]:
        return await self.api.call(operation, service="autoscaling", AutoScalingGroupName=self._name, **given)

    async def _all(self, operation: str, key: str) -> Sequence[dict[str, Any]]:
        return await self.api.pages(operation, key, service="autoscaling", AutoScalingGroupName=self._name)

    def _key_of(self, one: Seen) -> str:
        """Return the order that an instance is claimed for, by this controller."""
        return self._claims.get(one.id) or (one.key if one.owner == self._launch.instance else "")

    def _of(self, key: str) -> Sequence[Seen]:
        return [one for one in self.view.nodes.values() if self._key_of(one) == key and one.id not in self.view.going]

    def _present(self, state: State) -> Sequence[Seen]:
        """Return the instances of the group that are there and not told to end."""
        nodes = self.view.nodes
        return [nodes[name] for name in state.members if name in nodes and name not in self.view.going]

    async def _list_now(self) -> None:
        listed = await self._describe(names.filters(instance_state_name=LISTED))
        missing = self.view.take(listed, self._clock())
        if missing:
            self.view.confirm(missing, await self._by_name(missing), self._clock())
