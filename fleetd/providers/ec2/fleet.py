"""Mode `fleet`: instances that fleetd starts by CreateFleet and ends by name.

Promises: an order's request is on the disk, with its ClientToken, before it leaves; sent again, by us or by the next
controller, it is answered with the same instances. Spot that is out falls to on-demand in the same launch; what is all
out is said, so that the next pool can take over. A stop ends exactly the instances that it names, if they are ours.
"""

import asyncio
import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, Literal

from fleetd.core.model import Launched, NodeId, Offer, Order, PoolPolicy, Seconds, Stopped
from fleetd.core.ports import Known, WorkerLaunch
from fleetd.errors import ExhaustedError, ProviderError
from fleetd.providers.ec2 import names
from fleetd.providers.ec2.faults import GONE, OUT, QUOTAS, SPENT, AwsError, DeniedError, fault, kind_of
from fleetd.providers.ec2.ledger import Attempt, Entry, Ledger
from fleetd.providers.ec2.market import Books
from fleetd.providers.ec2.options import Ec2Options
from fleetd.providers.ec2.pool import Flight, InstancePool
from fleetd.providers.ec2.prices import list_prices, spot_prices
from fleetd.providers.ec2.request import Answer, Refusal, create_fleet, prefixed, read_answer
from fleetd.providers.ec2.seen import LISTED, Choice, Market, Seen
from fleetd.providers.ec2.view import YOUNG_S

SEND_S: Final = 14.0  # so long one request is sent again where its answer is lost
PAUSE_S: Final = (0.3, 3.0)
TRIES: Final = 3  # requests to one market within a launch, each without what the one before found out
YOUNG_STOP_S: Final = 8.0
ENDED_AT_ONCE: Final = 500
PRICES_S: Final = 300.0
_INSTANCE: Final = re.compile(r"\bi-[0-9a-f]+\b")


class Fleet(InstancePool):
    """A Provider, as `core.ports` describes it."""

    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "exact"

    def __init__(self, pool: PoolPolicy, options: Ec2Options, launch: WorkerLaunch, **given: Any) -> None:
        super().__init__(pool, options, launch, **given)
        self.books = Books(options, pool.price_per_h, on_demand=dict(options.prices))
        self._ledger = Ledger(self._place, Path(launch.state_dir) / "ec2" / launch.instance / pool.name)
        self._priced_at: Seconds | None = None
        self._tidying: Flight[None] = Flight()

    async def close(self) -> None:
        """Ask nothing more; the instances live on."""
        await self._tidying.end()
        await super().close()

    def hear(self, sentence: str, nodes: Mapping[NodeId, Known]) -> None:
        """End instances that were stopped behind our back: they are no nodes, and their disks cost."""
        del sentence, nodes
        if self.view.idle and self._tidying.over and self._ready:
            idle = list(self.view.idle)
            self._tidying.begin(lambda: self._tidy(idle))

    async def launch(self, order: Order) -> Launched:
        """Start what is missing of the order. Cancelled, it goes on, and the same order again waits for it."""
        self._mind_app(order.app)
        for key in [key for key, flight in self._orders.items() if flight.over]:
            del self._orders[key]
        flight = self._orders.setdefault(order.key, Flight())
        launched: Launched = await flight.join(lambda: self._launch_in_turn(order))
        return launched

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        """Terminate them; the system of each ends what still runs there."""
        del grace_s, order
        ids = await self._ours(nodes)
        for at in range(0, len(ids), ENDED_AT_ONCE):
            await self._terminate(ids[at : at + ENDED_AT_ONCE])
        self._look_soon()
        return Stopped(tuple(nodes))

    # ── looking

    def _chosen(self) -> Sequence[dict[str, Any]]:
        return [
            {"Name": f"tag:{names.INSTANCE}", "Values": [self._launch.instance]},
            {"Name": f"tag:{names.POOL}", "Values": [self._pool.name]},
        ]

    def _offer(self) -> Offer:
        return self.books.offer(self._clock())

    async def _prepare(self) -> None:
        """See that the template, the subnets and the types are there, and take up what was started lately."""
        found = await self.api.call("describe_launch_template_versions", **prefixed(self._options))
        self._mind_template(found["LaunchTemplateVersions"])
        subnets = await self.api.pages(
            "describe_subnets", "Subnets", SubnetIds=list(dict.fromkeys(self._options.subnets))
        )
        self.books.zones = {one["SubnetId"]: one["AvailabilityZone"] for one in subnets}
        await self._mind_types()
        if self._options.pricing:
            lacking = [kind for kind in self._options.types if kind not in self.books.on_demand]
            self.books.on_demand.update(await list_prices(self.api, self._options.region, lacking))
        for entry in await asyncio.to_thread(self._ledger.recent, YOUNG_S):
            for attempt in entry.attempts:
                if attempt.answer:
                    self._take(attempt, {"Instances": attempt.answer})

    def _mind_template(self, versions: Sequence[Mapping[str, Any]]) -> None:
        name = f"{self._place}: launch template {self._options.launch_template}"
        if not versions:
            raise DeniedError(f"{name}: has no version {self._options.version}; change `version:`", "NoVersion")
        data = versions[0]["LaunchTemplateData"]
        if data.get("InstanceInitiatedShutdownBehavior") != "terminate":
            why = "InstanceInitiatedShutdownBehavior is not terminate: a worker that ends itself would go on costing"
            raise DeniedError(f"{name}: {why}; make a version that says so", "ShutdownBehavior")
        if data.get("MetadataOptions", {}).get("InstanceMetadataTags") != "enabled":
            why = "MetadataOptions.InstanceMetadataTags is not enabled: a worker reads there what it is to run"
            raise DeniedError(f"{name}: {why}; make a version that says so", "InstanceMetadataTags")

    async def _mind_types(self) -> None:
        """Leave out what a zone does not have; refuse a type that none of the zones has."""
        kinds, zones = set(self._options.types), set(self.books.zones.values())
        filters = names.filters(instance_type=sorted(kinds), location=sorted(zones))
        found = await self.api.pages(
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            LocationType="availability-zone",
            Filters=filters,
        )
        there = {(one["InstanceType"], one["Location"]) for one in found}
        nowhere = kinds - {kind for kind, _ in there}
        if nowhere:
            told, where = ", ".join(sorted(nowhere)), ", ".join(sorted(zones))
            raise DeniedError(f"{self._place}: no zone of {where} has {told}; change `types:`", "NoOffering")
        self.books.absent = frozenset((kind, zone) for kind in kinds for zone in zones) - there

    async def _look_more(self) -> None:
        now = self._clock()
        if self._options.spot > 0 and (self._priced_at is None or now - self._priced_at >= PRICES_S):
            self._priced_at = now
            try:
                self.books.take_spot(await spot_prices(self.api, self._options.types, set(self.books.zones.values())))
            except AwsError:
                self._priced_at = now - 0.8 * PRICES_S  # a price is good to know, no more

    def _failed(self, seen: Sequence[Seen]) -> None:
        for one in seen:
            if one.code.removeprefix("Server.") in OUT:
                self.books.note(one.choice, one.code, self._clock())

    # ── launching

    async def _launch_in_turn(self, order: Order) -> Launched:
        async with self._turn:
            entry = await asyncio.to_thread(self._ledger.read, order.key)
            if entry.attempts:
                await self._take_up(entry)
            missing = order.count - len(self.view.of(order.key))
            refusals = await self._fill(order, entry, missing) if missing > 0 else []
            self._look_soon()
            nodes = [one.node for one in self.view.of(order.key)][: order.count]
            if not nodes:
                raise self._nothing(order, refusals)
            return Launched(order.key, tuple(nodes))

    async def _take_up(self, entry: Entry) -> None:
        """Learn what became of an order that was sent before: unanswered requests are sent again, as they were."""
        for attempt in entry.attempts:
            if attempt.answer is None:
                try:
                    await self._send(entry, attempt)
                except AwsError as error:
                    if error.code not in SPENT:  # what that token started bears the order's tag
                        raise
            elif self._ledger.clock() - attempt.at < YOUNG_S:
                self._take(attempt, {"Instances": attempt.answer})
        listed = await self._describe(
            [{"Name": f"tag:{names.ORDER}", "Values": [entry.key]}, *names.filters(instance_state_name=LISTED)]
        )
        for one in listed:
            self.view.take_one(one)
        here = {one.id for one in listed}
        lacking = [one.id for one in self.view.of(entry.key) if one.id not in here]
        if lacking:
            self.view.confirm(lacking, await self._by_name(lacking), self._clock())

    async def _fill(self, order: Order, entry: Entry, missing: int) -> list[Refusal]:
        """Buy what is missing: spot as far as the share goes, then on-demand, also for spot that is out."""
        there = list(self.view.nodes.values())
        spot = sum(one.choice.market == "spot" for one in there)
        shares, refusals, left = self.books.split(missing, spot, len(there)), [], 0
        for market in self.books.markets():
            left = shares.get(market, 0) + (left if self._options.on_demand else 0)
            left, said = await self._buy(order, entry, market, left)
            refusals += said
            if any(kind_of(one.code) == "no" for one in said):
                break
        return refusals

    async def _buy(self, order: Order, entry: Entry, market: Market, left: int) -> tuple[int, list[Refusal]]:
        """Ask one market, again without what turned out to be out; return how many are lacking, and why."""
        refusals: list[Refusal] = []
        for _ in range(TRIES):
            choices = self.books.open(market, self._clock())
            if left <= 0 or not choices:
                break
            answer = await self._ask(order, entry, choices, left)
            left -= len(answer.started)
            refusals += answer.refusals
            if not any(kind_of(one.code) == "out" for one in answer.refusals):
                break
        return left, refusals

    async def _ask(self, order: Order, entry: Entry, choices: Sequence[Choice], count: int) -> Answer:
        tags = names.tags_for(self._pool, self._launch, order)
        token = names.token(self._launch, self._pool.name, order.key, len(entry.attempts))
        request = create_fleet(
            self._options, choices, self.books.zones, count, token=token, limit=self._pool.price_per_h, tags=tags
        )
        attempt = Attempt(token, choices[0].market, request, self._ledger.clock())
        entry.attempts.append(attempt)
        await asyncio.to_thread(self._ledger.write, entry)
        return await self._send(entry, attempt)

    async def _send(self, entry: Entry, attempt: Attempt) -> Answer:
        """Send a request that is written down, again while its answer is lost; what comes of it is written down."""
        deadline, pause_s = self._clock() + SEND_S, PAUSE_S[0]
        while True:
            try:
                raw = await self.api.once("create_fleet", attempt.request)
                break
            except AwsError as error:
                if error.again and self._clock() + pause_s < deadline:
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311 - not in step
                    pause_s = min(2 * pause_s, PAUSE_S[1])
                    continue
                if error.again:
                    raise  # unanswered: the next launch of this order sends it again
                raw = self._as_answer(attempt, error)
                if not raw:
                    attempt.answer = []
                    await asyncio.to_thread(self._ledger.write, entry)
                    raise
                break
        attempt.answer = [dict(one) for one in raw.get("Instances", ())]
        await asyncio.to_thread(self._ledger.write, entry)
        return self._take(attempt, raw)

    def _as_answer(self, attempt: Attempt, error: AwsError) -> dict[str, Any]:
        """Read an error that speaks of all choices as one of each of them; empty where it is another."""
        if error.code not in OUT | QUOTAS:
            return {}
        told = {"ErrorCode": error.code, "ErrorMessage": str(error), "Lifecycle": attempt.market}
        overrides = attempt.request["LaunchTemplateConfigs"][0]["Overrides"]
        return {"Errors": [{**told, "LaunchTemplateAndOverrides": {"Overrides": one}} for one in overrides]}

    def _take(self, attempt: Attempt, raw: Mapping[str, Any]) -> Answer:
        """Take in an answer: what was started, and what is out."""
        tags = names.as_map(attempt.request["TagSpecifications"][0]["Tags"])
        answer, now = read_answer(self._pool.name, raw, self.books.zones, tags), self._clock()
        self.view.started(answer.started, now)
        for one in answer.refusals:
            if kind_of(one.code) == "quota":
                self.books.note_quota(one.choice.market, one.code, now)
            elif kind_of(one.code) == "out":
                self.books.note(one.choice, one.code, now)
        return answer

    def _nothing(self, order: Order, refusals: Sequence[Refusal]) -> ProviderError:
        """Return why nothing was started: a no that the owner must hear of first."""
        for kind in ("no", "quota", "moment"):
            for one in refusals:
                if kind_of(one.code) == kind:
                    return fault(self._place, "CreateFleet", one.code, f"{one.choice}: {one.message}")
        why = self.books.why(self._clock())
        if why:
            until = f"not asked for again within {self._options.stockout:.0f} s"
            return ExhaustedError(f"{self._place}: nothing to be had: {why}; {until}")
        return ProviderError(f"{self._place}: order {order.key}: CreateFleet started nothing, and does not say why")

    # ── ending

    async def _terminate(self, ids: Sequence[str]) -> None:
        """End instances; EC2 may not know the youngest yet, and of the others has forgotten those that are gone."""
        deadline, left = self._clock() + YOUNG_STOP_S, list(ids)
        while left:
            try:
                await self.api.call("terminate_instances", InstanceIds=left)
                break
            except AwsError as error:
                denied = set(_INSTANCE.findall(str(error))) & set(left) if error.code in GONE else set()
                if not denied:
                    raise
                young = denied & self.view.young.keys()
                if young and self._clock() >= deadline:
                    raise
                left = [one for one in left if one not in denied - young]
                if young:
                    await asyncio.sleep(1.0)
        self.view.told(ids, self._clock())

    async def _tidy(self, ids: Sequence[str]) -> None:
        try:
            await self._terminate(ids)
        except ProviderError:
            return  # the next look shows them again
