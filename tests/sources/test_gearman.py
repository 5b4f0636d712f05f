"""The Gearman source: the suite of its port, and what several dispatchers, some of them blind, add up to."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from fleetd.core.model import Reading
from fleetd.core.ports import Source
from fleetd.dispatchers.address import parse_address
from fleetd.dispatchers.jobs import Submission
from fleetd.dispatchers.submit import connect
from fleetd.errors import SourceError
from fleetd.sources.gearman import GearmanOptions, GearmanSource
from tests import servers
from tests.conformance.source import TIMEOUT_S, Rig, SourceConformance, ignore
from tests.dispatchers.peers import Behaviour, Job, Liar, liar, raw_worker, silent


def source_of(*addresses: str, timeout: float = 1.0, queues: Mapping[str, str] | None = None) -> GearmanSource:
    options = GearmanOptions(servers=list(addresses), timeout=timeout)
    return GearmanSource("main", options, queues or {"q": "f"})


async def put(port: int, function: str, count: int, priority: Any = "normal") -> None:
    connection = await connect(parse_address(f"127.0.0.1:{port}"))
    await connection.submit([Submission(function, priority=priority) for _ in range(count)], wait_s=5)
    await connection.close()


class GearmanRig(Rig):
    """A gearmand that can be killed and started anew, and workers that hold jobs."""

    has_logins = False

    def __init__(self) -> None:
        self.server = contextlib.ExitStack()
        self.running = self.server.enter_context(servers.gearmand())
        self.workers = contextlib.AsyncExitStack()
        self.jobs: list[Job] = []

    @property
    def port(self) -> int:
        return self.running.port

    def source(self, queues: Mapping[str, str], port: int | None = None) -> Source:
        return source_of(f"127.0.0.1:{port or self.port}", timeout=TIMEOUT_S, queues=queues)

    async def put(self, function: str, count: int) -> None:
        await put(self.running.port, function, count)

    async def start(self, function: str, count: int) -> None:
        for _ in range(count):
            worker = await self.workers.enter_async_context(raw_worker(self.running.port, function))
            self.jobs.append(await worker.take())

    async def finish(self) -> None:
        while self.jobs:
            await self.jobs.pop().complete()

    async def stop_server(self) -> None:
        self.running.kill()

    async def start_server(self) -> None:
        self.running = self.server.enter_context(servers.gearmand(port=self.running.port))


@pytest.mark.real
class TestConformance(SourceConformance):
    @pytest.fixture
    async def rig(self) -> AsyncIterator[GearmanRig]:
        rig = GearmanRig()
        with rig.server:
            async with rig.workers:
                yield rig


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_addresses_are_spelled_in_full_and_the_timeout_is_two_seconds():
    options = GearmanOptions(servers=["10.0.0.5", "[::1]:4731"])
    assert options.servers == ["10.0.0.5:4730", "[::1]:4731"]
    assert options.timeout == 2.0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "servers"),
        ({"servers": []}, "give either servers, a list of HOST:PORT, or embedded"),
        ({"servers": ["a:1", "b", "b:4730"]}, "'b:4730' is listed twice; a dispatcher's jobs would count double"),
        ({"servers": ["::1"]}, "put an IPv6 address in brackets"),
        ({"servers": ["a:b"]}, "'a:b': expected HOST, HOST:PORT"),
        ({"servers": "a:1"}, "valid list"),
        ({"servers": ["a"], "timeout": 0}, "greater than 0"),
        ({"servers": ["a"], "timeout": float("nan")}, "timeout"),
        ({"servers": ["a"], "port": 4730}, "port"),
    ],
)
def test_wrong_options_say_what_is_wrong(options, says):
    with pytest.raises(ValidationError) as caught:
        GearmanOptions.model_validate(options)
    assert says in str(caught.value)


def test_the_entry_point_fits_the_port():
    assert GearmanSource.Options is GearmanOptions


# ── several members ──────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def pair():
    with servers.gearmand() as one, servers.gearmand() as other:
        yield one, other


@pytest.mark.real
async def test_members_are_summed_over_priorities_and_running_is_not_counted_twice(pair):
    one, other = pair
    source = source_of(one.address, other.address)
    for number, priority in enumerate(("low", "normal", "high"), 1):
        await put(one.port, "f", number, priority)
    await put(other.port, "f", 10)
    async with raw_worker(other.port, "f") as worker:
        await worker.take()
        assert await source.read() == [Reading("q", waiting=15, running=1)]
    await source.close()


@pytest.mark.real
async def test_a_dead_member_keeps_its_last_values_and_is_named(pair):
    one, other = pair
    source = source_of(one.address, other.address, queues={"q": "f", "r": "g"})
    await put(one.port, "f", 3)
    await put(other.port, "f", 4)
    assert await source.read() == [Reading("q", 7, 0), Reading("r", 0, 0)]
    one.kill()
    await put(other.port, "f", 5)
    for reading in await source.read():
        assert (reading.waiting, reading.running) == ((12, 0) if reading.queue == "q" else (0, 0))
        (fault,) = reading.partial
        assert fault.startswith(f"dispatcher {one.address}: ")
        assert "counts nothing" not in fault
    with servers.gearmand(port=one.port):
        assert await source.read() == [Reading("q", 9, 0), Reading("r", 0, 0)]
    other.kill()
    with pytest.raises(SourceError) as caught:
        await source.read()
    assert str(caught.value).startswith("source main: dispatcher ")
    assert one.address in str(caught.value)
    assert other.address in str(caught.value)
    await source.close()


@pytest.mark.real
async def test_a_member_that_never_answered_counts_nothing_and_is_named(gearmand):
    dead = f"127.0.0.1:{servers.free_port()}"
    source = source_of(gearmand.address, dead)
    await put(gearmand.port, "f", 3)
    (reading,) = await source.read()
    assert (reading.waiting, reading.running) == (3, 0)
    (fault,) = reading.partial
    assert dead in fault
    assert fault.endswith("it has not answered yet and counts nothing")
    await source.close()


@pytest.mark.real
async def test_a_member_that_hangs_costs_one_time_out_and_hides_no_other(gearmand):
    async with liar(silent) as mute, liar(silent) as other_mute:
        source = source_of(mute.address, gearmand.address, other_mute.address, timeout=0.4)
        await put(gearmand.port, "f", 3)
        start = time.monotonic()
        (reading,) = await source.read()
        assert time.monotonic() - start < 0.8  # at the same time, not one after the other
        assert reading.waiting == 3
        assert len(reading.partial) == 2
        assert all("within 0.4 s" in fault for fault in reading.partial)
        await source.close()


# ── lies ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def dispatcher(status: bytes, backlog: bytes) -> Behaviour:
    """A fake that knows two commands."""

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        while line := await reader.readline():
            told.heard += line
            known = {b"status\n": status, b"prioritystatus\n": backlog}
            writer.write(known.get(line, b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n"))
            await writer.drain()

    return behave


@pytest.mark.parametrize(
    ("status", "backlog", "says"),
    [
        (b".\n", b"f\t1\t2\n.\n", "prioritystatus: line 1: expected 5 fields, got 3"),
        (b"f\t1\tx\t0\n.\n", b".\n", "status: line 1: running: 'x' is not a whole number"),
        (b"HTTP/1.1 400\r\n.\n", b".\n", "status: line 1"),
        (b"f\t1\t0\t0\n", b".\n", "within 0.3 s"),
        (b"", b"", "within 0.3 s"),
        (b"ERR UNKNOWN_COMMAND no\r\n", b".\n", "status: refused"),
    ],
)
async def test_a_lie_is_an_error_with_its_place_and_never_a_number(status, backlog, says):
    async with liar(dispatcher(status, backlog)) as fake:
        source = source_of(fake.address, timeout=0.3)
        start = time.monotonic()
        with pytest.raises(SourceError) as caught:
            await source.read()
        assert says in str(caught.value)
        assert fake.address in str(caught.value)
        assert time.monotonic() - start < 1.5
        await source.close()


async def test_a_negative_count_of_running_jobs_is_zero():
    async with liar(dispatcher(b"f\t2\t-1\t1\n.\n", b"f\t0\t2\t0\t1\n.\n")) as fake:
        source = source_of(fake.address)
        assert await source.read() == [Reading("q", 2, 0)]
        await source.close()


async def test_a_dispatcher_without_prioritystatus_waits_what_it_does_not_run():
    refusal = b"ERR UNKNOWN_COMMAND Unknown+server+command\r\n"
    async with liar(dispatcher(b"f\t5\t2\t1\nfg\t1\t3\t1\n.\n", refusal)) as fake:
        source = source_of(fake.address, queues={"q": "f*"})
        assert await source.read() == [Reading("q", 3, 5)]
        assert fake.connections == 1
        await source.close()


async def test_a_cancelled_reading_drops_the_connection():
    async def late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, told: Liar) -> None:
        while line := await reader.readline():
            await asyncio.sleep(0.1)
            if line == b"prioritystatus\n":
                writer.write(b"f\t0\t%d\t0\t1\n.\n" % told.connections)
            else:
                writer.write(b"f\t9\t0\t1\n.\n")

    async with liar(late) as fake:
        source = source_of(fake.address)
        for delay_s in (0.05, 0.15):
            task = asyncio.ensure_future(source.read())
            await asyncio.sleep(delay_s)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert await source.read() == [Reading("q", 3, 0)]
        await source.close()


async def test_a_source_can_be_opened_and_closed_without_reading():
    source = source_of("127.0.0.1:4730")
    await source.open(ignore)
    await source.close()
    await source.close()
