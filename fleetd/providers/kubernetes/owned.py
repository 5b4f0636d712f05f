"""Mode `pods`: pods that fleetd makes from an owner's template, and deletes by name.

Promises: a stop ends exactly the pods that it names: a name and a uid that do not belong together delete nothing. The
names of an order's pods follow from its key, so that an order sent twice is one. May not touch what it did not make.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Literal

from fleetd.core.model import AppPolicy, Launched, NodeId, Order, PoolPolicy, Seconds, Stopped
from fleetd.core.ports import Known, Nudge, WorkerLaunch
from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from fleetd.providers.kubernetes import names
from fleetd.providers.kubernetes.api import PATIENT_S, Json
from fleetd.providers.kubernetes.faults import AnswerError, FullError
from fleetd.providers.kubernetes.informer import Informer
from fleetd.providers.kubernetes.manifest import Template, read_template, worker_of
from fleetd.providers.kubernetes.notes import Notes
from fleetd.providers.kubernetes.options import KubernetesOptions
from fleetd.providers.kubernetes.pool import PodPool
from fleetd.providers.kubernetes.seen import Seen, Trouble, see, see_job
from fleetd.providers.kubernetes.view import View

SETTLE_S: Final = 3.0  # so long a launch looks whether its pods find a place
TEND_S: Final = 1.0
ENDED_KEPT: Final = 5  # pods that ended and are left for their logs
_ERRORS: Final = {"exhausted": ExhaustedError, "refused": RefusedError, "error": ProviderError}


class OwnedPods(PodPool):
    """A Provider, as `core.ports` describes it."""

    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "exact"

    def __init__(self, pool: PoolPolicy, options: KubernetesOptions, launch: WorkerLaunch) -> None:
        super().__init__(pool, options, launch)
        self._task: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def open(self, nudge: Nudge) -> None:
        """See that the template is there and fit to be used, and begin to watch."""
        if self._view is not None:
            return
        await self.api.open()
        maker = self._maker
        template = await self._template()
        pods = Informer(self.api, self._path("pods"), maker.chosen, lambda pod: see(pod, self._pool.name), nudge)
        informers = [pods]
        if self._options.run == "job":
            jobs = Informer(self.api, self._path("jobs"), maker.chosen, lambda j: see_job(j, self._pool.name), nudge)
            informers = [jobs, pods]
        self._view = View(self._place, informers, self._options.room)
        self._view.start()
        self._notes = Notes(self.api, maker, self._view, maker.owner(template))

    async def close(self) -> None:
        """Watch no more; the pods live on."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        await super().close()

    def hear(self, sentence: str, nodes: Mapping[NodeId, Known]) -> None:
        """Take in why the pool is as it is, and its nodes: for the notes on its objects, and the busy ones."""
        if self._notes is not None:
            self._notes.hear(sentence, [name for name, node in nodes.items() if node.busy])
            self._act()

    async def launch(self, order: Order) -> Launched:
        """Make what is missing of the order; look for a moment whether it finds a place."""
        app = self._launch.apps.get(order.app)
        if app is None or app.exec:
            why = "is unknown here" if app is None else "only apps with a `release` run here yet"
            raise RefusedError(f"{self._place}: app {order.app}: {why}")
        view = self._seen
        async with self._turn:
            await view.synced(PATIENT_S)
            template = await self._template()
            self._act()
            if self._notes:
                await self._notes.keep_secret()
            key = names.label(order.key)
            there = {node: seen for node, seen in view.nodes().items() if seen.key == key and seen.leaving_s is None}
            used = {seen.index for seen in view.pods().values() if seen.key == key}
            try:
                made, error = await self._make(template, app, order, order.count - len(there), used)
                lost = await self._settle(made)
            finally:
                view.hidden.clear()
            nodes = (*there, *(node for node in made if node not in lost))
            self._tell(order, nodes, lost, error)
            if nodes:
                return Launched(order.key, nodes)
            if lost:
                trouble = next(iter(lost.values()))
                raise _ERRORS[trouble.kind](f"{self._place}: {trouble.reason}")
            raise error or ProviderError(f"{self._place}: order {order.key}: nothing was made")

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        """Delete each by name and uid; those that are gone, or not ours, need not be."""
        del order
        view = self._seen
        self._act()
        await view.synced()
        pods = view.pods()
        found = [pods[node] for node in dict.fromkeys(nodes) if node in pods]
        results = await asyncio.gather(*(self._delete(seen, grace_s) for seen in found), return_exceptions=True)
        faults = [result for result in results if isinstance(result, BaseException)]
        if faults:
            raise faults[0]
        if found and self._notes:
            self._notes.say("ScaledIn", f"stopped {len(found)}: {', '.join(seen.name for seen in found)}")
        return Stopped(tuple(nodes))

    async def logs(self, node: NodeId, last: int) -> Sequence[str]:
        """Return the last lines of a pod's worker, or why it never came up."""
        view = self._seen
        seen = view.pods().get(node)
        if seen is None or seen.phase == "coming":
            trouble = view.failure(seen, time.monotonic()) if seen else None
            reason = trouble.reason if trouble else view.gone.get(node) or (seen.unplaced if seen else "")
            if reason:
                return [f"never came up: {reason}"]
            raise self._nothing_of(node)
        return await self._lines(node, seen, last)

    # ── making

    async def _make(
        self, template: Template, app: AppPolicy, order: Order, missing: int, used: set[int]
    ) -> tuple[Sequence[NodeId], ProviderError | None]:
        """Make pods under the next free numbers; return their nodes, and what stopped it, if something did."""
        made: list[NodeId] = []
        number, error = 0, None
        while len(made) < missing and error is None:
            numbers: list[int] = []
            while len(numbers) < missing - len(made):
                if number not in used:
                    numbers.append(number)
                number += 1
            results = await asyncio.gather(
                *(self._make_one(template, app, order, at) for at in numbers), return_exceptions=True
            )
            for result in results:
                if isinstance(result, ProviderError):
                    error = result
                elif isinstance(result, BaseException):
                    raise result
                elif result is not None:
                    made.append(result)
        return made, error

    async def _make_one(self, template: Template, app: AppPolicy, order: Order, at: int) -> NodeId | None:
        """Make one; None where its name is still taken by one that ends."""
        in_job = self._options.run == "job"
        whole = (self._maker.job if in_job else self._maker.pod)(template, app, order, at)
        path = self._path("jobs" if in_job else "pods", whole["metadata"]["name"])
        answer = await self._apply(path, whole)
        meta = answer["metadata"]
        if meta.get("deletionTimestamp") or answer.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return None
        view = self._seen
        view.hidden.add(meta["uid"])
        view.informers[0].put(answer)
        return names.node_id(self._pool.name, meta["name"], meta["uid"])

    async def _apply(self, path: str, whole: Json) -> Json:
        try:
            return await self.api.apply(path, whole, limit_s=PATIENT_S)
        except AnswerError as error:
            if error.status != 409:
                raise
            return await self.api.apply(path, whole, limit_s=PATIENT_S)  # made at the same time: now it is there

    async def _settle(self, made: Sequence[NodeId]) -> dict[NodeId, Trouble]:
        """Wait until each pod is up, or will not be; remove and return the latter."""
        view = self._seen

        def undecided() -> bool:
            pods, now = view.pods(), time.monotonic()
            left = [pods[node] for node in made if node in pods]
            return any(seen.phase == "coming" and view.failure(seen, now) is None for seen in left)

        await view.informers[-1].until(lambda: not undecided(), SETTLE_S)
        pods, now, lost = view.pods(), time.monotonic(), {}
        for node in made:
            trouble = view.failure(pods[node], now) if node in pods else None
            if trouble is not None:
                lost[node] = trouble
                await self._delete(pods[node], 0.0)
        return lost

    def _tell(
        self, order: Order, nodes: Sequence[NodeId], lost: dict[NodeId, Trouble], error: ProviderError | None
    ) -> None:
        view, notes = self._seen, self._notes
        for node, trouble in lost.items():
            view.note(node, trouble)
            if notes:
                notes.learn(trouble.reason)
        if isinstance(error, FullError):
            view.full(Trouble("exhausted", str(error)))
        if notes and len(nodes) < order.count:
            why = error or next((trouble.reason for trouble in lost.values()), "")
            notes.say("LaunchFailed", f"order {order.key}: {len(nodes)} of {order.count}: {why}", bad=True)
        elif notes:
            notes.say("ScaledOut", f"order {order.key}: {order.count} for {order.app}")

    # ── tending

    def _act(self) -> None:
        """Begin to write and to tidy up: not before somebody acts, for a dry run or a shadow only looks."""
        if self._notes is not None and self._task is None:
            self._notes.start()
            self._task = asyncio.create_task(self._tend())

    async def _tend(self) -> None:
        """Remove pods that will never come up, and those that ended but for the newest few. Runs for ever."""
        while True:
            await asyncio.sleep(TEND_S)
            view = self._view
            if view is None or any(informer.trouble for informer in view.informers):
                continue
            ended = []
            for seen, trouble in view.failed():
                if seen.phase == "ended":
                    ended.append(seen)
                else:
                    await self._give_up(seen, trouble)
            for seen in ended[:-ENDED_KEPT]:
                await self._quietly(seen)

    async def _give_up(self, seen: Seen, trouble: Trouble) -> None:
        self._seen.note(seen.node, trouble)
        if self._notes:
            self._notes.say("PodFailed", f"{seen.name}: {trouble.reason}", bad=True)
        await self._quietly(seen)

    async def _quietly(self, seen: Seen) -> None:
        try:
            await self._delete(seen, 0.0)
        except ProviderError:
            return  # the next round tries again

    async def _delete(self, seen: Seen, grace_s: Seconds) -> None:
        """Delete a pod, if it is still the one; a Job goes with its pod, which is given the grace."""
        name, uid = names.split_node(seen.node)
        in_job, there = self._options.run == "job", True
        if not in_job or seen.uid != uid:
            there = await self.api.delete(self._path("pods", seen.name), seen.uid, gracePeriodSeconds=int(grace_s))
        if in_job:
            there = await self.api.delete(self._path("jobs", name), uid, propagationPolicy="Background")
        if not there:  # the answer to its making may have come after the news of its end
            for informer in self._seen.informers:
                informer.items.pop(seen.uid, None)

    # ── small things

    async def _template(self) -> Template:
        source = self._options.source
        found = await self.api.call("GET", source.path(self.api.namespace), limit_s=PATIENT_S, patient=True)
        template = read_template(self._place, source, found)
        worker_of(self._place, template, self._options)
        return template
