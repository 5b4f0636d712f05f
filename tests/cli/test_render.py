"""The one renderer: what a person reads, from the picture that the API gives."""

from rich.console import Console

from fleetd.cli import render
from fleetd.control.status import picture_of
from fleetd.core.life import Curve, Life
from fleetd.core.memory import Memory, Node, PoolMemory, QueueMemory
from fleetd.core.model import Phase, Plan
from tests.core.world import policy, pool


def drawn(memory: Memory, **extra: object) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    picture = picture_of(
        policy(pool(), pool("dear", act=False)), memory, Plan(sentences={"app photos": "needs 2"}), 100.0
    )
    with console.file:
        console.print(render.fleet({**picture, **extra}))
    return console.export_text()


LIFE = Life(jobs=9.0, curve=Curve(21.0, (0.0,), (0.0,), 2.2, 1.0))


def node(name: str, phase: Phase, busy: int = 0) -> Node:
    return Node(name, "local", "photos", phase, 90.0, 80.0, 2, busy=busy, heard_at=99.0, idle_at=93.0)


def test_queue_pool_nodes_and_reasons_are_shown():
    memory = Memory(
        queues={"resize": QueueMemory(waiting=41, running=3, read_at=99.0, life=LIFE, need=6.5)},
        nodes={n.id: n for n in (node("local/1.1", Phase.READY, 1), node("local/2.2", Phase.QUARANTINED))},
    )
    lines = drawn(memory).splitlines()
    assert next(x for x in lines if x.startswith("resize")).split()[:8] == [
        "resize", "41", "3", "0.0", "2.2s", "30s", "6.5",
    ]  # fmt: skip
    assert next(x for x in lines if x.startswith("local ")).rstrip().endswith("1 quarantined")
    assert next(x for x in lines if x.startswith("dear ")).rstrip().endswith("watched only")
    assert next(x for x in lines if x.startswith("local/1.1")).split()[1:6] == ["photos", "ready", "10s", "1", "■□"]
    assert "app photos: needs 2" in lines


def test_what_an_operator_must_see_is_in_the_first_line_and_the_notes():
    memory = Memory(
        paused=True,
        queues={"resize": QueueMemory(waiting=4, read_at=50.0, blind_at=60.0, why_blind="connection refused")},
        pools={"local": PoolMemory(open_until=130.0, why_open="quota", held_until=700.0, drained_until=1e12)},
    )
    text = drawn(memory, dead=3)
    assert text.splitlines()[0].split("   ") == ["fleetd test", "up -", "3 dead letters", "paused"]
    assert "blind for 40s: connection refused" in text
    assert "breaker open for 30s: quota" in text


def test_durations_are_short():
    assert [render.seconds(value) for value in (None, 0.04, 9.96, 12.3, 119, 600, 7300)] == [
        "-", "0.0s", "10.0s", "12s", "119s", "10m", "2.0h",
    ]  # fmt: skip


def test_a_spark_is_as_long_as_its_values_and_flat_for_nothing():
    assert render.spark((0, 5, 10)) == "▁▅█"
    assert render.spark((0, 0)) == "▁▁"
