"""Pools in a namespace of the cluster: templates, targets, an account with no right too many, and providers."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fleetd.codecs.lease import join_token
from fleetd.core.model import AppPolicy, NodeId, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.providers.kubernetes import KubernetesProvider
from fleetd.providers.kubernetes.names import COST, split_node
from fleetd.providers.kubernetes.options import KubernetesOptions
from tests.conformance.provider import Rig
from tests.kubernetes.plane import Cluster, Json
from tests.worker.controller import SECRET

SLEEPER = ("sh", "-c", "trap 'exit 0' TERM; echo begun; while :; do sleep 0.1; done", "worker")
RESOURCES = {"requests": {"cpu": "10m", "memory": "16Mi"}}


KEPT = [f"fleetd-{pool}" for pool in ("pods", "other")]


def rules(mode: str = "pods", *, run: str = "pod", target: str = "deployments", name: str = "worker") -> list[Json]:
    """The Role that docs/kubernetes.md shows for a mode: all that the provider is ever allowed in these tests."""
    kept = [*KEPT, *(f"{name}-orders" for name in KEPT)]
    rights = [
        right("events", "create"),
        right("secrets", "create", "patch", names=KEPT),
        right("configmaps", "get", "create", "patch", names=kept)
        if mode == "scale"
        else right("configmaps", "create", "patch", names=KEPT),
        right("pods/log", "get"),
    ]
    if mode == "scale":
        return [
            *rights,
            right("pods", "list", "watch", "patch", "delete"),
            right(target, "get", group="apps", names=[name]),
            right(f"{target}/scale", "get", "update", group="apps", names=[name]),
            right("horizontalpodautoscalers", "list", group="autoscaling"),
            right("scaledobjects", "list", group="keda.sh"),
        ]
    rights += [right("podtemplates", "get"), right("deployments", "get", group="apps")]
    if run == "pod":
        return [*rights, right("pods", "list", "watch", "create", "patch", "delete")]
    jobs = right("jobs", "list", "watch", "create", "patch", "delete", group="batch")
    return [*rights, right("pods", "list", "watch", "patch", "delete"), jobs]


def right(resource: str, *verbs: str, group: str = "", names: Sequence[str] = ()) -> Json:
    """A rule of a Role."""
    rule: Json = {"apiGroups": [group], "resources": [resource], "verbs": list(verbs)}
    return rule | ({"resourceNames": list(names)} if names else {})


def pod_template(
    *,
    image: str = "worker",
    command: Sequence[str] = SLEEPER,
    grace_s: int = 30,
    labels: Json | None = None,
    **spec: Any,
) -> Json:
    """What pods are made from."""
    container: Json = {"name": "worker", "image": image, "command": list(command), "resources": RESOURCES}
    env = spec.pop("env", None)
    if env:
        container["env"] = env
    if "resources" in spec:
        container["resources"] = spec.pop("resources")
    if "args" in spec:
        container["args"] = spec.pop("args")
    whole = {"terminationGracePeriodSeconds": grace_s, "containers": [container], **spec}
    return {"metadata": {"labels": labels or {}}, "spec": whole}


def template_object(namespace: str, name: str = "worker", **given: Any) -> Json:
    """A PodTemplate."""
    meta = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "PodTemplate", "metadata": meta, "template": pod_template(**given)}


def target_object(namespace: str, kind: str = "Deployment", name: str = "worker", **given: Any) -> Json:
    """A Deployment, StatefulSet or ReplicaSet without pods so far."""
    labels = {"app": name}
    spec: Json = {"replicas": given.pop("replicas", 0), "selector": {"matchLabels": labels}}
    if kind == "StatefulSet":
        spec |= {"serviceName": name, "podManagementPolicy": given.pop("management", "Parallel")}
    spec["template"] = pod_template(labels=labels, **given)
    return {
        "apiVersion": "apps/v1",
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    }


@dataclass
class KubeRig(Rig):
    """A pool's cluster side, for the conformance suite and all other tests."""

    cluster: Cluster
    namespace: str
    folder: Path
    options: Json
    pool: str = "pods"
    instance: str = field(default_factory=lambda: secrets.token_hex(8))
    config: Path | None = None
    made: list[Any] = field(default_factory=list)

    def allow(self, given: Sequence[Json]) -> None:
        """Let the providers have an account with these rights."""
        self.config = self.cluster.account(self.namespace, f"fleetd-{secrets.token_hex(3)}", given)

    @property
    def launch(self) -> WorkerLaunch:
        return WorkerLaunch(
            fleet="test",
            instance=self.instance,
            controller_url="http://127.0.0.1:1",
            state_dir=str(self.folder),
            apps={"photos": AppPolicy("photos"), "celery": AppPolicy("celery", exec=("celery",))},
            servers={"photos": ("127.0.0.1:1",)},
            limits={"photos": 60.0},
            token=lambda pool: join_token(SECRET, "test", pool),
        )

    def make(self, pool: str = "", instance: str = "", **options: Any) -> Any:
        """A provider; options that are None are left out."""
        given = {"namespace": self.namespace, "kubeconfig": str(self.config), **self.options, **options}
        chosen = KubernetesOptions(**{key: value for key, value in given.items() if value is not None})
        policy = PoolPolicy(pool or self.pool, "kubernetes", chosen, ("photos",), slots=1, max_nodes=99)
        launch = replace(self.launch, instance=instance or self.instance)
        provider = KubernetesProvider(policy, chosen, launch)
        self.made.append(provider)
        return provider

    def provider(self) -> Any:
        return self.make()

    def other_pool(self) -> Any:
        return self.make("other", **self.elsewhere())

    def other_fleet(self) -> Any:
        return self.make(instance=f"{self.instance}2", **self.elsewhere())

    def elsewhere(self) -> Json:
        """Other options for a pool that must not share this one's objects."""
        return {}

    async def close(self) -> None:
        """Close every provider of the test."""
        for provider in self.made:
            await provider.close()

    async def lose(self, node: NodeId) -> None:
        """Delete the pod at once."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{self.pod_of(node)}"
        await asyncio.to_thread(self.cluster.call, "DELETE", f"{path}?gracePeriodSeconds=0")

    def former(self, node: NodeId) -> NodeId | None:
        name, _ = split_node(node)
        return f"{self.pool}/{name}.00000000-0000-4000-8000-000000000000"

    def pod_of(self, node: NodeId) -> str:
        """The name of a node's pod."""
        return split_node(node)[0]

    def pods(self) -> list[Json]:
        """The pods of the namespace."""
        return self.cluster.items(f"/api/v1/namespaces/{self.namespace}/pods")

    def patch(self, pod: str, **notes: str) -> None:
        """Annotate a pod."""
        path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}"
        self.cluster.call("PATCH", path, {"metadata": {"annotations": notes}})


@dataclass
class JobRig(KubeRig):
    """Pods in Jobs of their own: a node bears its Job's name."""

    async def lose(self, node: NodeId) -> None:
        path = f"/apis/batch/v1/namespaces/{self.namespace}/jobs/{self.pod_of(node)}?propagationPolicy=Background"
        await asyncio.to_thread(self.cluster.call, "DELETE", path)


@dataclass
class ScaleRig(KubeRig):
    """The replicas of an object: what is lost there is made anew, unless somebody lowers the number."""

    kind: str = "Deployment"
    others: int = 0

    @property
    def scale(self) -> str:
        """The path of the scale subresource."""
        return f"/apis/apps/v1/namespaces/{self.namespace}/{self.kind.lower()}s/worker/scale"

    def replicas(self) -> int:
        """How many replicas are asked for."""
        return int(self.cluster.call("GET", self.scale)["spec"].get("replicas", 0))

    def elsewhere(self) -> Json:
        self.others += 1
        self.cluster.make(target_object(self.namespace, self.kind, f"elsewhere{self.others}"))
        return {"target": f"{self.kind.lower()}/elsewhere{self.others}"}

    async def lose(self, node: NodeId) -> None:
        await (super().lose(node) if self.kind == "StatefulSet" else asyncio.to_thread(self._lose, node))

    def _lose(self, node: NodeId) -> None:
        pod = self.pod_of(node)
        self.patch(pod, **{COST: "-2147483647"})
        self.cluster.call("PATCH", self.scale, {"spec": {"replicas": self.replicas() - 1}})
        self.cluster.until("it is lost", lambda: pod not in [one["metadata"]["name"] for one in self.pods()])


async def opened(provider: Any) -> Any:
    """The provider, open."""
    await provider.open(lambda: None)
    return provider


@contextlib.asynccontextmanager
async def closing(rig: KubeRig) -> AsyncIterator[KubeRig]:
    """The rig, whose providers are closed in the end."""
    try:
        yield rig
    finally:
        await rig.close()
