"""Mode `pods` on a real cluster: what is made, what is told of what cannot be, and what is never touched."""

import asyncio
import base64
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fleetd.core.model import Phase, World
from fleetd.core.ports import Known
from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from tests.conformance.provider import launched, order, present, settles
from tests.kubernetes.plane import AnswerError, Cluster, Json
from tests.kubernetes.rigs import JobRig, KubeRig, closing, opened, rules, target_object, template_object
from tests.worker.controller import SECRET

pytestmark = [pytest.mark.real, pytest.mark.slow]
BUSY = Known(Phase.READY, busy=1, age_s=0.5, state="working")


@pytest.fixture
async def rig(cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[KubeRig]:
    made = KubeRig(cluster, namespace, tmp_path, {"mode": "pods", "template": "worker", "room": 1})
    made.allow(rules())
    async with closing(made) as rig:
        yield rig


async def seen(check: Callable[[], Any], limit_s: float = 20.0) -> Any:
    """Wait for a positive event without holding up the provider."""
    async with asyncio.timeout(limit_s):
        while True:
            with contextlib.suppress(AnswerError):
                found = await asyncio.to_thread(check)
                if found:
                    return found
            await asyncio.sleep(0.1)


def events(rig: KubeRig, reason: str) -> list[str]:
    found = rig.cluster.items(f"/api/v1/namespaces/{rig.namespace}/events")
    return [one["message"] for one in found if one["reason"] == reason and one["source"].get("component") == "fleetd"]


async def test_a_pod_is_the_template_with_the_workers_command_line_a_name_labels_and_an_owner(rig):
    rig.cluster.make(template_object(rig.namespace, args=["--log-format", "json"], env=[{"name": "A", "value": "1"}]))
    provider = await opened(rig.provider())
    (node,) = await launched(provider, order(rig, "1-1", 1))
    (pod,) = rig.pods()
    meta, worker = pod["metadata"], pod["spec"]["containers"][0]
    assert node == f"pods/{meta['name']}.{meta['uid']}"
    assert meta["labels"]["fleetd.dev/order"] == "1-1"
    assert meta["labels"]["app.kubernetes.io/managed-by"] == "fleetd"
    assert [(one["kind"], one["name"]) for one in meta["ownerReferences"]] == [("PodTemplate", "worker")]
    assert pod["spec"]["restartPolicy"] == "OnFailure"
    assert pod["spec"]["terminationGracePeriodSeconds"] == 90  # the job limit of a minute, and half a minute more
    words = worker["args"]
    assert words[:4] == ["--log-format", "json", "--app-name", "photos"]
    assert words[words.index("--node") + 1] == "pods/$(FLEETD_POD).$(FLEETD_POD_UID)"
    env = {one["name"]: one for one in worker["env"]}
    assert env["A"]["value"] == "1"
    assert env["FLEETD_JOIN_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "fleetd-pods", "key": "token"}


async def test_the_join_token_is_in_a_secret_that_fleetd_keeps(rig):
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.provider())
    path = f"/api/v1/namespaces/{rig.namespace}/secrets/fleetd-pods"
    with pytest.raises(AnswerError, match="404"):
        rig.cluster.call("GET", path)  # whoever only looks leaves nothing behind
    await launched(provider, order(rig, "1-1", 1))
    secret = rig.cluster.call("GET", path)
    assert base64.b64decode(secret["data"]["token"]).decode() == rig.launch.token("pods")
    assert SECRET not in json.dumps(secret)


async def test_pods_of_a_deployments_template_are_not_its_replicasets(rig):
    rig.cluster.make(target_object(rig.namespace))
    provider = await opened(rig.make(template="deployment/worker"))
    names = await launched(provider, order(rig, "1-1", 2))
    assert not any("app" in pod["metadata"]["labels"] for pod in rig.pods())  # nor any Service's that chooses by these
    path = f"/apis/apps/v1/namespaces/{rig.namespace}/deployments/worker"
    rig.cluster.call("PATCH", f"{path}/scale", {"spec": {"replicas": 1}})
    await seen(lambda: len(rig.pods()) == 3)
    rig.cluster.call("PATCH", f"{path}/scale", {"spec": {"replicas": 0}})
    await seen(lambda: len(rig.pods()) == 2)
    assert set(present(await provider.list())) == names


async def test_no_room_is_exhausted_leaves_nothing_and_offers_no_more(rig):
    rig.cluster.make(template_object(rig.namespace, nodeSelector={"disk": "golden"}))
    provider = await opened(rig.provider())
    with pytest.raises(ExhaustedError, match=r"^pool pods: no room for it: 0/\d+ nodes are available: .*selector"):
        await provider.launch(order(rig, "1-1", 3))
    await seen(lambda: not rig.pods())
    world = await provider.list()
    assert world.sightings == ()
    assert world.offer.headroom == 0
    assert await seen(lambda: events(rig, "LaunchFailed"))


async def test_pods_that_wait_for_a_machine_to_be_made_are_booting_for_as_long_as_the_policy_says(rig):
    rig.cluster.make(template_object(rig.namespace, nodeSelector={"disk": "golden"}))
    provider = await opened(rig.make(room=6))
    names = await launched(provider, order(rig, "1-1", 2))
    assert {sighting.state for sighting in present(await provider.list()).values()} == {"booting"}
    await settles(provider, lambda found: found == {})
    assert (await provider.list()).offer.headroom == 0
    assert [line for name in names for line in await provider.logs(name, 9) if "no room for it" in line]


async def test_an_image_that_cannot_be_pulled_is_refused(rig):
    rig.cluster.make(template_object(rig.namespace, image="missing/worker:1"))
    provider = await opened(rig.provider())
    with pytest.raises(RefusedError, match=r"^pool pods: its image cannot be pulled: .*missing/worker:1"):
        await provider.launch(order(rig, "1-1", 2))
    await seen(lambda: not rig.pods())


async def test_a_secret_that_is_not_there_is_refused_with_its_name(rig):
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.make(join_secret="mine"))
    with pytest.raises(RefusedError, match=r'its container cannot be made: secret "mine" not found$'):
        await provider.launch(order(rig, "1-1", 1))


async def test_a_secret_that_somebody_deleted_is_made_anew(rig):
    """Seen to fail without `learn`."""
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.provider())
    await launched(provider, order(rig, "1-1", 1))
    rig.cluster.call("DELETE", f"/api/v1/namespaces/{rig.namespace}/secrets/fleetd-pods")
    with pytest.raises(RefusedError, match=r'secret "fleetd-pods" not found$'):
        await provider.launch(order(rig, "1-2", 1))
    assert len(await launched(provider, order(rig, "1-3", 1))) == 1


async def test_a_worker_that_ends_again_and_again_is_no_node(rig):
    rig.cluster.make(template_object(rig.namespace, command=["sh", "-c", "sleep 0.2; exit 7", "worker"]))
    provider = await opened(rig.provider())
    names = set((await provider.launch(order(rig, "1-1", 1))).nodes)
    await settles(provider, lambda found: found == {})
    await seen(lambda: not rig.pods())
    (name,) = names
    assert "exit code 7" in (await provider.logs(name, 5))[0]
    assert (await provider.list()).gone[name].startswith("its worker ends again and again: exit code 7")
    assert (await provider.list()).offer.headroom is None  # it is no lack of room: the breaker counts it


async def test_a_quota_gives_a_part_and_then_nothing(rig):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "two", "namespace": rig.namespace}}
    rig.cluster.make(template_object(rig.namespace), {**quota, "spec": {"hard": {"pods": "2"}}})
    path = f"/api/v1/namespaces/{rig.namespace}/resourcequotas/two"
    await seen(lambda: rig.cluster.call("GET", path).get("status", {}).get("hard"))
    provider = await opened(rig.provider())
    assert len((await provider.launch(order(rig, "1-1", 3))).nodes) == 2
    assert (await provider.list()).offer.headroom == 0
    with pytest.raises(ExhaustedError, match=r"^pool pods: .*exceeded quota: two, requested: pods=1, used: pods=2"):
        await provider.launch(order(rig, "1-2", 1))


@pytest.mark.parametrize(("note", "why"), [("test/evict", "evicted"), ("test/preempt", "preempted")])
async def test_an_evicted_or_preempted_pod_is_gone_with_the_reason_and_the_others_stay(rig, note, why):
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.provider())
    names = await launched(provider, order(rig, "1-1", 2))
    lost = min(names)
    rig.patch(rig.pod_of(lost), **{note: "now"})
    await settles(provider, lambda found: set(found) == names - {lost})
    gone = (await provider.list()).gone
    assert gone.keys() == {lost}
    assert gone[lost].startswith(why)


async def test_pods_of_a_lost_machine_are_gone(rig):
    tolerated = [
        {"key": f"node.kubernetes.io/{what}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
        for what in ("unreachable", "not-ready")
    ]
    name = "lonely"
    with rig.cluster.kubelet(name) as kubelet:
        chosen = {"kubernetes.io/hostname": name}
        rig.cluster.make(template_object(rig.namespace, nodeSelector=chosen, tolerations=tolerated, grace_s=1))
        provider = await opened(rig.make(room=30))
        names = await launched(provider, order(rig, "1-1", 1))
        kubelet.send_signal(19)  # SIGSTOP: its heart beats no more, its processes run on
        try:
            await seen(lambda: rig.pods()[0]["metadata"].get("deletionTimestamp"), 60)
            assert set(present(await provider.list())) <= names
            await settles(provider, lambda found: found == {})
        finally:
            kubelet.send_signal(18)


async def test_busy_pods_are_marked_idle_ones_are_not_and_the_reason_is_in_the_configmap(rig, monkeypatch):
    monkeypatch.setattr("fleetd.providers.kubernetes.notes.IDLE_S", 0.0)
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.provider())
    busy, idle = sorted(await launched(provider, order(rig, "1-1", 2)))
    mark = "karpenter.sh/do-not-disrupt"

    def marked() -> list[bool]:
        notes = {pod["metadata"]["name"]: pod["metadata"].get("annotations", {}) for pod in rig.pods()}
        return [mark in notes[rig.pod_of(node)] for node in (busy, idle)]

    assert marked() == [True, True]  # what has only begun may be busy before anybody hears of it
    provider.hear("pods: 2 of 2 slots are needed", {busy: BUSY})
    await seen(lambda: marked() == [True, False])
    provider.hear("pods: 2 of 2 slots are needed", {idle: BUSY})
    await seen(lambda: marked() == [False, True])
    path = f"/api/v1/namespaces/{rig.namespace}/configmaps/fleetd-pods"

    def status() -> Json:
        return dict(json.loads(rig.cluster.call("GET", path)["data"]["status"]))

    assert await seen(lambda: status()["because"] == "pods: 2 of 2 slots are needed")
    assert await seen(lambda: status()["pods"] == {"coming": 0, "up": 2, "ended": 0})
    assert events(rig, "ScaledOut") == ["order 1-1: 2 for photos"]


async def test_what_a_worker_says_is_shown(rig):
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.provider())
    (node,) = await launched(provider, order(rig, "1-1", 1))
    assert await provider.logs(node, 5) == ["begun"]
    await provider.stop([node], 5.0)
    await settles(provider, lambda found: found == {})
    with pytest.raises(ProviderError, match=rf"^pool pods: {node} is gone"):
        await provider.logs(node, 5)


async def test_a_stop_is_a_delete_by_name_and_uid_with_the_grace_that_was_given(rig):
    rig.cluster.make(template_object(rig.namespace, command=["sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"]))
    provider = await opened(rig.provider())
    (node,) = await launched(provider, order(rig, "1-1", 1))
    await provider.stop([node], 2.0)
    (pod,) = await asyncio.to_thread(rig.pods)
    assert pod["metadata"]["deletionGracePeriodSeconds"] == 2
    assert set(present(await provider.list())) == {node}  # it is there until it has ended
    await settles(provider, lambda found: found == {})


async def test_a_pod_that_has_taken_a_name_meanwhile_is_not_deleted(rig):
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.provider())
    (node,) = await launched(provider, order(rig, "1-1", 1))
    items = provider._view.informers[0].items
    (uid,) = items
    former = f"{node[: -len(uid)]}00000000-0000-4000-8000-000000000000"
    stale = replace(items[uid], node=former, uid=former[-36:])  # the cache has not heard yet of what took its place
    items[stale.uid] = stale
    assert (await provider.stop([former], 5.0)).nodes == (former,)
    assert provider.api.requests["DELETE 409"] == 1
    assert former[-36:] not in items
    (pod,) = rig.pods()
    assert "deletionTimestamp" not in pod["metadata"]


async def test_jobs_go_with_their_pods(rig, cluster, tmp_path):
    cluster.make(template_object(rig.namespace))
    jobs = JobRig(cluster, rig.namespace, tmp_path, {"mode": "pods", "template": "worker", "run": "job"})
    jobs.allow(rules(run="job"))
    async with closing(jobs):
        provider = await opened(jobs.provider())
        (node,) = await launched(provider, order(jobs, "1-1", 1))
        path = f"/apis/batch/v1/namespaces/{rig.namespace}/jobs"
        (job,) = cluster.items(path)
        assert node == f"pods/{job['metadata']['name']}.{job['metadata']['uid']}"
        await provider.stop([node], 5.0)
        await seen(lambda: not cluster.items(path) and not jobs.pods())


# ── what is wrong with the policy or the cluster: one line, with the pool's name and the fix


async def refusal(rig: KubeRig, **options: Any) -> str:
    provider = rig.make(**options)
    with pytest.raises(ProviderError) as caught:
        await provider.open(lambda: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


async def test_a_template_that_is_not_there_is_named(rig):
    said = await refusal(rig)
    assert said == 'pool pods: podtemplates "worker" not found; make it, or name another'


async def test_a_template_without_requests_is_refused(rig):
    rig.cluster.make(template_object(rig.namespace, resources={"requests": {"cpu": "1"}}))
    assert (await refusal(rig)).startswith(
        "pool pods: PodTemplate worker: no memory requested; set resources.requests of container worker"
    )


async def test_a_container_that_is_not_there_is_named(rig):
    rig.cluster.make(template_object(rig.namespace))
    said = await refusal(rig, container="wroker")
    assert said == "pool pods: PodTemplate worker: no container 'wroker'; there are: worker"


async def test_a_namespace_that_it_may_not_read_is_named_with_the_role(rig):
    said = await refusal(rig, namespace="default")
    assert said.startswith("pool pods: not permitted: podtemplates ")
    assert 'in the namespace "default"' in said
    assert said.endswith("bind the Role that docs/kubernetes.md shows")


async def test_pods_that_it_may_not_make_are_refused_and_pods_that_it_may_not_list_blind_it(rig):
    rig.cluster.make(template_object(rig.namespace))
    allowed = rules()
    less = [rule | {"verbs": [verb for verb in rule["verbs"] if verb != "create"]} for rule in allowed]
    rig.allow([rule for rule in less if rule["verbs"]])
    with pytest.raises(RefusedError, match=r'cannot create resource "secrets".*bind the Role'):
        await (await opened(rig.provider())).launch(order(rig, "1-1", 1))
    provider = await opened(rig.make(join_secret="mine"))
    with pytest.raises(RefusedError, match=r'^pool pods: not permitted: pods .* cannot create resource "pods"'):
        await provider.launch(order(rig, "1-1", 1))
    rig.allow([rule for rule in allowed if rule["resources"] != ["pods"]])
    blind = await opened(rig.provider())
    with pytest.raises(ProviderError, match=r'^pool pods: not permitted: pods .* cannot list resource "pods"'):
        await blind.list()


async def test_without_credentials_it_says_where_to_put_them(rig, tmp_path):
    said = await refusal(rig, kubeconfig=str(tmp_path / "none"))
    assert said.startswith("pool pods: no credentials: ")
    assert said.endswith("set `kubeconfig:`, KUBECONFIG, or run it in a pod")


async def test_a_tick_costs_no_request(rig):
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.provider())
    await launched(provider, order(rig, "1-1", 2))
    await asyncio.sleep(6)
    before = sum(provider.api.requests.values())
    worlds = [await provider.list() for _ in range(500)]
    assert sum(provider.api.requests.values()) == before
    assert all(isinstance(world, World) and len(world.sightings) == 2 for world in worlds)


async def test_a_pod_between_two_jobs_keeps_its_mark(rig):
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.provider())
    (node,) = await launched(provider, order(rig, "1-1", 1))
    before = provider.api.requests["PATCH 200"]
    for number in range(30):
        provider.hear("busy now and then", {node: BUSY} if number % 2 else {})
        await asyncio.sleep(0.1)
    assert provider.api.requests["PATCH 200"] <= before + 1  # the ConfigMap


async def test_it_needs_every_right_that_it_is_given(rig):
    """Told apart by the server's audit log: what is never used is not to be granted."""
    rig.cluster.make(template_object(rig.namespace))
    provider = await opened(rig.provider())
    names = sorted(await launched(provider, order(rig, "1-1", 2)))
    provider.hear("as it is", {names[0]: BUSY})
    await provider.logs(names[0], 1)
    given = {(res, verb) for rule in rules() for res in rule["resources"] for verb in rule["verbs"]}
    account = rig.config.name.removesuffix(".yaml").removeprefix(f"{rig.namespace}-")

    def used() -> set[tuple[str, str]]:
        lines = [line["objectRef"] | line for line in rig.cluster.audit(f"{rig.namespace}:{account}")]
        parts = [(f"{one['resource']}/{one.get('subresource', '')}".strip("/"), one["verb"]) for one in lines]
        # To make by an apply takes two rights, and is logged as one.
        return set(parts) | {(resource, "create") for resource, verb in parts if verb == "patch"}

    await provider.stop(names, 5.0)
    last = {("pods", "delete"), ("configmaps", "patch"), ("events", "create")}
    await seen(lambda: last <= used())
    assert given - used() == {("deployments", "get")}  # needed instead of podtemplates with `deployment/NAME`
    assert used() <= given
