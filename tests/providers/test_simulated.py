"""Simulated nodes: the common suite, chance and time by a clock of the test, and workers over the controller's API."""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from fleetd.codecs.lease import join_token
from fleetd.control.loop import Controller
from fleetd.control.outlook import Adapters
from fleetd.core.model import AppPolicy, DrainAllCommand, DrainCommand, NodeId, Order, Phase, PoolPolicy
from fleetd.core.ports import WorkerLaunch
from fleetd.errors import ExhaustedError, ProviderError, RefusedError
from fleetd.providers import simulated
from fleetd.providers.simulated import SimulatedOptions, SimulatedProvider
from fleetd.store.sqlite import Store
from fleetd.web.api import make_app
from fleetd.web.serve import bind, make_server
from tests.conformance.provider import ProviderConformance, Rig, launched, order, present
from tests.control.fleet import FakeSource, policy, until

SECRET = "s3cret-join"


class SimulatedRig(Rig):
    """Pools whose files stand in a folder of the test's own."""

    def __init__(self, folder: Path, url: str = "http://127.0.0.1:9") -> None:
        self.folder, self.now = folder, 1000.0
        self.launch = WorkerLaunch(
            fleet="test",
            instance=secrets.token_hex(8),
            controller_url=url,
            state_dir=str(folder),
            apps={"photos": AppPolicy("photos", path="/app")},
            servers={},
            limits={},
            token=lambda pool: join_token(SECRET, "test", pool),
        )

    def make(
        self, pool: str = "local", fleet: str = "", clock: Callable[[], float] | None = None, **options: Any
    ) -> SimulatedProvider:
        folder, instance = self.folder / fleet, f"{self.launch.instance}{fleet}"
        launch = replace(self.launch, state_dir=str(folder), instance=instance)
        wanted = PoolPolicy(pool, "simulated", None, ("photos",), slots=2, max_nodes=2000)
        return SimulatedProvider(wanted, SimulatedOptions(**options), launch, clock or (lambda: self.now))

    def provider(self) -> SimulatedProvider:
        return self.make()

    def other_pool(self) -> SimulatedProvider:
        return self.make("other")

    def other_fleet(self) -> SimulatedProvider:
        return self.make(fleet="other")

    async def lose(self, node: NodeId) -> None:
        file = self.folder / "simulated" / f"{node.partition('/')[0]}.json"
        state = json.loads(file.read_text())
        del state["nodes"][node]
        file.write_text(json.dumps(state))

    def former(self, node: NodeId) -> None:
        return None


@pytest.fixture
def rig(tmp_path: Path) -> SimulatedRig:
    return SimulatedRig(tmp_path)


class TestSimulated(ProviderConformance):
    """The common suite."""


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_form_of_the_policy_is_read():
    options = SimulatedOptions.model_validate(
        {"boot": ["60s", "2m"], "boot_failure": "3%", "stockout": [["10m", "15m"]], "price": "1/h", "launch_failure": 0}
    )
    assert options.boot == (60.0, 120.0)
    assert (options.boot_failure, options.launch_failure) == (0.03, 0.0)
    assert options.stockout == [(600.0, 900.0)]
    assert options.price == 1.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"boot": ["2m", "60s"]}, "the first is to be at most the second"),
        ({"boot": "60s"}, "boot"),
        ({"boot": ["x", "60s"]}, "expected a duration"),
        ({"boot_failure": "130%"}, "at most 100%"),
        ({"stockout": [["5m"]]}, "stockout"),
        ({"seed": -1}, "seed"),
        ({"slots": 1}, "slots"),
    ],
)
def test_wrong_options_say_what_is_wrong(options, says):
    with pytest.raises(ValidationError) as caught:
        SimulatedOptions.model_validate(options)
    assert says in str(caught.value)


# ── time and chance


async def states(provider: SimulatedProvider) -> list[str]:
    return sorted(sighting.state for sighting in (await provider.list()).sightings)


async def test_a_node_boots_for_as_long_as_it_was_drawn_also_over_a_restart(rig):
    provider = rig.make(boot=("60s", "120s"))
    await launched(provider, order(rig, "1-1", 200))
    rig.now += 59
    assert set(await states(provider)) == {"booting"}
    rig.now += 31
    half = (await states(provider)).count("up")
    assert 60 < half < 140
    assert (await states(rig.make(boot=("60s", "120s")))).count("up") == half
    assert (await states(rig.make(boot=("60s", "120s"), seed=1))).count("up") != half
    rig.now += 30
    assert set(await states(provider)) == {"up"}


async def test_the_share_of_launches_that_fail_and_the_same_again_for_the_same_seed(rig, tmp_path):
    async def outcomes(fleet: str, seed: int) -> list[bool]:
        provider, ok = rig.make(fleet=fleet, launch_failure="30%", seed=seed), list[bool]()
        said = set[str]()
        for number in range(200):
            try:
                await provider.launch(order(rig, f"1-{number}", 1))
                ok.append(True)
            except ProviderError as error:
                said.add(str(error))
                ok.append(False)
        assert said == {f"pool local: launch {at + 1} failed, as simulated" for at in range(200) if not ok[at]}
        assert sum(ok) == len(present(await provider.list()))
        return ok

    first = await outcomes("a", 0)
    assert 30 < first.count(False) < 90
    assert await outcomes("b", 0) == first
    assert await outcomes("c", 1) != first


async def test_a_failed_launch_tries_its_luck_again(rig):
    provider = rig.make(launch_failure="50%")
    for number in range(20):
        for _ in range(30):
            try:
                await provider.launch(order(rig, f"1-{number}", 1))
                break
            except ProviderError:
                pass
    assert len(present(await provider.list())) == 20


async def test_in_a_stockout_there_is_nothing_and_the_offer_says_so(rig):
    provider = rig.make(stockout=[("10s", "20s")], price="0.5/h")
    assert (await provider.list()).offer.headroom is None
    await launched(provider, order(rig, "1-1", 1))
    rig.now += 10
    world = await provider.list()
    assert (world.offer.headroom, world.offer.price_per_h) == (0, 0.5)
    with pytest.raises(ExhaustedError, match="pool local: none are to be had now"):
        await provider.launch(order(rig, "1-2", 1))
    assert len(await launched(provider, order(rig, "1-1", 1))) == 1, "what is there already needs nothing"
    rig.now += 10
    await launched(provider, order(rig, "1-2", 1))


async def test_looking_writes_nothing(rig, tmp_path):
    provider = rig.provider()
    await provider.open(lambda: None)
    await provider.list()
    await provider.stop(["local/x"], 0.0)
    await asyncio.sleep(0.3)
    await provider.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"since": 1, "nodes": {"a": 7}}', '{"nodes": {}, "x": 1}'])
async def test_a_file_that_cannot_be_read_is_the_pools_error_with_the_fix(rig, text):
    folder = rig.folder / "simulated"
    folder.mkdir()
    (folder / "local.json").write_text(text)
    for call in (rig.provider().list(), rig.provider().launch(order(rig, "1-1", 1))):
        with pytest.raises(ProviderError, match=r"pool local: .*local\.json cannot be read; remove it to begin anew"):
            await call
    assert (folder / "local.json").read_text() == text


async def test_a_folder_that_cannot_be_written_is_the_pools_error(rig):
    (rig.folder / "simulated").write_text("a file")
    for call in (rig.provider().list(), rig.provider().launch(order(rig, "1-1", 1))):
        with pytest.raises(ProviderError, match=r"pool local: .*simulated"):
            await call


async def test_an_unknown_app_is_refused_and_other_pools_of_one_folder_are_apart(rig):
    with pytest.raises(RefusedError, match="pool local: app nope: is unknown here"):
        await rig.provider().launch(Order("1-1", "local", "nope", 1, 1, 1))


async def test_a_nodes_log_is_its_life(rig):
    provider = rig.make(boot=("30s", "30s"))
    (node,) = await launched(provider, order(rig, "1-1", 1))
    said = ["launched for photos by order 1-1", "boots for 30.0 s; then its worker leases"]
    assert await provider.logs(node, 9) == said
    assert await provider.logs(node, 1) == said[1:]
    await provider.stop([node], 0.0)
    with pytest.raises(ProviderError, match=f"pool local: there is no {node}, and of one that is gone nothing is kept"):
        await provider.logs(node, 9)


async def test_launches_of_two_providers_of_one_pool_lose_nothing(rig):
    one, other = rig.provider(), rig.provider()
    await asyncio.gather(*(provider.launch(order(rig, f"{at}", 3)) for at in range(10) for provider in (one, other)))
    assert len(present(await one.list())) == 30


# ── workers


@asynccontextmanager
async def controlled(rig: SimulatedRig, folder: Path, **options: Any) -> AsyncIterator[Controller]:
    """A controller over a simulated pool and a source with no jobs, its API served on loopback."""
    socket = bind("127.0.0.1", 0)
    url = f"http://127.0.0.1:{socket.getsockname()[1]}"
    rig.launch = replace(rig.launch, controller_url=url)
    wanted = replace(policy(), pools={"local": PoolPolicy("local", "simulated", None, ("photos",), 2, 3, 20)})
    pools: list[SimulatedProvider] = []

    def make(_: object) -> Adapters:
        pools.append(rig.make(**options))
        return Adapters({"main": FakeSource()}, {"local": pools[-1]})

    store = Store(folder)
    controller = Controller(wanted, store, make, lambda *_: None)
    server = make_server(make_app(controller, SECRET, "operator"))
    tasks = [asyncio.create_task(controller.run()), asyncio.create_task(server.serve([socket]))]
    try:
        yield controller
    finally:
        controller.leases.let_go()
        server.should_exit = True
        tasks[0].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        store.close()


def phases(controller: Controller) -> list[str]:
    return sorted(node.phase for node in controller.memory.nodes.values())


def boots(controller: Controller) -> set[str]:
    return {entry.lease.boot for entry in controller.leases.entries.values() if entry.lease}


@pytest.fixture
def store_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.mark.slow
async def test_workers_become_ready_drain_and_go(rig, store_folder, monkeypatch):
    monkeypatch.setattr(simulated, "BEAT_S", 0.05)
    async with controlled(rig, store_folder, clock=time.time, boot=(0.2, 0.4)) as controller:
        await until(lambda: phases(controller) == ["ready"] * 3, 15)
        views = controller.leases.views()
        assert {(v.app, v.slots, v.busy, v.state) for v in views.values()} == {("photos", 2, 0, "working")}
        assert max((node.heard_at or 0) - node.launched_at for node in controller.memory.nodes.values()) < 5
        await controller.reload(controller.policy)  # a second provider takes the workers over
        names = set(controller.memory.nodes)
        before = boots(controller)
        await until(lambda: boots(controller).isdisjoint(before), 10)
        assert set(controller.memory.nodes) == names
        gone = min(names)
        controller.submit(DrainCommand("local", gone))
        await until(lambda: gone not in controller.memory.nodes and phases(controller) == ["ready"] * 3, 20)
        controller.submit(DrainAllCommand())
        await until(lambda: not controller.memory.nodes, 20)
    assert present(await rig.provider().list()) == {}


async def test_a_restart_adopts_the_nodes_and_they_are_ready_again(rig, store_folder, monkeypatch):
    monkeypatch.setattr(simulated, "BEAT_S", 0.05)
    options: dict[str, Any] = {"clock": time.time, "boot": (0.0, 0.1)}
    async with controlled(rig, store_folder, **options) as controller:
        await until(lambda: phases(controller) == ["ready"] * 3, 15)
        names = set(controller.memory.nodes)
    async with controlled(rig, store_folder, **options) as controller:
        await until(lambda: len(controller.leases.views()) == 3 and phases(controller) == ["ready"] * 3, 15)
        assert set(controller.memory.nodes) == names


async def test_a_boot_that_fails_is_up_but_never_ready(rig, store_folder, monkeypatch):
    monkeypatch.setattr(simulated, "BEAT_S", 0.05)
    options: dict[str, Any] = {"clock": time.time, "boot": (0.0, 0.1), "boot_failure": "100%"}
    async with controlled(rig, store_folder, **options) as controller:
        await until(lambda: phases(controller) == [Phase.BOOTING] * 3, 15)
        await asyncio.sleep(1)
        assert phases(controller) == [Phase.BOOTING] * 3
        assert await states(rig.make(**options)) == ["up"] * 3
        assert controller.leases.views() == {}


@pytest.mark.slow
async def test_a_worker_that_is_told_to_stop_ends_its_node(rig, store_folder, monkeypatch):
    monkeypatch.setattr(simulated, "BEAT_S", 0.05)
    options: dict[str, Any] = {"clock": time.time, "boot": (0.0, 0.1)}
    async with controlled(rig, store_folder, **options) as controller:
        await until(lambda: phases(controller) == ["ready"] * 3, 15)
        name = min(controller.memory.nodes)
        controller.leases.order(name, "stop")
        await until(lambda: name not in controller.memory.nodes, 20)


async def test_a_controller_that_is_not_ours_is_not_obeyed(rig):
    answer = b'{"number":9,"state":"stop","protocol":1,"next_s":1,"ttl_s":1}'
    calls = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal calls
        while await reader.read(65536):
            calls += 1
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(answer) + answer)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    rig.launch = replace(rig.launch, controller_url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    provider = rig.make(boot=(0, 0))
    names = await launched(provider, order(rig, "1-1", 1))
    await provider.open(lambda: None)
    await until(lambda: calls >= 2, 5)
    assert set(present(await provider.list())) == names
    await provider.close()
    server.close()
    await server.wait_closed()
