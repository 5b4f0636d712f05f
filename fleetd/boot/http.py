"""A small HTTP/1.1 server for files: h11 reads and words the messages, the kernel sends the files (sendfile).

Promises: a client costs a connection and no copy of a file, whatever its pace; one that sends or takes nothing for a
while is let go; more than so many at a time are told to come back. HEAD, single ranges, entity tags; never a redirect,
which firmware does not follow. May not know what is served.
"""

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any, Final, Protocol, cast
from urllib.parse import unquote

import h11

from fleetd.boot.ranges import UnsatisfiableError, chosen

HEAD_S: Final = 20.0  # for the head of a request, or the next one
STALL_S: Final = 60.0  # for one part of a file to be taken
PART: Final = 4 * 1024 * 1024  # of 0.25, 1, 4 and 16 MiB the fastest by far
MOST_CLIENTS: Final = 1024
MOST_BODY: Final = 16 * 1024
MOST_HEAD: Final = 16 * 1024
TEXT: Final = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Asked:
    """A request: the path is decoded and has no query, header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    peer: str = ""
    body: bytes = b""
    query: str = ""


class Opened(Protocol):
    """What the kernel can send."""

    def fileno(self) -> int:
        """Return its number."""
        ...


@dataclass(frozen=True, slots=True)
class File:
    """An open file, shared by all who are being sent it: it is read by place, never by its own position."""

    handle: Opened
    size: int
    digest: str


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with: `file` in the place of `body`, where there is one."""

    code: int
    body: bytes = b""
    media: str = TEXT
    file: File | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


Handler = Callable[[Asked], Awaitable[Answer]]
Broken = Callable[[str], None]  # hears in a line of a handler that failed


def said(code: int, line: str) -> Answer:
    """Return an answer of one line."""
    return Answer(code, f"{line}\n".encode())


@dataclass(slots=True)
class Files:
    """A server on one socket. `handle` answers; what goes wrong in it is told to `broken` and costs one answer."""

    handle: Handler
    broken: Broken
    most: int = MOST_CLIENTS
    head_s: float = HEAD_S
    stall_s: float = STALL_S
    _clients: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> asyncio.Server:
        """Listen; raises OSError."""
        wait_s = self.head_s if tls else None
        return await asyncio.start_server(
            self._client, host, port, ssl=tls, ssl_handshake_timeout=wait_s, backlog=1024, limit=MOST_HEAD
        )

    async def let_go(self) -> None:
        """End every conversation. Safe twice."""
        for task in self._clients:
            task.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._clients.add(task)
        try:
            await self._talk(reader, writer)
        except (OSError, TimeoutError, h11.ProtocolError, asyncio.IncompleteReadError):
            writer.transport.abort()  # the client left, stopped, or says nothing that is HTTP
        except asyncio.CancelledError:
            writer.transport.abort()  # by `let_go`; asyncio's streams would log it, where it went on from here
        finally:
            self._clients.discard(task)
            writer.close()
            with suppress(OSError, TimeoutError):
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = h11.Connection(h11.SERVER, max_incomplete_event_size=MOST_HEAD)
        peer = writer.get_extra_info("peername")
        while True:
            try:
                async with asyncio.timeout(self.head_s):
                    asked = await _read(link, reader, str(peer[0]) if peer else "")
            except h11.RemoteProtocolError as error:
                if link.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                    await self._send(link, writer, None, said(error.error_status_hint, "this is no HTTP that is read"))
                return
            if asked is None:
                return
            await self._send(link, writer, asked, await self._answer(asked))
            if link.our_state is not h11.DONE or link.their_state is not h11.DONE:
                return
            link.start_next_cycle()

    async def _answer(self, asked: Asked) -> Answer:
        if len(self._clients) > self.most:
            return Answer(503, b"too many at a time; come back\n", headers={"Retry-After": "5", "Connection": "close"})
        try:
            return await self.handle(asked)
        except Exception as error:  # noqa: BLE001 - the boundary: one answer fails, no other
            self.broken(f"{asked.method} {asked.path!r:.200}: {type(error).__name__}: {error}")
            return said(500, "something went wrong here; the log of fleetd says what")

    async def _send(self, link: h11.Connection, writer: asyncio.StreamWriter, asked: Asked | None, say: Answer) -> None:
        """Send an answer: head and short bodies by h11, files by the kernel, with h11 counting their bytes."""
        code, headers, start, stop = _headed(asked, say)
        given = [(name.encode(), value.encode()) for name, value in headers.items()]
        kind = h11.Response(status_code=code, headers=given, reason=b"")
        writer.write(link.send(kind) or b"")
        if asked is not None and asked.method != "HEAD" and code != 304:
            if say.file is None or code == 416:
                writer.write(link.send(h11.Data(data=say.body if code == say.code else b"")) or b"")
            elif stop > start:
                link.send_with_data_passthrough(h11.Data(data=_Bytes(stop - start)))  # type: ignore[arg-type]
                await self._send_file(writer, say.file.handle, start, stop)
        elif asked is None:
            writer.write(link.send(h11.Data(data=say.body)) or b"")
        link.send(h11.EndOfMessage())
        async with asyncio.timeout(self.stall_s):
            await writer.drain()

    async def _send_file(self, writer: asyncio.StreamWriter, handle: Opened, start: int, stop: int) -> None:
        loop, file = asyncio.get_running_loop(), cast("Any", handle)  # of a file it needs the number alone
        while start < stop:
            async with asyncio.timeout(self.stall_s):
                sent = await loop.sendfile(writer.transport, file, start, min(PART, stop - start), fallback=False)
            if not sent:
                raise OSError("the file has become shorter")
            start += sent


class _Bytes:
    """Stands for bytes that the kernel sends: all that h11 wants of them is how many they are."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count


async def _read(link: h11.Connection, reader: asyncio.StreamReader, peer: str) -> Asked | None:
    """Return the next request, None at the end of the connection; raises RemoteProtocolError."""
    head: h11.Request | None = None
    body = b""
    while True:
        event = link.next_event()
        if event is h11.NEED_DATA:
            if link.they_are_waiting_for_100_continue:
                raise h11.RemoteProtocolError("bodies are short here and need no leave", error_status_hint=417)
            link.receive_data(await reader.read(MOST_HEAD))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
            if len(body) > MOST_BODY:
                raise h11.RemoteProtocolError("the body is too long", error_status_hint=413)
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            names = {name.decode("latin-1"): value.decode("latin-1") for name, value in head.headers}
            path, _, query = head.target.decode("latin-1").partition("?")
            return Asked(head.method.decode(), unquote(path, errors="replace"), names, peer, bytes(body), query)
        else:
            return None


def _headed(asked: Asked | None, say: Answer) -> tuple[int, dict[str, str], int, int]:
    """Return the code, the headers and which bytes of a file are to be sent."""
    headers = {"Content-Type": say.media, "Date": formatdate(usegmt=True), "Cache-Control": "no-store", **say.headers}
    if say.file is None or asked is None:
        headers["Content-Length"] = str(len(say.body))
        return say.code, headers, 0, 0
    size, tag = say.file.size, f'"{say.file.digest}"'
    headers |= {"ETag": tag, "Accept-Ranges": "bytes"}
    if tag in map(str.strip, asked.headers.get("if-none-match", "").split(",")):
        return 304, headers, 0, 0
    wanted = asked.headers.get("range", "") if asked.method == "GET" else ""
    if asked.headers.get("if-range", tag) != tag:
        wanted = ""
    try:
        part = chosen(wanted, size)
    except UnsatisfiableError:
        return 416, headers | {"Content-Range": f"bytes */{size}", "Content-Length": "0"}, 0, 0
    if part is None:
        return say.code, headers | {"Content-Length": str(size)}, 0, size
    start, stop = part
    headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{size}", "Content-Length": str(stop - start)}
    return 206, headers, start, stop
