"""What becomes of a pool when the API server fails it. Each fault is proven by an event of its own, then its end."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fleetd.errors import ProviderError, RefusedError
from tests.conformance.provider import launched, order, present, settles
from tests.kubernetes import plane
from tests.kubernetes.between import Between, between
from tests.kubernetes.plane import Cluster
from tests.kubernetes.rigs import KubeRig, ScaleRig, closing, opened, rules, target_object, template_object
from tests.kubernetes.test_pods import seen

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
async def rig(cluster: Cluster, namespace: str, tmp_path: Path) -> AsyncIterator[KubeRig]:
    made = KubeRig(cluster, namespace, tmp_path, {"mode": "pods", "template": "worker"})
    cluster.make(template_object(namespace))
    made.allow(rules())
    async with closing(made) as rig:
        yield rig


@pytest.fixture
async def proxy(rig: KubeRig) -> AsyncIterator[Between]:
    """A proxy that the rig's providers go through."""
    async with between(rig.cluster) as made:
        token = rig.cluster.token(rig.namespace, account(rig))
        url = f"https://127.0.0.1:{made.port}"
        rig.config = rig.cluster.kubeconfig(f"{rig.namespace}-proxied", token, rig.namespace, url)
        yield made
        await rig.close()


def account(rig: KubeRig) -> str:
    assert rig.config is not None
    return rig.config.name.removesuffix(".yaml").removeprefix(f"{rig.namespace}-")


async def test_a_watch_that_is_cut_goes_on_where_it_was_without_a_list(rig, proxy):
    provider = await opened(rig.provider())
    names = await launched(provider, order(rig, "1-1", 2))
    path = f"GET /api/v1/namespaces/{rig.namespace}/pods"
    before = provider.api.requests["WATCH 200"]
    assert proxy.cut() > 0
    await rig.lose(min(names))
    await settles(provider, lambda found: set(found) == {max(names)})
    assert provider.api.requests["WATCH 200"] > before
    assert proxy.seen[path] - provider.api.requests["WATCH 200"] == 1  # one list, in the beginning


async def test_a_place_in_the_stream_that_is_too_old_is_read_anew(rig, proxy):
    provider = await opened(rig.provider())
    names = await launched(provider, order(rig, "1-1", 2))
    path = f"GET /api/v1/namespaces/{rig.namespace}/pods"
    gone = '{"kind":"Status","status":"Failure","reason":"Expired","code":410,"message":"too old resource version"}'
    proxy.answer("watch=true", "410 Gone", gone)
    lists = proxy.seen[path] - sum(n for word, n in provider.api.requests.items() if word.startswith("WATCH"))
    proxy.cut()
    await seen(lambda: provider.api.requests["WATCH 410"] == 1)
    await rig.lose(min(names))
    await settles(provider, lambda found: set(found) == {max(names)})
    watches = sum(n for word, n in provider.api.requests.items() if word.startswith("WATCH"))
    assert proxy.seen[path] - watches == lists + 1


async def test_an_error_event_within_a_watch_is_read_anew_too(rig, proxy):
    provider = await opened(rig.provider())
    names = await launched(provider, order(rig, "1-1", 1))
    event = '{"type":"ERROR","object":{"kind":"Status","code":410,"message":"too old resource version: 1 (9)"}}\n'
    proxy.answer("watch=true", "200 OK", event)
    proxy.cut()
    await seen(lambda: not proxy.answers)
    await settles(provider, lambda found: set(found) == names)


async def test_a_server_that_asks_to_wait_is_left_in_peace_for_so_long(rig, proxy):
    provider = await opened(rig.provider())
    await launched(provider, order(rig, "1-1", 1))
    proxy.answer("/podtemplates/", "429 Too Many Requests", Retry_After="2")
    began = time.monotonic()
    names = await launched(provider, order(rig, "1-2", 2))  # reads the template first, and waits
    assert 2.0 <= time.monotonic() - began < 10.0
    assert provider.api.requests["GET 429"] == 1
    assert names <= set(present(await provider.list()))


async def test_a_server_that_is_overloaded_for_long_is_an_error_in_time(rig, proxy):
    provider = await opened(rig.provider())
    await settles(provider, lambda found: found == {})
    proxy.answer("/podtemplates/", "429 Too Many Requests", Retry_After="50")
    began = time.monotonic()
    with pytest.raises(ProviderError, match=r"^pool pods: the API server is overloaded \(429\)"):
        await provider.launch(order(rig, "1-1", 1))
    with pytest.raises(ProviderError, match=r"^pool pods: the API server asked to wait \d+ s more"):
        await provider.launch(order(rig, "1-1", 1))
    assert time.monotonic() - began < 5.0
    assert not rig.pods()


async def test_a_server_that_falls_silent_blinds_the_pool_and_is_heard_again(rig, proxy, monkeypatch):
    monkeypatch.setattr("fleetd.providers.kubernetes.informer.WATCH_S", -8)  # with its ten seconds more: two
    provider = await opened(rig.provider())
    monkeypatch.setattr("fleetd.providers.kubernetes.api.CALL_S", 1.0)
    await seen(lambda: provider._view.informers[0].trouble is None)
    proxy.deaf = True
    proxy.cut()
    await seen(lambda: provider._view.informers[0].trouble)
    with pytest.raises(ProviderError, match=r"^pool pods: (a watch did not end in time|the API server)"):
        await provider.list()
    proxy.deaf = False
    proxy.cut()
    await seen(lambda: provider._view.informers[0].trouble is None)
    assert present(await provider.list()) == {}


async def test_a_token_that_has_expired_is_read_anew_from_its_file(rig, proxy):
    provider = await opened(rig.provider())
    assert rig.config is not None
    good = rig.config.read_text()
    token = next(line.split()[-1] for line in good.splitlines() if "token:" in line)
    rig.config.write_text(good.replace(token, "expired"))
    await provider.api._renew()  # as if the file had been like this when it began
    with pytest.raises(ProviderError, match=r"^pool pods: the API server knows nobody by these credentials \(401\)"):
        await provider.launch(order(rig, "1-1", 1))
    assert provider.api.requests["GET 401"] >= 2  # tried anew, once
    rig.config.write_text(good)
    names = await launched(provider, order(rig, "1-1", 1))
    await settles(provider, lambda found: set(found) == names)


async def test_rights_that_are_taken_away_blind_the_pool_in_one_line_and_are_missed_no_longer_than_that(rig):
    provider = await opened(rig.provider())
    names = await launched(provider, order(rig, "1-1", 1))
    path = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{rig.namespace}/rolebindings/{account(rig)}"
    binding = rig.cluster.call("GET", path)
    rig.cluster.call("DELETE", path)
    with pytest.raises(RefusedError, match=r"^pool pods: not permitted: .* bind the Role"):
        await asyncio.wait_for(refused(provider, order(rig, "1-2", 1)), 15)
    del binding["metadata"]["resourceVersion"], binding["metadata"]["uid"]
    rig.cluster.make(binding)
    await seen(lambda: True)
    await settles(provider, lambda found: set(found) == names)


async def refused(provider, wanted) -> None:
    """Launch until it is refused: the server takes a moment to forget a right."""
    while True:
        await provider.launch(wanted)
        await asyncio.sleep(0.2)


async def test_a_namespace_that_is_deleted_is_said_in_one_line(rig):
    provider = await opened(rig.provider())
    names = await launched(provider, order(rig, "1-1", 1))
    path = f"/api/v1/namespaces/{rig.namespace}"
    meta = {"name": "held", "namespace": rig.namespace, "finalizers": ["test.example/held"]}
    rig.cluster.make({"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta})
    rig.cluster.call("DELETE", path)
    assert rig.cluster.call("GET", path)["status"]["phase"] == "Terminating"
    with pytest.raises(RefusedError) as caught:
        await provider.launch(order(rig, "1-2", 1))
    assert "\n" not in str(caught.value)
    assert any(words in str(caught.value) for words in ("is being deleted", "not found", "not permitted"))
    await asyncio.sleep(0)
    assert names
    rig.cluster.call("PATCH", f"{path}/configmaps/held", {"metadata": {"finalizers": None}})


# ── a server that is killed; it has a control plane of its own, for others share theirs


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory):
    with plane.start(tmp_path_factory.mktemp("fragile")) as cluster, cluster.kubelet():
        yield cluster


@pytest.mark.parametrize("mode", ["pods", "scale"])
async def test_a_server_that_is_killed_within_a_launch_and_restarted_doubles_nothing(fragile, tmp_path, mode):
    with fragile.namespace() as namespace:
        made: KubeRig
        if mode == "pods":
            made = KubeRig(fragile, namespace, tmp_path, {"mode": "pods", "template": "worker"})
            fragile.make(template_object(namespace))
        else:
            made = ScaleRig(fragile, namespace, tmp_path, {"mode": "scale", "target": "deployment/worker"})
            fragile.make(target_object(namespace))
        made.allow(rules(mode))
        async with closing(made) as rig:
            provider = await opened(rig.provider())
            names = await launched(provider, order(rig, "1-1", 2))
            launching = asyncio.create_task(provider.launch(order(rig, "1-2", 4)))
            await asyncio.sleep(0.05)
            fragile.end("kube-apiserver")
            await seen(lambda: provider._view.informers[0].trouble, 10)
            with pytest.raises(ProviderError, match=r"^pool pods: the API server .* does not answer"):
                await provider.list()
            fragile.start_api(wait=False)
            await seen(fragile.is_ready, 60)
            answer = await asyncio.gather(launching, return_exceptions=True)
            if isinstance(answer[0], BaseException):  # the server took longer than a launch may
                assert isinstance(answer[0], ProviderError)
            more = await launch_again(provider, order(rig, "1-2", 4))
            await settles(provider, lambda found: set(found) == names | more)
            assert len(more) == 4
            await asyncio.sleep(2)
            assert len(rig.pods()) == 6


async def launch_again(provider, wanted) -> set[str]:
    """Send the order again, as a controller that has not heard an answer does, until it is answered."""
    for _ in range(20):
        try:
            answer = await provider.launch(wanted)
        except ProviderError:
            await asyncio.sleep(1)
            continue
        if len(answer.nodes) == wanted.count:
            return set(answer.nodes)
    raise AssertionError("it is never answered")
