"""A shadow says what it would do and does none of it, whatever it starts from and whoever asks it."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest

from fleetd.control import loop, outlook, shadow
from fleetd.control.shadow import Glimpse, Looking, Shadow, dump_glimpse, load_glimpse
from fleetd.control.watch import Watch
from fleetd.core.memory import Memory, Node, Pending
from fleetd.core.model import DrainCommand, Order, Phase, Policy, WakeCommand
from fleetd.errors import FleetdError, RefusedError, UnreachableError, UsageError
from fleetd.store.sqlite import Store
from tests.control.fleet import FakeProvider, FakeSource, Fleet, policy, pool, until


@pytest.fixture(autouse=True)
def _fast(monkeypatch):
    monkeypatch.setattr(loop, "TICK_S", 0.05)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)
    monkeypatch.setattr(shadow, "TIMEOUT_S", 0.5)
    monkeypatch.setattr(shadow, "AGAIN_S", 0.3)
    monkeypatch.setattr(outlook, "Watch", partial(Watch, every_s=0.02))
    monkeypatch.setattr(shadow, "Watch", partial(Watch, every_s=0.02))


async def nobody() -> Glimpse:
    raise UnreachableError("no controller of fleet 'test' runs here")


class Beside:
    """A shadow over the same machines and source as a fleet."""

    def __init__(self, fleet: Fleet, rules: Policy, ask: Callable[[], Awaitable[Glimpse]] = nobody) -> None:
        self.said: list[tuple[str, str]] = []
        self.store = Store(fleet.folder / "shadow")
        self.controller = Shadow(rules, self.store, fleet.make, lambda *line: self.said.append(line), ask)

    @asynccontextmanager
    async def running(self):
        life = asyncio.create_task(self.controller.run())
        try:
            yield self.controller
            if life.done():
                life.result()
        finally:
            life.cancel()
            await asyncio.wait([life])
            self.store.close()

    def would(self) -> list[str]:
        return [text for kind, text in self.said if kind == "event" and text.startswith("would ")]


def node(name: str, phase: Phase = Phase.READY, now: float = 0.0, **changes: object) -> Node:
    made = Node(f"local/{name}", "local", "photos", phase, now, now, 1, heard_at=now)
    return replace(made, **changes)  # type: ignore[arg-type]


async def test_it_says_what_it_would_launch_once_and_launches_nothing(tmp_path):
    fleet = Fleet(tmp_path, policy(), FakeSource(waiting=9))
    fleet.store.close()
    beside = Beside(fleet, fleet.policy)
    async with beside.running() as controller:
        await until(beside.would)
        for _ in range(5):
            await controller.ticked.wait()
        (line,) = beside.would()
        assert line.startswith("would launch ")
        assert " in local for photos: " in line
        assert (controller.memory.nodes, controller.memory.orders) == ({}, {})
    assert fleet.providers["local"].launches == []
    journal = Store(tmp_path / "shadow", read_only=True)
    assert line in [entry.text for entry in journal.journal(last=1000)]
    journal.close()


async def test_it_says_when_it_would_no_longer(tmp_path):
    source = FakeSource(waiting=9)
    fleet = Fleet(tmp_path, policy(), source)
    fleet.store.close()
    beside = Beside(fleet, fleet.policy)
    async with beside.running():
        await until(beside.would)
        source.waiting = 0
        await until(lambda: "would no longer launch in local for photos" in beside.would())


async def test_two_pools_are_filled_as_the_live_controller_would(tmp_path):
    """Watching each pool by itself would ask each for the whole need."""
    rules = policy(pool("cheap", max_nodes=2), pool("dear", price_per_h=1.0))
    fleet = Fleet(tmp_path, rules, FakeSource(waiting=500))
    fleet.store.close()
    beside = Beside(fleet, rules)
    async with beside.running():
        await until(lambda: len(beside.would()) >= 2)
    assert any(line.startswith("would launch 2 in cheap for photos: ") for line in beside.would())
    assert any(" in dear for photos: " in line for line in beside.would())
    assert not any(provider.launches for provider in fleet.providers.values())


async def test_it_stands_in_the_live_controllers_shoes(tmp_path):
    """Nodes, their phases and what is learned come from there; the intents are those of the shadow's own policy."""
    live = Fleet(tmp_path, policy(pool(min_nodes=3)))

    async def ask() -> Glimpse:
        return load_glimpse(json.loads(dump_glimpse(live.controller)))

    beside = Beside(live, policy(pool(min_nodes=5)), ask)
    async with live.running() as controller, beside.running() as follower:
        await until(lambda: len(live.providers["local"].machines.nodes) == 3)
        await live.all_speak()
        await until(lambda: {n.phase for n in follower.memory.nodes.values()} == {Phase.READY})
        await until(lambda: any(line.startswith("would launch 2 in local ") for line in beside.would()))
        assert follower.memory.nodes.keys() == controller.memory.nodes.keys()
        assert follower.memory.pools["local"].boots_s == controller.memory.pools["local"].boots_s
        machines = live.providers["local"].machines
        assert (len(machines.nodes), machines.stopped) == (3, [])
        assert len(live.providers["local"].launches) == 1, "the live controller's own"
    assert ("shadow", "the live controller lends its memory") in beside.said or not any(
        kind == "shadow" for kind, _ in beside.said
    )


async def test_it_would_drain_what_its_policy_has_no_room_for(tmp_path):
    live = Fleet(tmp_path, policy(pool(min_nodes=2), stability="thrifty"))

    async def ask() -> Glimpse:
        return load_glimpse(json.loads(dump_glimpse(live.controller)))

    beside = Beside(live, policy(pool(min_nodes=1), stability="thrifty"), ask)
    async with live.running(), beside.running():
        await until(lambda: len(live.providers["local"].machines.nodes) == 2)
        await live.all_speak()
        await until(lambda: [line for line in beside.would() if line.startswith("would drain local/")], limit_s=10)
        assert not live.providers["local"].machines.stopped
        assert all(entry.order.state == "work" for entry in live.controller.leases.entries.values())


async def test_orders_in_its_memory_are_never_sent_again(tmp_path):
    """They are the live controller's, lent and stored. Seen to fail without `_send_again` and `Looking`."""
    fleet = Fleet(tmp_path, policy())
    fleet.store.close()
    store = Store(tmp_path / "shadow")
    order = Pending(Order("1-1", "local", "photos", 3, 3, 1), 0.0)
    store.commit(Memory(epoch=1, now=1.0, orders={"1-1": order}, nodes={"local/x": node("x")}))
    store.close()
    beside = Beside(fleet, fleet.policy)
    async with beside.running() as controller:
        for _ in range(5):
            await controller.ticked.wait()
    assert fleet.providers["local"].launches == []
    assert fleet.providers["local"].machines.stopped == []


async def test_no_command_is_taken(tmp_path):
    fleet = Fleet(tmp_path, policy())
    fleet.store.close()
    beside = Beside(fleet, fleet.policy)
    for command in (WakeCommand("local", 1, 60.0), DrainCommand("local", "local/x", force=True)):
        with pytest.raises(UsageError, match="this is a shadow of fleet test, it touches nothing"):
            beside.controller.submit(command)
    beside.store.close()


async def test_without_a_live_controller_nodes_are_known_by_their_providers_word(tmp_path):
    fleet = Fleet(tmp_path, policy())
    fleet.store.close()
    fleet.providers["local"].machines.nodes["local/7.1"] = "by hand"
    beside = Beside(fleet, fleet.policy)
    async with beside.running() as controller:
        await until(lambda: "local/7.1" in controller.memory.nodes)
        await until(lambda: controller.memory.nodes["local/7.1"].phase is Phase.READY)
        assert controller.memory.nodes["local/7.1"].busy == 1
        told = [text for kind, text in beside.said if kind == "shadow"]
        assert told == [
            "no live controller lends its memory, nodes are taken for busy: no controller of fleet 'test' runs here"
        ]


async def test_a_provider_is_only_looked_through():
    provider = FakeProvider("local")
    only = Looking(provider, opens=True)
    await only.open(lambda: None)
    assert (await only.list()).sightings == ()
    with pytest.raises(RefusedError, match="a shadow launches nothing"):
        await only.launch(Order("1-1", "local", "photos", 1, 1, 1))
    with pytest.raises(RefusedError, match="a shadow stops nothing"):
        await only.stop(["local/1.1"], 0.0)
    assert (provider.launches, provider.machines.stopped) == ([], [])


@pytest.mark.parametrize("raw", [{}, {"memory": {"nodes": 3}, "running_s": {}}, {"memory": None, "running_s": {}}])
def test_what_another_version_lends_is_told_in_a_line(raw):
    with pytest.raises(FleetdError, match="the live controller is of another version"):
        load_glimpse(raw)
