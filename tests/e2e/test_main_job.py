"""The main job: the fleet grows for waiting jobs, finishes them, and goes; and what an operator does meanwhile."""

import json
import signal
from pathlib import Path

import pytest

from tests import servers
from tests.e2e.fleet import Fleet, fleet

pytestmark = [pytest.mark.real, pytest.mark.slow]


@pytest.fixture
def naps(tmp_path):
    with fleet(tmp_path) as made:
        yield made


def woken(naps: Fleet, count: int, *flags: str) -> None:
    """Start with so many nodes up, so that what follows does not hang on when scaling comes to it."""
    naps.start(*flags)
    assert naps.fleetd("wake", "local", "--count", str(count), "--for", "20s").returncode == 0
    naps.until(f"{count} nodes are ready", lambda: len(naps.nodes("ready")) == count)


def settled(naps: Fleet, jobs: int) -> None:
    naps.until(f"{jobs} jobs done", lambda: len(naps.naps()) >= jobs)


def test_fleet_grows_for_jobs_runs_each_once_and_shrinks_to_nothing(naps):
    naps.start()
    assert naps.nodes() == []
    naps.submit(0.5, count=8)
    naps.until("a node is ready", lambda: len(naps.nodes("ready")) >= 2)
    settled(naps, 8)
    naps.until("every node is gone", lambda: naps.nodes() == [], limit_s=60)
    assert len(set(naps.naps())) == len(naps.naps()) == 8
    assert naps.end() == 0
    assert "no node is left" in naps.log()


def test_controller_with_a_process_pool_stays_under_90_mb(naps):
    """Resident memory. The figure itself is in docs/benchmarks.md."""
    naps.start()
    naps.submit(0.2, count=3)
    settled(naps, 3)
    status = Path(f"/proc/{naps.process.pid}/status").read_text()
    resident_kb = int(status.partition("VmRSS:")[2].split()[0])
    assert resident_kb < 90 * 1024


def test_ctrl_c_leaves_workers_alive_and_the_next_start_adopts_them(naps):
    woken(naps, 2)
    naps.submit(6.0, count=2)
    naps.until("both jobs run", lambda: sum(node["busy"] for node in naps.status()["nodes"]) == 2)
    before = naps.nodes()
    assert naps.end() == 0
    assert f"{len(before)} nodes live on" in naps.log()
    naps.start()
    assert set(before) <= set(naps.nodes("ready"))
    settled(naps, 2)
    assert len(set(naps.naps())) == len(naps.naps()) == 2


def test_killed_controller_is_followed_by_one_that_neither_doubles_nor_leaks(naps):
    woken(naps, 4)
    naps.submit(3.0, count=4)
    before = sorted(naps.nodes())
    assert naps.end(signal.SIGKILL) == -signal.SIGKILL
    naps.start()
    assert sorted(naps.nodes()) == before
    assert naps.status()["epoch"] == 2
    settled(naps, 4)
    naps.until("every node is gone", lambda: naps.nodes() == [], limit_s=60)
    assert len(set(naps.naps())) == len(naps.naps()) == 4


def test_run_with_drain_finishes_the_running_jobs_and_ends_every_worker(naps):
    woken(naps, 3, "--drain")
    naps.submit(4.0, count=3)
    naps.until("three jobs run", lambda: sum(node["busy"] for node in naps.status()["nodes"]) == 3)
    assert naps.end(signal.SIGTERM, limit_s=40) == 0
    assert len(naps.naps()) == 3
    assert "no node is left" in naps.log()


def test_a_second_controller_on_the_same_fleet_is_refused(naps):
    naps.start()
    refused = naps.fleetd("run", "--policy", str(naps.policy), "--no-live")
    assert refused.returncode == 1
    assert f"another controller (process {naps.process.pid}) runs this fleet" in refused.stderr


def test_wake_drain_explain_and_plan(naps):
    naps.start()
    woken = naps.fleetd("wake", "local", "--count", "2", "--for", "1h")
    assert (woken.returncode, woken.stdout) == (0, "local holds at least 2 nodes for 3600 s\n")
    naps.until("two nodes are ready", lambda: len(naps.nodes("ready")) == 2)
    assert "holds at least 2" in naps.fleetd("explain", "local").stdout
    deep = naps.fleetd("explain", "local", "--deep").stdout
    assert "pool local: 2 nodes (measured), between 2 and " in deep
    assert {line.partition(": ")[0] for line in deep.splitlines()} == {"app naps in local", "pool local"}
    terms = json.loads(naps.fleetd("explain", "--deep", "--json").stdout)
    assert any(text.startswith("0 waiting, 0 running (measured)") for text in terms["queue nap of naps"]), terms
    assert "did you mean 'local'" in naps.fleetd("explain", "locl", "--deep").stderr
    node = naps.nodes("ready")[0]
    assert naps.fleetd("drain", node).returncode == 0
    naps.until(
        "the drained node is gone, another took its place",
        lambda: node not in naps.nodes() and len(naps.nodes("ready")) == 2,
    )
    plan = naps.fleetd("plan", "--policy", str(naps.policy))
    assert plan.returncode == 0
    assert plan.stdout.startswith("nothing to do\n")
    assert naps.fleetd("drain", "local").returncode == 0
    naps.until("the pool is empty", lambda: naps.nodes() == [])
    assert naps.status()["pools"]["local"]["drained"] is True
    unknown = naps.fleetd("explain", "locl")
    assert (unknown.returncode, "did you mean 'local'" in unknown.stderr) == (2, True)


def test_hup_reloads_the_policy_and_an_invalid_one_changes_nothing(naps):
    naps.start()
    naps.write(most=2)
    naps.process.send_signal(signal.SIGHUP)
    naps.until("the new policy holds", lambda: naps.status()["pools"]["local"]["max"] == 2)
    assert "pools.local.max" in naps.log()
    naps.policy.write_text("version: 1\nfleet: e2e\npols: {}\n")
    naps.process.send_signal(signal.SIGHUP)
    naps.until("the error is printed", lambda: "the old policy stays" in naps.log())
    assert naps.status()["pools"]["local"]["max"] == 2


def test_dispatcher_down_is_blind_and_holds_and_comes_back_by_itself(naps):
    woken(naps, 2)
    port = naps.server.port
    naps.server.kill()
    naps.until("the queue is blind", lambda: naps.status()["queues"]["nap"]["blind"] != "")
    held = naps.nodes("ready")
    assert len(held) == 2
    with servers.gearmand(port=port):
        naps.until("it sees again", lambda: naps.status()["queues"]["nap"]["blind"] == "", limit_s=30)
        naps.submit(0.1)
        settled(naps, 1)


def test_a_poison_job_ends_as_a_dead_letter_and_the_fleet_goes_on(naps):
    (naps.home / "app" / "jobs.py").write_text(
        (naps.home / "app" / "jobs.py").read_text()
        + "\n@job('nap_poison')\ndef poison(payload):\n    import ctypes\n    ctypes.string_at(0)\n"
    )
    naps.policy.write_text(naps.policy.read_text().replace("match: nap,", 'match: "nap*",'))
    naps.start()
    argv = ("submit", "nap_poison", "--background", "--payload", "x", "--server", naps.server.address)
    assert naps.fleetd(*argv).returncode == 0
    naps.until("a dead letter is kept", lambda: naps.status()["dead"] == 1, limit_s=60)
    naps.submit(0.1)
    settled(naps, 1)
    assert json.loads(naps.fleetd("status", "--json").stdout)["dead"] == 1
