"""A metadata service as an EC2 instance has it: tokens are enforced, and it misbehaves when told to."""

import contextlib
import json
import secrets
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

INTERRUPTION = "/latest/meta-data/spot/instance-action"
REBALANCE = "/latest/meta-data/events/recommendations/rebalance"


@dataclass
class Metadata:
    """What an instance is told. `ahead_s`: how far the service's clock is ahead of this machine's."""

    url: str = ""
    pages: dict[str, bytes] = field(default_factory=dict)
    mode: str = "good"
    ahead_s: float = 0.0
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def now(self) -> datetime:
        """The service's time."""
        return datetime.now(UTC) + timedelta(seconds=self.ahead_s)

    def interrupt(self, left_s: float, action: str = "terminate") -> None:
        """Say that the instance ends so soon."""
        at = (self.now() + timedelta(seconds=left_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.pages[INTERRUPTION] = json.dumps({"action": action, "time": at}).encode()

    def recommend(self) -> None:
        """Say that an interruption is likely."""
        self.pages[REBALANCE] = json.dumps({"noticeTime": self.now().strftime("%Y-%m-%dT%H:%M:%SZ")}).encode()


def _handler(metadata: Metadata) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: Any) -> None:
            pass

        def date_time_string(self, timestamp: float | None = None) -> str:
            return format_datetime(metadata.now(), usegmt=True)

        def do_PUT(self) -> None:
            if self.path != "/latest/api/token" or "X-aws-ec2-metadata-token-ttl-seconds" not in self.headers:
                self.answer(400, b"")
                return
            token = secrets.token_urlsafe(30)
            metadata.tokens.add(token)
            self.answer(200, token.encode())

        def do_GET(self) -> None:
            metadata.asked.append(self.path)
            if self.headers.get("X-aws-ec2-metadata-token") not in metadata.tokens:
                self.answer(401, b"")
                return
            page = metadata.pages.get(self.path)
            self.answer(404 if page is None else 200, page or b"<html>not found</html>")

        def answer(self, code: int, body: bytes) -> None:
            match metadata.mode:
                case "slow":
                    time.sleep(3)
                case "trickle":
                    for byte in b"HTTP/1.1 200 OK\r\n" * 10:
                        self.wfile.write(bytes([byte]))
                        time.sleep(0.3)
                    return
                case "garbage":
                    code, body = 200, b"\xff{]"
                case "endless":
                    self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
                    return
                case "no http":
                    self.wfile.write(b"220 mail.example ESMTP\r\n\r\n")
                    self.close_connection = True
                    return
                case "500" | "403":
                    code = int(metadata.mode)
            self.send_response(code)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever asked has hung up; that is no error here."""


@contextlib.contextmanager
def serving() -> Iterator[Metadata]:
    """A metadata service on a free port, of an instance that is told nothing yet."""
    made = Metadata()
    server = _Server(("127.0.0.1", 0), _handler(made))
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)
