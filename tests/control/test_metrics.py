"""The metrics page: what it says of a fleet, once each, and that no worker can blow it up."""

import asyncio
import re
import time
from dataclasses import replace
from math import exp
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from fleetd.codecs.lease import DeadLetter, JobCounts, Lease, ReleaseCounts
from fleetd.control import loop
from fleetd.control import metrics_names as names
from fleetd.control.metrics import MOST_NODES, Metrics, Page, spell, take, write
from fleetd.control.metrics_count import MOST_SERIES, Counts, count_lease, count_tick, prepare
from fleetd.core.life import bucket_of
from fleetd.core.memory import Node, QueueMemory
from fleetd.core.model import ActivateCommand, AppPolicy, BudgetPolicy, Phase, Work
from fleetd.errors import ProtocolError, ProviderError
from tests.control.fleet import Fleet, counts, lease, policy, pool, until

GOOD, BAD = "a" * 64, "b" * 64
Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(page: bytes) -> Series:
    """Every sample of a page by name and labels, without the fleet's."""
    found: Series = {}
    for family in text_string_to_metric_families(page.decode()):
        for sample in family.samples:
            key = sample.name, tuple(sorted((k, v) for k, v in sample.labels.items() if k != "fleet"))
            assert key not in found, f"{key} comes twice"
            found[key] = sample.value
    return found


def at(series: Series, name: str, **labels: str) -> float:
    return series[f"fleetd_{name}", tuple(sorted(labels.items()))]


def page_of(fleet: Fleet) -> Series:
    return read(write(take(fleet.controller)))


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "TICK_S", 0.05)
    monkeypatch.setattr(loop, "LEAST_TICK_S", 0.01)


async def test_a_fleet_at_work_is_told_in_numbers(tmp_path: Path, fast: None) -> None:
    fleet = Fleet(tmp_path, policy(pool(price_per_h=0.5, min_nodes=2), budget=BudgetPolicy(hour=5.0)))
    fleet.source.waiting = 3
    async with fleet.running() as controller:
        await until(lambda: fleet.providers["local"].machines.nodes)
        await fleet.all_speak()
        await until(lambda: any(n.phase is Phase.READY for n in controller.memory.nodes.values()))
        node = next(n.id for n in controller.memory.nodes.values() if n.phase is Phase.READY)
        await fleet.speak(node, busy=1, jobs=counts(3, 2, 0, 4.0))
        await until(lambda: at(page_of(fleet), "queue_jobs_total", queue="resize", outcome="done") == 2)
        said = page_of(fleet)
    assert at(said, "queue_waiting_jobs", queue="resize") == 3
    assert at(said, "queue_objective_wait_seconds", queue="resize") == 30
    assert at(said, "queue_started_jobs_total", queue="resize") == 3
    assert at(said, "worker_jobs_total", pool="local", outcome="done") == 2
    assert at(said, "worker_job_seconds_total", pool="local") == 4.0
    assert at(said, "node_jobs_total", pool="local", node=node, outcome="done") == 2
    assert at(said, "pool_busy_slots", pool="local") == 1
    held = len(controller.memory.nodes)
    assert sum(at(said, "pool_nodes", pool="local", phase=str(p)) for p in Phase if p is not Phase.GONE) == held >= 2
    assert at(said, "pool_wanted_nodes", pool="local") >= 2
    assert at(said, "pool_cost_per_hour", pool="local") == 0.5 * held
    assert at(said, "pool_boot_seconds_count", pool="local") == len(controller.memory.pools["local"].boots_s) >= 1
    assert at(said, "pool_launched_nodes_total", pool="local") == held
    assert at(said, "decisions_total", pool="local", kind="launch") >= 1
    assert at(said, "calls_total", side="source", adapter="main", call="read", outcome="ok") >= 1
    assert at(said, "calls_total", side="pool", adapter="local", call="launch", outcome="ok") >= 1
    assert at(said, "call_duration_seconds_count", side="pool", adapter="local", call="list") >= 1
    assert at(said, "journal_writes_total", outcome="ok") == at(said, "journal_write_duration_seconds_count") >= 1
    assert at(said, "tick_duration_seconds_count") >= at(said, "journal_write_duration_seconds_count")
    assert abs(at(said, "tick_timestamp_seconds") - time.time()) < 5
    assert (at(said, "epoch"), at(said, "leader"), at(said, "budget", window="hour")) == (1, 1, 5.0)


async def test_what_is_not_known_has_no_sample_and_what_was_not_counted_yet_is_zero(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    said = page_of(fleet)
    fleet.store.close()
    assert at(said, "queue_blind", queue="resize") == 1
    assert not [name for name, _ in said if "waiting" in name or "oldest" in name]
    assert at(said, "queue_jobs_total", queue="resize", outcome="failed") == 0
    assert at(said, "decisions_total", pool="local", kind="undrain") == 0
    assert at(said, "leases_refused_total", reason="repeated") == 0
    assert at(said, "queue_service_seconds_count", queue="resize") == 0


async def test_a_failing_launch_and_an_open_breaker_are_seen(tmp_path: Path, fast: None) -> None:
    fleet = Fleet(tmp_path, policy(pool(min_nodes=1)))
    fleet.providers["local"].error = ProviderError("no such image")
    async with fleet.running() as controller:
        await until(lambda: at(page_of(fleet), "pool_breaker_open", pool="local") == 1)
        said = page_of(fleet)
    assert controller.memory.pools["local"].why_open == "error: no such image"
    assert at(said, "calls_total", side="pool", adapter="local", call="launch", outcome="error") >= 1
    assert at(said, "pool_consecutive_failures", pool="local") >= 1


async def test_refused_leases_are_counted_by_reason(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    await fleet.controller.accept(lease(seq=2))
    for wrong in (lease(seq=2), lease(fleet="other"), lease(seq=1)):
        with pytest.raises(ProtocolError):
            await fleet.controller.accept(wrong)
    await fleet.controller.accept(lease(seq=1, boot="anew"))
    with pytest.raises(ProtocolError):
        await fleet.controller.accept(lease(seq=9))
    said = page_of(fleet)
    fleet.store.close()
    refused = {reason: at(said, "leases_refused_total", reason=reason) for reason in names.REFUSALS}
    assert refused == {"foreign": 1, "repeated": 2, "outlived": 1}
    assert at(said, "leases_accepted_total") == 2


def test_jobs_of_a_node_that_is_gone_stay_counted_and_a_restarted_worker_is_not_counted_twice() -> None:
    made, rule = Counts(), policy()
    first = lease(seq=1, jobs=counts(5, 4, 1, 8.0))
    count_lease(made, first, None, rule, {})
    count_lease(made, replace(first, seq=2, jobs=counts(6, 5, 1, 9.0)), first, rule, {})
    count_lease(made, lease("local/2.2", seq=1, jobs=counts(2, 2)), None, rule, {})
    count_lease(made, lease("local/3.3", seq=40, jobs=counts(99, 99)), None, rule, {})  # met in mid-life
    assert made.numbers["fleetd_worker_jobs_total"] == {("local", "done"): 7, ("local", "failed"): 1}
    assert made.numbers["fleetd_worker_job_seconds_total"] == {("local",): 9.0}


async def test_a_dead_letter_counts_once_however_often_it_comes(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    letters = [DeadLetter(name, function, "u", "H:1", 3, "boom", "", "") for name, function in
               (("id1", "resize_a"), ("id2", "resize_b"), ("id3", "stray"))]  # fmt: skip
    for node, seq in (("local/1.1", 1), ("local/1.1", 2), ("local/2.2", 1)):  # two workers that share a spool
        await fleet.controller.accept(lease(node, seq, dead=letters))
    said = page_of(fleet)
    fleet.store.close()
    assert at(said, "dead_letters_received_total", queue="resize") == 2
    assert at(said, "dead_letters_received_total", queue="other") == 1
    assert at(said, "dead_letters") == 3


def test_the_service_histogram_holds_each_job_at_the_bound_above_its_bucket() -> None:
    made = Counts()
    lengths = (0.0005, 0.0079, 0.009, 0.5, 0.6, 100.0, 1e6)
    for length in lengths:
        made.served("q", Work(service_s=length, ended={bucket_of(length): 1}))
    spread = made.spreads["fleetd_queue_service_seconds"]["q",]
    under = {bound: sum(spread.counts[: at + 1]) for at, bound in enumerate(names.SERVICE_BUCKETS) if spread.counts[at]}
    assert under == {0.008: 2, 0.016: 3, 0.512: 4, 1.024: 5, 131.072: 6}
    assert spread.counts[-1] == 1
    assert spread.sum == pytest.approx(sum(lengths))


async def test_jobs_judged_late_are_counted_as_they_are_judged(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    base = fleet.controller.memory
    made, seen = Counts(), fleet.controller.observation
    old = QueueMemory(judged=1000.0, late=50.0, learned_at=0.0)
    fade = exp(-100.0 / (3 * 86400.0))
    new = QueueMemory(judged=1000.0 * fade + 8, late=50.0 * fade + 3, learned_at=100.0)
    after = replace(base, queues={"resize": new})
    count_tick(made, seen, fleet.policy, (replace(base, queues={"resize": old}), after))
    fleet.store.close()
    assert made.numbers["fleetd_queue_judged_jobs_total"]["resize",] == pytest.approx(8, abs=0.02)
    assert made.numbers["fleetd_queue_late_jobs_total"]["resize",] == pytest.approx(3, abs=0.02)


def hostile(seq: int, size: int) -> Lease:
    """A worker that makes everything up: job names, releases, its app, even its node."""
    weird = 'x"} 1\nfleetd_evil{a="b\\'
    return lease(
        f"local/{weird}{seq}",
        seq=1,
        app=weird,
        digest=weird + str(seq),
        jobs={f"{weird}{seq}_{at}": JobCounts(2, 1, 1, 0.1, {"9": 2}) for at in range(size)},
        releases={f"{weird}{seq}_{at}": ReleaseCounts(1, 1, 1) for at in range(size)},
        refused={f"{weird}{at}": weird for at in range(size)},
    )


async def test_ten_thousand_job_names_and_weird_labels_add_not_one_series(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    await fleet.controller.accept(lease(jobs=counts(1, 1)))
    before = page_of(fleet)
    await fleet.controller.accept(hostile(1, 10_000))
    for seq in range(2, 200):
        await fleet.controller.accept(hostile(seq, 3))
    await fleet.controller.accept(lease("nowhere/1", pool="nowhere", app="photos", jobs=counts(4, 4)))
    await fleet.controller.accept(
        lease("local/7", digest=BAD, releases={f"{at:064x}": ReleaseCounts(1) for at in range(1000)})
    )
    after = page_of(fleet)
    fleet.store.close()
    added = {key for key in after.keys() - before.keys() if not key[0].startswith("process_")}
    assert added == {
        ("fleetd_release_jobs_total", (("app", "photos"), ("outcome", "done"), ("release", "other"))),
        ("fleetd_worker_crashes_total", (("pool", "other"),)),
        ("fleetd_worker_job_seconds_total", (("pool", "other"),)),
        ("fleetd_worker_jobs_total", (("outcome", "done"), ("pool", "other"))),
        ("fleetd_worker_jobs_total", (("outcome", "failed"), ("pool", "other"))),
    }
    assert at(after, "unmatched_jobs_total") == 2 * (10_000 + 198 * 3)
    assert not [key for key in after if "evil" in str(key)]


def test_no_family_grows_beyond_its_bound_and_what_is_left_out_is_counted() -> None:
    made = Counts()
    for number in range(MOST_SERIES + 50):
        made.add(names.DEAD_COME, f"queue{number}")
        made.observe(names.POOL_BOOT, f"pool{number}", value=1.0)
    made.add(names.DEAD_COME, "queue0")
    assert len(made.numbers[names.DEAD_COME.name]) == len(made.spreads[names.POOL_BOOT.name]) == MOST_SERIES
    assert made.numbers[names.DEAD_COME.name]["queue0",] == 2
    assert made.dropped == 100


async def test_beyond_the_bound_nodes_are_in_the_sums_alone_and_that_is_said(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(pool(max_nodes=5000)))
    nodes = {
        f"local/{n}.1": Node(f"local/{n}.1", "local", "photos", Phase.READY, 0.0, float(n), 1, busy=1)
        for n in range(MOST_NODES + 7)
    }
    fleet.controller.memory = replace(fleet.controller.memory, nodes=nodes)
    said = page_of(fleet)
    fleet.store.close()
    assert at(said, "nodes_omitted") == 7
    assert sum(name == "fleetd_node_info" for name, _ in said) == MOST_NODES
    assert at(said, "pool_nodes", pool="local", phase="ready") == at(said, "pool_busy_slots", pool="local") == 1007
    shown = dict(labels)["node"] if (labels := next(key[1] for key in said if key[0] == "fleetd_node_info")) else ""
    assert shown == "local/0.1", "the longest there are shown, so that series last"


async def test_releases_are_told_by_role_with_nodes_and_jobs_and_old_ones_go(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(apps={"photos": AppPolicy("photos")}))
    controller = fleet.controller
    controller.submit(ActivateCommand("photos", GOOD, at_once=True))
    await controller.tick()
    await controller.accept(lease(digest=GOOD, releases={GOOD: ReleaseCounts(5, 1, 0)}))
    node = Node("local/1.1", "local", "photos", Phase.READY, 0.0, 0.0, 1, digest=GOOD)
    controller.memory = replace(controller.memory, nodes={node.id: node})
    said = page_of(fleet)
    assert at(said, "release_info", app="photos", release=GOOD[:12], role="active") == 1
    assert at(said, "release_nodes", app="photos", release=GOOD[:12]) == 1
    assert at(said, "release_jobs_total", app="photos", release=GOOD[:12], outcome="failed") == 1
    assert at(said, "commands_total", kind="activate") == 1
    controller.memory = replace(controller.memory, nodes={})
    for digest in (BAD, "c" * 64):
        controller.submit(ActivateCommand("photos", digest, at_once=True))
        await controller.tick()
        await controller.tick()
    said = page_of(fleet)
    fleet.store.close()
    releases = {dict(labels)["release"] for name, labels in said if name == "fleetd_release_jobs_total"}
    assert releases == {"c" * 12, BAD[:12], "other"}
    assert at(said, "release_info", app="photos", release=BAD[:12], role="previous") == 1


async def test_money_is_told_beside_what_the_maximum_would_have_cost(tmp_path: Path, fast: None, monkeypatch) -> None:
    monkeypatch.setattr("fleetd.control.history.ROW_S", 0.2)
    fleet = Fleet(tmp_path, policy(pool(price_per_h=3600.0, min_nodes=1, max_nodes=10)))
    async with fleet.running():
        await until(lambda: at(page_of(fleet), "pool_cost_total", pool="local") > 0.5)
        said = page_of(fleet)
    cost, static = (at(said, f"pool_{what}_total", pool="local") for what in ("cost", "static_cost"))
    assert cost == pytest.approx(at(said, "pool_node_seconds_total", pool="local"))
    assert static >= 10 * cost * 0.9
    assert at(said, "pool_saved_cost", pool="local") == pytest.approx(static - cost)
    assert at(said, "cost_hour") >= cost * 0.9


async def test_scrapes_at_once_share_one_page_and_the_page_is_written_beside_the_loop(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    page = Page(fleet.controller)
    first, *rest = await asyncio.gather(*(page.get() for _ in range(20)))
    fleet.store.close()
    assert all(other is first for other in rest)


def test_names_follow_the_conventions_and_each_family_says_what_it_is() -> None:
    for family in names.FAMILIES:
        assert re.fullmatch("fleetd_[a-z_]+", family.name)
        assert family.name.endswith("_total") == (family.kind == "counter"), family.name
        assert not re.search("(_ms|_minutes|_percent|_kb|_count|_sum|_bucket)$", family.name), family.name
        assert family.help.endswith("."), family.name
        assert len(family.help) > 12
        assert family.buckets == tuple(sorted(family.buckets))
        assert (family.kind == "histogram") == bool(family.buckets)
        assert "fleet" not in family.labels
    assert len({family.name for family in names.FAMILIES}) == len(names.FAMILIES)


async def test_the_page_says_what_the_library_would_write_of_the_same_collector(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy(fleet='odd "name" \\ of\na fleet'))
    snapshot = take(fleet.controller)
    fleet.store.close()
    registry = CollectorRegistry()
    registry.register(Metrics(snapshot))
    ours, theirs = spell(Metrics(snapshot).collect()), generate_latest(registry)
    assert sorted(map(sort_labels, ours.decode().splitlines())) == sorted(
        map(sort_labels, theirs.decode().splitlines())
    )


def sort_labels(line: str) -> str:
    return "".join(sorted(line))


async def test_every_family_is_on_the_page_with_its_help_and_none_beside_them(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path, policy())
    text = write(take(fleet.controller)).decode()
    fleet.store.close()
    helps = dict(re.findall(r"^# HELP (fleetd_\w+) (.*)$", text, re.MULTILINE))
    assert helps == {family.name: family.help for family in names.FAMILIES}
    assert "process_resident_memory_bytes" in text


def test_what_a_policy_will_count_begins_at_zero() -> None:
    made, rule = Counts(), policy()
    prepare(made, rule)
    assert made.numbers["fleetd_decisions_total"] == {("local", kind): 0 for kind in names.DECISION_KINDS}
    made.add(names.DECISIONS, "local", "launch")
    prepare(made, rule)  # as a reload does
    assert made.numbers["fleetd_decisions_total"]["local", "launch"] == 1
    assert {"wake", "drain", "pause", "activate"} <= {kind for (kind,) in made.numbers["fleetd_commands_total"]}


async def test_a_call_is_timed_and_told_by_how_it_ended() -> None:
    made = Counts()

    async def slow(error: BaseException | None) -> Any:
        with made.call("pool", "p", "launch"):
            if error:
                raise error

    for error in (None, TimeoutError(), ProviderError("x"), asyncio.CancelledError()):
        await asyncio.gather(slow(error), return_exceptions=True)
    assert made.numbers[names.CALLS.name] == {
        ("pool", "p", "launch", "ok"): 1,
        ("pool", "p", "launch", "timeout"): 1,
        ("pool", "p", "launch", "error"): 1,
    }
    assert sum(made.spreads[names.CALL_SECONDS.name]["pool", "p", "launch"].counts) == 3
