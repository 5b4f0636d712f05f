"""What both modes of a pool of pods share: the way to the server, the watch, the notes, and a pod's log.

Promises: nothing is asked before `open`; `close` is safe twice and leaves the pods alone.
"""

from collections.abc import Sequence
from typing import ClassVar

from fleetd.core.model import NodeId, PoolPolicy, World
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import ProviderError
from fleetd.providers.kubernetes.api import Api
from fleetd.providers.kubernetes.faults import AnswerError
from fleetd.providers.kubernetes.manifest import Maker
from fleetd.providers.kubernetes.notes import Notes
from fleetd.providers.kubernetes.options import KubernetesOptions
from fleetd.providers.kubernetes.seen import Seen
from fleetd.providers.kubernetes.view import View


class PodPool:
    """The common part of a Provider; `open`, `launch`, `stop` and `logs` are each mode's own."""

    Options: ClassVar[type[KubernetesOptions]] = KubernetesOptions

    def __init__(self, pool: PoolPolicy, options: KubernetesOptions, launch: WorkerLaunch) -> None:
        self._pool, self._options, self._launch = pool, options, launch
        self.api = Api(pool.name, options)
        self._place = f"pool {pool.name}"
        self._view: View | None = None
        self._notes: Notes | None = None

    async def close(self) -> None:
        """Watch no more; the pods live on."""
        if self._notes is not None:
            await self._notes.close()
        view, self._view = self._view, None
        if view is not None:
            await view.close()
        await self.api.close()

    async def list(self) -> World:
        """Return what the watch has seen."""
        view = self._seen
        await view.synced()
        return view.world()

    async def _lines(self, node: NodeId, seen: Seen, last: int) -> Sequence[str]:
        """Return the last lines of a pod's worker. The server may know of its end before the watch does."""
        try:
            return await self.api.lines(f"{self._path('pods', seen.name)}/log", last, self._options.container)
        except AnswerError as error:
            if error.status != 404:
                raise
            raise self._nothing_of(node) from None

    def _nothing_of(self, node: NodeId) -> ProviderError:
        return ProviderError(f"{self._place}: {node} is gone, or has not begun; nothing is kept of it")

    @property
    def _seen(self) -> View:
        if self._view is None:
            raise ProviderError(f"{self._place}: is not open")
        return self._view

    @property
    def _maker(self) -> Maker:
        return Maker(self._pool, self._options, self._launch, self.api.namespace)

    def _path(self, plural: str, name: str = "") -> str:
        root = "/apis/batch/v1" if plural == "jobs" else "/api/v1"
        return f"{root}/namespaces/{self.api.namespace}/{plural}{'/' + name if name else ''}"
