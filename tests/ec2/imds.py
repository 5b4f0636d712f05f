"""One instance's metadata service on a port of its own: "Use IMDSv2" and "Instance metadata categories" (Amazon EC2
User Guide). Version 2 alone: without a session's token it answers 401.
"""

import json
import secrets
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.ec2.identity import Authority, pages

TOKEN = "X-aws-ec2-metadata-token"


@dataclass
class Imds:
    """What it says is set from outside, while it runs."""

    instance: str
    by: Authority
    tags: dict[str, str]
    region: str
    paths: dict[str, bytes] = field(default_factory=dict)
    tokens: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)
    refused: int = 0

    def start(self) -> "Imds":
        """Serve."""
        self.paths |= pages(self.instance, self.by, self.region)
        for key, value in self.tags.items():
            self.paths[f"/latest/meta-data/tags/instance/{key}"] = value.encode()
        handler = type("Bound", (_Handler,), {"imds": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads, self._server.block_on_close = True, False
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def interrupt(self, in_s: float) -> None:
        """Tell that the instance will be terminated."""
        at = (datetime.now(UTC) + timedelta(seconds=in_s)).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.paths["/latest/meta-data/spot/instance-action"] = json.dumps({"action": "terminate", "time": at}).encode()

    def rebalance(self) -> None:
        """Tell that an interruption has become likely."""
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        self.paths["/latest/meta-data/events/recommendations/rebalance"] = json.dumps({"noticeTime": at}).encode()

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    imds: Imds

    def do_PUT(self) -> None:
        ttl = self.headers.get(f"{TOKEN}-ttl-seconds", "")
        if self.path != "/latest/api/token" or not ttl.isdigit() or not 1 <= int(ttl) <= 21600:
            self._say(400)
            return
        token = secrets.token_urlsafe(32)
        self.imds.tokens.add(token)
        self._say(200, token.encode())

    def do_GET(self) -> None:
        self.imds.asked.append(self.path)
        if self.headers.get(TOKEN) not in self.imds.tokens:
            self.imds.refused += 1
            self._say(401)
            return
        body = self.imds.paths.get(self.path)
        self._say(404) if body is None else self._say(200, body)

    def _say(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass
