"""A slot between a dispatcher that dawdles, played by the test, and a real one."""

import os
import time
from collections.abc import Iterator

import pytest

from fleetd.codecs.gearman import Kind
from tests import servers
from tests.dispatchers.test_work import Dispatcher
from tests.worker.conftest import Connect, StartWorker
from tests.worker.harness import until

pytestmark = pytest.mark.real


@pytest.fixture
def dawdler() -> Iterator[Dispatcher]:
    """A dispatcher that answers only when the test does."""
    made = Dispatcher()
    yield made
    made.listener.close()
    if made.sock is not None:
        made.sock.close()


@pytest.mark.parametrize("function", ["nap", "doze"], ids=["plain", "async"])
def test_a_dispatcher_that_owes_an_answer_is_passed_over_and_its_job_is_run_next(
    start: StartWorker, connect: Connect, gearmand: servers.Server, dawdler: Dispatcher, function: str
) -> None:
    worker = start("--server", str(dawdler.address), "--server", gearmand.address)
    dawdler.accept()
    until(lambda: any(packet.kind is Kind.GRAB_JOB_UNIQ for packet in dawdler.hear()))
    client = connect()
    assert client.run("upper", b"x").args[1] == b"X", "the other dispatcher is served meanwhile"
    client.submit(function, b"0.8 here")
    worker.wait_note("start 0.8 here")
    dawdler.say(Kind.JOB_ASSIGN_UNIQ, b"H:9", function.encode(), b"u", b"0.05 there")
    assert client.end().args[1] == b"slept"
    assert [packet.args for packet in dawdler.hear() if packet.kind is Kind.WORK_COMPLETE] == [(b"H:9", b"slept")]
    assert [" ".join(line.split()[:3]) for line in worker.notes()] == [
        "start 0.8 here",
        "end 0.8 here",
        "start 0.05 there",
        "end 0.05 there",
    ]


def test_a_job_assigned_after_the_fence_is_run_before_the_drain_ends(start: StartWorker, dawdler: Dispatcher) -> None:
    worker = start("--server", str(dawdler.address))
    dawdler.accept()
    until(lambda: any(packet.kind is Kind.GRAB_JOB_UNIQ for packet in dawdler.hear()))
    worker.signal(15)
    worker.wait_log("stopping")
    time.sleep(0.3)
    assert worker.slots(), "the answer to the last GRAB is waited for"
    dawdler.say(Kind.JOB_ASSIGN_UNIQ, b"H:9", b"upper", b"u", b"last")
    assert [(packet.kind, packet.args) for packet in dawdler.hear()] == [(Kind.WORK_COMPLETE, (b"H:9", b"LAST"))]
    assert worker.process.wait(5) == 0


def test_a_job_held_by_a_slot_that_dies_costs_no_attempt(
    start: StartWorker, connect: Connect, gearmand: servers.Server, dawdler: Dispatcher
) -> None:
    worker = start("--server", str(dawdler.address), "--server", gearmand.address, "--attempts", "1")
    sock = dawdler.accept()
    until(lambda: any(packet.kind is Kind.GRAB_JOB_UNIQ for packet in dawdler.hear()))
    client = connect()
    client.submit("nap", b"30 here")
    worker.wait_note("start")
    dawdler.say(Kind.JOB_ASSIGN_UNIQ, b"H:9", b"nap", b"u", b"0.05 there")
    time.sleep(0.2)
    (pid,) = worker.slots()
    os.kill(pid, 9)
    assert client.end().kind is Kind.WORK_FAIL
    assert sock.recv(1000) == b"", "closed without a word: the job goes back to its queue"
    assert [letter["payload"] for letter in worker.letters()] == ["MzAgaGVyZQ=="]
