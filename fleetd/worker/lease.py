"""The worker's side of the lease: says what is, hears what should be.

Promises: whatever the controller does, slow, silent, garbled or hostile, no job notices; nothing is obeyed without a
right signature; every call ends within its time-out; trouble is logged once when it comes and once when it goes.
"""

import asyncio
import http.client
import logging
import random
import secrets
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from hmac import compare_digest
from pathlib import Path
from typing import BinaryIO, Final, Protocol
from urllib.parse import quote, urlencode, urlsplit

from fleetd.codecs.lease import (
    ANSWER_HEADER,
    MAX_BODY,
    Lease,
    LeaseAnswer,
    WorkerOrder,
    authorization,
    dump,
    load_answer,
    load_order,
    sign_answer,
    split_token,
)
from fleetd.errors import FleetdError, ProtocolError, UnreachableError, UsageError
from fleetd.worker import dead
from fleetd.worker.backoff import backoff_s
from fleetd.worker.credential import write_token
from fleetd.worker.logs import event
from fleetd.worker.ticket import leave_ticket

CONNECT_S: Final = 5.0
LEASE_S: Final = 10.0
POLL_S: Final = 30.0  # the server holds a poll for about 20
DEBOUNCE_S: Final = 0.1
SHORTEST_S: Final = 0.1
LONGEST_S: Final = 300.0
BACKOFF_CAP_S: Final = 30.0


class RefusedLeaseError(FleetdError):
    """The controller understood and said no."""


class Worker(Protocol):
    """What the lease needs of the supervisor."""

    changed: asyncio.Event
    order: int

    def lease(self, boot: str, seq: int, node: str) -> Lease:
        """Say what is."""
        ...

    def obey(self, order: WorkerOrder) -> None:
        """Do what the controller says."""
        ...


@dataclass(slots=True)
class Channel:
    """One keep-alive HTTP connection, for one request at a time, in a thread."""

    url: str
    timeout_s: float
    _connection: http.client.HTTPConnection | None = None

    def call(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        """Return (status, signature, body) of the answer; raises UnreachableError. A stale connection is tried anew."""
        for fresh in (False, True):
            connection = self._connection
            if fresh or connection is None:
                connection = self._connection = self._connect()
                fresh = True  # noqa: PLW2901
            try:
                connection.request(method, self._prefix() + path, body or None, headers)
                answer = connection.getresponse()
                content = answer.read(MAX_BODY + 1)
            except (OSError, http.client.HTTPException, ValueError, AttributeError) as error:
                ours = self._connection is connection  # else `abort` was called meanwhile
                self.abort()
                if isinstance(error, ConnectionError) and ours and not fresh:
                    continue
                raise UnreachableError(f"{type(error).__name__}: {error}") from None
            if len(content) > MAX_BODY or answer.will_close:
                self.abort()
            return answer.status, answer.headers.get(ANSWER_HEADER, ""), content
        raise UnreachableError("the controller keeps closing the connection")

    def fetch(self, path: str, headers: dict[str, str], file: BinaryIO) -> None:
        """Write what is at `path` into `file`; raises UnreachableError for any answer but 200, or half of one."""
        connection = self._connection = self._connect()
        try:
            connection.request("GET", self._prefix() + path, None, headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise UnreachableError(f"answered {answer.status}: {_line(answer.read(1000))}")
            while chunk := answer.read(1 << 20):
                file.write(chunk)
        except (TimeoutError, ConnectionError, http.client.HTTPException, ValueError, AttributeError) as error:
            raise UnreachableError(f"{type(error).__name__}: {error}") from None

    def abort(self) -> None:
        """Close, from any thread: a call under way fails at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _prefix(self) -> str:
        return urlsplit(self.url).path.rstrip("/")

    def _connect(self) -> http.client.HTTPConnection:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname or "", parts.port, timeout=CONNECT_S)
        try:
            connection.connect()
            connection.sock.settimeout(self.timeout_s)
        except (OSError, ValueError) as error:
            connection.close()
            raise UnreachableError(f"{error}") from None
        return connection


@dataclass(slots=True)
class Controller:
    """The controller as this worker knows it. `heard_at` is when it last said something with a right signature.

    A token with an end is renewed by the controller; `kept` is the file that it came from, for a worker after this one.
    """

    url: str
    token: str
    node: str
    app: str
    spool: Path
    kept: Path | None = None
    boot: str = field(default_factory=lambda: secrets.token_hex(16))
    heard_at: float = field(default_factory=time.monotonic)
    seq: int = 0
    _troubles: dict[str, str] = field(default_factory=dict)
    _lease: Channel = field(init=False)
    _orders: Channel = field(init=False)

    def __post_init__(self) -> None:
        self._lease = Channel(self.url, LEASE_S)
        self._orders = Channel(self.url, POLL_S)

    async def say(self, worker: Worker) -> LeaseAnswer:
        """Send one lease; forgets the dead letters that the controller has stored."""
        self.seq += 1
        letters = await asyncio.to_thread(dead.waiting, self.spool)
        lease = replace(worker.lease(self.boot, self.seq, self.node), dead=letters)
        answer = load_answer(await self._ask(self._lease, "POST", "/v1/lease", dump(lease)))
        if answer.dead:
            await asyncio.to_thread(dead.acknowledge, self.spool, answer.dead)
        if answer.token:
            await asyncio.to_thread(self._adopt, answer.token)
        return answer

    async def poll(self, after: int) -> WorkerOrder | None:
        """Wait for an order newer than `after`; None where there was none in time."""
        asked = {"node": self.node, "boot": self.boot, "after": after, "app": self.app}
        query = urlencode(asked, quote_via=quote)
        body = await self._ask(self._orders, "GET", f"/v1/orders?{query}", b"")
        return load_order(body) if body else None

    def download(self, digest: str, file: BinaryIO) -> None:
        """Write a release's bundle into `file`; blocks. Raises UnreachableError. Its digest proves it, no signature."""
        path = f"/v1/releases/{digest}"
        channel = Channel(self.url, LEASE_S)
        try:
            channel.fetch(path, {"Authorization": authorization(self.token, "GET", path)}, file)
        finally:
            channel.abort()

    def note(self, what: str, trouble: str) -> None:
        """Log when trouble with `what` comes, changes its kind or goes ("")."""
        before = self._troubles.get(what, "")
        if trouble and trouble != before:
            event(logging.WARNING, f"controller: {what} failed; work goes on", controller=self.url, error=trouble)
        elif before and not trouble:
            event(logging.INFO, f"controller: {what} works again", controller=self.url)
        self._troubles[what] = trouble

    def abort(self) -> None:
        """Fail what is under way, so that its thread ends. Safe twice."""
        self._lease.abort()
        self._orders.abort()

    async def _ask(self, channel: Channel, method: str, path: str, body: bytes) -> bytes:
        """Call and check; raises UnreachableError, RefusedLeaseError or ProtocolError."""
        token = self.token  # it may be renewed before a long poll is answered
        header = authorization(token, method, path, body)
        headers = {"Authorization": header, "Content-Type": "application/json"}
        answered = False
        try:
            async with asyncio.timeout(channel.timeout_s):  # the socket's own counts anew with every byte
                status, signature, content = await asyncio.to_thread(channel.call, method, path, headers, body)
                answered = True
        except TimeoutError:
            raise UnreachableError(f"no answer within {channel.timeout_s:g} s") from None
        finally:
            if not answered:
                channel.abort()
        if status in (401, 403, 409):
            raise RefusedLeaseError(f"refused with {status}: {_line(content)}")
        if status not in (200, 204):
            raise UnreachableError(f"answered {status}: {_line(content)}")
        expected = sign_answer(split_token(token)[1], header.rpartition(" ")[2], content)
        if not compare_digest(expected.encode(), signature.encode("latin-1", "replace")):
            raise ProtocolError("the answer's signature is wrong; it is not obeyed")
        self.heard_at = time.monotonic()
        return content

    def _adopt(self, token: str) -> None:
        """Take a renewed token; one that cannot be written down is used all the same."""
        split_token(token)
        self.token = token
        leave_ticket(self.spool, token)
        if self.kept is None:
            return
        try:
            write_token(self.kept, token)
        except OSError as error:
            self.note("token", f"{self.kept}: {error.strerror}")
        else:
            self.note("token", "")


def make_controller(url: str, token: str, node: str, app: str, spool: Path, *, kept: Path | None = None) -> Controller:
    """Check what the worker was given; raises UsageError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--controller {url!r}: expected http://HOST:PORT or https://HOST:PORT")
    try:
        _ = parts.port, split_token(token)
    except (ValueError, ProtocolError) as error:
        raise UsageError(f"--controller {url!r}: {error} (the token is read from FLEETD_JOIN_TOKEN)") from None
    return Controller(url, token, node, app, spool, kept)


async def keep_lease(controller: Controller, worker: Worker) -> None:
    """Say what is on every change, and whenever the controller wants to hear. Runs for ever."""
    failures = 0
    while True:
        worker.changed.clear()
        try:
            answer = await controller.say(worker)
        except (FleetdError, OSError) as error:
            failures += 1
            controller.note("lease", _line(f"{error}".encode()))
            await asyncio.sleep(backoff_s(failures, BACKOFF_CAP_S))
            continue
        failures = 0
        controller.note("lease", "")
        with suppress(TimeoutError):
            next_s = min(max(answer.next_s, SHORTEST_S), LONGEST_S)
            async with asyncio.timeout(next_s):
                await worker.changed.wait()
        await asyncio.sleep(DEBOUNCE_S)


async def keep_orders(controller: Controller, worker: Worker) -> None:
    """Hear what should be, and have it done. Runs for ever."""
    failures = 0
    while True:
        try:
            order = await controller.poll(worker.order)
        except (FleetdError, OSError) as error:
            failures += 1
            controller.note("orders", _line(f"{error}".encode()))
            await asyncio.sleep(backoff_s(failures, BACKOFF_CAP_S))
            continue
        failures = 0
        controller.note("orders", "")
        before = worker.order
        if order is not None:
            worker.obey(order)
        if worker.order == before:  # a controller that does not hold the poll must not be hammered
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311


def _line(text: bytes) -> str:
    return " ".join(text[:300].decode(errors="replace").split())
