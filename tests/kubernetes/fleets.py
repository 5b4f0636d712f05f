"""A controller as a process of its own that drives pods of the cluster, and a ledger of what jobs did there.

A job writes a line when it begins and one when it ends: one that began and never ended was killed.
"""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fleetd.client import Client, Submission
from fleetd.codecs.lease import join_token
from fleetd.core.model import AppPolicy, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.providers.kubernetes.manifest import Maker
from fleetd.providers.kubernetes.options import KubernetesOptions
from tests import servers
from tests.e2e.fleet import Fleet
from tests.kubernetes.plane import Cluster, Json
from tests.kubernetes.rigs import pod_template, rules

APP = """\
import os, time
from fleetd.worker import Context, job

def note(what, context):
    with open(os.environ["LEDGER"], "a") as ledger:
        ledger.write(f"{what} {context.unique} {os.environ['FLEETD_POD_UID']} {time.time()}\\n")

@job
def nap(payload, context: Context):
    note("begin", context)
    time.sleep(float(payload))
    note("end", context)
    return b"rested"
"""
JOIN = "a secret of these tests and of nobody else"
COMMAND = ("python", "-m", "fleetd.worker")


@dataclass(slots=True)
class KubeFleet(Fleet):
    """A fleet whose only pool is in the cluster."""

    cluster: Cluster = field(kw_only=True)
    namespace: str = field(kw_only=True)
    mode: str = field(kw_only=True)
    most: int = field(kw_only=True)
    port: int = field(default_factory=servers.free_port, kw_only=True)
    submitted: list[str] = field(default_factory=list, kw_only=True)

    @property
    def options(self) -> Json:
        """The pool's options."""
        source = {"template": "worker"} if self.mode == "pods" else {"target": "deployment/worker"}
        return {"mode": self.mode, "namespace": self.namespace, "kubeconfig": str(self.config), **source}

    @property
    def config(self) -> Path:
        """The kubeconfig of the controller's account."""
        return self.cluster.folder / f"{self.namespace}-fleetd.yaml"

    def write(self, **changes: Any) -> None:
        """Write the policy."""
        pool = {"kubernetes": self.options, "apps": ["naps"], "slots": 1, "max": self.most}
        queue = {"app": "naps", "source": "main", "match": "nap", "objective": {"wait": "2s"}, "job_limit": "1m"}
        whole = {
            "version": 1,
            "fleet": "kube",
            "controller": {"listen": f"127.0.0.1:{self.port}", "join": {"file": str(self.home / "join")}},
            "sources": {"main": {"gearman": {"servers": [self.server.address]}}},
            "apps": {"naps": {"release": {"path": "app"}}},
            "queues": {"nap": queue},
            "pools": {"pods": pool | changes},
            "stability": "thrifty",
        }
        (self.home / "join").write_text(JOIN)
        self.policy.write_text(yaml.safe_dump(whole))

    def prepare(self, *, grace_s: int = 60) -> None:
        """Make the account, and the template or the target."""
        self.cluster.account(self.namespace, "fleetd", rules(self.mode))
        env = [{"name": "LEDGER", "value": str(self.home / "ledger")}]
        template = pod_template(command=COMMAND, env=env, grace_s=grace_s, labels={"app": "worker"})
        meta = {"name": "worker", "namespace": self.namespace}
        if self.mode == "pods":
            self.cluster.make({"apiVersion": "v1", "kind": "PodTemplate", "metadata": meta, "template": template})
            return
        container = template["spec"]["containers"][0]
        template["spec"]["containers"] = [self.maker.worker(container, AppPolicy("naps"))]
        spec = {"replicas": 0, "selector": {"matchLabels": {"app": "worker"}}, "template": template}
        self.cluster.make({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})

    def keep_secret(self) -> None:
        """Make the Secret that fleetd makes where it acts."""
        self.cluster.make(self.maker.secret_object())

    @property
    def maker(self) -> Maker:
        """What `fleetd manifests` would print from."""
        launch = WorkerLaunch(
            fleet="kube",
            instance="",
            controller_url=f"http://127.0.0.1:{self.port}",
            state_dir="",
            apps={"naps": AppPolicy("naps")},
            servers={"naps": (self.server.address,)},
            limits={"naps": 60.0},
            token=lambda pool: join_token(JOIN, "kube", pool),
        )
        options = KubernetesOptions(**self.options)
        return Maker(PoolPolicy("pods", "kubernetes", options, ("naps",), slots=1), options, launch, self.namespace)

    # ── what is seen

    def burst(self, count: int, seconds: float | Sequence[float]) -> float:
        """Submit jobs in the background; return when the first was taken."""
        began = time.time()
        with Client([self.server.address]) as client:
            lengths = [seconds] * count if isinstance(seconds, (int, float)) else list(seconds)
            jobs = [Submission("nap", str(length).encode()) for length in lengths]
            self.submitted += [handle.unique for handle in client.submit_many(jobs)]
        return began

    def pods(self) -> list[Json]:
        """Pods of the namespace that are not ending."""
        found = self.cluster.items(f"/api/v1/namespaces/{self.namespace}/pods")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def lines(self) -> list[list[str]]:
        """The ledger."""
        path = self.home / "ledger"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def done(self) -> set[str]:
        """The jobs that ended."""
        return {line[1] for line in self.lines() if line[0] == "end"}

    def killed(self) -> int:
        """How many runs of a job began and never ended, once all is quiet."""
        counts = Counter(line[0] for line in self.lines())
        return counts["begin"] - counts["end"]

    def writes(self, since: float = 0.0) -> list[float]:
        """How long after a moment the account made a pod, or wrote a scale."""
        wanted = {("pods", None, "patch"), ("deployments", "scale", "update")}
        lines = [line for line in self.cluster.audit(f"{self.namespace}:fleetd") if "objectRef" in line]
        times = [
            _moment(line["requestReceivedTimestamp"])
            for line in lines
            if (line["objectRef"]["resource"], line["objectRef"].get("subresource"), line["verb"]) in wanted
            and line["responseStatus"]["code"] in (200, 201)
        ]
        return sorted(at - since for at in times if at >= since)


def _moment(text: str) -> float:
    import datetime as dt  # noqa: PLC0415

    return dt.datetime.fromisoformat(text).timestamp()


@contextlib.contextmanager
def kube_fleet(home: Path, cluster: Cluster, mode: str, most: int, *, grace_s: int = 60) -> Iterator[KubeFleet]:
    """A fleet with a gearmand and a namespace of its own, not yet started."""
    (home / "app").mkdir(parents=True)
    (home / "app" / "jobs.py").write_text(APP)
    with servers.gearmand() as server, cluster.namespace(mode) as namespace:
        fleet = KubeFleet(home, server, cluster=cluster, namespace=namespace, mode=mode, most=most)
        fleet.prepare(grace_s=grace_s)
        fleet.write()
        try:
            yield fleet
        finally:
            if fleet.process and fleet.process.poll() is None:
                fleet.process.kill()
                fleet.process.wait()
