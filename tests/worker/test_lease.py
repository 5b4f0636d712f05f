"""Leases and orders against a small controller that checks every signature, and misbehaves when told to."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from fleetd.codecs.lease import (
    ANSWER_HEADER,
    Lease,
    LeaseAnswer,
    WorkerOrder,
    dump,
    join_token,
    load_lease,
    sign_answer,
    verify,
)
from tests import servers
from tests.worker.conftest import StartWorker
from tests.worker.harness import Client, Worker, status, until

pytestmark = pytest.mark.real
SECRET = "s" * 40
TOKEN = join_token(SECRET, "shop", "rack3")


@dataclass
class Controller:
    """What the worker said, and what it is to be told."""

    leases: list[Lease] = field(default_factory=list)
    polls: list[dict[str, list[str]]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    order: WorkerOrder | None = None
    mode: str = "good"
    store: bool = True
    url: str = ""

    def wait(self, what: Callable[[Lease], bool], since: int = 0) -> Lease:
        """Wait for a lease that is so."""
        return until(
            lambda: next((lease for lease in self.leases[since:] if what(lease)), None),
            hint=lambda: f"{self.leases[-1:]} {self.errors}",
        )


def _handler(controller: Controller) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            signature = self.check(body)
            lease = load_lease(body)
            stored = [letter.id for letter in lease.dead] if controller.store else []
            controller.leases.append(lease)
            self.answer(dump(LeaseAnswer(0.3, 3.0, stored)), *signature)

        def do_GET(self) -> None:
            signature = self.check(b"")
            query = parse_qs(urlsplit(self.path).query)
            controller.polls.append(query)
            give_up_at = time.monotonic() + 2
            while time.monotonic() < give_up_at:
                order = controller.order
                stubborn = controller.mode == "stubborn"
                if order is not None and (stubborn or order.number > int(query["after"][0])):
                    return self.answer(dump(order), *signature)
                time.sleep(0.02)
            return self.answer(b"", *signature, code=204)

        def check(self, body: bytes) -> tuple[str, str]:
            try:
                _, key, signature = verify(SECRET, self.headers["Authorization"], self.command, self.path, body)
            except Exception as error:
                controller.errors.append(repr(error))
                raise
            return key, signature

        def answer(self, body: bytes, key: str, signature: str, code: int = 200) -> None:
            if controller.mode == "slow":
                time.sleep(1.5)
            signed = sign_answer(key, signature, body)
            if controller.mode == "forged":
                signed = sign_answer("0" * 64, signature, body)
            elif controller.mode == "garbage":
                code, body = 200, b"\xff{]"
                signed = sign_answer(key, signature, body)
            elif controller.mode.isdigit():
                code = int(controller.mode)
            self.send_response(code)
            self.send_header(ANSWER_HEADER, signed)
            if code != 204:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if code != 204:
                self.wfile.write(body)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A worker that was killed hangs up; that is no error here."""


@pytest.fixture
def controller() -> Iterator[Controller]:
    """A controller on a free port."""
    made = Controller()
    server = _Server(("127.0.0.1", 0), _handler(made))
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield made
    server.shutdown()
    server.server_close()
    thread.join(10)


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
    assert len(lease.digest) == 12
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
