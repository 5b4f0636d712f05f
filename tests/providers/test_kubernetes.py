"""What the Kubernetes provider reckons by itself: options, what a pod's status means, what a pod is made of."""

from typing import Any

import pytest
from pydantic import ValidationError

from fleetd.core.model import AppPolicy, Order, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from fleetd.providers.kubernetes import KubernetesProvider, names
from fleetd.providers.kubernetes.faults import fault
from fleetd.providers.kubernetes.manifest import Maker, read_template
from fleetd.providers.kubernetes.options import KubernetesOptions
from fleetd.providers.kubernetes.scaled import _highest
from fleetd.providers.kubernetes.seen import Trouble, see
from fleetd.providers.kubernetes.view import View

UID = "7d0c7d0c-0000-4000-8000-000000000001"


def pod(phase: str = "Running", state: Any = None, conditions: Any = (), **status: Any) -> dict[str, Any]:
    one = {"name": "worker", "state": state or {"running": {}}}
    labels = {names.APP: "photos", names.ORDER: "1-1", names.INDEX: "3"}
    whole = {"phase": phase, "containerStatuses": [one], "conditions": list(conditions), **status}
    return {"metadata": {"name": "pods-1-1-3", "uid": UID, "labels": labels}, "status": whole}


def test_a_running_pod_is_a_node_by_name_and_uid():
    seen = see(pod(), "pods")
    assert (seen.node, seen.phase, seen.app, seen.key, seen.index) == (
        f"pods/pods-1-1-3.{UID}",
        "up",
        "photos",
        "1-1",
        3,
    )
    assert seen.trouble is None
    assert names.split_node(seen.node) == ("pods-1-1-3", UID)


@pytest.mark.parametrize(
    ("given", "trouble"),
    [
        (pod("Pending", {"waiting": {"reason": "ErrImagePull", "message": "x"}}), None),
        (
            pod("Pending", {"waiting": {"reason": "ImagePullBackOff", "message": "no such tag"}}),
            Trouble("refused", "its image cannot be pulled: no such tag"),
        ),
        (
            pod("Failed", status=None, reason="Evicted", message="low on memory"),
            Trouble("exhausted", "evicted: its machine ran short: low on memory"),
        ),
        (
            pod(conditions=[{"type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager"}]),
            Trouble("error", "its machine is gone or tainted", machine=True),
        ),
        (
            pod("Failed", {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}),
            Trouble("error", "exit code 137 OOMKilled"),
        ),
    ],
)
def test_what_will_not_come_up_by_itself_is_told_apart(given, trouble):
    assert see(given, "pods").trouble == trouble


@pytest.mark.parametrize("given", [{"metadata": {"name": "a", "uid": UID}}, pod("Unknown", {}), pod("Pending", {})])
def test_a_status_that_says_little_is_a_pod_that_is_coming(given):
    assert see(given, "pods").phase == "coming"


class Cache:
    """Items without a server."""

    trouble = None

    def __init__(self, *pods: Any) -> None:
        self.items = {str(number): see(one, "pods") for number, one in enumerate(pods)}


def test_a_pod_without_a_place_is_a_node_until_the_policys_patience_ends_and_then_no_more_are_offered():
    now = 100.0
    unplaced = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]
    caches: list[Any] = [Cache(pod("Pending", {"waiting": {}}, unplaced))]
    view = View("pool pods", caches, 30.0, clock=lambda: now)
    assert [sighting.state for sighting in view.world().sightings] == ["booting"]
    now = 129.9
    assert len(view.world().sightings) == 1
    assert view.world().offer.headroom is None
    now = 130.0
    assert view.world().sightings == ()
    assert view.world().offer.headroom == 0
    caches[0].items.clear()
    now = 191.0
    assert view.world().offer.headroom is None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mode": "pods"}, "mode pods needs `template:`"),
        ({"mode": "scale", "template": "a"}, "mode scale needs `target:`"),
        ({"mode": "scale", "template": "a", "target": "deployment/a"}, "`template:` is of the other mode"),
        ({"mode": "scale", "target": "daemonset/a"}, "a daemonset is not scaled; it is one of deployment,"),
        ({"mode": "scale", "target": "deployment/a", "run": "job"}, "`run: job` is of mode pods"),
    ],
)
def test_options_that_contradict_each_other_say_so(options, words):
    with pytest.raises(ValidationError, match=words):
        KubernetesOptions(**options)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("deployment/a", "/apis/apps/v1/namespaces/shop/deployments/a"),
        ("argoproj.io/v1alpha1/rollouts/a", "/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts/a"),
    ],
)
def test_a_target_is_a_path(text, path):
    assert KubernetesOptions(mode="scale", target=text).source.path("shop") == path


def test_the_victims_of_a_mode_are_what_the_cluster_makes_of_it():
    def victims(**options: Any) -> str:
        given = KubernetesOptions(**options)
        return str(KubernetesProvider(PoolPolicy("pods", "kubernetes", given, ("photos",), 1), given, launch()).victims)

    assert victims(mode="pods", template="worker") == "exact"
    assert victims(mode="scale", target="deployment/worker") == "advisory"
    assert victims(mode="scale", target="statefulset/worker") == "ordinal"


def test_only_the_highest_ordinals_go():
    seen = {at: see(pod() | {"metadata": {"name": f"worker-{at}", "uid": str(at)}}, "pods") for at in range(12)}
    nodes = {one.node: one for one in seen.values()}
    named = {seen[at].node: seen[at] for at in (2, 10, 11)}
    go, kept = _highest(named, nodes)
    assert sorted(one.name for one in go.values()) == ["worker-10", "worker-11"]
    assert [nodes[node].name for node in kept] == ["worker-2"]


def launch(**changes: Any) -> WorkerLaunch:
    given: dict[str, Any] = {
        "fleet": "shop",
        "instance": "i1",
        "controller_url": "http://c:1",
        "state_dir": "",
        "apps": {"photos": AppPolicy("photos")},
        "servers": {"photos": ("a:1",)},
        "limits": {"photos": None},
        "token": lambda pool: f"token of {pool}",
    }
    return WorkerLaunch(**given | changes)


def maker(**changes: Any) -> Maker:
    options = KubernetesOptions(mode="pods", template="worker")
    return Maker(PoolPolicy("pods", "kubernetes", options, ("photos",), 1), options, launch(**changes), "shop")


def template(**container: Any) -> Any:
    requests = {"resources": {"requests": {"cpu": "1"}, "limits": {"memory": "1Gi"}}}
    whole = {"spec": {"containers": [{"name": "side"}, {"name": "worker", **requests, **container}]}}
    whole["spec"]["containers"].reverse()
    source = KubernetesOptions(mode="pods", template="worker").source
    return read_template("pool pods", source, {"metadata": {"uid": UID}, "template": whole})


ORDER = Order("1-1", "pods", "photos", 1, 1, 1)


@pytest.mark.parametrize(
    ("limit_s", "drain_s", "grace_s"), [(None, None, 3630), (60.0, None, 90), (60.0, 7200.0, 7230)]
)
def test_a_pods_grace_is_as_long_as_a_job_may_take(limit_s, drain_s, grace_s):
    made = maker(limits={"photos": limit_s}).pod(template(), AppPolicy("photos", drain_s=drain_s), ORDER, 0)
    assert made["spec"]["terminationGracePeriodSeconds"] == grace_s


def test_the_other_containers_stay_as_they_are_and_a_dollar_of_the_owners_is_one():
    made = maker(servers={"photos": ("$(A):1",)}).pod(template(), AppPolicy("photos"), ORDER, 0)
    worker, side = made["spec"]["containers"]
    assert side == {"name": "side"}
    assert worker["command"] == ["python", "-m", "fleetd.worker"]
    assert worker["args"][worker["args"].index("--server") + 1] == "$$(A):1"


def test_names_are_valid_and_differ_with_fleet_pool_order_and_number():
    given = [
        ("i1", "Pool_1", "1-1", 0),
        ("i2", "Pool_1", "1-1", 0),
        ("i1", "pool-1", "1-1", 0),
        ("i1", "Pool_1", "1-1", 1),
    ]
    made = {names.pod_name(*one) for one in given}
    assert len(made) == 4
    assert all(len(name) <= 63 and name.replace("-", "").isalnum() and name == name.lower() for name in made)


@pytest.mark.parametrize(
    ("status", "message", "kind", "words"),
    [
        (403, "pods is forbidden: exceeded quota: q", ExhaustedError, "exceeded quota"),
        (403, 'pods is forbidden: User "x" cannot list resource "pods"', RefusedError, "bind the Role"),
        (403, "unable to create new content in namespace shop because it is being terminated", RefusedError, "deleted"),
        (422, "Pod is invalid", RefusedError, "refuses: Pod is invalid"),
        (500, "boom", ProviderError, "answered 500: boom"),
        (401, "Unauthorized", ProviderError, "expired"),
    ],
)
def test_what_a_server_says_no_to_is_a_typed_error_with_the_pools_name(status, message, kind, words):
    found = fault("pool pods", "shop", "/api/v1/x", status, message)
    assert isinstance(found, kind)
    assert str(found).startswith("pool pods: ")
    assert words in str(found)
    assert found.status == status
