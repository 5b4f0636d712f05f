"""One generation takes over from another, or is turned back: HUP against a real gearmand, and what clients see."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from fleetd.codecs.gearman import Kind
from fleetd.worker.generation import IMPORT_NICE, may_raise_to
from tests import servers
from tests.worker.conftest import Connect, StartWorker
from tests.worker.harness import APP, Client, Worker, until

pytestmark = [pytest.mark.real, pytest.mark.slow]
TOOK_OVER = r"generation took over"
REFUSED = r"generation refused; rolled back"


@pytest.fixture
def write(app: Path):
    """Change the app's code on the disk."""

    def go(code: str) -> None:
        (app / "jobs.py").write_text(APP + code)

    return go


def version(text: str) -> str:
    return f"\n@job\ndef version(payload):\n    return b'{text}'\n"


def test_hup_brings_the_changed_code_in(start: StartWorker, client: Client, gearmand: servers.Server, write) -> None:
    write(version("one"))
    worker = start("--server", gearmand.address, slots=2)
    assert client.run("version").args[1] == b"one"
    old = worker.slots()
    write(version("two"))
    worker.signal(signal.SIGHUP)
    worker.wait_log(TOOK_OVER)
    assert client.run("version").args[1] == b"two"
    until(lambda: len(worker.slots()) == 2 and not set(old) & set(worker.slots()))


def test_hup_without_a_change_does_nothing(start: StartWorker, client: Client, gearmand: servers.Server) -> None:
    worker = start("--server", gearmand.address)
    old = worker.slots()
    worker.signal(signal.SIGHUP)
    time.sleep(0.5)
    assert client.run("upper", b"x").args[1] == b"X"
    assert worker.slots() == old


def test_a_running_job_ends_in_the_code_it_began_in(
    start: StartWorker, connect: Connect, gearmand: servers.Server, write
) -> None:
    write(version("one"))
    worker = start("--server", gearmand.address)
    slow, other = connect(), connect()
    slow.submit("nap", b"1.5")
    worker.wait_note("start")
    write(version("two"))
    worker.signal(signal.SIGHUP)
    assert other.run("version").args[1] == b"two", "the new one took a job while the old one was still running its own"
    assert slow.end().args[1] == b"slept"
    assert [line.split()[0] for line in worker.notes()] == ["start", "end"]


def test_swaps_under_load_lose_and_double_nothing(
    start: StartWorker, connect: Connect, gearmand: servers.Server, write
) -> None:
    worker = start("--server", gearmand.address, "--probation", "0.2", slots=3)
    client, count = connect(), 600
    feeder = connect()

    def feed() -> None:
        for at in range(count):
            feeder.submit("nap", b"0.01", b"u%d" % at, Kind.SUBMIT_JOB_BG)
            time.sleep(0.004)

    feeding = threading.Thread(target=feed)
    feeding.start()
    for at in range(1, 4):
        write(version(f"v{at}"))
        worker.signal(signal.SIGHUP)
        worker.wait_log(TOOK_OVER, at)
        assert client.run("version").args[1] == b"v%d" % at
    feeding.join()
    until(lambda: len(worker.notes()) >= 2 * count, hint=lambda: worker.log)
    assert len(worker.notes()) == 2 * count, "each job started once and ended once"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("\nraise RuntimeError('no such table')\n", "RuntimeError: no such table"),
        ("\nfrom fleetd.worker import health\n@health\ndef ok():\n    raise OSError('no licence')\n", "no licence"),
        (
            "\nfrom fleetd.worker import health\n@health\ndef ok():\n    time.sleep(60)\n",
            "health check took longer than 0.5 s",
        ),
        ("\nfrom fleetd.worker import health\n@health\ndef ok():\n    os.abort()\n", "ended with -6"),
        ("\nthis is no Python\n", "SyntaxError"),
        ("\nos.abort()\n", "ended with -6"),
    ],
    ids=["import", "health", "health hangs", "health aborts", "syntax", "import aborts"],
)
def test_code_that_does_not_prove_itself_never_takes_a_job(  # noqa: PLR0917
    start: StartWorker, client: Client, gearmand: servers.Server, write, code: str, reason: str
) -> None:
    write(version("good"))
    worker = start("--server", gearmand.address, "--health", "0.5")
    old = worker.slots()
    write(version("bad") + code)
    worker.signal(signal.SIGHUP)
    (line,) = worker.wait_log(f"{REFUSED}.*")
    assert reason in line
    assert client.run("version").args[1] == b"good"
    assert worker.slots() == old, "the old slots never stopped"
    write(version("better"))
    worker.signal(signal.SIGHUP)
    worker.wait_log(TOOK_OVER)
    assert client.run("version").args[1] == b"better"


def test_code_that_crashes_its_first_jobs_is_turned_back_and_no_job_pays(
    start: StartWorker, connect: Connect, gearmand: servers.Server, write
) -> None:
    work = "\n@job\ndef work(payload):\n    {}note('ran ' + payload.decode())\n    return payload\n"
    write(work.format(""))
    worker = start("--server", gearmand.address, slots=2)
    write(work.format("os.abort() or "))
    clients = [connect() for _ in range(40)]
    worker.signal(signal.SIGHUP)
    give_up_at, sent = time.monotonic() + 20, 0
    while "rolled back" not in worker.log:
        assert time.monotonic() < give_up_at, worker.log
        if sent < len(clients):
            clients[sent].submit("work", b"%d" % sent, b"w%d" % sent)
            sent += 1
        time.sleep(0.05)
    for at in range(sent):
        assert clients[at].end().args[1] == b"%d" % at
    assert worker.letters() == []
    assert sorted(worker.notes()) == sorted(f"ran {at}" for at in range(sent)), "each ran once in the good code"
    assert "2 jobs crashed it" in worker.log


def test_code_whose_jobs_fail_more_often_is_turned_back_after_it_took_over(
    start: StartWorker, client: Client, gearmand: servers.Server, write
) -> None:
    work = "\n@job\ndef work(payload):\n    {}\n    return payload\n"
    write(work.format("pass"))
    worker = start("--server", gearmand.address, slots=2)
    for at in range(50):
        assert client.run("work", b"%d" % at).kind is Kind.WORK_COMPLETE
    write(work.format("if time.time_ns() // 1000 % 4 == 0: raise ValueError('leak')"))
    worker.signal(signal.SIGHUP)
    worker.wait_log(TOOK_OVER)
    done = 0
    while "rolled back" not in worker.log and done < 3000:
        done += client.run("work", b"x").kind is Kind.WORK_COMPLETE
    (line,) = worker.wait_log(f"{REFUSED}.*")
    assert "jobs failed, where" in line
    assert done < 300
    for at in range(200):
        assert client.run("work", b"%d" % at).kind is Kind.WORK_COMPLETE
    assert len(worker.letters()) <= 2, "an error on trial goes back and is run again; hardly one fails three times"


def test_a_poison_job_does_not_turn_good_code_back(
    start: StartWorker, connect: Connect, gearmand: servers.Server, write
) -> None:
    write(version("one"))
    worker = start("--server", gearmand.address, slots=2)
    write(version("two"))
    worker.signal(signal.SIGHUP)
    worker.wait_log(TOOK_OVER)
    poison, client = connect(), connect()
    poison.submit("crash", b"", b"poison")
    end = poison.end()
    assert end.kind is Kind.WORK_FAIL
    assert client.run("version").args[1] == b"two"
    assert len(worker.notes()) == 4, "the first crash was put down to the new code, the next three to the job"
    assert "rolled back" not in worker.log


def test_slot_by_slot_never_has_more_than_one_slot_too_many(
    start: StartWorker, connect: Connect, gearmand: servers.Server, write
) -> None:
    write(version("one"))
    worker = start("--server", gearmand.address, "--overlap", "1", slots=4)
    write(version("two"))
    most, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            most[0] = max(most[0], len(worker.slots()))

    watching = threading.Thread(target=watch)
    watching.start()
    worker.signal(signal.SIGHUP)
    worker.wait_log(TOOK_OVER)
    stop.set()
    watching.join()
    assert connect().run("version").args[1] == b"two"
    assert most[0] == 5
    until(lambda: len(worker.slots()) == 4 and list(worker.pids().values()).count("fleetd-gen") == 1)


def test_a_drain_in_the_middle_of_a_swap_ends_everything(
    start: StartWorker, connect: Connect, gearmand: servers.Server, write
) -> None:
    worker = start("--server", gearmand.address, slots=2)
    client = connect()
    client.submit("nap", b"0.8")
    worker.wait_note("start")
    write(version("two") + "\ntime.sleep(0.5)\n")
    worker.signal(signal.SIGHUP)
    worker.wait_log("generation comes")
    worker.signal(signal.SIGTERM)
    assert client.end().args[1] == b"slept"
    assert worker.wait_exit() == 0


def test_the_newest_of_two_changes_runs(start: StartWorker, client: Client, gearmand: servers.Server, write) -> None:
    worker = start("--server", gearmand.address)
    write(version("two") + "\ntime.sleep(1)\n")
    worker.signal(signal.SIGHUP)
    worker.wait_log("generation comes")
    write(version("three"))
    worker.signal(signal.SIGHUP)
    worker.wait_log(TOOK_OVER)
    assert client.run("version").args[1] == b"three"
    until(lambda: list(worker.pids().values()).count("fleetd-gen") <= 2)


def test_a_generation_that_stood_its_trial_is_alone(start: StartWorker, gearmand: servers.Server, write) -> None:
    worker = start("--server", gearmand.address, "--probation", "0.5")
    write(version("two"))
    worker.signal(signal.SIGHUP)
    worker.wait_log("generation stood its trial")
    until(lambda: list(worker.pids().values()).count("fleetd-gen") == 1, hint=lambda: str(worker.pids()))


def test_a_dead_slot_of_the_new_generation_is_replaced_by_its_own(
    start: StartWorker, client: Client, gearmand: servers.Server, write
) -> None:
    worker: Worker = start("--server", gearmand.address)
    write(version("two"))
    worker.signal(signal.SIGHUP)
    worker.wait_log(TOOK_OVER)
    (slot,) = until(lambda: found if len(found := worker.slots()) == 1 else None)
    os.kill(slot, signal.SIGKILL)
    until(lambda: worker.slots() not in ([], [slot]))
    assert client.run("version").args[1] == b"two"


def test_an_import_steps_back_behind_running_jobs_and_slots_do_not(
    start: StartWorker, client: Client, gearmand: servers.Server, write
) -> None:
    write("\nNICE = os.getpriority(os.PRIO_PROCESS, 0)\n\n@job\ndef nice(payload):\n"
          "    return f'{NICE} {os.getpriority(os.PRIO_PROCESS, 0)}'\n")  # fmt: skip
    start("--server", gearmand.address)
    before = os.getpriority(os.PRIO_PROCESS, 0)
    stepped_back = max(before, IMPORT_NICE) if may_raise_to(before) else before
    assert client.run("nice").args[1] == f"{stepped_back} {before}".encode()


def test_two_jobs_that_fail_by_themselves_do_not_turn_good_code_back(
    start: StartWorker, connect: Connect, gearmand: servers.Server, write
) -> None:
    """Each is tried three times while the code is on trial: six failures, and yet two jobs."""
    write(version("one"))
    worker = start("--server", gearmand.address, slots=2)
    write(version("two"))
    worker.signal(signal.SIGHUP)
    worker.wait_log(TOOK_OVER)
    for at in range(2):
        assert connect().run("fail", b"%d" % at).kind is Kind.WORK_FAIL
    worker.wait_log("job goes back", 4)
    time.sleep(0.5)
    assert "rolled back" not in worker.log
    assert connect().run("version").args[1] == b"two"
