"""Leases and orders against a small controller that checks every signature, and misbehaves when told to."""

import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from fleetd.codecs.lease import (
    WorkerOrder,
    join_token,
)
from tests import servers
from tests.worker.conftest import StartWorker
from tests.worker.controller import SECRET, Controller, serving
from tests.worker.harness import Client, Worker, status, until

pytestmark = pytest.mark.real
TOKEN = join_token(SECRET, "shop", "rack3")


@pytest.fixture
def controller() -> Iterator[Controller]:
    """A controller on a free port."""
    with serving() as made:
        yield made


@pytest.fixture
def leased(start: StartWorker, gearmand: servers.Server, controller: Controller) -> Worker:
    """A worker with one slot and a controller."""
    return _start(start, gearmand, controller)


def _start(
    start: StartWorker, gearmand: servers.Server, controller: Controller, *args: str, wait: bool = True
) -> Worker:
    scope = ("--fleet", "shop", "--pool", "rack3", "--order-key", "k-1", "--controller", controller.url)
    return start("--server", gearmand.address, *scope, *args, wait=wait, env={"FLEETD_JOIN_TOKEN": TOKEN})


def test_a_lease_says_what_is(leased: Worker, controller: Controller, client: Client) -> None:
    lease = controller.wait(lambda lease: lease.state == "working")
    start = Path(f"/proc/{leased.process.pid}/stat").read_text().rpartition(")")[2].split()[19]
    assert lease.node == f"rack3/{leased.process.pid}.{start}"
    assert (lease.fleet, lease.pool, lease.key, lease.app) == ("shop", "rack3", "k-1", "app")
    assert (lease.slots, lease.busy, lease.order) == (1, 0, 0)
    assert len(lease.digest) == 64
    client.submit("nap", b"0.9")
    busy = controller.wait(lambda lease: lease.busy == 1)
    assert busy.idle_s == 0
    assert busy.jobs["nap"].started == 1
    assert 0 <= busy.jobs["nap"].running_s[0] < 1.5
    client.end()
    done = controller.wait(lambda lease: lease.jobs["nap"].done == 1 if "nap" in lease.jobs else False)
    assert done.jobs["nap"].buckets in ({"39": 1}, {"40": 1}), "floor(4·log2(900 ms))"
    assert 0.9 <= done.jobs["nap"].service_s < 1.5
    assert [lease.seq for lease in controller.leases] == list(range(1, len(controller.leases) + 1))
    assert len({lease.boot for lease in controller.leases}) == 1
    assert not controller.errors


def test_no_lease_is_sent_before_the_slots_are_there(
    start: StartWorker, gearmand: servers.Server, controller: Controller, app: Path
) -> None:
    jobs = app / "jobs.py"
    jobs.write_text("import time\ntime.sleep(1)\n" + jobs.read_text())
    worker = _start(start, gearmand, controller, wait=False)
    worker.wait_log("worker started")
    time.sleep(0.6)
    assert not controller.leases
    controller.wait(lambda lease: lease.state == "working")


def test_drain_and_work_orders_are_obeyed(
    leased: Worker, controller: Controller, client: Client, gearmand: servers.Server
) -> None:
    client.submit("nap", b"0.8")
    leased.wait_note("start")
    controller.order = WorkerOrder(1, "drain")
    draining = controller.wait(lambda lease: lease.state == "draining")
    assert (draining.busy, draining.order) == (1, 1)
    client.submit("upper", b"x")
    assert client.end().args[1] == b"slept"
    drained = controller.wait(lambda lease: lease.state == "drained")
    assert (drained.busy, drained.order) == (0, 1)
    assert status(gearmand.port)["upper"][:2] == (1, 0), "a drained worker takes nothing"
    assert leased.process.poll() is None, "and stays"
    controller.order = WorkerOrder(2, "work")
    assert client.end().args[1] == b"X"
    controller.wait(lambda lease: lease.state == "working" and lease.order == 2)
    controller.order = WorkerOrder(3, "stop")
    assert leased.wait_exit() == 0
    assert controller.leases[-1].state == "drained"


def test_an_old_order_is_not_obeyed(leased: Worker, controller: Controller) -> None:
    controller.order = WorkerOrder(5, "drain")
    controller.wait(lambda lease: lease.state == "drained")
    controller.mode, controller.order = "stubborn", WorkerOrder(4, "work")
    time.sleep(0.5)
    assert controller.leases[-1].state == "drained"
    assert controller.polls[-1]["after"] == ["5"]


def test_a_drain_order_with_a_deadline_gives_jobs_back(
    leased: Worker, controller: Controller, client: Client, gearmand: servers.Server
) -> None:
    client.submit("nap", b"30")
    leased.wait_note("start")
    controller.order = WorkerOrder(1, "drain", deadline_s=0.5)
    controller.wait(lambda lease: lease.state == "drained")
    assert status(gearmand.port)["nap"][:2] == (1, 0)
    assert "attempt=" not in leased.log
    controller.order = WorkerOrder(2, "work")
    leased.wait_note("start", 2)


def test_dead_letters_are_sent_until_stored_and_then_removed(
    leased: Worker, controller: Controller, client: Client
) -> None:
    controller.store = False
    client.run("fail", b"x")
    first = controller.wait(lambda lease: bool(lease.dead))
    again = controller.wait(lambda lease: bool(lease.dead), len(controller.leases))
    assert again.dead == first.dead
    assert [asdict(first.dead[0])] == leased.letters()
    assert first.dead[0].reason == "ValueError: no good: x"
    controller.store = True
    until(lambda: not leased.letters())
    controller.wait(lambda lease: not lease.dead, len(controller.leases))


def test_crashes_are_counted(leased: Worker, controller: Controller, client: Client) -> None:
    client.run("crash")
    lease = controller.wait(lambda lease: lease.crashes == 3)
    assert (lease.jobs["crash"].started, lease.jobs["crash"].failed) == (3, 3)


@pytest.mark.parametrize("mode", ["garbage", "forged", "slow", "500", "403", "302"])
def test_a_bad_controller_harms_no_job(leased: Worker, controller: Controller, client: Client, mode: str) -> None:
    controller.wait(lambda lease: lease.state == "working")
    controller.mode = mode
    controller.order = WorkerOrder(1, "stop" if mode != "slow" else "work")
    since = len(controller.leases)
    for _ in range(10):
        assert client.run("nap", b"0.05").args[1] == b"slept"
    if mode != "slow":
        leased.wait_log("controller: lease failed; work goes on")
        leased.wait_log("controller: orders failed; work goes on")
        assert leased.log.count("controller: lease failed") == 1, "one line, not one for each try"
    assert leased.process.poll() is None, "a forged order to stop is not obeyed"
    assert "order " not in leased.log or mode == "slow"
    controller.mode, controller.order = "good", None
    controller.wait(lambda lease: lease.state == "working", since + 1)


def test_an_unreachable_controller_harms_no_job(start: StartWorker, gearmand: servers.Server, client: Client) -> None:
    gone = Controller(url=f"http://127.0.0.1:{servers.free_port()}")
    worker = _start(start, gearmand, gone)
    worker.wait_log("controller: lease failed")
    assert client.run("upper", b"x").args[1] == b"X"
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit(8) == 0


def test_an_orphan_that_idles_ends_itself(start: StartWorker, gearmand: servers.Server, client: Client) -> None:
    gone = Controller(url=f"http://127.0.0.1:{servers.free_port()}")
    worker = _start(start, gearmand, gone, "--orphan-after", "1")
    client.submit("nap", b"2")
    assert client.end().args[1] == b"slept", "never in the middle of a job"
    assert worker.wait_exit() == 0
    assert "no controller for" in worker.log


def test_a_worker_that_is_heard_does_not_end_itself(
    start: StartWorker, gearmand: servers.Server, controller: Controller
) -> None:
    worker = _start(start, gearmand, controller, "--orphan-after", "1")
    time.sleep(2.5)
    assert worker.process.poll() is None


def test_the_join_token_does_not_reach_the_app(leased: Worker) -> None:
    for pid in leased.pids():
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert (TOKEN.encode() in environment) == (pid == leased.process.pid)


def test_a_missing_token_is_one_line(start: StartWorker, gearmand: servers.Server) -> None:
    worker = start("--server", gearmand.address, "--controller", "http://127.0.0.1:1", wait=False)
    assert worker.wait_exit() == 2
    assert "join token: malformed" in worker.log
    assert "Traceback" not in worker.log
    assert os.environ.get("FLEETD_JOIN_TOKEN") is None


def test_json_logs_are_one_object_a_line(start: StartWorker, gearmand: servers.Server, client: Client) -> None:
    worker = start("--server", gearmand.address, "--log-format", "json")
    client.run("fail", b"x")
    lines = [json.loads(line) for line in worker.log.splitlines()]
    assert {"worker started", "slot started", "dead letter"} <= {line["event"] for line in lines}
    assert all(line["time"] and line["level"] for line in lines)
