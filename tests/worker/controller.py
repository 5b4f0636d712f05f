"""A small controller that checks every signature, gives one release, and misbehaves when told to."""

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from fleetd.codecs.lease import ANSWER_HEADER, Lease, LeaseAnswer, WorkerOrder, dump, load_lease, sign_answer, verify
from fleetd.releases.build import snapshot
from tests.worker.harness import until

SECRET = "s" * 40


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
    bundles: dict[str, bytes] = field(default_factory=dict)

    def give(self, folder: Path, room: Path, number: int = 1) -> str:
        """Have workers run the code of a folder as it is now; return its digest."""
        built = snapshot(folder, room)
        self.bundles[built.digest] = built.path.read_bytes()
        self.order = WorkerOrder(number, "work", release=built.digest)
        return built.digest

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
            if self.path.startswith("/v1/releases/"):
                return self.answer(controller.bundles[self.path.rpartition("/")[2]], *signature)
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


@contextlib.contextmanager
def serving() -> Iterator[Controller]:
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
