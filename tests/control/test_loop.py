"""The controller over fake sources and providers and a store on disk: what it writes, does, survives and takes up."""

import asyncio
import json
import sqlite3
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from fleetd.codecs.lease import DeadLetter
from fleetd.control import loop, outlook
from fleetd.control.watch import Watch
from fleetd.core.model import (
    AppPolicy,
    Blind,
    DrainAllCommand,
    DrainCommand,
    Launched,
    NodeId,
    Order,
    Phase,
    QueuePolicy,
    Reading,
    Stopped,
    WakeCommand,
    World,
)
from fleetd.core.ports import Known
from fleetd.errors import ExhaustedError, FleetdError, ProviderError, RefusedError, SourceError
from tests.control.fleet import FakeProvider, FakeSource, Fleet, counts, lease, policy, pool, until


def written(folder: Path) -> dict[str, object]:
    """The memory as it stands in the store's file now."""
    db = sqlite3.connect(f"file:{folder / 'fleet.db'}?mode=ro", uri=True)
    try:
        memory: dict[str, object] = json.loads(db.execute("SELECT body FROM memory").fetchone()[0])
        return memory
    finally:
        db.close()


def fail_writing(monkeypatch: pytest.MonkeyPatch, fleet: Fleet) -> None:
    """Take the disk away: every commit fails until the patch is undone."""

    def commit(*_: object, **__: object) -> None:
        raise FleetdError("fleet.db: cannot write: database or disk is full")

    monkeypatch.setattr(fleet.store, "commit", commit)


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.1)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)
    monkeypatch.setattr(loop, "CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(outlook, "CLOSE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(outlook, "Watch", partial(Watch, every_s=0.05))


def breaker_open(fleet: Fleet) -> bool:
    learned = fleet.controller.memory.pools.get("local")
    return learned is not None and learned.open_until > fleet.controller.clock()


# ── launching


async def test_an_order_is_in_the_store_before_the_provider_is_asked(tmp_path: Path) -> None:
    seen: list[object] = []
    provider = FakeProvider("local", before=lambda order: seen.append(written(tmp_path)["orders"]))
    fleet = Fleet(tmp_path, policy(), FakeSource(waiting=3), {"local": provider})
    async with fleet.running():
        await until(lambda: provider.launches)
    (order,) = provider.launches
    assert (order.pool, order.app, order.epoch, order.key) == ("local", "photos", 1, "1-1")
    assert isinstance(seen[0], dict)
    assert seen[0]["1-1"]["order"]["count"] == order.count


async def test_nodes_of_an_order_become_ready_by_their_own_word(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(pool(min_nodes=2)))
    async with fleet.running() as controller:
        await until(lambda: len(controller.memory.nodes) == 2 and not controller.memory.orders)
        assert Phase.READY not in {n.phase for n in controller.memory.nodes.values()}
        await fleet.all_speak()
        await until(lambda: {n.phase for n in controller.memory.nodes.values()} == {Phase.READY})
        assert len(fleet.providers["local"].launches) == 1


@pytest.mark.parametrize(
    ("error", "kind", "opens_at"),
    [
        (ExhaustedError("pool local: none left"), "exhausted: pool local: none left", 1),
        (RefusedError("pool local: quota"), "refused: pool local: quota", 1),
        (ProviderError("pool local: 500"), "error: pool local: 500", 3),
        (KeyError("a bug"), "error: KeyError: 'a bug'", 3),
    ],
)
async def test_a_failed_launch_opens_the_pools_breaker(
    tmp_path: Path, error: Exception, kind: str, opens_at: int
) -> None:
    provider = FakeProvider("local", error=error)
    fleet = Fleet(tmp_path, policy(pool(min_nodes=1)), providers={"local": provider})
    async with fleet.running() as controller:
        await until(lambda: breaker_open(fleet))
        await asyncio.sleep(0.3)
        learned = controller.memory.pools["local"]
        assert (learned.failures, learned.why_open) == (opens_at, kind)
        assert len(provider.launches) == opens_at, "none while the breaker is open"
        assert controller.memory.orders == {}
    assert any(f"failure {opens_at} in a row: {kind}" in text for what, text in fleet.said if what == "event")


async def test_a_wedged_provider_does_not_delay_another_pool(tmp_path: Path) -> None:
    wedged, well = FakeProvider("a", wedged=True), FakeProvider("b")
    pools = (pool("a", min_nodes=1), pool("b", min_nodes=0))
    fleet = Fleet(tmp_path, policy(*pools), providers={"a": wedged, "b": well})
    async with fleet.running() as controller:
        await until(lambda: wedged.launches)
        controller.submit(WakeCommand("b", 2, 60.0))
        await until(lambda: len(well.machines.nodes) == 2, limit_s=2.0)
        tick = controller.ticked
        await asyncio.wait_for(tick.wait(), 2.0)


async def test_a_launch_that_is_never_answered_fails_at_its_time_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "LAUNCH_TIMEOUT_S", 0.1)
    provider = FakeProvider("local", wedged=True)
    fleet = Fleet(tmp_path, policy(pool(min_nodes=1)), providers={"local": provider})
    async with fleet.running() as controller:
        await until(lambda: controller.memory.pools.get("local") and controller.memory.pools["local"].failures)
        assert controller.memory.pools["local"].why_open == "error: no answer within 0 s"


# ── observing


async def test_the_tick_goes_on_when_a_source_raises_and_nothing_is_scaled_in(tmp_path: Path) -> None:
    source = FakeSource(waiting=2)
    fleet = Fleet(tmp_path, policy(), source)
    async with fleet.running() as controller:
        await until(lambda: fleet.providers["local"].machines.nodes)
        source.error = SourceError("main: connection refused")
        await until(lambda: controller.memory.queues["resize"].blind_at is not None)
        assert controller.memory.queues["resize"].why_blind == "main: connection refused"
        assert controller.memory.queues["resize"].waiting == 2, "never a zero"
        for _ in range(3):
            await controller.tick()
        assert not fleet.providers["local"].machines.stopped
        source.error = None
        await until(lambda: controller.memory.queues["resize"].blind_at is None)


async def test_an_adapter_that_cannot_be_opened_costs_its_own_pool_and_is_tried_again(tmp_path: Path) -> None:
    bad = FakeProvider("a", open_error=ProviderError("pool a: no credentials"))
    fleet = Fleet(tmp_path, policy(pool("a", min_nodes=1), pool("b", min_nodes=1)), providers={"a": bad})
    async with fleet.running() as controller:
        await until(lambda: fleet.providers["b"].machines.nodes)
        assert controller.observation.worlds["a"] == Blind("pool a: no credentials")
        assert bad.launches == []
        bad.open_error = None
        await until(lambda: bad.machines.nodes)


async def test_an_adapter_that_never_opens_does_not_hold_up_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(FakeProvider):
        async def open(self, nudge: object) -> None:
            await asyncio.Event().wait()

    monkeypatch.setattr(loop, "TIMEOUT_S", 0.2)
    fleet = Fleet(tmp_path, policy(pool("a"), pool("b", min_nodes=1)), providers={"a": Stuck("a")})
    async with fleet.running():
        await until(lambda: fleet.providers["b"].machines.nodes, limit_s=2.0)


# ── the store


async def test_nothing_is_done_that_cannot_be_written_and_all_is_done_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(tmp_path, policy(), FakeSource(waiting=5))
    provider = fleet.providers["local"]
    with monkeypatch.context() as broken:
        fail_writing(broken, fleet)
        async with fleet.running() as controller:
            controller.submit(WakeCommand("local", 1, 60.0))
            await controller.accept(lease("local/9.9", 1, jobs=counts(4)))
            await until(lambda: len([1 for kind, _ in fleet.said if kind == "error"]) >= 3)
            assert provider.launches == []
            assert controller.memory.queues == {}
            assert fleet.store.memory() is None
            broken.undo()
            await until(lambda: provider.machines.nodes)
            (queue,) = controller.memory.queues.values()
            assert queue.read_at is not None
            assert len(controller.memory.pools["local"].wakes) == 1, "the command was kept"
            assert written(tmp_path)["nodes"] or written(tmp_path)["orders"]


async def test_work_is_not_lost_with_a_tick_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(tmp_path, policy())
    await fleet.controller.accept(lease("local/9.9", 1, jobs=counts(4, 2, 0, 9.0)))
    with monkeypatch.context() as broken:
        fail_writing(broken, fleet)
        with pytest.raises(FleetdError):
            await fleet.controller.tick()
    await fleet.controller.tick()
    assert fleet.controller.observation.work["resize"].started == 4
    await fleet.controller.tick()
    assert fleet.controller.observation.work["resize"].started == 0
    fleet.store.close()


async def test_adapters_that_hold_up_every_shared_thread_do_not_hold_up_the_store(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(1))
    held = asyncio.create_task(asyncio.to_thread(time.sleep, 0.5))
    await asyncio.sleep(0)
    async with asyncio.timeout(0.4):
        await fleet.controller.tick()
    assert not held.done()
    await held
    fleet.store.close()


def dead(name: str) -> DeadLetter:
    return DeadLetter(name, "resize", "u", "H:1", 3, "boom", "", "")


async def test_dead_letters_are_stored_before_they_are_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet = Fleet(tmp_path, policy())
    answer = await fleet.controller.accept(lease(seq=1, dead=[dead("a"), dead("b")]))
    assert answer.dead == ["a", "b"]
    assert fleet.controller.count_dead() == 2
    with monkeypatch.context() as broken:

        def add_dead(*_: object) -> None:
            raise FleetdError("fleet.db: cannot write: disk full")

        broken.setattr(fleet.store, "add_dead", add_dead)
        answer = await fleet.controller.accept(lease(seq=2, busy=1, dead=[dead("c")]))
    assert answer.dead == [], "unconfirmed: the worker sends it again"
    assert fleet.controller.leases.views()["local/1.1"].busy == 1, "and its lease counts all the same"
    answer = await fleet.controller.accept(lease(seq=3, dead=[dead("b"), dead("c")]))
    assert answer.dead == ["b", "c"]
    assert fleet.controller.count_dead() == 3
    fleet.store.close()


# ── restarts


async def test_a_restart_adopts_nodes_and_neither_doubles_nor_leaks(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(pool(min_nodes=3)))
    provider = fleet.providers["local"]
    async with fleet.running() as controller:
        await until(lambda: len(controller.memory.nodes) == 3)
        await fleet.all_speak()
        await until(lambda: {n.phase for n in controller.memory.nodes.values()} == {Phase.READY})
    before = set(provider.machines.nodes)
    assert len(before) == 3
    assert provider.machines.stopped == [], "the controller's end ends no worker"
    for epoch in (2, 3):
        fleet.start()
        async with fleet.running() as controller:
            assert controller.memory.epoch == epoch
            await asyncio.sleep(0.3)
            assert set(controller.memory.nodes) == set(provider.machines.nodes) == before
            assert {n.phase for n in controller.memory.nodes.values()} == {Phase.READY}
    assert len(provider.launches) == 1


async def test_an_order_that_a_crash_left_unsent_is_sent_by_the_next_start_under_its_key(tmp_path: Path) -> None:
    provider = FakeProvider("local", wedged=True)
    fleet = Fleet(tmp_path, policy(pool(min_nodes=2)), providers={"local": provider})
    async with fleet.running():
        await until(lambda: provider.launches)
    provider.wedged = False
    fleet.start()
    async with fleet.running() as controller:
        await until(lambda: len(controller.memory.nodes) == 2 and not controller.memory.orders)
        await asyncio.sleep(0.3)
    assert [(o.key, o.count, o.epoch) for o in provider.launches] == [("1-1", 2, 1), ("1-1", 2, 2)]
    assert Counter(provider.machines.nodes.values()) == {"1-1": 2}


async def test_an_order_whose_answer_a_crash_lost_is_not_doubled(tmp_path: Path) -> None:
    class LosesAnswers(FakeProvider):
        async def launch(self, order: Order) -> Launched:
            answer = await FakeProvider.launch(self, order)
            if len(self.launches) == 1:
                await asyncio.Event().wait()
            return answer

        async def list(self) -> World:
            if len(self.launches) == 1:
                raise ProviderError("pool local: away")
            return await FakeProvider.list(self)

    provider = LosesAnswers("local")
    fleet = Fleet(tmp_path, policy(pool(min_nodes=2)), providers={"local": provider})
    async with fleet.running():
        await until(lambda: len(provider.machines.nodes) == 2)
    fleet.start()
    async with fleet.running() as controller:
        await until(lambda: len(controller.memory.nodes) == 2 and not controller.memory.orders)
        await asyncio.sleep(0.3)
        assert len(provider.machines.nodes) == 2


async def test_a_lost_memory_finds_the_nodes_again_and_uses_no_key_twice(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(pool(min_nodes=2)))
    async with fleet.running() as controller:
        await until(lambda: len(controller.memory.nodes) == 2)
    with sqlite3.connect(tmp_path / "fleet.db") as db:
        db.execute("UPDATE memory SET body = ?", (b"{}x",))
    db.close()
    fleet.start()
    assert fleet.said[-1] == (
        "error",
        "the memory cannot be read, another version wrote it: the nodes are adopted as strays",
    )
    async with fleet.running() as controller:
        assert controller.memory.epoch == 2
        await until(lambda: len(controller.memory.nodes) == 2)
        controller.submit(WakeCommand("local", 4, 60.0))
        await until(lambda: len(fleet.providers["local"].machines.nodes) == 4)
    assert Counter(fleet.providers["local"].machines.nodes.values()) == {"1-1": 2, "2-1": 2}


async def test_a_restart_says_a_drain_anew(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(pool(min_nodes=1)))
    async with fleet.running() as controller:
        await until(lambda: controller.memory.nodes)
        await fleet.all_speak()
        await until(lambda: {n.phase for n in controller.memory.nodes.values()} == {Phase.READY})
        (node,) = controller.memory.nodes
        controller.submit(DrainCommand("local", node))
        await until(lambda: controller.memory.nodes[node].phase is Phase.DRAINING)
        first = controller.leases.entries[node].order
    assert (first.state, first.deadline_s) == ("drain", 60.0)
    fleet.start()
    again = fleet.controller.leases.entries[node].order
    assert (again.state, again.deadline_s, again.epoch) == ("drain", 60.0, 2)
    assert again.number > first.number
    fleet.store.close()


async def test_nodes_of_a_pool_that_went_while_we_were_away_are_told_to_end_and_hold_up_nothing(
    tmp_path: Path,
) -> None:
    fleet = Fleet(tmp_path, policy(pool("a", min_nodes=1), pool("b")))
    async with fleet.running() as controller:
        await until(lambda: controller.memory.nodes)
    fleet.policy = policy(pool("b"))
    fleet.start()
    async with fleet.running() as controller:
        await controller.accept(lease("a/1.1"))
        assert controller.leases.entries["a/1.1"].order.state == "stop"
        assert controller.memory.nodes == {}
        controller.submit(DrainAllCommand())
        await until(lambda: controller.memory.ending)


# ── commands and the end


async def test_a_command_is_taken_by_a_tick_that_saw_it(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    async with fleet.running() as controller:
        for count in range(1, 6):
            command = WakeCommand("local", count, 60.0)
            controller.submit(command)
            assert await controller.taken([command], 5.0)
            assert count in {wake.count for wake in controller.memory.pools["local"].wakes}
    command = WakeCommand("local", 1, 60.0)
    fleet.controller.submit(command)
    assert not await fleet.controller.taken([command], 0.05), "nobody ticks any more"


async def test_ending_the_fleet_drains_every_node_and_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fleetd.core.track.ABSENT_S", 0.2)
    fleet = Fleet(tmp_path, policy(pool(min_nodes=2)))
    life = asyncio.create_task(fleet.controller.run())
    try:
        await until(lambda: len(fleet.controller.memory.nodes) == 2)
        await fleet.all_speak()
        await until(lambda: {n.phase for n in fleet.controller.memory.nodes.values()} == {Phase.READY})
        fleet.controller.submit(DrainAllCommand())
        await until(lambda: {n.phase for n in fleet.controller.memory.nodes.values()} == {Phase.DRAINING})
        assert fleet.providers["local"].machines.stopped == [], "not before they say that they are drained"
        await fleet.all_speak()
        await asyncio.wait_for(life, 8.0)
    finally:
        life.cancel()
        await asyncio.gather(life, return_exceptions=True)
        fleet.store.close()
    assert fleet.providers["local"].machines.nodes == {}
    assert len(fleet.providers["local"].machines.stopped) == 2
    assert fleet.controller.memory.nodes == {}
    assert (fleet.source.closed, fleet.providers["local"].closed) == (1, 1)


async def test_the_end_waits_for_no_wedged_adapter(tmp_path: Path) -> None:
    class NeverCloses(FakeProvider):
        async def close(self) -> None:
            await asyncio.Event().wait()

    fleet = Fleet(tmp_path, policy(pool(min_nodes=1)), providers={"local": NeverCloses("local", wedged=True)})
    async with fleet.running():
        await until(lambda: fleet.providers["local"].launches)
        started = time.monotonic()
    assert time.monotonic() - started < 1.0
    assert ("error", "closing: an adapter did not close in time") in fleet.said


async def test_where_only_the_worker_can_end_its_node_it_is_told_before_its_provider_is_asked(tmp_path: Path) -> None:
    """Seen to fail without the order in `_stop`."""

    class Machine(FakeProvider):
        stops_by_order = True

        async def stop(self, nodes: Sequence[NodeId], grace_s: float, order: Order | None = None) -> Stopped:
            told.extend(fleet.controller.leases.entries[node].order.state for node in nodes)
            return Stopped(tuple(nodes))

    told: list[str] = []
    fleet = Fleet(tmp_path, policy(pool(min_nodes=1)), providers={"local": Machine("local")})
    async with fleet.running() as controller:
        await ready(fleet, 1)
        controller.submit(DrainCommand("local"))
        await until(lambda: {n.phase for n in controller.memory.nodes.values()} == {Phase.DRAINING})
        assert told == []
        await fleet.all_speak()
        await until(lambda: told == ["stop"])


async def test_providers_that_listen_hear_what_is_known_of_their_nodes(tmp_path: Path) -> None:
    class Listening(FakeProvider):
        def hear(self, sentence: str, nodes: Mapping[NodeId, Known]) -> None:
            heard.append((sentence, dict(nodes)))

    heard: list[tuple[str, dict[NodeId, Known]]] = []
    fleet = Fleet(tmp_path, policy(pool(min_nodes=1)), providers={"local": Listening("local")})
    async with fleet.running() as controller:
        await ready(fleet, 1)
        (node,) = controller.memory.nodes
        await until(lambda: heard and heard[-1][1].keys() == {node} and heard[-1][1][node].phase is Phase.READY)
        sentence, known = heard[-1][0], heard[-1][1][node]
    assert sentence.startswith("1 of 10 nodes")
    assert (known.busy, known.state) == (0, "working")
    assert known.age_s is not None
    assert 0.0 <= known.age_s < 5.0


async def test_what_providers_have_to_tell_is_in_the_journal_once(tmp_path: Path) -> None:
    class Telling(FakeProvider):
        async def news(self) -> Sequence[str]:
            told, texts[:] = list(texts), []
            return told

    texts = ["node07: its power was cut"]
    fleet = Fleet(tmp_path, policy(pool()), providers={"local": Telling("local")})
    async with fleet.running() as controller:
        line = "pool local: node07: its power was cut"
        await until(lambda: line in [entry.text for entry in controller.events(50)])
        for _ in range(3):
            await controller.ticked.wait()
        assert [entry.text for entry in controller.events(50)].count(line) == 1
    assert fleet.said.count(("event", line)) == 1


# ── reload


async def ready(fleet: Fleet, count: int) -> None:
    """Wait for so many ready nodes."""
    await until(lambda: len(fleet.controller.memory.nodes) == count)
    await fleet.all_speak()
    await until(lambda: {n.phase for n in fleet.controller.memory.nodes.values()} == {Phase.READY})


async def test_a_reload_keeps_a_removed_pool_until_its_nodes_have_drained(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(pool("a", min_nodes=1), pool("b")))
    async with fleet.running() as controller:
        await ready(fleet, 1)
        await controller.reload(policy(pool("b")))
        (node,) = controller.memory.nodes
        await until(lambda: controller.memory.nodes[node].phase is Phase.DRAINING)
        assert controller.policy.pools["a"].max_nodes == 0
        assert fleet.providers["a"].machines.stopped == []
        await fleet.all_speak()
        await until(lambda: fleet.providers["a"].machines.stopped == [node])
        await controller.reload(policy(pool("a", min_nodes=2), pool("b")))
        await until(lambda: len(fleet.providers["a"].machines.nodes) == 2)  # it is back and not drained for ever


async def test_a_reload_keeps_a_removed_pool_whose_order_is_under_way(tmp_path: Path) -> None:
    provider = FakeProvider("a", wedged=True)
    fleet = Fleet(tmp_path, policy(pool("a", min_nodes=1), pool("b")), providers={"a": provider})
    async with fleet.running() as controller:
        await until(lambda: provider.launches)
        provider.machines.nodes["a/1.1"] = provider.launches[0].key
        reloading = asyncio.create_task(controller.reload(policy(pool("b"))))
        await until(lambda: "a/1.1" in controller.memory.nodes)
        await fleet.all_speak()
        await until(lambda: controller.leases.entries["a/1.1"].order.state == "drain")
        await reloading


async def test_an_operators_drain_survives_a_reload(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    async with fleet.running() as controller:
        command = DrainCommand("local")
        controller.submit(command)
        await controller.taken([command], 5.0)
        await controller.reload(policy(pool(min_nodes=2)))
        await controller.tick()
        assert controller.memory.pools["local"].drained_until > controller.clock()
    assert fleet.providers["local"].launches == []


async def test_nodes_of_an_app_that_their_pool_no_longer_runs_are_drained(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(pool(min_nodes=1)))
    async with fleet.running() as controller:
        await ready(fleet, 1)
        (node,) = controller.memory.nodes
        changed = policy(
            pool(apps=("mail",)),
            apps={"mail": AppPolicy("mail", path="/mail")},
            queues={"mail": QueuePolicy("mail", "mail", "main", "mail", fleet.policy.queues["resize"].objective)},
        )
        await controller.reload(changed)
        await until(lambda: controller.memory.nodes[node].phase is Phase.DRAINING)


async def test_a_reload_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(pool(min_nodes=1)), FakeSource(waiting=1))
    async with fleet.running() as controller:
        await until(lambda: controller.memory.nodes)
        before = controller.policy

        def make(_: object) -> object:
            raise FleetdError("fleetd.providers: no adapter 'moon' is installed")

        controller._make = make  # type: ignore[assignment]
        with pytest.raises(FleetdError, match="moon"):
            await controller.reload(policy(pool("moon")))
        await controller.tick()
        assert controller.policy is before
        assert controller.observation.readings["resize"] == Reading("resize", 1, 0)
        assert fleet.source.closed == 0


async def test_a_reload_leaves_no_tick_without_sight(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(), FakeSource(waiting=1))
    async with fleet.running() as controller:
        await until(lambda: controller.memory.queues)
        for _ in range(3):
            ticking = asyncio.create_task(controller.tick())
            await controller.reload(policy())
            await ticking
            await controller.tick()
    assert fleet.source.closed == 4
    assert not [text for _, text in fleet.said if "blind" in text]
