"""Drain, fence, release: what each signal does to running and waiting jobs, against a real gearmand."""

import os
import signal
import time
from pathlib import Path

import pytest

from fleetd.codecs.gearman import Kind
from tests import servers
from tests.worker.conftest import Connect, StartWorker
from tests.worker.harness import Client, Worker, status, until

pytestmark = pytest.mark.real


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_drain_finishes_the_running_job_and_leaves_the_rest(
    worker: Worker, client: Client, gearmand: servers.Server, number: int
) -> None:
    client.submit("nap", b"0.6", b"running")
    worker.wait_note("start")
    client.submit("upper", b"x", b"waiting", Kind.SUBMIT_JOB_BG)
    worker.signal(number)
    assert client.end().args[1] == b"slept"
    assert worker.wait_exit() == 0
    assert status(gearmand.port)["upper"] == (1, 0, 0), "the waiting job was not taken"
    assert [line.split()[0] for line in worker.notes()] == ["start", "end"]


def test_drain_under_load_loses_and_doubles_nothing(
    start: StartWorker, connect: Connect, gearmand: servers.Server
) -> None:
    first = start("--server", gearmand.address, slots=3)
    client = connect()
    handles = [client.submit("nap", b"0.005", b"u%d" % at) for at in range(300)]
    client.end()
    first.signal(signal.SIGTERM)
    assert first.wait_exit() == 0
    taken = len(first.notes())
    assert 0 < taken < 600, "the drain must fall into the middle"
    start("--server", gearmand.address, slots=3)
    for _ in handles[1:]:
        assert client.end().kind is Kind.WORK_COMPLETE
    assert len(first.notes()) == 600, "each job started once and ended once"


def test_an_idle_worker_ends_at_once(worker: Worker) -> None:
    began = time.monotonic()
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0
    assert time.monotonic() - began < 2


def test_a_second_term_gives_running_jobs_back_at_no_cost(
    worker: Worker, client: Client, gearmand: servers.Server, start: StartWorker
) -> None:
    client.submit("nap", b"30", b"n")
    worker.wait_note("start")
    worker.signal(signal.SIGTERM)
    worker.wait_log("stopping")
    assert worker.slots(), "the first one waits"
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit(5) == 0
    assert status(gearmand.port)["nap"][:2] == (1, 0), "back in the queue"
    assert "job released" in worker.log
    assert "attempt=" not in worker.log


def test_quit_gives_running_jobs_back_at_once(worker: Worker, client: Client, gearmand: servers.Server) -> None:
    client.submit("nap", b"30", b"n")
    worker.wait_note("start")
    worker.signal(signal.SIGQUIT)
    assert worker.wait_exit(5) == 0
    assert status(gearmand.port)["nap"][:2] == (1, 0)


def test_the_drain_deadline_gives_running_jobs_back(
    start: StartWorker, client: Client, gearmand: servers.Server
) -> None:
    worker = start("--server", gearmand.address, "--drain-deadline", "0.5")
    client.submit("nap", b"30", b"n")
    worker.wait_note("start")
    worker.signal(signal.SIGTERM)
    time.sleep(0.2)
    assert worker.slots()
    assert worker.wait_exit(5) == 0
    assert status(gearmand.port)["nap"][:2] == (1, 0)


def test_tstp_fences_and_cont_lifts_the_fence(worker: Worker, client: Client, gearmand: servers.Server) -> None:
    client.submit("nap", b"0.4", b"running")
    worker.wait_note("start")
    worker.signal(signal.SIGTSTP)
    worker.wait_log("fenced")
    assert "drained" not in worker.log
    client.submit("upper", b"x", b"waiting")
    assert client.end().args[1] == b"slept"
    worker.wait_log("drained")
    time.sleep(0.3)
    assert status(gearmand.port)["upper"] == (1, 0, 1), "not taken, and still connected"
    worker.signal(signal.SIGCONT)
    assert client.end().args[1] == b"X"


def test_an_idle_slot_is_fenced_too(worker: Worker, client: Client, gearmand: servers.Server) -> None:
    worker.signal(signal.SIGTSTP)
    worker.wait_log("drained")
    client.submit("upper", b"x")
    time.sleep(0.3)
    assert status(gearmand.port)["upper"][:2] == (1, 0)
    worker.signal(signal.SIGCONT)
    assert client.end().args[1] == b"X"


def test_a_slot_born_under_a_fence_is_fenced(worker: Worker, client: Client, gearmand: servers.Server) -> None:
    worker.signal(signal.SIGTSTP)
    worker.wait_log("drained")
    (old,) = worker.slots()
    os.kill(old, signal.SIGKILL)
    until(lambda: worker.slots() not in ([], [old]))
    client.submit("upper", b"x")
    time.sleep(0.3)
    assert status(gearmand.port)["upper"][:2] == (1, 0)
    worker.signal(signal.SIGCONT)
    assert client.end().args[1] == b"X"


def test_slots_ignore_the_signals_of_the_worker(
    start: StartWorker, client: Client, gearmand: servers.Server, app: Path
) -> None:
    jobs = app / "jobs.py"
    jobs.write_text("import signal\nsignal.signal(signal.SIGTERM, signal.SIG_DFL)\n" + jobs.read_text())
    worker = start("--server", gearmand.address)
    client.submit("nap", b"0.5", b"n")
    worker.wait_note("start")
    for pid in worker.pids():
        if pid != worker.process.pid and pid in worker.slots():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTSTP, signal.SIGQUIT, signal.SIGHUP):
                os.kill(pid, number)
    assert client.end().args[1] == b"slept"
    for at in range(20):
        assert client.run("upper", b"%d" % at).args[1] == b"%d" % at
    assert "slot ended" not in worker.log
