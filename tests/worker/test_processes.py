"""What processes there are, whose children, and what jobs may do with processes of their own."""

import os
import signal
import time
from pathlib import Path

import pytest

from fleetd.codecs.gearman import Kind
from tests import servers
from tests.worker.conftest import StartWorker
from tests.worker.harness import Client, Worker, status, until
from tests.worker.measure import children, memory_mb

pytestmark = pytest.mark.real

CHILDREN = """
import multiprocessing, os, signal, subprocess, time
from pathlib import Path
from fleetd.worker import job
HERE = Path(__file__).parent

@job
def terminate(payload):
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    child.terminate()
    child.join(5)
    return str(child.exitcode)

@job
def program(payload):
    child = subprocess.Popen(["sleep", "30"])
    child.terminate()
    return str(child.wait(5))

@job(timeout_s=0.3, attempts=1)
def leaves_a_child(payload):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
    child = subprocess.Popen(["sleep", "300"])
    (HERE / "child").write_text(str(child.pid))
    time.sleep(300)
"""
THREADED = """
import threading, time
from fleetd.worker import job
threading.Thread(target=time.sleep, args=(1e6,), daemon=True, name="keeper").start()

@job
def threads(payload):
    return str(threading.active_count())
"""


def test_slots_are_the_supervisors_own_children(worker: Worker) -> None:
    found = children(worker.process.pid)
    assert sorted(found.values()) == ["fleetd-gen", "fleetd-slot-0"]
    sessions = {os.getsid(pid) for pid in found}
    assert len(sessions) == 2, "each in a session of its own: no terminal reaches them"
    assert os.getsid(worker.process.pid) not in sessions


def test_an_idle_slot_is_small(worker: Worker, gearmand: servers.Server) -> None:
    until(lambda: status(gearmand.port).get("upper"))
    (pid,) = worker.slots()
    assert memory_mb(pid)[0] < 6


def test_jobs_may_end_processes_of_their_own(
    start: StartWorker, app: Path, client: Client, gearmand: servers.Server
) -> None:
    (app / "jobs.py").write_text(CHILDREN)
    start("--server", gearmand.address)
    assert client.run("terminate").args[1] == b"-15"
    assert client.run("program").args[1] == b"-15"


def test_what_a_killed_job_had_started_ends_with_it(
    start: StartWorker, app: Path, client: Client, gearmand: servers.Server
) -> None:
    (app / "jobs.py").write_text(CHILDREN)
    worker = start("--server", gearmand.address)
    assert client.run("leaves_a_child").kind is Kind.WORK_FAIL
    child = int((app / "child").read_text())
    until(lambda: not Path(f"/proc/{child}").exists())
    assert child not in worker.pids()


def test_threads_after_the_import_mean_fresh_slots(
    start: StartWorker, app: Path, client: Client, gearmand: servers.Server
) -> None:
    (app / "jobs.py").write_text(THREADED)
    worker = start("--server", gearmand.address, slots=2)
    worker.wait_log(r"threads are alive after the import.*keeper")
    assert client.run("threads").args[1] == b"2", "the app's thread lives in the slot"
    os.kill(worker.slots()[0], signal.SIGKILL)
    until(lambda: len(worker.wait_log("slot started", 3)) == 3)
    assert client.run("threads").args[1] == b"2"
    worker.signal(signal.SIGTERM)
    assert worker.wait_exit() == 0


def test_a_slot_that_crashes_in_a_row_is_replaced_ever_more_slowly(
    start: StartWorker, client: Client, gearmand: servers.Server
) -> None:
    worker = start("--server", gearmand.address)
    for at in range(2):
        client.submit("crash", b"", b"u%d" % at)
        assert client.end().kind is Kind.WORK_FAIL
    began = time.monotonic()
    assert client.run("upper", b"x").args[1] == b"X"
    assert 0.5 < time.monotonic() - began < 12, "six crashes in a row"
    assert len(worker.wait_log("job crashed", 6)) == 6
