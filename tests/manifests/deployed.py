"""A fleet that runs in a pod of the cluster, under its own account: what the tests do with it and see of it.

A job writes a line when it begins and one when it ends, on a volume of the cluster: one that began and never ended was
killed.
"""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import yaml

from fleetd.client import Client, Submission
from tests import servers
from tests.kubernetes.plane import AnswerError, Cluster, Json
from tests.manifests.tools import good, run

PROJECT: Final = """\
[build-system]
requires = ["uv_build>=0.8,<1"]
build-backend = "uv_build"

[project]
name = "{app}"
version = "{version}"
requires-python = ">=3.11"

[project.entry-points."fleetd.jobs"]
{job} = "{app}.jobs:{job}"

[tool.uv]
no-index = true
"""
JOBS: Final = """\
import os, time
from fleetd.worker import Context, job

def note(what, context):
    with open("/ledger/{app}", "a") as ledger:
        ledger.write(f"{{what}} {{context.unique}}\\n")

@job
def {job}(payload, context: Context):
    note("begin", context)
    time.sleep(float(payload))
    note("end", context)
    return b"rested"
"""
TOKENS: Final = {f"FLEETD_{name}": f"{name.lower()}-of-these-tests-alone" for name in ("JOIN", "TOKEN", "VIEWER")}
JOB_OF: Final = {"naps": "nap", "winks": "wink", "dozes": "doze"}
NAMESPACED: Final = (
    "configmaps,secrets,services,serviceaccounts,persistentvolumeclaims,pods,podtemplates,deployments.apps,"
    "statefulsets.apps,replicasets.apps,jobs.batch,roles.rbac.authorization.k8s.io,"
    "rolebindings.rbac.authorization.k8s.io,leases.coordination.k8s.io,networkpolicies.networking.k8s.io,"
    "poddisruptionbudgets.policy,servicemonitors.monitoring.coreos.com,prometheusrules.monitoring.coreos.com,"
    "endpointslices.discovery.k8s.io"
)


@dataclass(slots=True)
class Deployed:
    """A namespace for fleetd, with a dispatcher outside of the cluster."""

    cluster: Cluster
    namespace: str
    home: Path
    gearman: servers.Server
    account: str = "fleetd"
    port: int = field(default_factory=servers.free_port)
    submitted: dict[str, list[str]] = field(default_factory=dict)

    # ── the policy and the hands

    def policy(self, pools: Mapping[str, Json], **controller: Any) -> Json:
        """A policy with an app for each pool, of the names of JOB_OF."""
        apps = [pool["apps"][0] for pool in pools.values()]
        queues = {
            JOB_OF[app]: {
                "app": app,
                "source": "main",
                "match": JOB_OF[app],
                "objective": {"wait": "2s"},
                "job_limit": "1m",
            }
            for app in apps
        }
        return {
            "version": 1,
            "fleet": self.namespace,
            "sources": {"main": {"gearman": {"servers": [self.gearman.address]}}},
            "apps": {app: {"release": "pushed"} for app in apps},
            "queues": queues,
            "pools": {name: dict(pool) for name, pool in pools.items()},
            "stability": "thrifty",
            "controller": {
                "listen": f"0.0.0.0:{self.port}",
                "join": {"env": "FLEETD_JOIN"},
                "token": {"env": "FLEETD_TOKEN"},
                "tokens": {"viewer": [{"env": "FLEETD_VIEWER"}]},
                "leader": {"kubernetes": {}},
                **controller,
            },
        }

    @property
    def env(self) -> dict[str, str]:
        """What helm and kubectl are told of the cluster."""
        state = {f"HELM_{name}_HOME": str(self.home / "helm") for name in ("CACHE", "CONFIG", "DATA")}
        return {"KUBECONFIG": str(self.cluster.folder / "admin.yaml"), **state}

    def helm(self, *words: str) -> str:
        """Run helm in the namespace."""
        return good("helm", "--namespace", self.namespace, *words, env=self.env, limit_s=200)

    def kubectl(self, *words: str, given: str = "") -> str:
        """Run kubectl in the namespace."""
        return good("kubectl", "--namespace", self.namespace, *words, env=self.env, given=given, limit_s=200)

    def fleetd(self, *words: str) -> str:
        """Run a command of fleetd against the controller in the pod, as an operator would from outside."""
        around = {**os.environ, "FLEETD_URL": f"http://127.0.0.1:{self.port}", "FLEETD_TOKEN": TOKENS["FLEETD_TOKEN"]}
        command = [sys.executable, "-m", "fleetd", *words]
        done = subprocess.run(command, env=around, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"fleetd {' '.join(words)}: {done.stderr}"
        return done.stdout

    def push(self, app: str, version: str = "1.0") -> None:
        """Build a release of an app, give it to the controller, and have it run."""
        package = self.home / f"{app}-{version}" / "src" / app
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "jobs.py").write_text(JOBS.format(app=app, job=JOB_OF[app]))
        project = package.parents[1]
        (project / "pyproject.toml").write_text(PROJECT.format(app=app, version=version, job=JOB_OF[app]))
        self.fleetd("release", "push", str(project))
        self.fleetd("release", "activate", app)

    def submit(self, app: str, count: int, seconds: float) -> None:
        """Submit jobs in the background."""
        with Client([self.gearman.address]) as client:
            jobs = [Submission(JOB_OF[app], str(seconds).encode()) for _ in range(count)]
            handles = client.submit_many(jobs)
            self.submitted.setdefault(app, []).extend(handle.unique for handle in handles)

    # ── what is seen

    def until(self, what: str, seen: Callable[[], Any], limit_s: float = 60.0) -> Any:
        """Wait for a positive event; where it does not come, say what the controller's pod said last."""
        try:
            return self.cluster.until(what, seen, limit_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-3000:]}") from None

    def pods(self, component: str = "worker") -> list[Json]:
        """Pods of the namespace that are not ending: of workers, or of the controller."""
        path = f"/api/v1/namespaces/{self.namespace}/pods?labelSelector=app.kubernetes.io/component={component}"
        return [pod for pod in self.cluster.items(path) if "deletionTimestamp" not in pod["metadata"]]

    def workers(self, app: str) -> list[str]:
        """The pods of an app's pool."""
        prefix = {"naps": "napper", "winks": "winker", "dozes": "dozer"}[app]
        return [
            pod["metadata"]["name"]
            for pod in self.pods()
            if pod["metadata"]["labels"]["app.kubernetes.io/name"] == prefix
        ]

    def node_up(self, pool: str) -> str:
        """A node of a pool that takes jobs, once there is one, as `fleetd nodes` tells it."""

        def found() -> list[str]:
            nodes = json.loads(self.fleetd("nodes", "--json"))
            return [one["id"] for one in nodes if one["pool"] == pool and one["phase"] == "ready"]

        return str(self.until(f"a node of {pool} is ready", found)[0])

    def controller(self) -> Json:
        """The controller's pod, once there is one and it is ready."""

        def ready() -> Json | None:
            found = [pod for pod in self.pods("controller") if _is_ready(pod)]
            return found[0] if len(found) == 1 else None

        return dict(self.until("a controller is ready", ready, 90))

    def log(self) -> str:
        """What the controller's pods have said, those of before included."""
        found = sorted((self.cluster.folder / "node-one").glob("*/fleetd.log"), key=lambda path: path.stat().st_mtime)
        return "".join(path.read_text() for path in found if self.namespace in path.read_text())

    def lease(self) -> Json:
        """The Lease."""
        path = f"/apis/coordination.k8s.io/v1/namespaces/{self.namespace}/leases/fleetd-{self.namespace}"
        return self.cluster.call("GET", path)

    def ledger(self, app: str) -> Counter[str]:
        """How often each job of an app ended, and under `killed` how many runs never did."""
        folders = list((self.cluster.folder / "node-one" / "claims").glob(f"{self.namespace}-ledger-*"))
        paths = [folder / app for folder in folders if (folder / app).exists()]
        lines = [line.split() for path in paths for line in path.read_text().splitlines()]
        ended = Counter(line[1] for line in lines if line[0] == "end")
        return ended + Counter({"killed": sum(line[0] == "begin" for line in lines) - ended.total()})

    def done(self, app: str) -> bool:
        """Whether every job of an app has ended, once each."""
        return self.ledger(app) == Counter(self.submitted[app])

    def objects(self) -> set[tuple[str, str]]:
        """Every object of the namespace."""
        found = self.kubectl("get", NAMESPACED, "-o", "name").split()
        return {(kind, name) for kind, _, name in (one.partition("/") for one in found)}

    # ── what was asked of the API server

    def asked(self) -> list[Json]:
        """The audit log's lines of the account."""
        return [line for line in self.cluster.audit(f"{self.namespace}:{self.account}") if "objectRef" in line]

    def refused(self) -> list[str]:
        """The requests that were forbidden."""
        return [f"{one['verb']} {one['requestURI']}" for one in self.asked() if one["responseStatus"]["code"] == 403]

    def used(self) -> set[tuple[str, str, str, str]]:
        """The rights that were made use of: group, resource, verb, name."""
        found = set()
        for line in self.asked():
            of, verb = line["objectRef"], line["verb"]
            resource = "/".join(filter(None, (of["resource"], of.get("subresource"))))
            # What is applied and was not there is made: the server asks for both rights.
            made = ["create"] if verb == "patch" and line["responseStatus"]["code"] == 201 else []
            found |= {(of.get("apiGroup", ""), resource, one, of.get("name", "")) for one in [verb, *made]}
        return found

    def writers(self) -> list[tuple[str, str]]:
        """Who changed something, in order: the time, and the pod whose token it was."""
        key = "authentication.kubernetes.io/pod-name"
        lines = [one for one in self.asked() if one["verb"] not in ("get", "list", "watch")]
        return sorted((one["requestReceivedTimestamp"], one["user"]["extra"][key][0]) for one in lines)


def unused(
    allowed: set[tuple[str, str, str, str]], used: set[tuple[str, str, str, str]]
) -> set[tuple[str, str, str, str]]:
    """Return the rights that nobody made use of; the name `*` is that of any object."""
    return {
        (group, resource, verb, name)
        for group, resource, verb, name in allowed
        if not any((group, resource, verb) == one[:3] and name in ("*", one[3]) for one in used)
    }


def _is_ready(pod: Json) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True"


@contextlib.contextmanager
def deployed(cluster: Cluster, home: Path, prefix: str, account: str = "fleetd") -> Iterator[Deployed]:
    """A namespace under Pod Security `restricted`, a gearmand, and a claim for the ledger."""
    home.mkdir(parents=True, exist_ok=True)
    with servers.gearmand() as gearman, cluster.namespace(prefix) as namespace:
        labels = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
        cluster.call("PATCH", f"/api/v1/namespaces/{namespace}", {"metadata": {"labels": labels}})
        claim = {
            "accessModes": ["ReadWriteMany"],
            "resources": {"requests": {"storage": "1Mi"}},
            "storageClassName": "",
        }
        meta = {"name": "ledger", "namespace": namespace}
        cluster.make({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": meta, "spec": claim})
        fleet = Deployed(cluster, namespace, home, gearman, account)
        try:
            yield fleet
        finally:
            with contextlib.suppress(AnswerError, OSError):
                run("kubectl", "-n", namespace, "delete", "deployments,podtemplates,jobs", "--all", env=fleet.env)
            time.sleep(1)
            (home / "controller.log").write_text(fleet.log())


def write(path: Path, values: Json) -> str:
    """Write a YAML file and return its name."""
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return str(path)
