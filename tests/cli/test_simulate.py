"""`simulate` and `replay` as people call them: what they print, what they refuse, what they leave untouched."""

import gzip
import io
import json
import random
import time
from pathlib import Path

import pytest
from rich.console import Console

from fleetd.cli.compared import comparison
from fleetd.cli.entry import run
from fleetd.codecs.history import HistoryRow, PoolRow, QueueRow
from fleetd.core.memory import Memory, PoolMemory
from fleetd.sim.result import COLUMNS, QueueResult, Result
from fleetd.store.sqlite import Store

pytestmark = pytest.mark.slow
POLICY = """\
version: 1
fleet: shop
timezone: Europe/Berlin
sources: {main: {gearman: {servers: ["127.0.0.1:1"]}}}
apps: {photos: {release: {path: is/not/here}}}
queues: {resize: {app: photos, source: main, match: "resize_*", objective: {wait: 30s, share: 95%}}}
pools:
  cloud:
    {simulated: {boot: [60s, 120s]}, apps: [photos], slots: 1, min: 1, max: 200, price: 1/h, billing: {minimum: 60s}}
stability: thrifty
"""


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    """No fleet of this machine is ever looked at."""
    monkeypatch.setenv("FLEETD_STATE", str(tmp_path / "state"))
    monkeypatch.delenv("FLEETD_URL", raising=False)
    return tmp_path / "state"


def command(*argv: str | Path) -> int:
    try:
        return run([str(word) for word in argv])
    except SystemExit as end:
        return int(end.code or 0)


@pytest.fixture
def policy(tmp_path):
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def trace(tmp_path):
    """An hour of some six jobs at a time."""
    chance = random.Random(1)
    at, lines = 0.0, ["submitted_s,service_s"]
    while at < 3600:
        lines.append(f"{at:.2f},{chance.expovariate(0.05):.2f}")
        at += chance.expovariate(0.3)
    path = tmp_path / "jobs.csv.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def told(capsys) -> list[dict[str, object]]:
    rows = json.loads(capsys.readouterr().out)
    assert all(tuple(row) == COLUMNS for row in rows)
    return list(rows)


def number(row: dict[str, object], name: str) -> float:
    return float(str(row[name]))


# ── simulate


def test_json_is_a_list_with_ours_first(policy, trace, capsys):
    assert command("simulate", "-p", policy, "--trace", trace, "--against", "keda,static", "--json") == 0
    rows = told(capsys)
    assert [row["policy"] for row in rows] == ["fleetd", "keda", "static"]
    assert {row["jobs"] for row in rows} == {len(gzip.decompress(trace.read_bytes()).splitlines()) - 1}
    assert {row["lost"] for row in rows} == {0}
    assert all(row["bound_worker_s"] is None for row in rows)


def test_the_bound_puts_all_on_one_scale(policy, trace, capsys):
    assert command("simulate", "-p", policy, "--trace", trace, "--against", "optimal,keda", "--json") == 0
    ours, optimal, keda = told(capsys)
    assert (optimal["policy"], optimal["cost_over_bound"]) == ("optimal", 1.0)
    assert ours["bound_worker_s"] == keda["bound_worker_s"] == optimal["cost_worker_s"]
    ratio = number(ours, "cost_worker_s") / number(optimal, "cost_worker_s")
    assert ours["cost_over_bound"] == pytest.approx(ratio)
    assert ratio > 1.0


def test_people_get_a_table_and_a_sentence(policy, trace, capsys):
    assert command("simulate", "-p", policy, "--trace", trace, "--against", "keda") == 0
    lines = capsys.readouterr().out.splitlines()
    heads = ["POLICY", "hours", "EUR", "late", "p50", "p95", "p99", "launches", "stops", "turns"]
    assert lines[0].split() == heads, "no bound was asked for, no job was lost: no columns for these"
    assert [line.split()[0] for line in lines[1:3]] == ["fleetd", "keda"]
    assert lines[-1].startswith("On this trace fleetd would have cost ")
    assert lines[-1].endswith(("(allowed 5 %).", "it missed the objective."))


def test_a_table_fits_eighty_columns():
    """The longest figures that a week of a large fleet brings."""
    one = Result(
        "delayedoff", 4e5 * 3600, 412_345.67, 0.138, 31.2, 119.0, 6660.0, 37_661, 37_633, 4884, 10**7, 0, None, 1.88,
        queues={"resize": QueueResult(10**7, 0.138, 119.0, 30.0)},
    )  # fmt: skip
    console = Console(width=80, file=io.StringIO(), record=True)
    console.print(comparison([one], {"resize": 0.05}, "EUR", wide=False))
    text = console.export_text()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert max(map(len, text.splitlines())) <= 80
    assert "delayedoff † " in text


def test_the_same_seed_gives_the_same_figures(policy, trace, capsys):
    figures = []
    for seed in ("3", "3", "4"):
        assert command("simulate", "-p", policy, "--trace", trace, "--against", "none", "--seed", seed, "--json") == 0
        figures.append(capsys.readouterr().out)
    assert figures[0] == figures[1] != figures[2]


def test_static_is_the_smallest_constant_that_meets_the_objective(policy, trace, tmp_path, capsys):
    assert command("simulate", "-p", policy, "--trace", trace, "--against", "static") == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if line.endswith("nodes at all times")]
    nodes = int(note.split()[1])
    for count, good in ((nodes, True), (nodes - 1, False)):
        path = tmp_path / "constant.yaml"
        path.write_text(POLICY.replace("min: 1, max: 200", f"min: {count}, max: {count}"))
        assert command("simulate", "-p", path, "--trace", trace, "--against", "none", "--json") == 0
        (row,) = told(capsys)
        assert (number(row, "late_share") <= 0.05) is good


def test_the_report_is_one_page_with_charts(policy, trace, tmp_path):
    page = tmp_path / "out.html"
    assert command("simulate", "-p", policy, "--trace", trace, "--against", "keda", "--report", page) == 0
    text = page.read_text()
    assert text.startswith("<!doctype html>")
    assert text.count("<svg ") == 4
    assert "jobs.csv.gz" in text
    assert command("simulate", "-p", policy, "--trace", trace, "--against", "none", "--report", tmp_path) == 1


def test_depth_withholds_what_foreign_workers_would_not_tell(policy, trace, capsys):
    figures = []
    for inputs in ("full", "depth"):
        argv = ("simulate", "-p", policy, "--trace", trace, "--against", "none", "--inputs", inputs, "--json")
        assert command(*argv) == 0
        figures.append(told(capsys))
    assert figures[0] != figures[1]


def test_two_queues_by_name_and_a_history_for_one(tmp_path, policy, capsys):
    mail = "  mail: {app: photos, source: main, match: mail, objective: {wait: 5m, share: 90%}}\n"
    policy.write_text(
        POLICY.replace("queues: {resize: ", "queues:\n  resize: ")
        .replace("95%}}}", "95%}}")
        .replace("pools:", f"{mail}pools:")
    )
    jobs, before = tmp_path / "jobs.csv", tmp_path / "before.csv"
    jobs.write_text("submitted_s,service_s,queue\n0,5,resize\n1,5,mail\n600,5,mail\n")
    before.write_text("start_s,arrivals\n-600,3\n-300,4\n")
    argv = ("simulate", "-p", policy, "--trace", jobs, "--against", "none", "--json")
    assert command(*argv, "--history", f"mail={before}") == 0
    assert told(capsys)[0]["jobs"] == 3
    assert command(*argv, "--history", before) == 2
    assert "which queue of resize, mail? Write QUEUE=" in capsys.readouterr().err


def test_nothing_is_left_behind(policy, trace, state):
    assert command("simulate", "-p", policy, "--trace", trace, "--against", "none") == 0
    assert not state.exists()


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "fleetd: simulate: give it jobs: --trace FILE or --from-journal, one of the two"),
        (["--trace", "{trace}", "--from-journal"], "fleetd: simulate: give it jobs: "),
        (["--trace", "no.csv"], "fleetd: no.csv: No such file or directory"),
        (["--trace", "{trace}", "--against", "keda,kafka"], "fleetd: --against: no policy 'kafka'; there are "),
        (["--trace", "{trace}", "--tick", "soon"], "fleetd: --tick: expected a duration"),
        (["--trace", "{trace}", "--tick", "0s"], "fleetd: tick 0: "),
        (["--trace", "{trace}", "--inputs", "some"], "fleetd: --inputs: must be full or depth, not 'some'"),
        (["--trace", "{trace}", "--boot", "rack=60s"], "fleetd: --boot rack=60s: no pool 'rack'; there are cloud"),
        (["--trace", "{trace}", "--boot", "cloud=fast"], "fleetd: --boot cloud=fast: expected a duration"),
        (["--trace", "{trace}", "--boot", "cloud=9s..3s"], "fleetd: pool cloud: boot 9s..3s: "),
        (["--trace", "{trace}", "--start", "noon"], "fleetd: --start: expected a duration"),
        (["--from-journal"], "fleetd: fleet shop: nothing is recorded in "),
        (["--from-journal", "--since", "long"], "fleetd: fleet shop: nothing is recorded in "),
    ],
)
def test_what_is_wrong_is_one_line_before_anything_runs(policy, trace, argv, said, capsys):
    given = [str(trace) if word == "{trace}" else word for word in argv]
    assert command("simulate", "-p", policy, *given) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(said)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "row 1: "),
        ("submitted_s,service_s\n", "row 1: there are no jobs after it"),
        ("submitted_s,service_s\n5,1\n4,1\n", "row 3: "),
        ("submitted_s,service_s\n0,-1\n", "row 2: "),
        ("submitted_s,service_s\n0,nan\n", "row 2: "),
        ("submitted_s,service_s\n0,1\n3\n", "row 3: "),
    ],
)
def test_a_bad_trace_is_one_line_with_its_row(policy, tmp_path, text, said, capsys):
    path = tmp_path / "bad.csv"
    path.write_text(text)
    assert command("simulate", "-p", policy, "--trace", path, "--against", "none") == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fleetd: {path}: {said}")
    assert err.count("\n") == 1


def test_a_truncated_gzip_is_one_line(policy, trace, capsys):
    trace.write_bytes(trace.read_bytes()[:-200])
    assert command("simulate", "-p", policy, "--trace", trace, "--against", "none") == 2
    assert "cut off or damaged here" in capsys.readouterr().err


def test_a_pool_of_machines_needs_to_know_how_long_they_boot(policy, trace, state, capsys):
    """From the option, or from what a controller of this fleet has learned."""
    policy.write_text(POLICY.replace("simulated: {boot: [60s, 120s]}", "process: {}"))
    argv = ("simulate", "-p", policy, "--trace", trace, "--against", "none", "--json")
    assert command(*argv) == 2
    assert capsys.readouterr().err == (
        "fleetd: pool cloud: how long a node boots is not known: say --boot cloud=60s..120s\n"
    )
    assert command(*argv, "--boot", "cloud=60s..120s") == 0
    slow = told(capsys)
    store = Store(state / "shop")
    store.commit(Memory(epoch=1, pools={"cloud": PoolMemory(boots_s=(70.0, 60.0, 120.0))}))
    store.close()
    assert command(*argv) == 0
    assert told(capsys) == slow


# ── the recorded history


@pytest.fixture
def journal(state):
    """Two hours that were recorded until now: some six jobs at a time on twenty nodes that were always there."""
    chance, now, store = random.Random(2), time.time(), Store(state / "shop")
    store.commit(Memory(epoch=1, pools={"cloud": PoolMemory(boots_s=(60.0, 120.0))}))
    for at in range(720):
        came = sum(chance.random() < 0.3 for _ in range(10))
        queue = QueueRow(arrived=came, started=came, done=came, running=6, ended={57: came} if came else {})
        pool = PoolRow(ready=20, node_s=200.0, money=200.0 / 3600.0)
        store.add_history(HistoryRow(now - 7200 + 10 * at, 10.0, {"resize": queue}, {"cloud": pool}))
    store.close()
    return state


@pytest.mark.usefixtures("journal")
def test_from_journal_is_a_backtest_beside_what_really_happened(policy, capsys):
    argv = ("simulate", "-p", policy, "--from-journal", "--against", "keda", "--json")
    assert command(*argv) == 0
    ours, keda, real = told(capsys)
    assert (keda["policy"], real["policy"]) == ("keda", "recorded")
    assert ours["jobs"] == real["jobs"] == keda["jobs"]
    assert real["cost_worker_s"] == pytest.approx(144000.0)
    assert real["cost_money"] == pytest.approx(40.0)
    assert number(ours, "cost_worker_s") < 144000.0, "twenty at all times is more than the work needs"
    assert command(*argv, "--since", "30m") == 0
    assert number(told(capsys)[2], "cost_worker_s") == pytest.approx(36000.0, rel=0.01)


@pytest.mark.usefixtures("journal")
def test_replay_compares_two_policies_on_what_was_recorded(policy, tmp_path, capsys):
    other = tmp_path / "generous.yaml"
    other.write_text(POLICY.replace("min: 1", "min: 20"))
    page = tmp_path / "out.html"
    argv = ("replay", "--policy", policy, "--against", other, "--since", "1h", "--report", page)
    assert command(*argv, "--json") == 0
    rows = {row["policy"]: row for row in told(capsys)}
    assert list(rows) == ["policy", "generous", "recorded"]
    assert number(rows["generous"], "cost_worker_s") >= 20 * 3500.0
    assert number(rows["recorded"], "cost_worker_s") == pytest.approx(72000.0, rel=0.01)
    assert number(rows["policy"], "cost_worker_s") < number(rows["recorded"], "cost_worker_s")
    assert "Recorded from 20" in page.read_text()
    assert command(*argv) == 0
    out = capsys.readouterr().out
    assert "recorded: what really happened; waits are estimated from counts, to about 10 s" in out
    assert "On this trace policy would have cost " in out


@pytest.mark.usefixtures("journal")
def test_replay_of_a_policy_without_the_queue_is_refused(policy, tmp_path, capsys):
    other = tmp_path / "other.yaml"
    other.write_text(POLICY.replace("queues: {resize:", "queues: {shrink:"))
    assert command("replay", "-p", policy, "--against", other) == 2
    assert capsys.readouterr().err == f"fleetd: --against {other}: has no queue 'resize', whose jobs are recorded\n"


def test_a_shadows_record_is_taken_where_no_controller_recorded(policy, journal, capsys):
    (journal / "shop").rename(journal / "shop-shadow")
    assert command("replay", "-p", policy, "--json") == 0
    assert [row["policy"] for row in told(capsys)] == ["policy", "recorded"]
