"""The admin connection: never an answer out of step, never a wait without end."""

import asyncio
import time

import pytest

from fleetd.codecs.admin import CommandRefusedError, FunctionBacklog, FunctionStatus
from fleetd.dispatchers.address import Address, parse_address
from fleetd.dispatchers.admin import AdminConnection
from fleetd.dispatchers.jobs import Submission
from fleetd.dispatchers.submit import connect
from fleetd.errors import ProtocolError, UnreachableError
from tests import servers
from tests.dispatchers.peers import liar, raw_worker, says, silent


def admin(server: object, timeout_s: float = 2.0) -> AdminConnection:
    return AdminConnection(parse_address(server.address), timeout_s=timeout_s)  # type: ignore[attr-defined]


@pytest.mark.real
async def test_a_real_gearmand_tells_all_it_knows(gearmand):
    submit, asks = await connect(parse_address(gearmand.address)), admin(gearmand)
    jobs = [Submission("f", b"", "1", "high"), Submission("f", b"", "2"), Submission("f", b"", "3", "low")]
    handles = [str(handle) for handle in await submit.submit(jobs, wait_s=5)]
    async with raw_worker(gearmand.port, "f") as worker:
        running = await worker.take()
        # The total includes the running one; what waits does not.
        assert await asks.status() == (FunctionStatus("f", total=3, running=1, workers=1),)
        assert await asks.priority_status() == (FunctionBacklog("f", high=0, normal=1, low=1, workers=1),)
        rows = {job.handle: (job.retries, job.ignored, job.background) for job in await asks.jobs()}
        assert rows == dict.fromkeys(handles, (0, False, True))  # whether it runs is not told
        assert running.handle.decode() == handles[0]
        assert ("f",) in [peer.functions for peer in await asks.workers()]
        assert await asks.cancel_job(handles[1]) is True
        assert await asks.cancel_job("H:none:1") is False
        # What is cancelled counts until a worker passes over it.
        assert {job.handle: job.ignored for job in await asks.jobs()}[handles[1]] is True
        assert (await asks.priority_status())[0].waiting == 2
        assert (await worker.take()).handle.decode() == handles[2]
        assert (await asks.priority_status())[0].waiting == 0
        assert (await asks.version())[0].isdigit()
    await submit.close()
    await asks.close()


@pytest.mark.real
async def test_it_connects_again_after_a_restart(gearmand):
    asks = admin(gearmand)
    assert await asks.status() == ()
    gearmand.kill()
    with pytest.raises(UnreachableError, match=gearmand.address):
        await asks.status()
    with servers.gearmand(port=gearmand.port):
        assert await asks.status() == ()
        assert await asks.version()
    await asks.close()
    await asks.close()


@pytest.mark.real
async def test_commands_at_once_are_answered_each_with_its_own(gearmand):
    asks = admin(gearmand)
    version, status, workers = await asyncio.gather(asks.version(), asks.status(), asks.workers())
    assert version[0].isdigit()
    assert status == ()
    assert len(workers) == 1
    await asks.close()


@pytest.mark.parametrize(
    ("behave", "kind", "says_what"),
    [
        (silent, UnreachableError, "'status' was not answered within 0.3 s"),
        (says(b"f\t1\t0"), UnreachableError, "'status' was not answered within 0.3 s"),
        (says(b"f\t1\t0", then_close=True), UnreachableError, "in the middle of an answer"),
        (says(b"", then_close=True), UnreachableError, "closed the connection instead of answering"),
        (says(b"HTTP/1.1 400 Bad Request\r\n\r\n.\n"), ProtocolError, "status: line 1: expected 4 fields, got 1"),
        (says(b"f\tmany\t0\t0\n.\n"), ProtocolError, "status: line 1: total: 'many' is not"),
        (says(b"x" * 70_000), ProtocolError, "status: line 1 is longer than 65536 bytes"),
        (says((b"f" * 50_000 + b"\t1\t0\t0\n") * 170), ProtocolError, "an answer of more than 8388608 bytes"),
        (says(b".\nmore"), ProtocolError, "4 bytes after the answer's end"),
        (says(b"ERR UNKNOWN_COMMAND no+such\r\n"), CommandRefusedError, "refused: UNKNOWN_COMMAND no such"),
    ],
)
async def test_a_lying_server_is_told_in_time(behave, kind, says_what):
    async with liar(behave) as fake:
        asks = admin(fake, 0.3)
        start = time.monotonic()
        with pytest.raises(kind) as caught:
            await asks.status()
        assert says_what in str(caught.value)
        assert fake.address in str(caught.value)
        assert time.monotonic() - start < 1.5
        await asks.close()


async def test_after_a_wrong_answer_the_next_command_gets_a_new_connection():
    async with liar(says(b"nonsense\n.\n")) as fake:
        asks = admin(fake, 0.5)
        for _ in range(3):
            with pytest.raises(ProtocolError):
                await asks.status()
        assert fake.connections == 3
        await asks.close()


async def test_a_refusal_keeps_the_connection():
    async with liar(says(b"ERR UNKNOWN_COMMAND\r\n", b".\n")) as fake:
        asks = admin(fake, 0.5)
        with pytest.raises(CommandRefusedError):
            await asks.priority_status()
        assert await asks.status() == ()
        assert fake.connections == 1
        await asks.close()


async def test_a_cancelled_command_cannot_put_answers_out_of_step():
    async def late(reader, writer, told):
        while await reader.readline():
            await asyncio.sleep(0.2)
            writer.write(b"f\t%d\t0\t0\n.\n" % told.connections)

    async with liar(late) as fake:
        asks = admin(fake)
        task = asyncio.create_task(asks.status())
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [row.total for row in await asks.status()] == [2]  # of the second connection
        await asks.close()


async def test_words_that_nobody_asked_for_cost_the_connection():
    async def chatty(reader, writer, told):
        while await reader.readline():
            writer.write(b".\n")
            await writer.drain()
            await asyncio.sleep(0.05)
            writer.write(b"f\t9\t9\t9\n.\n")

    async with liar(chatty) as fake:
        asks = admin(fake)
        assert await asks.status() == ()
        await asyncio.sleep(0.15)
        assert await asks.status() == ()
        assert fake.connections == 2
        await asks.close()


async def test_a_connection_closed_between_commands_is_replaced_unnoticed():
    async with liar(says(b".\n", then_close=True)) as fake:
        asks = admin(fake)
        assert await asks.status() == ()
        assert await asks.status() == ()
        assert fake.connections == 2
        await asks.close()


async def test_only_what_does_no_harm_twice_is_sent_twice():
    async def hang_up_on_the_second(reader, writer, told):
        told.heard += await reader.readline()
        writer.write(b"OK 1\n")
        told.heard += await reader.readline()

    async with liar(hang_up_on_the_second) as fake:
        asks = admin(fake)
        assert await asks.version() == "1"
        assert await asks.version() == "1"  # hung up on, then answered by a new connection
        with pytest.raises(UnreachableError, match="closed the connection instead of answering"):
            await asks.cancel_job("H:1")
        assert fake.heard.count(b"cancel job H:1\n") == 1
        await asks.close()


async def test_a_closed_port_is_unreachable():
    port = servers.free_port()
    asks = AdminConnection(Address("127.0.0.1", port))
    with pytest.raises(UnreachableError, match=f"dispatcher 127.0.0.1:{port}: "):
        await asks.status()
    await asks.close()
