"""Mode `scale` on a real cluster: one writer of one number, the drained ones named cheap, and what went looked at."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from tests.conformance.provider import launched, order, present, settles
from tests.kubernetes.plane import AnswerError, Cluster, Json
from tests.kubernetes.rigs import ScaleRig, closing, opened, rules, target_object
from tests.kubernetes.test_pods import events, seen

pytestmark = [pytest.mark.real, pytest.mark.slow]
COST = "controller.kubernetes.io/pod-deletion-cost"


@pytest.fixture
async def rig(cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[ScaleRig]:
    made = ScaleRig(cluster, namespace, tmp_path, {"mode": "scale", "target": "deployment/worker"})
    made.allow(rules("scale"))
    async with closing(made):
        yield made


async def test_a_stop_of_the_drained_takes_just_them_in_one_write(rig):
    rig.cluster.make(target_object(rig.namespace))
    provider = await opened(rig.provider())
    names = sorted(await launched(provider, order(rig, "1-1", 6)))
    assert rig.replicas() == 6
    assert not any(COST in (pod["metadata"].get("annotations") or {}) for pod in rig.pods())
    gone = {names[1], names[4]}
    before = provider.api.requests["PUT 200"]
    assert (await provider.stop(sorted(gone), 10.0)).wrong == 0
    assert provider.api.requests["PUT 200"] == before + 1
    await settles(provider, lambda found: set(found) == set(names) - gone)
    assert rig.replicas() == 4
    assert provider.wrong_victims == 0


async def test_a_wrong_victim_is_counted_and_said_and_the_drained_one_goes_all_the_same(rig):
    rig.cluster.make(target_object(rig.namespace))
    provider = await opened(rig.provider())
    drained, stays, cheaper = sorted(await launched(provider, order(rig, "1-1", 3)))
    rig.patch(rig.pod_of(cheaper), **{COST: "-2147483648"})  # somebody else thinks this one cheaper still
    assert (await provider.stop([drained], 10.0)).wrong == 1
    found = await settles(provider, lambda found: len(found) == 2 and not found.keys() & {drained, cheaper})
    assert stays in found
    assert [sighting.key for node, sighting in found.items() if node != stays] == [None]  # what the cluster made for it
    assert rig.replicas() == 2
    assert provider.wrong_victims == 1
    assert await seen(lambda: events(rig, "WrongVictim")) == ["1 other pods went instead; they drain"]


def autoscaler(namespace: str) -> Json:
    aim = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "worker"}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": "theirs", "namespace": namespace},
        "spec": {"scaleTargetRef": aim, "maxReplicas": 3},
    }


async def test_a_target_that_an_autoscaler_owns_is_refused_by_name(rig):
    rig.cluster.make(target_object(rig.namespace), autoscaler(rig.namespace))
    line = "pool pods: Deployment worker is scaled by HorizontalPodAutoscaler theirs too; delete that, or name another"
    with pytest.raises(RefusedError, match=f"^{line} target$"):
        await rig.provider().open(lambda: None)


async def test_an_autoscaler_that_comes_later_stops_the_scaling(rig, monkeypatch):
    monkeypatch.setattr("fleetd.providers.kubernetes.scaled.RIVALS_S", 0.0)
    rig.cluster.make(target_object(rig.namespace))
    provider = await opened(rig.provider())
    (node,) = await launched(provider, order(rig, "1-1", 1))
    rig.cluster.make(autoscaler(rig.namespace))
    for act in (provider.launch(order(rig, "1-2", 1)), provider.stop([node], 5.0)):
        with pytest.raises(RefusedError, match="HorizontalPodAutoscaler theirs"):
            await act
    assert set(present(await provider.list())) == {node}


SCALED_OBJECTS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "scaledobjects.keda.sh"},
    "spec": {
        "group": "keda.sh",
        "scope": "Namespaced",
        "names": {"plural": "scaledobjects", "singular": "scaledobject", "kind": "ScaledObject"},
        "versions": [
            {
                "name": "v1alpha1",
                "served": True,
                "storage": True,
                "schema": {
                    "openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True},
                },
            }
        ],
    },
}


async def test_a_target_that_keda_scales_is_refused_by_name(rig):
    cluster = rig.cluster
    try:
        cluster.make(SCALED_OBJECTS)
        mine = {
            "apiVersion": "keda.sh/v1alpha1",
            "kind": "ScaledObject",
            "metadata": {"name": "by-keda", "namespace": rig.namespace},
            "spec": {"scaleTargetRef": {"name": "worker"}},
        }
        cluster.make(target_object(rig.namespace))
        await seen(lambda: cluster.make(mine) if cluster.call("GET", "/apis/keda.sh/v1alpha1") else None)
        with pytest.raises(RefusedError, match="Deployment worker is scaled by ScaledObject by-keda too"):
            await rig.provider().open(lambda: None)
    finally:
        cluster.call("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/scaledobjects.keda.sh")


async def test_somebody_elses_write_is_never_written_over(rig):
    """A script labels the Deployment all the time: each label is a new version, so some writes here conflict."""
    rig.cluster.make(target_object(rig.namespace))
    provider = await opened(rig.provider())
    stop = asyncio.Event()

    async def meddle() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            patch = {"metadata": {"labels": {"n": str(number)}}}
            path = rig.scale.removesuffix("/scale")
            await asyncio.to_thread(rig.cluster.call, "PATCH", path, patch)

    meddling = [asyncio.create_task(meddle())]
    try:
        names: set[str] = set()
        for number in range(40):
            names |= await launched(provider, order(rig, f"1-{number}", 1))
            if provider.api.requests["PUT 409"]:
                break
    finally:
        stop.set()
        await asyncio.gather(*meddling)
    assert provider.api.requests["PUT 409"] > 0
    assert rig.replicas() == len(names)
    assert set(present(await provider.list())) == names


async def test_a_quota_is_exhausted_and_the_number_is_given_back(rig):
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "one", "namespace": rig.namespace}}
    rig.cluster.make(target_object(rig.namespace), {**quota, "spec": {"hard": {"pods": "1"}}})
    path = f"/api/v1/namespaces/{rig.namespace}/resourcequotas/one"
    await seen(lambda: rig.cluster.call("GET", path).get("status", {}).get("hard"))
    provider = await opened(rig.provider())
    assert len((await provider.launch(order(rig, "1-1", 3))).nodes) == 1
    assert rig.replicas() == 1
    assert (await provider.list()).offer.headroom == 0
    with pytest.raises(ExhaustedError, match=r"^pool pods: .*exceeded quota: one"):
        await provider.launch(order(rig, "1-2", 1))
    assert rig.replicas() == 1


async def test_an_order_that_a_crash_cut_short_raises_the_number_no_further(rig):
    """The ConfigMap says to what the number was to be raised, the number is raised, and nobody claimed the pods."""
    rig.cluster.make(target_object(rig.namespace))
    provider = await opened(rig.provider())
    await launched(provider, order(rig, "1-1", 2))
    await provider.close()
    held = f"/api/v1/namespaces/{rig.namespace}/configmaps/fleetd-pods-orders"
    rig.cluster.call("PATCH", held, {"data": {"orders": json.dumps({"1-2": 5})}})
    rig.cluster.call("PATCH", rig.scale, {"spec": {"replicas": 5}})
    await seen(lambda: len(rig.pods()) == 5)
    again = await opened(rig.provider())
    await launched(again, order(rig, "1-2", 3))
    assert rig.replicas() == 5
    assert sorted(s.key or "" for s in present(await again.list()).values()) == ["1-1", "1-1", "1-2", "1-2", "1-2"]
    await launched(again, order(rig, "1-3", 1))
    assert rig.replicas() == 6


async def test_pods_that_were_there_before_are_strays_and_no_orders(rig):
    rig.cluster.make(target_object(rig.namespace, replicas=2))
    await seen(lambda: len(rig.pods()) == 2)
    provider = await opened(rig.provider())
    assert [sighting.key for sighting in present(await provider.list()).values()] == [None, None]
    names = await launched(provider, order(rig, "1-1", 1))
    assert rig.replicas() == 3
    assert {s.key for s in present(await provider.list()).values() if s.node in names} == {"1-1"}


async def test_only_the_scale_is_ever_written(rig):
    rig.cluster.make(target_object(rig.namespace))
    provider = await opened(rig.provider())
    names = await launched(provider, order(rig, "1-1", 2))
    await provider.stop(sorted(names), 5.0)
    account = rig.config.name.removesuffix(".yaml").removeprefix(f"{rig.namespace}-")
    await seen(lambda: len(rig.cluster.audit(f"{rig.namespace}:{account}")) > 10)
    lines = [line for line in rig.cluster.audit(f"{rig.namespace}:{account}") if "objectRef" in line]
    written = {
        (ref["resource"], ref.get("subresource", ""), line["verb"])
        for line in lines
        if (ref := line["objectRef"])["resource"] == "deployments"
    }
    assert written == {("deployments", "", "get"), ("deployments", "scale", "get"), ("deployments", "scale", "update")}


# ── StatefulSets and others


@pytest.fixture
async def ordinal(cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[ScaleRig]:
    options = {"mode": "scale", "target": "statefulset/worker"}
    made = ScaleRig(cluster, namespace, tmp_path, options, kind="StatefulSet")
    made.allow(rules("scale", target="statefulsets"))
    async with closing(made):
        yield made


async def test_of_a_statefulset_only_the_highest_ordinals_go_and_the_others_wait(ordinal):
    ordinal.cluster.make(target_object(ordinal.namespace, "StatefulSet"))
    provider = await opened(ordinal.provider())
    assert provider.victims == "ordinal"
    names = {ordinal.pod_of(name): name for name in await launched(provider, order(ordinal, "1-1", 4))}
    assert sorted(names) == ["worker-0", "worker-1", "worker-2", "worker-3"]
    assert [ordinal.pod_of(node) for node in (await provider.list()).goes_first] == sorted(names, reverse=True)
    with pytest.raises(ProviderError, match=r"^pool pods: pods/worker-1\..*: a StatefulSet ends its highest ordinals"):
        await provider.stop([names["worker-1"]], 5.0)
    assert ordinal.replicas() == 4
    with pytest.raises(ProviderError, match="worker-1"):
        await provider.stop([names["worker-1"], names["worker-3"]], 5.0)
    await settles(provider, lambda found: names["worker-3"] not in found and len(found) == 3)
    await provider.stop([names["worker-1"], names["worker-2"]], 5.0)
    await settles(provider, lambda found: set(found) == {names["worker-0"]})


async def test_a_slow_statefulset_is_not_raised_twice(ordinal):
    """With OrderedReady one pod comes after the other; what is still to come is not asked for again."""
    slow = target_object(ordinal.namespace, "StatefulSet", management="OrderedReady", minReadySeconds=None)
    slow["spec"]["minReadySeconds"] = 4
    slow["spec"]["template"]["spec"].pop("minReadySeconds", None)
    ordinal.cluster.make(slow)
    provider = await opened(ordinal.provider())
    first = await provider.launch(order(ordinal, "1-1", 3))
    assert 1 <= len(first.nodes) <= 3
    missing = 3 - len(first.nodes)
    if missing:
        await provider.launch(order(ordinal, "1-2", missing))
    assert ordinal.replicas() == 3


CREWS = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "crews.example.test"},
    "spec": {
        "group": "example.test",
        "scope": "Namespaced",
        "names": {"plural": "crews", "singular": "crew", "kind": "Crew"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "subresources": {
                    "status": {},
                    "scale": {
                        "specReplicasPath": ".spec.replicas",
                        "statusReplicasPath": ".status.replicas",
                        "labelSelectorPath": ".status.selector",
                    },
                },
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


async def test_whatever_has_a_scale_subresource_can_be_scaled(cluster, namespace, tmp_path):
    rig = ScaleRig(cluster, namespace, tmp_path, {"mode": "scale", "target": "example.test/v1/crews/worker"})
    group = [{"apiGroups": ["example.test"], "resources": ["crews"], "verbs": ["get"]}]
    group += [{"apiGroups": ["example.test"], "resources": ["crews/scale"], "verbs": ["get", "update"]}]
    rig.allow([*rules("scale"), *group])
    crew = {
        "apiVersion": "example.test/v1",
        "kind": "Crew",
        "metadata": {"name": "worker", "namespace": namespace},
        "spec": {"replicas": 0},
    }
    path = f"/apis/example.test/v1/namespaces/{namespace}/crews/worker"
    try:
        cluster.make(CREWS)
        await seen(lambda: cluster.call("GET", "/apis/example.test/v1")["resources"])
        await seen(lambda: make_once(cluster, crew))
        async with closing(rig):
            with pytest.raises(RefusedError, match="its scale names no selector"):
                await rig.provider().open(lambda: None)
            cluster.call("PATCH", f"{path}/status", {"status": {"replicas": 0, "selector": "app=worker"}})
            provider = await opened(rig.provider())
            launch = asyncio.create_task(provider.launch(order(rig, "1-1", 1)))
            await seen(lambda: cluster.call("GET", path)["spec"]["replicas"] == 1)
            body = target_object(namespace)["spec"]["template"]
            meta = {**body["metadata"], "name": "crew-1", "namespace": namespace}
            cluster.make({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": body["spec"]})
            assert len((await launch).nodes) == 1
    finally:
        cluster.call("DELETE", "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/crews.example.test")


def make_once(cluster: Cluster, thing: Json) -> bool:
    try:
        cluster.make(thing)
    except AnswerError as error:
        return error.status == 409
    return True


async def test_a_target_that_is_not_there_is_named(rig):
    line = 'pool pods: deployments.apps "worker" not found; make it, or name another'
    with pytest.raises(ProviderError, match=f"^{re.escape(line)}$"):
        await rig.provider().open(lambda: None)
