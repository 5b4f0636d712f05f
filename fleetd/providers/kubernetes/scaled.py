"""Mode `scale`: the replicas of an owner's Deployment, StatefulSet, ReplicaSet, or whatever has a scale subresource.

Promises: only `/scale` is written, and never over somebody else's write; an object that an autoscaler owns too is
refused. The cluster chooses which pod goes: what fleetd can do is to name the drained ones cheap just before, and to
look afterwards. A wrong victim drains within its grace, and is counted. Of a StatefulSet the highest ordinals go, so
drained pods below them wait for those above.

Which order a pod is from is noted on it once it is there; before the number is raised, the ConfigMap says to what.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Final, Literal

from fleetd.core.model import Launched, NodeId, Order, PoolPolicy, Seconds, Stopped
from fleetd.core.ports import Known, Nudge, WorkerLaunch
from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from fleetd.providers.kubernetes import names
from fleetd.providers.kubernetes.api import PATIENT_S
from fleetd.providers.kubernetes.faults import AnswerError
from fleetd.providers.kubernetes.informer import Informer
from fleetd.providers.kubernetes.notes import Notes
from fleetd.providers.kubernetes.options import KubernetesOptions
from fleetd.providers.kubernetes.pool import PodPool
from fleetd.providers.kubernetes.replicas import Replicas
from fleetd.providers.kubernetes.rivals import refuse_rivals
from fleetd.providers.kubernetes.seen import Seen, Trouble, ordinal, see
from fleetd.providers.kubernetes.view import View

APPEAR_S: Final = 6.0  # the controllers make a raised number's pods within so long, or will not
VICTIMS_S: Final = 6.0
RIVALS_S: Final = 30.0  # how old the knowledge may be that nobody else scales the target
CHEAP: Final = "-2000000000"


class ScaledPods(PodPool):
    """A Provider, as `core.ports` describes it."""

    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "advisory"

    def __init__(self, pool: PoolPolicy, options: KubernetesOptions, launch: WorkerLaunch) -> None:
        super().__init__(pool, options, launch)
        self.wrong_victims = 0
        self._turn = asyncio.Lock()  # the number has one writer
        self._alone_at: Seconds | None = None
        self._number: Replicas | None = None

    async def open(self, nudge: Nudge) -> None:
        """See that the target is there and nobody else scales it, and begin to watch its pods."""
        if self._view is not None:
            return
        if len(self._pool.apps) != 1:
            told = ", ".join(self._pool.apps)
            raise RefusedError(f"{self._place}: mode scale runs one app, that of its target's template, not {told}")
        await self.api.open()
        target = await self.api.get(self._options.source.path(self.api.namespace))
        maker = self._maker
        number = Replicas(self.api, self._options.source, maker)
        scale = await number.read()
        await self._alone()
        selector = scale.get("status", {}).get("selector")
        if not selector:
            raise RefusedError(f"{self._place}: {self._options.source}: its scale names no selector for its pods")
        chosen = {"labelSelector": selector}
        pods = Informer(self.api, self._path("pods"), chosen, lambda pod: see(pod, self._pool.name), nudge)
        self._number = number
        self._view = View(self._place, [pods], self._options.room, app=self._pool.apps[0])
        self._view.by_ordinal = self._by_ordinal
        self._view.start()
        about = {key: target[key] for key in ("apiVersion", "kind")} | {"name": self._options.source.name}
        self._notes = Notes(self.api, maker, self._view, {**about, "uid": target["metadata"]["uid"]})

    def hear(self, sentence: str, nodes: Mapping[NodeId, Known]) -> None:
        """Take in why the pool is as it is, and its nodes: for the notes on its objects, and the busy ones."""
        if self._notes is not None:
            self._notes.hear(sentence, [name for name, node in nodes.items() if node.busy])
            self._notes.start()

    # ── more

    async def launch(self, order: Order) -> Launched:
        """Raise the number by what is missing of the order, and claim the pods that come of it."""
        if order.app not in self._pool.apps:
            raise RefusedError(f"{self._place}: app {order.app}: the target's template runs {self._pool.apps[0]}")
        view, number, key = self._seen, self._replicas, names.label(order.key)
        async with self._turn:
            await view.synced(PATIENT_S)
            await self._alone()
            if self._notes:
                self._notes.start()
                await self._notes.keep_secret()
            before = {seen.uid for seen in view.pods().values()}
            mine = self._of(key)
            missing = order.count - len(mine)
            if missing > 0:
                told = await number.raise_by(missing, key, self._count)
                fresh = await self._appear(missing, before if told else set())
                await asyncio.gather(*(self._claim(seen, key) for seen in fresh))
                mine |= {seen.node: seen for seen in fresh}
                if len(fresh) < missing:
                    await self._fall_short(order, missing - len(fresh), [*mine])
            await number.settle(key)
        if self._notes:
            self._notes.say("ScaledOut", f"order {order.key}: {len(mine)} of {order.count} for {order.app}")
        return Launched(order.key, tuple(mine)[: order.count])

    def _count(self) -> int:
        return sum(seen.leaving_s is None for seen in self._seen.nodes().values())

    def _of(self, key: str) -> dict[NodeId, Seen]:
        nodes = self._seen.nodes().items()
        return {node: seen for node, seen in nodes if seen.key == key and seen.leaving_s is None}

    async def _appear(self, missing: int, before: set[str]) -> Sequence[Seen]:
        """Wait for pods that nobody has claimed yet, and return them, as many as are missing at most."""
        view = self._seen

        def unclaimed() -> Sequence[Seen]:
            found = [seen for seen in view.nodes().values() if not seen.key and seen.leaving_s is None]
            return [seen for seen in found if seen.uid not in before][:missing]

        await view.informers[0].until(lambda: len(unclaimed()) >= missing, APPEAR_S)
        return unclaimed()

    async def _claim(self, seen: Seen, key: str) -> None:
        """Note on a pod which order it is from."""
        await self._annotate(seen, {names.ORDER: key})
        items = self._seen.informers[0].items
        if seen.uid in items:
            items[seen.uid] = replace(items[seen.uid], key=key)

    async def _fall_short(self, order: Order, lacking: int, mine: Sequence[NodeId]) -> None:
        """Give back what did not come, if the controller says that it will not; a slow one is left alone."""
        target = await self.api.get(self._options.source.path(self.api.namespace))
        conditions = {one["type"]: one for one in target.get("status", {}).get("conditions") or ()}
        failure = conditions.get("ReplicaFailure", {})
        if failure.get("status") != "True":
            return
        why = " ".join(str(failure.get("message")).split())
        await self._replicas.lower_by(lacking)
        full = "exceeded quota" in why
        self._seen.full(Trouble("exhausted" if full else "refused", why))
        if self._notes:
            told = f"order {order.key}: {lacking} of {order.count} did not come: {why}"
            self._notes.say("LaunchFailed", told, bad=True)
        if not mine:
            raise (ExhaustedError if full else RefusedError)(f"{self._place}: {why}")

    # ── fewer

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        """Make the named ones the cheapest, lower the number by as many in one write, and see who went."""
        del order
        view = self._seen
        async with self._turn:
            await view.synced()
            pods = view.pods()
            named = {node: pods[node] for node in dict.fromkeys(nodes) if node in pods}
            named = {node: seen for node, seen in named.items() if seen.leaving_s is None and seen.phase != "ended"}
            kept: Sequence[NodeId] = ()
            if named and self._by_ordinal:
                named, kept = _highest(named, view.nodes())
            wrong = 0
            if named:
                await self._alone()
                wrong = await self._go(named, grace_s)
        if kept:
            told, why = ", ".join(kept), "a StatefulSet ends its highest ordinals first"
            raise ProviderError(f"{self._place}: {told}: {why}; waiting for those above")
        return Stopped(tuple(nodes), wrong)

    async def _go(self, named: Mapping[NodeId, Seen], grace_s: Seconds) -> int:
        """Have the named go; return how many others went instead."""
        view = self._seen
        if not self._by_ordinal:
            cheap = {names.COST: CHEAP}
            await asyncio.gather(*(self._annotate(seen, cheap) for seen in named.values()))
        before = {seen.uid for seen in view.nodes().values() if seen.leaving_s is None}
        await self._replicas.lower_by(len(named))

        def gone() -> set[str]:
            return before - {seen.uid for seen in view.nodes().values() if seen.leaving_s is None}

        await view.informers[0].until(lambda: len(gone()) >= len(named), VICTIMS_S)
        victims, wanted = gone(), {seen.uid for seen in named.values()}
        wrong = victims - wanted
        self.wrong_victims += len(wrong)
        if self._notes:
            told = ", ".join(seen.name for seen in named.values())
            self._notes.say("ScaledIn", f"stopped {len(named)}: {told}")
            if wrong:
                self._notes.counts["wrong_victims"] = self.wrong_victims
                self._notes.say("WrongVictim", f"{len(wrong)} other pods went instead; they drain", bad=True)
        if wrong:  # deleted by name, a drained pod is replaced by the cluster: the number is right, and so is who went
            spared = [seen for seen in named.values() if seen.uid not in victims][: len(wrong)]
            paths = [(self._path("pods", seen.name), seen.uid) for seen in spared]
            await asyncio.gather(*(self.api.delete(path, uid, gracePeriodSeconds=int(grace_s)) for path, uid in paths))
        if not grace_s:
            ends = [seen for seen in named.values() if seen.uid in victims]
            paths = [(self._path("pods", seen.name), seen.uid) for seen in ends]
            await asyncio.gather(*(self.api.delete(path, uid, gracePeriodSeconds=0) for path, uid in paths))
        return len(wrong)

    async def _annotate(self, seen: Seen, notes: Mapping[str, str | None]) -> None:
        patch = {"metadata": {"uid": seen.uid, "annotations": dict(notes)}}
        try:
            await self.api.merge(self._path("pods", seen.name), patch)
        except AnswerError as error:
            if error.status not in (404, 409):  # gone, or another of the same name
                raise

    async def logs(self, node: NodeId, last: int) -> Sequence[str]:
        """Return the last lines of a pod's worker."""
        seen = self._view.pods().get(node) if self._view else None
        if seen is None or seen.phase == "coming":
            raise self._nothing_of(node)
        return await self._lines(node, seen, last)

    # ── small things

    async def _alone(self) -> None:
        if self._alone_at is None or time.monotonic() - self._alone_at > RIVALS_S:
            await refuse_rivals(self.api, self._place, self._options.source)
            self._alone_at = time.monotonic()

    @property
    def _by_ordinal(self) -> bool:
        return self._options.source.kind.plural == "statefulsets"

    @property
    def _replicas(self) -> Replicas:
        if self._number is None:
            raise ProviderError(f"{self._place}: is not open")
        return self._number


class OrdinalPods(ScaledPods):
    """The replicas of a StatefulSet."""

    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "ordinal"


def _highest(
    named: Mapping[NodeId, Seen], nodes: Mapping[NodeId, Seen]
) -> tuple[dict[NodeId, Seen], tuple[NodeId, ...]]:
    """Return those of the named that have none but named ones above them, and the others."""
    staying = [seen for node, seen in nodes.items() if node not in named and seen.leaving_s is None]
    above = max((ordinal(seen.name) for seen in staying), default=-1)
    go: dict[Any, Seen] = {node: seen for node, seen in named.items() if ordinal(seen.name) > above}
    return go, tuple(node for node in named if node not in go)
