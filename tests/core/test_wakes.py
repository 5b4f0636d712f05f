"""Machines by name: brought up, kept, given back; and what a provider knows of those that went."""

from dataclasses import replace

from fleetd.core.model import DrainCommand, Launch, LimitsPolicy, Offer, Phase, Undrain, WakeCommand
from fleetd.core.wakes import lives_on
from tests.core.world import Toy, policy, pool


def run(toy: Toy, seconds: int, arrivals: int = 0) -> list[Launch]:
    plans = [toy.step(arrivals) for _ in range(seconds)]
    return [intent for plan in plans for intent in plan.intents if isinstance(intent, Launch)]


def wake(toy: Toy, machine: str, for_s: float) -> list[Launch]:
    plan = toy.step(commands=(WakeCommand("local", 1, for_s, machine),))
    return [intent for intent in plan.intents if isinstance(intent, Launch)]


def test_a_machine_is_a_name_and_its_lives() -> None:
    assert lives_on("rack3/node07", "rack3", "node07")
    assert lives_on("rack3/node07.12", "rack3", "node07")
    assert not lives_on("rack3/node071.2", "rack3", "node07")
    assert not lives_on("rack4/node07.12", "rack3", "node07")


def test_a_machine_wanted_by_name_comes_once_and_stays_while_it_is_wanted() -> None:
    """Seen to fail with `wanted_by_name` left out of `_may_go`, and with `_there` blind to orders."""
    toy = Toy(policy(), 1, boot_s=(1.0, 2.0))
    (order,) = [launch.order for launch in wake(toy, "node07", 120.0)]
    assert (order.count, order.named) == (1, ("node07",))
    assert run(toy, 100) == []
    (box,) = toy.boxes.values()
    assert box.name.startswith("local/node07.")
    assert not box.fenced
    run(toy, 120)
    assert not toy.boxes, "it ends by itself"


def test_two_names_are_two_machines_and_one_that_is_up_is_not_ordered_again() -> None:
    toy = Toy(policy(), 2, boot_s=(1.0, 2.0))
    wake(toy, "node07", 300.0)
    run(toy, 5)
    assert wake(toy, "node07", 300.0) == []
    assert [launch.order.named for launch in wake(toy, "node09", 300.0)] == [("node09",)]
    run(toy, 5)
    assert sorted(name.partition(".")[0] for name in toy.boxes) == ["local/node07", "local/node09"]


def test_a_machine_that_drains_is_given_back_instead_of_ordered() -> None:
    toy = Toy(policy(), 3, boot_s=(1.0, 2.0))
    wake(toy, "node07", 60.0)
    run(toy, 4)
    ((name, node),) = toy.memory.nodes.items()
    toy.memory = replace(toy.memory, nodes={name: replace(node, phase=Phase.DRAINING)})
    plan = toy.step(commands=(WakeCommand("local", 1, 600.0, "node07"),))
    assert [intent.node for intent in plan.intents if isinstance(intent, Undrain)] == [name]
    assert not [intent for intent in plan.intents if isinstance(intent, Launch)]


def test_the_limits_hold_for_names_too() -> None:
    toy = Toy(policy(pool(max_nodes=1)), 4, boot_s=(1.0, 2.0))
    wake(toy, "node07", 300.0)
    assert wake(toy, "node09", 300.0) == []
    assert "max of local (1)" in toy.step().sentences["pool local"]
    ramped = Toy(policy(limits=LimitsPolicy(launches_per_min=1)), 5, boot_s=(1.0, 2.0))
    wake(ramped, "node07", 300.0)
    assert wake(ramped, "node09", 300.0) == []


def test_a_name_that_is_drained_by_an_operator_stays_down() -> None:
    toy = Toy(policy(), 6, boot_s=(1.0, 2.0))
    wake(toy, "node07", 300.0)
    run(toy, 5)
    toy.step(commands=(DrainCommand("local"),))
    assert run(toy, 60) == []
    assert not toy.boxes


def test_why_a_node_went_is_said_where_its_provider_knows() -> None:
    """Seen to fail with `gone` not looked at."""
    toy = Toy(policy(), 7, boot_s=(50.0, 60.0))
    wake(toy, "node07", 300.0)
    run(toy, 3)
    (box,) = toy.boxes.values()
    assert toy.memory.nodes[box.name].phase is Phase.BOOTING
    del toy.boxes[box.name]
    toy.gone = {box.name: "it did not answer 3 magic packets"}
    events = [event for _ in range(5) for event in toy.step().events]
    assert f"node {box.name}: booting -> gone: it did not answer 3 magic packets" in events
    assert f"pool local: failure 1 in a row: {box.name}: it did not answer 3 magic packets" in events


def test_why_there_is_no_more_to_give_is_said() -> None:
    toy = Toy(policy(), 8)
    toy.offer = Offer(0, None, "2000 W of the rack are used")
    toy.step(6)
    assert "local has no more to give (2000 W of the rack are used)" in toy.step().sentences["app photos"]
