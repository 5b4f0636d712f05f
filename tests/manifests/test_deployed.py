"""fleetd deployed on a real control plane: it runs in a pod under its own account, and does there what it is for.

The account's every request is in the audit log: none is forbidden, and no right of its Role goes unused.
"""

import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import yaml

from fleetd import __version__
from tests.kubernetes.plane import Cluster, Json, missing
from tests.manifests.deployed import TOKENS, Deployed, deployed, unused, write
from tests.manifests.test_rights import flat
from tests.manifests.tools import CHART, KUSTOMIZE, good

pytestmark = [pytest.mark.real, pytest.mark.slow, pytest.mark.timeout(600)]
LEDGER: Json = {
    "volumes": [{"name": "ledger", "persistentVolumeClaim": {"claimName": "ledger"}}],
    "volumeMounts": [{"name": "ledger", "mountPath": "/ledger"}],
}
SMALL = {"requests": {"cpu": "10m", "memory": "32Mi"}}
POOLS: dict[str, Json] = {
    "naps": {"kubernetes": {"mode": "pods", "template": "napper"}, "apps": ["naps"], "slots": 1, "max": 3},
    "winks": {"kubernetes": {"mode": "scale", "target": "deployment/winker"}, "apps": ["winks"], "slots": 1, "max": 3},
}


@pytest.fixture(scope="module")
def node(server: Cluster) -> Iterator[Cluster]:
    """The control plane with a node whose pods have walls.

    FLEETD_IMAGE_ROOTS=FOLDER has them run from the images' own files, unpacked as FOLDER/controller and FOLDER/worker,
    with the images' configurations beside them (controller.json, worker.json); otherwise they see this machine's.
    """
    if os.geteuid() != 0:
        missing("pods with walls need root: run the tests as root")
    roots = os.environ.get("FLEETD_IMAGE_ROOTS")
    images = [f"fleetd-{name}:{__version__}={roots}/{name}" for name in ("controller", "worker")] if roots else []
    with server.kubelet("one", *(word for image in images for word in ("--root", image))):
        yield server


@pytest.fixture
def fleet(node, tmp_path) -> Iterator[Deployed]:
    with deployed(node, tmp_path / "home", "chart") as fleet:
        yield fleet


def values(fleet: Deployed, **changes: int) -> Json:
    """The values of an installation with both modes; `changes` are pools' `max`."""
    pools = {name: pool | ({"max": changes[name]} if name in changes else {}) for name, pool in POOLS.items()}
    return {
        "policy": fleet.policy(pools),
        "fullnameOverride": "fleetd",
        "secret": {"data": TOKENS},
        "serviceMonitor": {"enabled": True},
        "prometheusRule": {"enabled": True},
        "dashboards": {"enabled": True},
        "workers": {name: {"resources": SMALL, **LEDGER} for name in POOLS},
    }


def rush(fleet: Deployed, *apps: str, count: int = 12, seconds: float = 0.5) -> None:
    """Submit jobs and see pods come, the jobs end, and the pods go."""
    for app in apps:
        fleet.submit(app, count, seconds)
    for app in apps:
        fleet.until(f"pods of {app} run", partial(several, fleet, app))
    for app in apps:
        fleet.until(f"all of {app} are done", partial(fleet.done, app), 90)
    for app in apps:
        fleet.until(f"no pod of {app} is left", partial(none_left, fleet, app), 90)


def several(fleet: Deployed, app: str) -> bool:
    return len(fleet.workers(app)) >= 2


def none_left(fleet: Deployed, app: str) -> bool:
    return not fleet.workers(app)


def test_a_release_of_the_chart_lives_and_leaves_nothing(fleet, tmp_path):
    before = fleet.objects()
    first = write(tmp_path / "values.yaml", values(fleet))
    fleet.helm("install", "shop", str(CHART), "--values", first, "--wait", "--timeout", "120s")
    pod = fleet.controller()
    assert pod["spec"]["serviceAccountName"] == "fleetd"
    assert fleet.helm("test", "shop", "--timeout", "60s").count("Phase:          Succeeded") == 1
    fleet.push("naps")
    fleet.push("winks")
    # The target was made with one pod, which nobody needs.
    fleet.until("no pod is left", lambda: not fleet.pods(), 90)
    rush(fleet, "naps", "winks")
    reload_without_restart(fleet, tmp_path, pod)
    roll_out(fleet, tmp_path)
    what_is_deleted_is_made_anew(fleet)
    roles = yaml.safe_load_all(fleet.helm("get", "manifest", "shop"))
    (role,) = [one for one in roles if one["kind"] == "Role"]
    assert fleet.refused() == []
    assert unused(flat(role["rules"]), fleet.used()) == set()
    fleet.helm("uninstall", "shop", "--wait", "--timeout", "60s")
    fleet.until("nothing is left", lambda: fleet.objects() - before == set(), 90)
    assert before <= fleet.objects()


def reload_without_restart(fleet: Deployed, tmp_path: Path, pod: Json) -> None:
    """Raise a `max`: the mounted file changes, and the same process takes it."""
    more = write(tmp_path / "more.yaml", values(fleet, naps=5))
    fleet.helm("upgrade", "shop", str(CHART), "--values", more, "--wait")
    fleet.until("the policy is taken", lambda: "pools.naps.max: 3 -> 5" in fleet.log(), 30)
    now = fleet.controller()
    assert now["metadata"]["uid"] == pod["metadata"]["uid"]
    assert [one["restartCount"] for one in now["status"]["containerStatuses"]] == [0]
    fleet.submit("naps", 20, 1.0)
    fleet.until("five pods run", lambda: len(fleet.workers("naps")) == 5)
    assert fleet.fleetd("logs", fleet.node_up("naps"))
    fleet.until("all are done", lambda: fleet.done("naps"), 60)


def roll_out(fleet: Deployed, tmp_path: Path) -> None:
    """Take another image while jobs run: they run on, and of the two controllers only one acts at a time."""
    old, before = fleet.controller(), fleet.lease()["spec"]
    fleet.submit("naps", 2, 30.0)
    fleet.submit("winks", 2, 30.0)
    fleet.until("all run", lambda: fleet.ledger("naps")["killed"] == fleet.ledger("winks")["killed"] == 2)
    more = write(tmp_path / "more.yaml", values(fleet, naps=5) | {"image": {"tag": "another"}})
    fleet.helm("upgrade", "shop", str(CHART), "--values", more, "--wait", "--timeout", "120s")
    new, after = fleet.controller(), fleet.lease()["spec"]
    assert new["spec"]["containers"][0]["image"] == "fleetd-controller:another"
    assert new["metadata"]["uid"] != old["metadata"]["uid"]
    assert (after["holderIdentity"] != before["holderIdentity"], after["leaseTransitions"]) == (
        True,
        before["leaseTransitions"] + 1,
    )
    assert not {"helm", "kubectl"} & writers_of_replicas(fleet, "winker")
    names = [old["metadata"]["name"], new["metadata"]["name"]]
    order = [names.index(pod) for _, pod in fleet.writers() if pod in names]
    assert order == sorted(order)
    assert {0, 1} == set(order)
    fleet.until("the jobs are done, once each", lambda: fleet.done("naps") and fleet.done("winks"), 90)


def writers_of_replicas(fleet: Deployed, target: str) -> set[str]:
    """Who wrote a Deployment's number of replicas.

    The chart's target says nothing of replicas: an upgrade that wrote some would end pods at work.
    """
    shown = json.loads(fleet.kubectl("get", "deployment", target, "-o", "json", "--show-managed-fields"))
    fields = shown["metadata"]["managedFields"]
    assert "helm" in {one["manager"] for one in fields}
    return {one["manager"] for one in fields if "f:replicas" in one["fieldsV1"].get("f:spec", {})}


def what_is_deleted_is_made_anew(fleet: Deployed) -> None:
    """Delete the Lease, which the holder makes again; and all else that fleetd keeps, which a new start makes."""
    fleet.until("no pod is left", lambda: not fleet.pods(), 90)
    fleet.kubectl("delete", f"lease/fleetd-{fleet.namespace}")
    fleet.until("there is a Lease again", lambda: fleet.lease()["spec"]["holderIdentity"], 60)
    kept = ("configmap/fleetd-naps", "configmap/fleetd-winks", "configmap/fleetd-winks-orders")
    secrets = ("secret/fleetd-naps", "secret/fleetd-winks")
    fleet.kubectl("delete", *kept, *secrets)
    fleet.kubectl("rollout", "restart", "deployment/fleetd")
    fleet.kubectl("rollout", "status", "deployment/fleetd", "--timeout", "90s")
    path = f"/api/v1/namespaces/{fleet.namespace}/secrets"
    # Before any launch: pods that a target has already could not begin without.
    fleet.until("the tokens are there", lambda: all(fleet.cluster.call("GET", f"{path}/fleetd-{n}") for n in POOLS))
    rush(fleet, "naps", "winks")
    fleet.kubectl("get", *kept, *secrets)


def test_an_overlay_is_built_and_applied_and_its_pods_run_in_jobs(node, tmp_path):
    with deployed(node, tmp_path / "home", "overlay") as fleet:
        overlay = an_overlay(fleet, tmp_path / "overlay")
        before = fleet.objects()
        built = good("kubectl", "kustomize", str(overlay))
        fleet.kubectl("apply", "-f", "-", given=built)
        fleet.controller()
        fleet.push("dozes")
        rush(fleet, "dozes")
        fleet.submit("dozes", 2, 5.0)
        assert fleet.fleetd("logs", fleet.node_up("dozes"))
        fleet.until("all are done", lambda: fleet.done("dozes"), 60)
        # A pod that idles for a minute is marked as one that may be moved.
        fleet.fleetd("wake", "dozes", "--for", "2m")
        patched = ("", "pods", "patch")
        fleet.until("an idle pod is marked", lambda: patched in {one[:3] for one in fleet.used()}, 110)
        role = next(one for one in yaml.safe_load_all(built) if one["kind"] == "Role")
        kept = {right for right in flat(role["rules"]) if right[1] in ("secrets", "configmaps", "leases")}
        assert fleet.refused() == []
        # What is made beforehand need not be made: that these rights are used too, the chart's test shows.
        assert unused(flat(role["rules"]), fleet.used()) <= {right for right in kept if right[2] == "create"}
        fleet.kubectl("delete", "-f", "-", given=built)
        fleet.until("nothing is left", lambda: fleet.objects() - before == set(), 90)


def an_overlay(fleet: Deployed, folder: Path) -> Path:
    """Write an overlay of one's own over the base, as docs/deploy-kubernetes.md tells it."""
    folder.mkdir()
    options = {"mode": "pods", "namespace": fleet.namespace, "template": "dozer", "run": "job"}
    options["controller"] = f"http://fleetd.{fleet.namespace}:{fleet.port}"
    pool = {"kubernetes": options, "apps": ["dozes"], "slots": 1, "max": 3}
    write(folder / "policy.yaml", fleet.policy({"dozes": pool}))
    (folder / "secret.env").write_text("".join(f"{key}={value}\n" for key, value in TOKENS.items()))
    printed = good_manifests(folder / "policy.yaml")
    (folder / "pools.yaml").write_text(printed)
    port = [
        {"op": "replace", "path": "/spec/template/spec/containers/0/ports/0/containerPort", "value": fleet.port},
    ]
    ledger = [
        {"op": "add", "path": "/template/spec/volumes/-", "value": LEDGER["volumes"][0]},
        {"op": "add", "path": "/template/spec/containers/0/volumeMounts/-", "value": LEDGER["volumeMounts"][0]},
        {"op": "replace", "path": "/template/spec/containers/0/resources", "value": SMALL},
    ]
    service = [{"op": "replace", "path": "/spec/ports/0/port", "value": fleet.port}]
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "namespace": fleet.namespace,
        "resources": [os.path.relpath(KUSTOMIZE / "base", folder.resolve()), "pools.yaml"],
        "configMapGenerator": [{"name": "fleetd-policy", "files": ["policy.yaml"]}],
        "secretGenerator": [{"name": "fleetd", "envs": ["secret.env"]}],
        "patches": [
            {"target": {"kind": "Deployment", "name": "fleetd"}, "patch": yaml.safe_dump(port)},
            {"target": {"kind": "Service", "name": "fleetd"}, "patch": yaml.safe_dump(service)},
            {"target": {"kind": "PodTemplate", "name": "dozer"}, "patch": yaml.safe_dump(ledger)},
        ],
    }
    write(folder / "kustomization.yaml", kustomization)
    return folder


def good_manifests(policy: Path) -> str:
    """What `fleetd manifests` prints of a policy."""
    from fleetd.cli.manifests import Asked, needed, text  # noqa: PLC0415

    return text(needed(policy, Asked()))
