"""Jobs against a real gearmand: what comes back to the client, and what is written down."""

import base64
import subprocess

import pytest

import fleetd.client
from fleetd.codecs.gearman import Kind
from fleetd.errors import JobError
from tests import servers
from tests.worker.conftest import Connect, StartWorker
from tests.worker.harness import Client, Worker, status, until

pytestmark = pytest.mark.real


def test_a_job_returns_its_result(worker: Worker, client: Client) -> None:
    handle = client.submit("upper", b"hello\0there")
    assert client.end() == (Kind.WORK_COMPLETE, (handle, b"HELLO\0THERE"))


def test_context_reaches_the_client_in_order(worker: Worker, client: Client) -> None:
    handle = client.submit("talk", unique=b"u-1")
    end = client.end()
    assert [(packet.kind, packet.args[1:]) for packet in client.packets] == [
        (Kind.WORK_STATUS, (b"1", b"2")),
        (Kind.WORK_DATA, (b"part",)),
        (Kind.WORK_WARNING, (b"careful",)),
    ]
    assert end.args[1] == b"talk " + handle + b" u-1 None"


def test_an_async_job_returns_its_result(worker: Worker, client: Client) -> None:
    assert client.run("later", b"x").args[1] == b"later x"
    assert client.run("upper", b"and on").args[1] == b"AND ON"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("fail", "ValueError: no good: x"),
        ("leave", "SystemExit: 3"),
        ("number", "TypeError: number returned int; a job returns bytes, str, None or a Path"),
    ],
)
def test_an_exception_is_final_and_leaves_a_letter(worker: Worker, client: Client, function: str, reason: str) -> None:
    end = client.run(function, b"x")
    assert (end.kind, end.args[1]) == (Kind.WORK_FAIL, reason.encode())
    (letter,) = worker.letters()
    assert (letter["function"], letter["attempts"], letter["reason"]) == (function, 1, reason)
    assert base64.b64decode(letter["payload"]) == b"x"
    assert reason.partition(":")[0] in letter["traceback"]
    assert client.run("upper", b"next").args[1] == b"NEXT", "the slot must go on"
    assert len(worker.slots()) == 1
    assert "dispatcher error" not in worker.log, "nothing may follow a WORK_FAIL"


@pytest.mark.usefixtures("worker")
def test_a_stock_client_hears_of_a_failed_job_and_does_not_wait_for_ever(gearmand: servers.Server) -> None:
    """libgearman would, on a WORK_EXCEPTION that it did not ask for."""
    command = [servers.find("gearman"), "-h", gearmand.host, "-p", str(gearmand.port), "-f", "fail", "x"]
    done = subprocess.run(command, capture_output=True, timeout=10, check=False)
    assert done.returncode != 0
    assert b"ValueError: no good: x" in done.stdout + done.stderr


@pytest.mark.usefixtures("worker")
def test_our_client_raises_the_reason_of_a_failed_job(gearmand: servers.Server) -> None:
    with (
        fleetd.client.Client([gearmand.address]) as client,
        pytest.raises(JobError, match=r"^job fail: ValueError: no good: x$") as caught,
    ):
        client.run("fail", b"x", wait_s=10)
    assert caught.value.remote == b"ValueError: no good: x"


def test_the_traceback_shows_the_job_and_not_the_worker(worker: Worker, client: Client) -> None:
    client.run("fail", b"x")
    assert 'raise ValueError("no good: " + payload.decode())' in worker.letters()[0]["traceback"]
    assert "run.py" not in worker.letters()[0]["traceback"]


def test_retry_costs_an_attempt_until_the_last(worker: Worker, client: Client) -> None:
    end = client.run("retry")
    assert (end.kind, end.args[1]) == (Kind.WORK_FAIL, b"Retry: not yet")
    assert len(worker.notes()) == 3
    assert [letter["attempts"] for letter in worker.letters()] == [3]
    assert len(worker.wait_log(r"job goes back .*attempt=\"[12] of 3\"", 2)) == 2


def test_every_job_is_answered_exactly_once(start: StartWorker, connect: Connect, gearmand: servers.Server) -> None:
    start("--server", gearmand.address, slots=3)
    client = connect()
    handles = [client.submit("upper", b"%d" % at, b"u%d" % at) for at in range(300)]
    got = {client.end().args[0] for _ in handles}
    assert got == set(handles)
    assert client.run("upper", b"z").args[1] == b"Z"
    leftovers = {packet.kind for packet in client.packets}
    assert not leftovers & {Kind.WORK_COMPLETE, Kind.WORK_FAIL, Kind.WORK_EXCEPTION}


def test_large_payload_and_result_pass(worker: Worker, client: Client) -> None:
    payload = bytes(range(97, 123)) * 100_000
    assert client.run("upper", payload).args[1] == payload.upper()
    assert client.run("upper", b"small").args[1] == b"SMALL"


def test_the_standard_client_is_served(worker: Worker, gearmand: servers.Server) -> None:
    command = [servers.find("gearman"), "-h", "127.0.0.1", "-p", str(gearmand.port), "-f", "upper", "words"]
    assert subprocess.run(command, capture_output=True, timeout=10, check=True).stdout.strip() == b"WORDS"


def test_background_jobs_leave_the_queue(worker: Worker, client: Client, gearmand: servers.Server) -> None:
    for at in range(20):
        client.submit("upper", b"x", b"bg%d" % at, Kind.SUBMIT_JOB_BG)
    until(lambda: status(gearmand.port)["upper"][0] == 0)


def test_the_slot_names_itself(worker: Worker, gearmand: servers.Server, client: Client) -> None:
    until(lambda: status(gearmand.port).get("upper"))
    client.sock.sendall(b"workers\n")
    text = until(lambda: client.sock.recv(65536)).decode()
    assert "/local/" in text
    assert " : upper talk stuck " in text  # gearmand lists the last registered first


@pytest.mark.slow
def test_a_job_whose_letter_cannot_be_kept_is_not_answered_but_run_again(
    start: StartWorker, client: Client, gearmand: servers.Server, tmp_path
) -> None:
    spool = tmp_path / "spool"
    spool.write_text("a file where the spool should be: as good as a full disk")
    worker = start("--server", gearmand.address, "--attempts", "1")
    client.submit("fail", b"x", b"u-9", Kind.SUBMIT_JOB_BG)
    worker.wait_log("dead letter cannot be kept", 2)
    assert status(gearmand.port)["fail"][0] == 1, "it is still the dispatcher's"
    spool.unlink()
    until(worker.letters, hint=lambda: worker.log)
    assert [letter["unique"] for letter in worker.letters()] == ["u-9"]
    until(lambda: status(gearmand.port)["fail"][0] == 0)
