"""The client for threads: results, listeners in the calling thread, closing, and forking."""

import gc
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from fleetd.client import (
    BatchError,
    Client,
    JobError,
    JobTimeoutError,
    OutcomeUnknownError,
    Submission,
    UnreachableError,
    UsageError,
)
from tests import servers

WORKER = """
import sys
from fleetd.codecs.gearman import Decoder, Kind, encode
import socket
sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
sock.sendall(encode(Kind.CAN_DO, b"work") + encode(Kind.GRAB_JOB_UNIQ))
decoder = Decoder()
while data := sock.recv(65536):
    for kind, args in decoder.feed(data):
        if kind is Kind.NO_JOB:
            sock.sendall(encode(Kind.PRE_SLEEP))
        elif kind is Kind.NOOP:
            sock.sendall(encode(Kind.GRAB_JOB_UNIQ))
        elif kind is Kind.JOB_ASSIGN_UNIQ:
            handle, payload = args[0], args[3]
            out = encode(Kind.WORK_STATUS, handle, b"1", b"2") + encode(Kind.WORK_DATA, handle, b"d")
            if payload == b"fail":
                out += encode(Kind.WORK_EXCEPTION, handle, b"bad input")
            else:
                out += encode(Kind.WORK_COMPLETE, handle, payload)
            sock.sendall(out + encode(Kind.GRAB_JOB_UNIQ))
"""


@pytest.fixture
def worker(gearmand):
    """A worker of the function `work` in a process of its own: one progress, one chunk of data, the payload."""
    process = subprocess.Popen([sys.executable, "-c", WORKER, str(gearmand.port)])
    yield process
    process.kill()
    process.wait(5)


def engines() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fleetd-client"]


@pytest.mark.real
def test_run_submit_status_and_ping(gearmand, worker):
    with Client([gearmand.address]) as client:
        assert client.run("work", b"x", wait_s=10) == b"dx"
        handle = client.submit("nobody", unique="u")
        assert (handle.server, handle.unique) == (gearmand.address, "u")
        assert client.status(handle).known is True
        assert 0 < client.ping()[gearmand.address] < 2  # type: ignore[operator]
        with pytest.raises(JobError, match="bad input"):
            client.run("work", b"fail", wait_s=10)
    assert engines() == []


@pytest.mark.real
def test_listeners_are_called_in_the_calling_thread(gearmand, worker):
    heard: list[tuple[object, ...]] = []

    def note(*args: object) -> None:
        heard.append((threading.current_thread(), *args))

    with Client(gearmand.address) as client:
        assert client.run("work", b"x", wait_s=10, on_progress=note, on_data=note) == b"x"
    me = threading.current_thread()
    assert heard == [(me, 1, 2), (me, b"d")]


@pytest.mark.real
def test_what_a_listener_raises_reaches_the_caller_and_the_client_goes_on(gearmand, worker):
    def bad(*_args: object) -> None:
        raise ZeroDivisionError

    with Client(gearmand.address) as client:
        with pytest.raises(ZeroDivisionError):
            client.run("work", b"x", wait_s=10, on_progress=bad)
        assert client.run("work", b"y", wait_s=10) == b"dy"


@pytest.mark.real
def test_many_threads_share_a_client(gearmand, worker):
    with Client(gearmand.address) as client, ThreadPoolExecutor(16) as pool:
        found = pool.map(lambda number: client.run("work", b"%d" % number, wait_s=20), range(200))
        assert list(found) == [b"d%d" % number for number in range(200)]


@pytest.mark.real
def test_submit_many_consumes_the_iterable_in_the_calling_thread(gearmand):
    threads = set()

    def jobs():
        for number in range(500):
            threads.add(threading.current_thread())
            yield Submission("f", unique=f"u{number}")

    with Client(gearmand.address) as client:
        handles = client.submit_many(jobs())
        assert [handle.unique for handle in handles] == [f"u{number}" for number in range(500)]
        with pytest.raises(BatchError, match="1 of 2"):
            client.submit_many([Submission("f"), Submission("")])
    assert threads == {threading.current_thread()}


@pytest.mark.real
def test_a_deadline_holds(gearmand):
    with Client(gearmand.address) as client:
        start = time.monotonic()
        with pytest.raises(JobTimeoutError, match=r"no result within 0\.3 s; it may still run"):
            client.run("nobody", wait_s=0.3)
        assert time.monotonic() - start < 2


@pytest.mark.real
def test_closing_from_another_thread_ends_a_call_under_way(gearmand):
    client = Client(gearmand.address)
    client.ping()
    timer = threading.Timer(0.3, client.close)
    timer.start()
    start = time.monotonic()
    with pytest.raises((OutcomeUnknownError, UnreachableError), match="closed"):
        client.run("nobody", wait_s=30)
    assert time.monotonic() - start < 5
    timer.join()
    client.close()
    with pytest.raises(UnreachableError, match="client: it is closed"):
        client.ping()


@pytest.mark.real
def test_a_client_that_is_thrown_away_ends_its_thread(gearmand):
    client = Client(gearmand.address)
    client.ping()
    assert len(engines()) == 1
    del client
    gc.collect()
    assert engines() == []


def test_nothing_starts_before_the_first_call_but_addresses_are_checked():
    client = Client("127.0.0.1:4730")
    assert engines() == []
    client.close()
    client.close()
    with pytest.raises(UsageError, match="the port must be 1 to 65535"):
        Client(["127.0.0.1:99999"])


@pytest.mark.real
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_client_used_before_a_fork_works_in_parent_and_child(gearmand):
    with Client(gearmand.address) as client:
        client.submit("f", unique="before")
        child = os.fork()
        if child == 0:
            status = 1
            try:
                client.submit("f", unique="child")
                client.close()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.submit("f", unique="parent")
        assert client.ping()[gearmand.address] is not None


def test_unreachable_names_the_address():
    port = servers.free_port()
    with Client(f"127.0.0.1:{port}") as client, pytest.raises(UnreachableError, match=f"127.0.0.1:{port}"):
        client.submit("f")
