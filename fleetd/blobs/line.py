"""HTTP with the controller, and with whom it names: questions in JSON, and bytes that stream.

Promises: the own store's address is the caller's, never a reference's; credentials go to that address alone; nothing
waits longer than its time-out; no proxy of the environment is asked. Everything here blocks.
"""

import http.client
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, NoReturn
from urllib.parse import urlsplit

from fleetd.blobs.faults import BadFileError, StoreFullError, of_others
from fleetd.errors import FleetdError, ProtocolError, UnreachableError, UsageError

CHUNK: Final = 512 * 1024
CONNECT_S: Final = 5.0
ANSWER_S: Final = 20.0
STALL_S: Final = 30.0  # of a transfer in which no byte moves
DONE_S: Final = 300.0  # the store brings a large file to its disk before it answers
MOST_ANSWER: Final = 4 * 1024 * 1024
# The Authorization header's value for method, path and body.
Authorize = Callable[[str, str, bytes], str]
_BROKEN: Final = (OSError, http.client.HTTPException)


class BusyStoreError(UnreachableError):
    """The store cannot do it now."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where bytes from `offset` on go to or come from, `size` of them at most. `skip`: so many there are before them.

    `url` begins with a slash in the own store; otherwise it is one that the controller has signed.
    """

    url: str
    method: str
    offset: int
    size: int
    skip: int = 0


def check_url(url: str, place: str) -> str:
    """Return a controller's address without a slash too many; raises UsageError."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or parts.query or parts.fragment or "@" in parts.netloc:
        raise UsageError(f"{place}: {url!r:.100}: must be http://HOST:PORT or https://HOST:PORT")
    return url.rstrip("/")


class Stop:
    """Ends what a thread does on the network, from another thread."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self._live: set[http.client.HTTPConnection] = set()
        self._lock = threading.Lock()

    def __call__(self) -> None:
        """Fail what is under way, and whatever begins later. Safe twice."""
        self.called.set()
        with self._lock:
            live = list(self._live)
        for connection in live:
            with suppress(OSError, AttributeError):
                connection.sock.shutdown(socket.SHUT_RDWR)

    @contextmanager
    def over(self, connection: http.client.HTTPConnection) -> Iterator[None]:
        """Have a connection ended, too."""
        with self._lock:
            self._live.add(connection)
        try:
            if self.called.is_set():
                raise ConnectionAbortedError("the deadline has passed")
            yield
        finally:
            with self._lock:
                self._live.discard(connection)


@dataclass(frozen=True, slots=True)
class Line:
    """The way to one store, at its controller's address."""

    url: str
    authorize: Authorize = field(repr=False)
    stop: Stop = field(default_factory=Stop)

    def ask(self, method: str, path: str, value: Any = None, *, wait_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the answer to a question; raises UnreachableError, BadFileError, StoreFullError, FleetdError."""
        body = b"" if value is None else json.dumps(value).encode()
        headers = {"Authorization": self.authorize(method, path, body), "Content-Type": "application/json"}
        with _connected(self.url, wait_s, self.stop) as connection:
            connection.request(method, _prefix(self.url) + path, body or None, headers)
            answer = connection.getresponse()
            content = answer.read(MOST_ANSWER)
        if answer.status != 200:
            _refused(answer.status, content, self.url)
        try:
            return dict(json.loads(content))
        except (ValueError, TypeError):
            raise ProtocolError(f"{self.url}: the answer is not JSON; is that a fleetd controller?") from None

    def send(self, where: Where, parts: Iterable[bytes]) -> None:
        """Send bytes where they go; raises as `ask` does. What arrived before the connection broke may be kept."""
        target, headers = self._target(where)
        with _connected(target, STALL_S, self.stop) as connection:
            connection.putrequest(where.method, _path(target, where), skip_accept_encoding=True)
            for name, value in {**headers, "Content-Length": str(where.size)}.items():
                connection.putheader(name, value)
            connection.endheaders()
            try:
                for part in parts:
                    connection.send(part)
            except OSError as error:
                if of_others(error):
                    raise
                with suppress(*_BROKEN):  # it may have said why before it hung up
                    _heed(connection.getresponse(), self.url)
                raise
            _heed(connection.getresponse(), self.url)

    def receive(self, where: Where) -> Iterator[memoryview]:
        """Yield bytes from where they are; raises as `ask` does, in the middle too. Each piece holds until the next."""
        target, headers = self._target(where)
        if where.skip:
            headers["Range"] = f"bytes={where.skip}-"
        with _connected(target, STALL_S, self.stop) as connection:
            connection.request(where.method, _path(target, where), None, headers)
            answer = connection.getresponse()
            if answer.status not in (200, 206) or (where.skip and answer.status != 206):
                _refused(answer.status, answer.read(MOST_ANSWER), self.url)
            left, piece = where.size, memoryview(bytearray(CHUNK))
            while left > 0 and (count := answer.readinto(piece[:left])):
                left -= count
                yield piece[:count]

    def _target(self, where: Where) -> tuple[str, dict[str, str]]:
        """Return whom to call and with which headers: credentials are for the own store alone."""
        headers = {"Content-Type": "application/octet-stream"} if where.method != "GET" else {}
        if where.url.startswith("/"):
            return self.url, {**headers, "Authorization": self.authorize(where.method, where.url, b"")}
        parts = urlsplit(where.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ProtocolError(f"{self.url}: names {where.url!r:.100} as the place of bytes; that is none")
        return f"{parts.scheme}://{parts.netloc}", {}


def _path(target: str, where: Where) -> str:
    if where.url.startswith("/"):
        return _prefix(target) + where.url
    parts = urlsplit(where.url)
    return f"{parts.path or '/'}?{parts.query}" if parts.query else parts.path or "/"


def _prefix(base: str) -> str:
    return urlsplit(base).path.rstrip("/")


@contextmanager
def _connected(base: str, timeout_s: float, stop: Stop) -> Iterator[http.client.HTTPConnection]:
    """A connection; what breaks on it is an UnreachableError that names the address."""
    parts = urlsplit(base)
    host, port = parts.hostname or "", parts.port
    if parts.scheme == "https":
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            host, port, timeout=CONNECT_S, context=_trust(os.environ.get("FLEETD_CA", ""))
        )
    else:
        connection = http.client.HTTPConnection(host, port, timeout=CONNECT_S)
    try:
        connection.connect()
        connection.sock.settimeout(timeout_s)
        with stop.over(connection):
            yield connection
    except _BROKEN as error:
        if of_others(error):
            raise
        reason = "nothing came in time" if isinstance(error, TimeoutError) else f"{error}" or type(error).__name__
        raise UnreachableError(f"the file store at {parts.scheme}://{parts.netloc}: {reason}") from None
    finally:
        connection.close()


@cache
def _trust(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except OSError as error:
        raise UsageError(f"FLEETD_CA: {ca}: {error.strerror or 'holds no certificate in PEM'}") from None


def _heed(answer: http.client.HTTPResponse, base: str) -> None:
    content = answer.read(MOST_ANSWER)
    if answer.status // 100 != 2:
        _refused(answer.status, content, base)


def _refused(status: int, content: bytes, base: str) -> NoReturn:
    try:
        line = str(dict(json.loads(content))["error"])
    except (ValueError, TypeError, KeyError):
        line = f"answered {status}: {' '.join(content[:200].decode(errors='replace').split())}"
    if status in (413, 507):
        raise StoreFullError(line)
    if status in (404, 410, 416):
        raise BadFileError(line)
    if status in (401, 403):
        raise FleetdError(f"{base}: refused: {line}")
    if status == 422:
        raise UsageError(line)
    raise BusyStoreError(f"{base}: {line}")
