"""The proxy itself: reads which service and action is asked for, has it answered by the call's own file, or by moto.

Service: the scope of the request's signature ("Authenticating Requests: AWS Signature Version 4", AWS General
Reference). Action: the field `Action` of the query protocol, or the `X-Amz-Target` header of the JSON one.
Every request is counted; faults are drawn by a seeded generator, so that a campaign is the same again.
"""

import contextlib
import http.client
import random
import re
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlencode

from tests.ec2.proxy import faults

HOP = {"connection", "transfer-encoding", "content-length", "server", "date"}


@dataclass(slots=True)
class Call:
    """A request."""

    service: str
    action: str
    params: dict[str, str]
    headers: dict[str, str]
    body: bytes
    path: str

    def with_params(self, params: dict[str, str]) -> "Call":
        """The same with other fields. moto does not look at signatures unless it is told to."""
        return Call(self.service, self.action, params, self.headers, urlencode(params).encode(), self.path)


@dataclass(slots=True)
class Reply:
    """An answer; a status of 0 ends the connection without one."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/xml"})


Emulation = Callable[["Proxy", Call], Reply]


@dataclass
class Proxy:
    """What it does is set from outside, while it runs."""

    moto: int
    calls: dict[str, Emulation]
    seed: int = 0
    error_share: float = 0.0  # of all calls
    stale_share: float = 0.0  # of the describes
    hide_s: float = 0.0  # so long after its start no describe shows an instance
    delay_s: float = 0.0  # of every call
    answers: deque[tuple[str, Reply, bool]] = field(default_factory=deque)  # action, answer, carried out all the same
    zones: dict[str, str] = field(default_factory=dict)  # by subnet
    capacity: dict[tuple[str, str, str], int] = field(default_factory=dict)  # left, by type, zone and market
    refusals: dict[str, str] = field(default_factory=dict)  # what CreateFleet's Errors say: code by market
    tokens: dict[str, tuple[bytes, Reply]] = field(default_factory=dict)
    born: dict[str, float] = field(default_factory=dict)  # by instance id
    spot: dict[tuple[str, str], float] = field(default_factory=dict)  # prices by type and zone
    listed: dict[str, float] = field(default_factory=dict)  # on-demand prices by type
    group_capacity: int | None = None
    asked: dict[str, int] = field(default_factory=dict)  # desired capacities that could not be had in full
    activities: list[dict[str, str]] = field(default_factory=list)  # the newest first
    refreshes: list[str] = field(default_factory=list)  # statuses
    counts: Counter[str] = field(default_factory=Counter)
    injected: Counter[str] = field(default_factory=Counter)
    log: list[tuple[float, str]] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)  # what moto could not do: a test must fail of it
    past: dict[bytes, deque[tuple[float, Reply]]] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    port: int = 0

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> "Proxy":
        """Serve."""
        self.chance = random.Random(self.seed)
        handler = type("Bound", (_Handler,), {"proxy": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def close(self) -> None:
        """Serve no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5)

    def fail(self, action: str, code: str, message: str = "as told", times: int = 1, status: int = 400) -> None:
        """Answer the next such calls with an error, without carrying them out."""
        service = "autoscaling" if action not in EC2_ACTIONS and "Auto" in action else "ec2"
        self.answers.extend([(action, faults.error(service, code, message, status), False)] * times)

    def lose(self, action: str, times: int = 1) -> None:
        """Carry the next such calls out, and lose the answers."""
        self.answers.extend([(action, Reply(0, b""), True)] * times)

    def answer(self, call: Call) -> Reply:
        """Answer a request as AWS would, or as it was told to."""
        with self.lock:
            self.counts[call.action] += 1
            self.log.append((time.time(), call.action))
            told = next((one for one in self.answers if one[0] == call.action), None)
            if told:
                self.answers.remove(told)
            chance = faults.draw(self, call) if told is None else None
        if self.delay_s:
            time.sleep(self.delay_s)
        if told is not None:
            if told[2]:
                self.emulate(call)
            return told[1]
        if chance is not None:
            self.injected[chance.what] += 1
            if chance.carried_out:
                self.emulate(call)
            return chance.reply
        return self.emulate(call)

    def emulate(self, call: Call) -> Reply:
        """Answer as AWS would."""
        emulation = self.calls.get(call.action)
        reply = emulation(self, call) if emulation else self.forward(call)
        if reply.status >= 500 and b"<!doctype html" in reply.body.lower():
            self.bad.append(f"{call.action}: moto failed: {call.body[:300]!r}")
        return reply

    def forward(self, call: Call) -> Reply:
        """Answer as moto does."""
        headers = {key: value for key, value in call.headers.items() if key.lower() not in {*HOP, "expect"}}
        connection = _connection(self.moto)
        for attempt in (1, 2):
            try:
                connection.request("POST", call.path, body=call.body, headers=headers)
                answer = connection.getresponse()
                body = answer.read()
                break
            except (http.client.HTTPException, OSError):
                connection.close()
                if attempt == 2:
                    raise
        kept = {key: value for key, value in answer.getheaders() if key.lower() not in HOP}
        return Reply(answer.status, body, kept)


_LOCAL = threading.local()
EC2_ACTIONS = {"CreateFleet", "DescribeInstances", "TerminateInstances"}


def _connection(port: int) -> http.client.HTTPConnection:
    """One connection a thread: it is as old as the client's."""
    connection: http.client.HTTPConnection | None = getattr(_LOCAL, "connection", None)
    if connection is None or connection.port != port:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        _LOCAL.connection = connection
    return connection


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed, or a moto that has ended, is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    proxy: Proxy

    def setup(self) -> None:
        self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        super().setup()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        scope = re.search(r"Credential=[^/]+/[0-9]+/[^/]+/([^/]+)/", self.headers.get("Authorization", ""))
        target = self.headers.get("X-Amz-Target", "")
        params = {} if target else dict(parse_qsl(body.decode(), keep_blank_values=True))
        action = target.rpartition(".")[2] or params.get("Action", "")
        call = Call(scope[1] if scope else "", action, params, dict(self.headers.items()), body, self.path)
        reply = self.proxy.answer(call)
        if not reply.status:
            self.close_connection = True
            return
        with contextlib.suppress(OSError):
            self.send_response_only(reply.status)
            for key, value in reply.headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        connection = getattr(_LOCAL, "connection", None)
        if connection is not None:
            connection.close()

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass
