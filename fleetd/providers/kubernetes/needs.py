"""What must be in a cluster before fleetd runs there: templates and targets of workers, Secrets, and who may do what.

Promises: pure. The objects pass Pod Security's `restricted`; each pool has its own; what fleetd writes itself later is
there beforehand, empty, so that it goes with the others when they are deleted. A pool that cannot be, is refused in one
line with its name.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fleetd.core.model import AppPolicy
from fleetd.errors import UsageError
from fleetd.providers.kubernetes import names
from fleetd.providers.kubernetes.manifest import COMMAND, Maker
from fleetd.providers.kubernetes.rights import RBAC, Asked, rules

Json = dict[str, Any]
USER: Final = 10001
HOME: Final = "/var/lib/fleetd"
NAME: Final = "app.kubernetes.io/name"
COMPONENT: Final = "app.kubernetes.io/component"
PART: Final = "app.kubernetes.io/part-of"
POD_SECURITY: Final = {
    "runAsNonRoot": True,
    "runAsUser": USER,
    "runAsGroup": USER,
    "fsGroup": USER,
    "seccompProfile": {"type": "RuntimeDefault"},
}
SECURITY: Final = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


@dataclass(frozen=True, slots=True)
class Need:
    """An object, and what is to be said of it; where there is only something to say, no object."""

    why: str
    thing: Json | None = None


def workers(maker: Maker, image: str) -> Need:
    """Return a pool's template or target."""
    source, apps = maker.options.source, _apps(maker)
    scaled = maker.options.mode == "scale"
    container = _container(maker, image)
    if scaled:
        container = maker.worker(container, apps[0])
    place = f"pool {maker.pool.name}"
    if not source.kind.name:
        words = " ".join(container["args"])
        return Need(f"{place}: {source} is of a kind of your own: its pods' worker needs the arguments\n  {words}")
    pod = {"metadata": {"labels": _labels(source.name)}, "spec": _spec(maker, apps, container)}
    meta = _meta(maker, source.name)
    whole: Json = {"apiVersion": source.kind.api, "kind": source.kind.name, "metadata": meta}
    why = f"{place}: set image and resources; add what its jobs need"
    if source.kind.plural == "podtemplates":
        return Need(why, whole | {"template": pod})
    spec: Json = {"selector": {"matchLabels": {NAME: source.name}}, "template": pod}
    if not scaled:
        return Need(why, whole | {"spec": {"replicas": 0, **spec}})
    if source.kind.name == "StatefulSet":
        spec |= {"serviceName": source.name, "podManagementPolicy": "Parallel"}
    # A number here would be written again with each apply, over fleetd's.
    return Need(f"{why}; replicas are fleetd's to write, and so left out", whole | {"spec": spec})


def kept(maker: Maker, *, with_secret: bool) -> Sequence[Need]:
    """Return what fleetd keeps for a pool: the Secret of its join token, and ConfigMaps."""
    secret: Json = {"apiVersion": "v1", "kind": "Secret", "metadata": _meta(maker, maker.secret), "type": "Opaque"}
    why = f"pool {maker.pool.name}: its join token"
    if with_secret:
        secret["stringData"] = {names.TOKEN_KEY: maker.launch.token(maker.pool.name)}
    else:
        why += "; --with-secret prints it" + ("" if maker.options.join_secret else ", else fleetd writes it")
    own = names.kept_name(maker.pool.name)
    maps = {own: "what fleetd says of it"}
    if maker.options.mode == "scale":
        maps[f"{own}-orders"] = "what its number is being raised to"
    return [Need(why, secret), *(_map(maker, name, what) for name, what in maps.items())]


def _map(maker: Maker, name: str, what: str) -> Need:
    thing = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _meta(maker, name)}
    return Need(f"pool {maker.pool.name}: {what}", thing)


def lease(namespace: str, name: str) -> Need:
    """Return the Lease that says which controller acts."""
    meta = {"name": name, "namespace": namespace}
    return Need("which controller acts", {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": meta})


def account(namespace: str, name: str) -> Need:
    """Return the account that fleetd runs as."""
    meta = {"name": name, "namespace": namespace}
    return Need("whom fleetd runs as", {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta})


def access(asked: Mapping[str, Iterable[Asked]], of: tuple[str, str], name: str) -> Sequence[Need]:
    """Return a Role and its RoleBinding for each namespace; `of`: the account's namespace and name."""
    found = []
    for namespace, all_of in asked.items():
        meta = {"name": name, "namespace": namespace}
        role = {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": meta, "rules": rules(all_of)}
        binding = {
            "apiVersion": f"{RBAC}/v1",
            "kind": "RoleBinding",
            "metadata": dict(meta),
            "roleRef": {"apiGroup": RBAC, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": of[1], "namespace": of[0]}],
        }
        found += [Need(f"what fleetd may do in {namespace}", role), Need("that it may", binding)]
    return found


def _apps(maker: Maker) -> Sequence[AppPolicy]:
    """Return the pool's apps; refuse those that cannot run in it."""
    place, apps = f"pool {maker.pool.name}", [maker.launch.apps[name] for name in maker.pool.apps]
    if maker.options.mode == "scale" and len(apps) != 1:
        told = ", ".join(maker.pool.apps)
        raise UsageError(f"{place}: mode scale runs one app, that of its target's template, not {told}")
    for app in apps:
        if app.exec:
            raise UsageError(f"{place}: app {app.name}: only apps with a `release` run in pods yet")
        if not maker.launch.servers.get(app.name):
            raise UsageError(f"{place}: app {app.name}: no queue names it, so its workers have no dispatcher")
    return apps


def _container(maker: Maker, image: str) -> Json:
    slots = maker.pool.slots
    return {
        "name": maker.options.container or "worker",
        "image": image,
        "command": list(COMMAND),
        "env": [
            {"name": variable, "value": f"{HOME}{below}"}
            for variable, below in (("HOME", ""), ("XDG_STATE_HOME", "/state"), ("XDG_CACHE_HOME", "/cache"))
        ],
        "resources": {"requests": {"cpu": str(slots), "memory": f"{256 * slots}Mi"}},
        "securityContext": SECURITY,
        "volumeMounts": [{"name": "home", "mountPath": HOME}, {"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
    }


def _spec(maker: Maker, apps: Sequence[AppPolicy], container: Json) -> Json:
    return {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": int(max(maker.grace_s(app, 0.0) for app in apps)),
        "securityContext": POD_SECURITY,
        "containers": [container],
        "volumes": [{"name": "home", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}],
    }


def _labels(name: str) -> dict[str, str]:
    return {NAME: name, COMPONENT: "worker", PART: "fleetd"}


def _meta(maker: Maker, name: str) -> Json:
    labels = {names.POOL: names.label(maker.pool.name), PART: "fleetd"}
    return {"name": name, "namespace": maker.namespace, "labels": labels}
