"""What is recorded of a fleet's life: every arrival, start, end, node-second and amount of money, each once."""

import random
import sqlite3
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from fleetd.codecs.history import HistoryRow, PoolRow, QueueRow
from fleetd.control import loop, outlook
from fleetd.control.history import Recorder
from fleetd.control.watch import Watch
from fleetd.core.memory import Memory, Node
from fleetd.core.model import (
    AppPolicy,
    Blind,
    Launched,
    Observation,
    Phase,
    Policy,
    QueuePolicy,
    Reading,
    Stopped,
    Work,
)
from fleetd.store import sqlite
from fleetd.store.sqlite import Store
from tests.control.fleet import FakeSource, Fleet, counts, policy, pool, until

POLICY = policy(pool(price_per_h=3600.0, max_nodes=50))
FOREIGN = replace(POLICY, apps={"photos": AppPolicy("photos", exec=("celery",))})


def reading(waiting: int, running: int = 0, **more: Any) -> Reading:
    return Reading("resize", waiting, running, **more)


def ticks(recorder: Recorder, *steps: tuple[float, Reading | Blind, Work], rules: Policy = POLICY) -> list[HistoryRow]:
    """Let the recorder see (when, reading, work), one tick each."""
    rows = []
    for now, told, work in steps:
        observation = Observation(now, readings={"resize": told}, work={"resize": work})
        rows.append(recorder.note(observation, rules, Memory(now=now)))
    return [row for row in rows if row is not None]


def queue(row: HistoryRow) -> QueueRow:
    return row.queues["resize"]


def test_arrivals_are_starts_plus_the_growth_of_the_waiting():
    (row,) = ticks(
        Recorder(),
        (100.0, reading(3), Work()),
        (104.0, reading(5, 2), Work(started=2)),
        (110.0, reading(1, 4), Work(started=6, done=3, failed=1, ended={53: 3, 57: 1})),
    )
    assert (row.at_s, row.length_s) == (100.0, 10.0)
    assert queue(row) == QueueRow(1, 4, arrived=6, started=8, done=3, failed=1, ended={53: 3, 57: 1})


def test_a_start_that_is_told_late_makes_no_arrival_of_its_own():
    """The reading shows the job gone before its worker says so. Seen to fail with arrivals cut at zero in each row."""
    first, second = ticks(
        Recorder(),
        (100.0, reading(2), Work()),
        (110.0, reading(0, 2), Work()),
        (120.0, reading(0, 2), Work(started=2)),
    )
    assert (queue(first).arrived, queue(second).arrived) == (0, 0)


def test_a_sources_own_count_of_arrivals_is_believed_until_it_begins_anew():
    rows = ticks(
        Recorder(),
        (100.0, reading(0, arrived_total=1000), Work()),
        (110.0, reading(0, arrived_total=1042), Work(started=40)),
        (120.0, reading(1, arrived_total=3), Work(started=3)),
    )
    assert [queue(row).arrived for row in rows] == [42, 4]


@pytest.mark.parametrize("counted", [False, True])
def test_what_arrives_while_a_source_is_blind_comes_once_with_the_next_reading(counted):
    total = {"arrived_total": 100} if counted else {}
    later = {"arrived_total": 130} if counted else {}
    rows = ticks(
        Recorder(),
        (100.0, reading(5, **total), Work()),
        (110.0, Blind("gone"), Work(started=10)),
        (120.0, reading(15, **later), Work(started=10)),
    )
    assert [queue(row).blind for row in rows] == [True, False]
    assert sum(queue(row).arrived for row in rows) == 30
    assert queue(rows[0]).waiting == 5, "the last that was seen"


def test_foreign_workers_are_known_by_their_sources_totals():
    rows = ticks(
        Recorder(),
        (100.0, reading(4, 2, done_total=50), Work()),
        (110.0, reading(1, 3, done_total=57), Work()),
        rules=FOREIGN,
    )
    assert queue(rows[0]) == QueueRow(1, 3, arrived=5, started=8, done=7)


def test_foreign_workers_without_totals_are_estimated_by_the_hint():
    """Five that run, ten seconds, four seconds each: 12.5 ended, and no half of a job is lost."""
    rules = replace(FOREIGN, queues={"resize": replace(FOREIGN.queues["resize"], service_s=4.0)})
    steps = [(100.0 + 10 * at, reading(0, 5), Work()) for at in range(5)]
    rows = ticks(Recorder(), *steps, rules=rules)
    assert [queue(row).done for row in rows] == [12, 13, 12, 13]
    assert sum(queue(row).arrived for row in rows) == 50


def test_every_arrival_is_counted_once_whatever_the_order_of_words():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    waiting = untold = truth = 0
    now, steps = 100.0, list[tuple[float, Reading | Blind, Work]]([(100.0, reading(0), Work())])
    for _ in range(500):
        now += rng.uniform(0.1, 3.0)
        came = rng.randrange(4)
        left = rng.randint(0, waiting + came)
        waiting += came - left
        untold += left
        truth += came
        told = rng.randint(0, untold)
        untold -= told
        blind = rng.random() < 0.1
        steps.append((now, Blind("gone") if blind else reading(waiting), Work(started=told)))
    steps += [(now + 1.0, reading(waiting), Work(started=untold)), (now + 12.0, reading(waiting), Work())]
    rows = ticks(Recorder(), *steps)
    assert sum(queue(row).arrived for row in rows) == truth
    assert sum(row.length_s for row in rows) == pytest.approx(now + 12.0 - 100.0), "no moment is in no row, or in two"


def node(name: str, phase: Phase) -> Node:
    return Node(f"local/{name}", "local", "photos", phase, 0.0, 0.0, 1)


def test_nodes_are_paid_from_the_order_to_the_end_and_launches_and_stops_are_counted():
    recorder = Recorder()
    nodes = {n.id: n for n in (node("a", Phase.READY), node("b", Phase.BOOTING), node("c", Phase.DRAINING))}
    assert recorder.note(Observation(100.0), POLICY, Memory(now=100.0, nodes=nodes)) is None
    outcomes = (Launched("1-1", ("local/b", "local/d")), Stopped(("local/c",)))
    del nodes["local/c"]
    recorder.note(Observation(104.0, outcomes=outcomes), POLICY, Memory(now=104.0, nodes=nodes))
    row = recorder.note(Observation(110.0), POLICY, Memory(now=110.0))
    assert row is not None
    paid = 3 * 4.0 + 2 * 6.0
    assert row.pools["local"] == PoolRow(launched=2, stopped=1, node_s=paid, money=paid), "3600 an hour, one a second"


# ── in the controller and its store


@pytest.fixture
def _fast(monkeypatch):
    monkeypatch.setattr(loop, "TICK_S", 0.05)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)
    monkeypatch.setattr("fleetd.control.history.ROW_S", 0.3)
    monkeypatch.setattr(outlook, "Watch", partial(Watch, every_s=0.02))


def rows_of(folder: Path) -> list[HistoryRow]:
    store = Store(folder, read_only=True)
    try:
        return list(store.history())
    finally:
        store.close()


@pytest.mark.usefixtures("_fast")
async def test_a_controller_records_and_its_restart_loses_no_row_that_was_over(tmp_path):
    fleet = Fleet(tmp_path, policy(pool(price_per_h=36.0, min_nodes=1)), FakeSource(waiting=2))
    async with fleet.running():
        await until(lambda: fleet.providers["local"].machines.nodes)
        await fleet.all_speak()
        (name,) = list(fleet.providers["local"].machines.nodes)[:1]
        await fleet.speak(name, jobs=counts(2, 1, service_s=0.5))
        await until(lambda: sum(queue(row).started for row in rows_of(tmp_path)) == 2)
    before = rows_of(tmp_path)
    fleet.start()
    async with fleet.running():
        await until(lambda: len(rows_of(tmp_path)) > len(before))
    after = rows_of(tmp_path)
    assert after[: len(before)] == before
    assert sum(row.pools["local"].money for row in after if "local" in row.pools) > 0.0
    assert all(later.at_s >= row.at_s + row.length_s - 0.002 for row, later in pairwise(after))


def test_the_store_keeps_five_weeks(tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite, "PRUNE_EVERY", 10)
    store = Store(tmp_path)
    day_s = 86400.0
    for at in range(50):
        store.add_history(HistoryRow(at * day_s, 10.0, {"resize": QueueRow(waiting=at)}))
    kept = [row.at_s / day_s for row in store.history()]
    assert (kept[0], kept[-1]) == (5.0, 49.0), "pruned with the forty-first row"
    assert [row.queues["resize"].waiting for row in store.history(48 * day_s)] == [48, 49]
    store.close()


def test_a_file_of_an_older_version_has_no_history_and_gets_one(tmp_path):
    Store(tmp_path).close()
    db = sqlite3.connect(tmp_path / "fleet.db")
    db.execute("DROP TABLE history")
    db.close()
    old = Store(tmp_path, read_only=True)
    assert list(old.history()) == []
    old.close()
    store = Store(tmp_path)
    store.add_history(HistoryRow(1.0, 10.0))
    assert [row.at_s for row in store.history()] == [1.0]
    store.close()


def test_the_match_of_queues_needs_no_policy_of_the_time(tmp_path):
    """A queue that is new in the policy begins with its first row."""
    recorder = Recorder()
    ticks(recorder, (100.0, reading(0), Work()))
    more = replace(
        POLICY,
        queues={**POLICY.queues, "mail": QueuePolicy("mail", "photos", "main", "m", POLICY.queues["resize"].objective)},
    )
    row = recorder.note(Observation(110.0, readings={"mail": Reading("mail", 9, 0)}), more, Memory(now=110.0))
    assert row is not None
    assert row.queues["mail"] == QueueRow(waiting=9)
    assert queue(row).blind
