"""The other ends of a connection, for tests: a worker that does as it is told, and dispatchers that lie."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

from fleetd.codecs.gearman import REQ, RES, Decoder, Kind, Packet, encode


@dataclass
class Job:
    """A job as a worker holds it."""

    worker: "RawWorker"
    handle: bytes
    function: bytes
    unique: bytes
    payload: bytes

    async def send(self, kind: Kind, *args: bytes) -> None:
        await self.worker.send(encode(kind, self.handle, *args))

    async def complete(self, result: bytes = b"") -> None:
        await self.send(Kind.WORK_COMPLETE, result)


class RawWorker:
    """Takes a job when the test says so, and answers what the test says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer, self._decoder = reader, writer, Decoder()
        self._packets: list[Packet] = []

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def receive(self) -> Packet:
        while not self._packets:
            data = await asyncio.wait_for(self._reader.read(65536), 5)
            assert data, "the dispatcher hung up on the worker"
            self._packets += self._decoder.feed(data)
        return self._packets.pop(0)

    async def settle(self) -> None:
        """Return once the dispatcher has taken in all that was sent."""
        await self.send(encode(Kind.ECHO_REQ, b"settled"))
        while (await self.receive()).kind is not Kind.ECHO_RES:
            pass

    async def take(self) -> Job:
        """Grab until there is a job."""
        for _ in range(500):
            await self.send(encode(Kind.GRAB_JOB_UNIQ))
            packet = await self.receive()
            if packet.kind is Kind.JOB_ASSIGN_UNIQ:
                return Job(self, *packet.args)
            await asyncio.sleep(0.01)
        raise AssertionError("no job came")

    async def serve(self, work: Callable[[Job], Awaitable[None]]) -> None:
        """Do job after job."""
        while True:
            await work(await self.take())


@contextlib.asynccontextmanager
async def raw_worker(port: int, *functions: str) -> AsyncIterator[RawWorker]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    worker = RawWorker(reader, writer)
    await worker.send(b"".join(encode(Kind.CAN_DO, name.encode()) for name in functions))
    await worker.settle()
    try:
        yield worker
    finally:
        writer.transport.abort()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


async def echo(job: Job) -> None:
    """Give back what came."""
    await job.complete(job.payload)


@contextlib.asynccontextmanager
async def echo_worker(port: int, *functions: str) -> AsyncIterator[RawWorker]:
    """A worker that answers each job with its own payload."""
    async with raw_worker(port, *functions) as worker:
        task = asyncio.create_task(worker.serve(echo))
        try:
            yield worker
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


@dataclass
class Liar:
    """A fake dispatcher on `port`: what it heard so far, and how often somebody connected."""

    port: int = 0
    heard: bytes = b""
    connections: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


Behaviour = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Liar], Awaitable[None]]


@contextlib.asynccontextmanager
async def liar(behave: Behaviour, port: int = 0) -> AsyncIterator[Liar]:
    """Serve a fake dispatcher. `behave` handles one connection; the connection closes when it returns."""
    told = Liar()
    tasks: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        told.connections += 1
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await behave(reader, writer, told)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            tasks.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", port)
    told.port = server.sockets[0].getsockname()[1]
    try:
        yield told
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()
        await asyncio.sleep(0)


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
    """Hear all, say nothing."""
    while data := await reader.read(65536):
        told.heard += data


def says(*answers: bytes, then_close: bool = False) -> Behaviour:
    """Answer the first piece of bytes heard with the first answer, and so on."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        for answer in answers:
            told.heard += await reader.read(65536)
            writer.write(answer)
            await writer.drain()
        if not then_close:
            await silent(reader, writer, told)

    return behave


GREETING = encode(Kind.OPTION_RES, b"exceptions", magic=RES)


def submitted(heard: bytes) -> list[bytes]:
    """The uniques of all submissions in what a liar heard on one connection after another."""
    found = []
    for piece in heard.split(REQ)[1:]:
        packet = Decoder(magic=REQ).feed(REQ + piece)[0]
        if packet.kind.name.startswith("SUBMIT"):
            found.append(packet.args[1])
    return found
