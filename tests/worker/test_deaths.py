"""Each kind of death, and what becomes of the job: against a real gearmand."""

import base64
import os
import signal
import time

import pytest

from fleetd.codecs.gearman import Kind
from tests import servers
from tests.worker.conftest import Connect, StartWorker
from tests.worker.harness import Client, Worker, status, until

pytestmark = pytest.mark.real


def test_a_killed_slot_gives_its_job_to_another(start: StartWorker, client: Client, gearmand: servers.Server) -> None:
    worker = start("--server", gearmand.address, slots=2)
    client.submit("nap", b"0.5", b"n")
    (line,) = worker.wait_note("start")
    os.kill(int(line.split()[-1]), signal.SIGKILL)
    assert client.end().args[1] == b"slept"
    lines = worker.notes()
    assert [line.split()[0] for line in lines] == ["start", "start", "end"]
    assert lines[0].split()[-1] != lines[1].split()[-1]
    worker.wait_log(r'job crashed .*attempt="1 of 3" reason="killed by signal 9 \(SIGKILL; out of memory\?\)"')
    assert not worker.letters()
    worker.wait_slots(2)


def test_a_poison_job_is_dead_after_its_attempts(worker: Worker, client: Client) -> None:
    client.submit("crash", b"poison", b"p")
    end = client.end()
    assert (end.kind, end.args[1]) == (Kind.WORK_FAIL, b"killed by signal 11 (SIGSEGV)")
    (letter,) = worker.letters()
    assert (letter["function"], letter["unique"], letter["attempts"]) == ("crash", "p", 3)
    assert base64.b64decode(letter["payload"]) == b"poison"
    assert "in crash" in letter["traceback"], "the stack of the crash itself"
    assert len(worker.wait_note("crash", 3)) == 3
    assert client.run("upper", b"x").args[1] == b"X", "and the worker goes on"


def test_a_dead_letter_keeps_a_large_payload(worker: Worker, client: Client) -> None:
    payload = os.urandom(300_000)
    client.submit("crash", payload)
    assert client.end().kind is Kind.WORK_FAIL
    assert base64.b64decode(worker.letters()[0]["payload"]) == payload


def test_attempts_are_set_by_the_command_line(start: StartWorker, client: Client, gearmand: servers.Server) -> None:
    worker = start("--server", gearmand.address, "--attempts", "1")
    assert client.run("crash").kind is Kind.WORK_FAIL
    assert len(worker.notes()) == 1


def test_a_unique_used_again_starts_with_fresh_attempts(worker: Worker, client: Client) -> None:
    for _ in range(2):
        client.submit("crash", b"x", b"same")
        assert client.end().kind is Kind.WORK_FAIL
    assert len(worker.notes()) == 6


def test_a_slot_that_dies_idle_is_replaced_at_once_and_costs_nothing(worker: Worker, client: Client) -> None:
    (old,) = worker.slots()
    os.kill(old, signal.SIGKILL)
    assert client.run("upper", b"x").args[1] == b"X"
    assert "attempt" not in worker.log


def test_the_soft_limit_raises_in_a_plain_job(worker: Worker, client: Client) -> None:
    began = time.monotonic()
    end = client.run("slow")
    assert end.args[1] == b"TimeoutError: the job ran longer than its limit of 0.4 s"
    assert 1.2 <= time.monotonic() - began < 4
    assert worker.notes() == ["slow"] * 3
    (letter,) = worker.letters()
    assert "time.sleep(30)" in letter["traceback"]
    assert letter["attempts"] == 3


def test_the_soft_limit_cancels_an_async_job(worker: Worker, client: Client) -> None:
    end = client.run("slow_async")
    assert end.args[1] == b"TimeoutError: the job ran longer than its limit of 0.4 s"
    assert worker.notes() == ["slow_async"] * 3
    assert "await asyncio.sleep(30)" in worker.letters()[0]["traceback"]


def test_the_limit_of_the_command_line_holds_for_jobs_without_one(
    start: StartWorker, client: Client, gearmand: servers.Server
) -> None:
    start("--server", gearmand.address, "--job-limit", "0.3", "--attempts", "1")
    assert client.run("nap", b"30").args[1] == b"TimeoutError: the job ran longer than its limit of 0.3 s"
    assert client.run("nap", b"0.05").args[1] == b"slept"
    time.sleep(0.5)
    assert client.run("nap", b"0.2").args[1] == b"slept", "a timer left over must not hit a later job"


def test_the_hard_limit_kills_and_shows_the_stack(start: StartWorker, client: Client, gearmand: servers.Server) -> None:
    worker = start("--server", gearmand.address, "--attempts", "1")
    end = client.run("stuck")
    assert end.kind is Kind.WORK_FAIL
    assert end.args[1] == b"ran longer than its limit of 0.3 s and 5 s of grace; killed"
    (letter,) = worker.letters()
    assert "in stuck" in letter["traceback"]
    assert client.run("upper", b"x").args[1] == b"X"


def test_the_supervisors_death_ends_no_job(worker: Worker, client: Client, gearmand: servers.Server) -> None:
    client.submit("nap", b"0.8", b"n")
    worker.wait_note("start")
    client.submit("upper", b"x", b"waiting", Kind.SUBMIT_JOB_BG)
    worker.signal(signal.SIGKILL)
    assert client.end().args[1] == b"slept"
    worker.wait_exit()
    assert [line.split()[0] for line in worker.notes()] == ["start", "end"]
    assert status(gearmand.port)["upper"][:2] == (1, 0), "nothing new is taken"


def test_idle_slots_end_with_their_supervisor(worker: Worker) -> None:
    worker.signal(signal.SIGKILL)
    worker.wait_exit(5)


def test_a_dead_generation_is_replaced_while_slots_go_on(worker: Worker, client: Client) -> None:
    client.submit("nap", b"0.6", b"n")
    worker.wait_note("start")
    (old,) = [pid for pid, name in worker.pids().items() if name == "fleetd-gen"]
    os.kill(old, signal.SIGKILL)
    assert client.end().args[1] == b"slept"
    assert [line.split()[0] for line in worker.notes()] == ["start", "end"]
    worker.wait_log("generation ended; a new one starts")
    until(lambda: [pid for pid, name in worker.pids().items() if name == "fleetd-gen" and pid != old])
    os.kill(worker.slots()[0], signal.SIGKILL)
    assert client.run("upper", b"x").args[1] == b"X", "the new generation brings slots, too"


def test_two_dispatchers_are_both_served_and_one_may_die(
    start: StartWorker, connect: Connect, gearmand: servers.Server
) -> None:
    port = servers.free_port()
    with servers.gearmand(port=port) as other:
        worker = start("--server", gearmand.address, "--server", other.address)
        here, there = connect(), connect(port)
        assert here.run("upper", b"a").args[1] == b"A"
        assert there.run("upper", b"b").args[1] == b"B"
        other.kill()
        worker.wait_log(f"dispatcher (lost|not reachable) .*{other.address}")
        assert here.run("upper", b"c").args[1] == b"C"
    with servers.gearmand(port=port):
        worker.wait_log(f"dispatcher found .*{port}")
        assert connect(port).run("upper", b"d").args[1] == b"D"
        assert here.run("upper", b"e").args[1] == b"E"
    assert len(worker.slots()) == 1
    assert "slot ended" not in worker.log


def test_two_loaded_dispatchers_share_a_slot(start: StartWorker, connect: Connect, gearmand: servers.Server) -> None:
    with servers.gearmand() as other:
        clients = connect(), connect(other.port)
        for at in range(100):
            for name, client in zip((b"a", b"b"), clients, strict=True):
                client.submit("nap", b"0.001 " + name, b"u%d" % at)
        worker = start("--server", gearmand.address, "--server", other.address)
        for client in clients:
            for _ in range(100):
                assert client.end().kind is Kind.WORK_COMPLETE
        starts = [line.split()[2] for line in worker.notes() if line.startswith("start")]
        assert len(starts) == 200
        assert [starts[at] for at in range(0, 64, 8)] == ["a", "b"] * 4, "turns of a batch each"
