"""What can go wrong with a machine, each shown with what fleetd does and says. Real packets, real processes."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fleetd.core.model import Order, World
from fleetd.errors import ExhaustedError, ProviderError
from fleetd.providers.rack.book import Book
from fleetd.providers.rack.inventory import RackOptions
from fleetd.providers.rack.provider import RackProvider
from tests.conformance.provider import ignore, launched, order, present, settles
from tests.rack.rig import Heard, RackRig

pytestmark = pytest.mark.slow
LIMIT_S = 15.0


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[RackRig]:
    rig = RackRig(tmp_path)
    try:
        yield rig
    finally:
        rig.close()


async def opened(rig: RackRig, boot_s: float = 60.0, off_s: float = 2.0, **more: Any) -> Heard:
    provider = rig.make(**more)
    patient = provider._options.model_dump() | {"boot": boot_s, "off": off_s}
    provider._options = RackOptions.model_construct(**patient | {"inventory": provider._options.inventory})
    await provider.open(ignore)
    return provider


async def until(provider: RackProvider, check: Callable[[World], bool]) -> World:
    deadline = time.monotonic() + LIMIT_S
    while not check(world := await provider.list()):
        assert time.monotonic() < deadline, world
        await asyncio.sleep(0.05)
    return world


async def up(provider: Heard, nodes: set[str]) -> None:
    await settles(provider, lambda found: {n for n, s in found.items() if s.state == "up"} >= nodes)


async def test_one_that_never_answers_is_told_three_times_given_up_kept_out_and_replaced(rig: RackRig) -> None:
    provider = await opened(rig, boot_s=3.0, count=2)
    rig.daemon.outlets[rig.machines["one-rack3-1"]["mac"]].plugged = False
    (node,) = await launched(provider, order(rig, "1-1", 1))
    world = await until(provider, lambda world: node in world.gone)
    assert [became for _, _, became in rig.daemon.heard] == ["unplugged"] * 3
    assert world.gone[node] == (
        "one-rack3-1 did not answer 3 magic packets within 3 s: cable, wake-on-LAN in its firmware, SecureOn password?"
    )
    assert world.offer.headroom == 1
    assert "one-rack3-1 is kept out for 1m: did not answer 3 magic packets" in world.offer.why
    assert await provider.news() == [f"{node}: {world.gone[node]}; kept out for 60 s"]
    assert await provider.news() == []
    (other,) = await launched(provider, order(rig, "1-1", 1))
    assert other == "rack3/one-rack3-2.1"
    await provider.close()


async def test_a_wrong_secureon_password_wakes_nobody_and_is_among_the_causes_named(rig: RackRig) -> None:
    provider = await opened(rig, boot_s=1.0, count=1)
    rig.daemon.outlets[rig.machines["one-rack3-1"]["mac"]].secureon = "aa:bb:cc:dd:ee:ff"
    (node,) = await launched(provider, order(rig, "1-1", 1))
    world = await until(provider, lambda world: node in world.gone)
    assert {(password, became) for _, password, became in rig.daemon.heard} == {("001122334455", "wrong password")}
    assert world.gone[node].endswith("SecureOn password?")
    await provider.close()


async def test_one_that_boots_and_never_registers_is_told_how_far_it_came_and_cut_off(rig: RackRig) -> None:
    rig.speaking = False
    provider = await opened(rig, boot_s=1.5, count=1)
    (node,) = await launched(provider, order(rig, "1-1", 1))
    outlet = rig.outlet(node)
    await asyncio.to_thread(rig.daemon.wait, outlet.mac, on=True)
    assert provider._book is not None
    provider._book.see(outlet.mac, "initrd", "10.77.0.17", "x86_64", time.time())
    world = await until(provider, lambda world: node in world.gone)
    assert world.gone[node].startswith("one-rack3-1 came as far as 'initrd', ")
    assert world.gone[node].endswith("its worker was not let in within 2 s")
    await asyncio.to_thread(rig.daemon.wait, outlet.mac, on=False)
    assert outlet.starts == 1
    await provider.close()


async def test_one_that_answers_but_boots_from_elsewhere_is_told_so(rig: RackRig) -> None:
    rig.speaking = False
    provider = await opened(rig, boot_s=2.0, count=1)
    (node,) = await launched(provider, order(rig, "1-1", 1))
    world = await until(provider, lambda world: node in world.gone)
    assert "answers on the network, but did not ask the boot service" in world.gone[node]
    await provider.close()


async def test_one_that_reboots_by_itself_is_gone_and_waits_to_be_taken_without_a_packet(rig: RackRig) -> None:
    provider = await opened(rig, count=1)
    (node,) = await launched(provider, order(rig, "1-1", 1))
    await up(provider, {node})
    await asyncio.sleep(2.1)
    book, outlet = provider._book, rig.outlet(node)
    assert book is not None
    book.see(outlet.mac, "script", "", "", time.time())
    world = await until(provider, lambda world: node in world.gone)
    assert world.gone[node] == "one-rack3-1 rebooted by itself"
    with pytest.raises(ExhaustedError, match="one-rack3-1 is kept out for 1m: rebooted by itself"):
        await provider.launch(order(rig, "1-2", 1))
    book.free(outlet.mac)
    packets = len(rig.daemon.heard)
    book.see(outlet.mac, "script", "", "", time.time())  # it asks again every ten seconds
    world = await until(provider, lambda world: world.sightings[0].state == "warm")
    (again,) = await launched(provider, order(rig, "1-2", 1))
    assert again == "rack3/one-rack3-1.2"
    await up(provider, {again})
    assert len(rig.daemon.heard) == packets, "it was on already"
    await provider.close()


async def test_one_whose_cable_is_cut_is_gone_by_proof_of_two_silences(rig: RackRig) -> None:
    provider = await opened(rig, count=1)
    (node,) = await launched(provider, order(rig, "1-1", 1))
    await rig.lose(node)
    world = await until(provider, lambda world: node in world.gone)
    assert world.gone[node].startswith("one-rack3-1 fell silent: no word from its worker for ")
    assert world.gone[node].endswith(", and no answer on the network")
    await provider.close()


async def test_a_worker_that_is_silent_on_a_machine_that_answers_is_no_proof(rig: RackRig) -> None:
    provider = await opened(rig, count=1)
    (node,) = await launched(provider, order(rig, "1-1", 1))
    await up(provider, {node})
    rig.speaking = False
    await asyncio.sleep(3 * (rig.patience.quiet_s + rig.patience.silent_s))
    assert set(present(await provider.list())) == {node}
    await provider.close()


async def test_one_that_does_not_go_off_by_itself_is_cut_off_also_by_the_next_controller(rig: RackRig) -> None:
    provider = await opened(rig, count=1)
    (node,) = await launched(provider, order(rig, "1-1", 1))
    await up(provider, {node})
    rig.speaking = False  # nobody obeys
    await provider.stop([node], 1.0)
    await provider.close()
    again = await opened(rig, count=1)
    world = await until(again, lambda world: node in world.gone)
    assert world.gone[node] == "one-rack3-1 stopped as asked: nothing answers any longer"
    assert [text.partition(" was told")[0] for text in await again.news()] == [
        "one-rack3-1: its power was cut: told to go 2 s ago"
    ]
    assert not rig.outlet(node).on
    await again.close()


async def test_one_that_stays_on_and_cannot_be_cut_is_told_left_alone_and_counted(tmp_path: Path) -> None:
    rig = RackRig(tmp_path, power=lambda daemon, mac: "wol")
    try:
        provider = await opened(rig, count=2, watts=150)
        for machine in rig.machines.values():
            assert "command" not in machine["power"]
        (node,) = await launched(provider, order(rig, "1-1", 1))
        await up(provider, {node})
        rig.speaking = False
        await provider.stop([node], 0.0)
        world = await until(provider, lambda world: node in world.gone)
        assert world.gone[node].startswith("one-rack3-1 did not go off ")
        assert world.gone[node].endswith(" s after it was told to go; nothing can cut its power: see to it")
        world = await until(provider, lambda world: "is on, and not by us" in world.offer.why)
        assert world.offer.headroom == 1
        assert provider._book is not None
        while not any("is left alone, and counted against" in text for _, _, text in provider._book.reports()):
            await asyncio.sleep(0.05)
        await provider.close()
    finally:
        rig.close()


async def test_with_packets_alone_the_order_of_the_worker_and_silence_are_enough(tmp_path: Path) -> None:
    rig = RackRig(tmp_path, power=lambda daemon, mac: "wol")
    try:
        provider = await opened(rig, count=2)
        names = await launched(provider, order(rig, "1-1", 2))
        await up(provider, names)
        await provider.stop(sorted(names), 10.0)
        world = await until(provider, lambda world: set(world.gone) == names)
        assert {reason.partition(" ")[2] for reason in world.gone.values()} == {
            "stopped as asked: nothing answers any longer"
        }
        assert not any(outlet.on for outlet in rig.daemon.outlets.values())
        assert world.offer.headroom == 2
        await provider.close()
    finally:
        rig.close()


async def test_a_machine_that_hangs_is_found_silent_and_its_power_is_cut(rig: RackRig) -> None:
    provider = await opened(rig, count=1)
    (node,) = await launched(provider, order(rig, "1-1", 1))
    await up(provider, {node})
    outlet = rig.outlet(node)
    assert outlet.process is not None
    outlet.process.send_signal(signal.SIGUSR1)
    world = await until(provider, lambda world: node in world.gone)
    assert "fell silent" in world.gone[node]
    await asyncio.to_thread(rig.daemon.wait, outlet.mac, on=False)
    await provider.close()


async def test_a_plan_or_a_shadow_has_eyes_and_no_hands(rig: RackRig) -> None:
    provider = await opened(rig, count=1, boot_s=0.2)
    await provider.close()
    mac = rig.machines["one-rack3-1"]["mac"]
    with closing(Book(rig.folder / "one" / "state", "rack3")) as book:
        node = book.wake(mac, "1-1", "photos", time.time() - 60, 60.0).node  # overdue, and never told to come on
        looking = RackProvider(provider._pool, provider._options, provider._launch, rig.patience)
        await looking.open(ignore)
        await asyncio.sleep(10 * rig.patience.beat_s)
        assert set(present(await looking.list())) == {node}
        looking.hear("", {})  # only a controller that acts tells
        await until(looking, lambda world: node in world.gone)
        await looking.close()


# ── limits


async def test_no_more_are_woken_than_the_watts_allow_and_the_offer_says_why(rig: RackRig) -> None:
    rig.rack("rack3", "one", count=3, watts=250)
    path = rig.folder / "one" / "rack3.yaml"
    path.write_text(path.read_text().replace('"secureon"', '"watts": 100, "secureon"'))
    provider = await opened(rig)
    world = await provider.list()
    assert (world.offer.headroom, world.offer.why) == (2, "the rack may draw 250 W")
    answer = await provider.launch(order(rig, "1-1", 3))
    assert len(answer.nodes) == 2
    world = await provider.list()
    assert (world.offer.headroom, world.offer.why) == (0, "the rack may draw 250 W")
    with pytest.raises(ExhaustedError, match=r"^pool rack3: no machine to be had: the rack may draw 250 W$"):
        await provider.launch(order(rig, "1-2", 1))
    for node in answer.nodes:
        await asyncio.to_thread(rig.daemon.wait, rig.outlet(node).mac, on=True)
    assert sum(outlet.on for outlet in rig.daemon.outlets.values()) == 2
    await provider.close()


async def test_no_more_are_woken_in_a_minute_than_allowed(rig: RackRig) -> None:
    provider = await opened(rig, count=3, wakes="2/min")
    answer = await provider.launch(order(rig, "1-1", 3))
    assert len(answer.nodes) == 2
    world = await provider.list()
    assert (world.offer.headroom, world.offer.why) == (0, "2/min may be switched on")
    await provider.close()


async def test_a_machine_is_woken_by_name_before_all_others_and_twice_is_once(rig: RackRig) -> None:
    provider = await opened(rig, count=3)
    named = Order("1-1", "rack3", "photos", 1, 1, 1, ("one-rack3-3",))
    assert (await provider.launch(named)).nodes == ("rack3/one-rack3-3.1",)
    again = Order("1-2", "rack3", "photos", 2, 2, 1, ("one-rack3-3", "one-rack3-2"))
    assert set((await provider.launch(again)).nodes) == {"rack3/one-rack3-3.1", "rack3/one-rack3-2.1"}
    with pytest.raises(ExhaustedError, match="no machine to be had"):
        await provider.launch(Order("1-3", "rack3", "photos", 1, 1, 1, ("never-was",)))
    assert len(present(await provider.list())) == 2, "nobody stands in for it"
    await provider.close()


async def test_an_admitted_machine_is_woken_like_any_other(rig: RackRig) -> None:
    provider = await opened(rig, count=0, power="wol", broadcast="127.0.0.1")
    name, entry = rig.machine("guest", secureon="")
    assert provider._book is not None
    provider._book.see(entry["mac"], "script", "10.77.0.99", "x86_64", time.time() - 60)
    assert (await provider.list()).offer.headroom == 0
    provider._book.admit(entry["mac"], name, "root")
    assert await launched(provider, order(rig, "1-1", 1)) == {"rack3/guest.1"}
    await asyncio.to_thread(rig.daemon.wait, entry["mac"], on=True)
    await provider.close()


async def test_the_life_of_a_node_can_be_read(rig: RackRig) -> None:
    provider = await opened(rig, count=1)
    (node,) = await launched(provider, order(rig, "1-1", 1))
    await up(provider, {node})
    await provider.stop([node], 5.0)
    await until(provider, lambda world: node in world.gone)
    told = [line.split(" ", 2)[2] for line in await provider.logs(node, 10)]
    assert told[0].startswith("woken for photos by order 1-1, as 52:54:00:")
    assert "its worker spoke" in told
    assert told[-1] == "one-rack3-1 stopped as asked: nothing answers any longer"
    with pytest.raises(ProviderError, match=r"^pool rack3: there is no rack3/x.1 in the book"):
        await provider.logs("rack3/x.1", 10)
    await provider.close()


async def test_a_switch_that_refuses_leaves_its_machine_for_the_next_best(tmp_path: Path) -> None:
    def power(daemon: Any, mac: str) -> Any:
        on = ["false"] if len(daemon.outlets) == 1 else daemon.control("on")
        return {"command": {"on": on, "off": daemon.control("off"), "status": daemon.control("status")}}

    rig = RackRig(tmp_path, power=power)
    try:
        provider = await opened(rig, count=2)
        assert await launched(provider, order(rig, "1-1", 1)) == {"rack3/one-rack3-2.1"}
        world = await provider.list()
        assert world.gone["rack3/one-rack3-1.1"] == (
            "one-rack3-1 could not be switched on: one-rack3-1: its `on` command ended with 1"
        )
        with pytest.raises(ExhaustedError, match="kept out for 1m"):
            await provider.launch(order(rig, "1-2", 1))
        await provider.close()
    finally:
        rig.close()
