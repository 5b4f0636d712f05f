"""The objects that fleetd makes: a pod or a Job from an owner's template, the Secret, the ConfigMap, an Event.

Promises: pure. What an owner's template says stays as it is, but for the worker's command line, its name, labels and
owner, and what must hold for jobs to survive: a grace as long as a drain, and no restart of a worker that has ended.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Final

from fleetd.core.model import AppPolicy, Order, PoolPolicy, Seconds
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import RefusedError
from fleetd.providers.kubernetes import names
from fleetd.providers.kubernetes.options import KubernetesOptions, Reference

Json = dict[str, Any]
COMMAND: Final = ("python", "-m", "fleetd.worker")
LONG_S: Final = 3600.0  # the grace of a pod whose jobs have no limit
AFTER_S: Final = 30.0  # between the end of the last job and the end of the worker
POD, UID = "FLEETD_POD", "FLEETD_POD_UID"


@dataclass(frozen=True, slots=True)
class Template:
    """What pods are made from, as the server has it now."""

    source: Reference
    uid: str
    pod: Json  # `metadata` and `spec`
    selected: Mapping[str, str]  # labels that its own controller would take for its


def read_template(place: str, source: Reference, found: Json) -> Template:
    """Return the template in a PodTemplate or a Deployment."""
    whole = found["template"] if source.kind.plural == "podtemplates" else found["spec"]["template"]
    selector = {} if source.kind.plural == "podtemplates" else found["spec"].get("selector", {}).get("matchLabels", {})
    if not whole.get("spec", {}).get("containers"):
        raise RefusedError(f"{place}: {source}: there is no container in its template")
    return Template(source, found["metadata"]["uid"], whole, selector)


def worker_of(place: str, template: Template, options: KubernetesOptions) -> Json:
    """Return the container of the template that is the worker; refuse what is not fit to be one."""
    containers = template.pod["spec"]["containers"]
    known = {one["name"]: one for one in containers}
    if options.container is not None and options.container not in known:
        told = ", ".join(known)
        raise RefusedError(f"{place}: {template.source}: no container {options.container!r}; there are: {told}")
    worker = known[options.container] if options.container else containers[0]
    requests = {**worker.get("resources", {}).get("limits", {}), **worker.get("resources", {}).get("requests", {})}
    lacking = [name for name in ("cpu", "memory") if name not in requests]
    if lacking:
        what = " and ".join(lacking)
        fix = f"set resources.requests of container {worker['name']}: without them any machine seems to have room"
        raise RefusedError(f"{place}: {template.source}: no {what} requested; {fix}")
    return dict(worker)


@dataclass(frozen=True, slots=True)
class Maker:
    """Makes the objects of one pool."""

    pool: PoolPolicy
    options: KubernetesOptions
    launch: WorkerLaunch
    namespace: str

    @property
    def labels(self) -> dict[str, str]:
        """What every object of the pool bears."""
        return {
            names.MANAGED: "fleetd",
            names.INSTANCE: names.label(self.launch.instance),
            names.POOL: names.label(self.pool.name),
        }

    @property
    def chosen(self) -> dict[str, str]:
        """What chooses the pool's pods, as a list's query."""
        return {"labelSelector": ",".join(f"{k}={v}" for k, v in self.labels.items() if k != names.MANAGED)}

    @property
    def secret(self) -> str:
        """The name of the Secret with the join token."""
        return self.options.join_secret or names.kept_name(self.pool.name)

    def pod(self, template: Template, app: AppPolicy, order: Order, index: int) -> Json:
        """Return an order's pod."""
        spec = deepcopy(template.pod["spec"])
        worker = worker_of(f"pool {self.pool.name}", template, self.options)
        spec["containers"] = [
            self.worker(one, app, order.key) if one["name"] == worker["name"] else one for one in spec["containers"]
        ]
        # A worker that has ended by itself, or was told to, is not to come back; one that crashed is.
        spec["restartPolicy"] = "Never" if self.options.run == "job" else "OnFailure"
        spec["terminationGracePeriodSeconds"] = int(self.grace_s(app, spec.get("terminationGracePeriodSeconds") or 0))
        meta = template.pod.get("metadata") or {}
        # With the labels of a Deployment's selector, its ReplicaSet would take the pod for one of its own.
        own = {key: value for key, value in (meta.get("labels") or {}).items() if key not in template.selected}
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": names.pod_name(self.launch.instance, self.pool.name, order.key, index),
                "namespace": self.namespace,
                "labels": {**own, **self.order_labels(order, index)},
                "annotations": {**(meta.get("annotations") or {}), **names.BUSY},
                "ownerReferences": [self.owner(template)],
            },
            "spec": spec,
        }

    def job(self, template: Template, app: AppPolicy, order: Order, index: int) -> Json:
        """Return an order's pod in a Job of its own, which tries only once: what it is for is not over when it ends."""
        pod = self.pod(template, app, order, index)
        meta = pod["metadata"]
        inner = {"labels": meta["labels"], "annotations": meta["annotations"]}
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {key: value for key, value in meta.items() if key != "annotations"},
            "spec": {
                "backoffLimit": 0,
                "completions": 1,
                "parallelism": 1,
                "template": {"metadata": inner, "spec": pod["spec"]},
            },
        }

    def order_labels(self, order: Order, index: int) -> dict[str, str]:
        """Return what tells an order's pods from those of others."""
        app = {names.APP: names.label(order.app), names.ORDER: names.label(order.key), names.INDEX: str(index)}
        return {**self.labels, **app}

    def owner(self, template: Template) -> Json:
        """Return the reference by which pods go when their template is deleted."""
        kind = template.source.kind
        return {
            "apiVersion": kind.api,
            "kind": kind.name,
            "name": template.source.name,
            "uid": template.uid,
            "controller": True,
        }

    def grace_s(self, app: AppPolicy, given_s: Seconds) -> Seconds:
        """Return how long a pod must be given to end: as long as a running job may take."""
        limit_s = self.launch.limits.get(app.name)
        known = app.drain_s if app.drain_s is not None else limit_s
        return max(given_s, (known if known is not None else LONG_S) + AFTER_S)

    def arguments(self, app: AppPolicy, key: str) -> Sequence[str]:
        """Return the worker's command line."""
        url = self.options.controller or self.launch.controller_url
        words = ["--app-name", app.name, "--fleet", self.launch.fleet, "--pool", self.pool.name, "--controller", url]
        words += ["--node", names.node_id(self.pool.name, f"$({POD})", f"$({UID})")]
        words += ["--order-key", key] if key else []
        # What an owner writes may hold "$(": the server would take that for a variable.
        return words + [word.replace("$(", "$$(") for word in self.launch.options(app, self.pool)]

    def worker(self, container: Json, app: AppPolicy, key: str = "") -> Json:
        """Return a container as a worker that finds its way home; without a key it is of no order, as in mode scale."""
        env = [one for one in container.get("env") or () if one["name"] not in (POD, UID, names.TOKEN_VARIABLE)]
        in_job = self.options.run == "job"
        fields = {
            POD: f"metadata.labels['{names.JOB_NAME}']" if in_job else "metadata.name",
            UID: f"metadata.labels['{names.JOB_UID}']" if in_job else "metadata.uid",
        }
        env += [{"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()]
        token = {"secretKeyRef": {"name": self.secret, "key": names.TOKEN_KEY}}
        env.append({"name": names.TOKEN_VARIABLE, "valueFrom": token})
        command = container.get("command") or list(COMMAND)
        arguments = [*(container.get("args") or ()), *self.arguments(app, key)]
        return {**container, "command": command, "args": arguments, "env": env}

    # ── what is kept beside the pods

    def secret_object(self) -> Json:
        """Return the Secret with the pool's join token."""
        token = {names.TOKEN_KEY: self.launch.token(self.pool.name)}
        return {**self._kept("Secret"), "type": "Opaque", "stringData": token}

    def status_object(self, data: Mapping[str, str]) -> Json:
        """Return the ConfigMap with what fleetd says of the pool."""
        return {**self._kept("ConfigMap"), "data": dict(data)}

    def event(self, about: Json, reason: str, message: str, kind: str, at: str) -> Json:
        """Return an Event about an object."""
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": "fleetd-", "namespace": self.namespace, "labels": self.labels},
            "involvedObject": {**about, "namespace": self.namespace},
            "reason": reason,
            "message": message[:1000],
            "type": kind,
            "source": {"component": "fleetd"},
            "reportingComponent": "fleetd",
            "firstTimestamp": at,
            "lastTimestamp": at,
            "count": 1,
        }

    def _kept(self, kind: str) -> Json:
        meta = {"name": names.kept_name(self.pool.name), "namespace": self.namespace, "labels": self.labels}
        return {"apiVersion": "v1", "kind": kind, "metadata": meta}
