"""A TLS proxy between a provider and the API server that answers in its place, delays, or cuts: real bytes, no mock.

What it does is set from outside (`Between.answers`, `cut`), and what it did is counted, so that each fault is proven.
"""

import asyncio
import contextlib
import ssl
from collections import Counter, deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.kubernetes.plane import Cluster


@dataclass(slots=True)
class Between:
    """The proxy. `answers`: (a piece of the request's first line, the whole answer) given instead, once each."""

    port: int = 0
    answers: deque[tuple[str, bytes]] = field(default_factory=deque)
    seen: Counter[str] = field(default_factory=Counter)
    pairs: list[asyncio.StreamWriter] = field(default_factory=list)
    deaf: bool = False  # takes requests and passes nothing on

    def answer(self, piece: str, status: str, body: str = "{}", times: int = 1, **headers: str) -> None:
        """Answer the next requests with that piece in their first line by itself."""
        lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Content-Type: application/json"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        whole = ("\r\n".join(lines) + "\r\n\r\n" + body).encode()
        self.answers.extend([(piece, whole)] * times)

    def cut(self) -> int:
        """End every connection there is; return how many."""
        open_ = [writer for writer in self.pairs if not writer.is_closing()]
        for writer in open_:
            writer.transport.abort()
        self.pairs.clear()
        return len(open_)


@contextlib.asynccontextmanager
async def between(cluster: Cluster) -> AsyncIterator[Between]:
    """A proxy before the cluster's API server, with the server's own certificate."""
    proxy = Between()
    folder = cluster.folder / "certs"
    serve = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serve.load_cert_chain(folder / "apiserver.crt", folder / "apiserver.key")
    ask = ssl.create_default_context(cafile=Path(folder / "apiserver.crt"))

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        proxy.pairs.append(writer)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, ssl.SSLError):
            out_reader, out = await asyncio.open_connection("127.0.0.1", cluster.ports["api"], ssl=ask)
            back = asyncio.create_task(pump(out_reader, writer))
            try:
                while True:
                    head = await reader.readuntil(b"\r\n\r\n")
                    body = await reader.readexactly(length(head))
                    first = head.split(b"\r\n", 1)[0].decode()
                    proxy.seen[first.split("?", 1)[0].removesuffix(" HTTP/1.1")] += 1
                    if proxy.answers and proxy.answers[0][0] in first:
                        writer.write(proxy.answers.popleft()[1])
                        continue
                    if not proxy.deaf:
                        out.write(head + body)
                        await out.drain()
            finally:
                back.cancel()
                out.close()
        writer.close()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.transport.abort()

    server = await asyncio.start_server(take, "127.0.0.1", 0, ssl=serve, limit=2**20)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.cut()
        await asyncio.sleep(0.05)


def length(head: bytes) -> int:
    """How long a request's body is."""
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0
