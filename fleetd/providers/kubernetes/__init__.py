"""Kubernetes pods as capacity: pods of fleetd's own (`mode: pods`), or the replicas of somebody's object (`scale`).

Promises: a tick costs no request; what is wrong is one line with the pool's name and the fix. See docs/kubernetes.md.
"""

from typing import Any, ClassVar

from fleetd.core.model import PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.providers.kubernetes.options import KubernetesOptions
from fleetd.providers.kubernetes.owned import OwnedPods
from fleetd.providers.kubernetes.scaled import OrdinalPods, ScaledPods


class KubernetesProvider:
    """The Provider for the mode that the options name."""

    Options: ClassVar[type[KubernetesOptions]] = KubernetesOptions

    def __new__(cls, pool: PoolPolicy, options: KubernetesOptions, launch: WorkerLaunch) -> Any:
        """Return the mode's own class: the two share their parts, not their ways."""
        if options.mode == "pods":
            return OwnedPods(pool, options, launch)
        return (OrdinalPods if options.source.kind.name == "StatefulSet" else ScaledPods)(pool, options, launch)
