"""The asyncio client: where jobs go, what happens when a dispatcher fails, and that nothing is lost silently."""

import asyncio
import contextlib
import time

import pytest

from fleetd.client import (
    AsyncClient,
    BatchError,
    JobHandle,
    JobRefusedError,
    JobTimeoutError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    Submission,
    UnreachableError,
    UsageError,
)
from fleetd.client.ring import Ring
from fleetd.codecs.gearman import RES, Kind, encode
from fleetd.dispatchers.address import parse_address
from fleetd.dispatchers.admin import AdminConnection
from fleetd.dispatchers.submit import Limits
from tests import servers
from tests.dispatchers.peers import GREETING, echo_worker, liar, raw_worker, says, silent, submitted

SHORT = Limits(connect_s=0.3, answer_s=0.3)


def created(number: int = 1) -> bytes:
    return encode(Kind.JOB_CREATED, b"H:liar:%d" % number, magic=RES)


def first_at(client: AsyncClient, server: str) -> str:
    """A unique that hashes to `server` of the client's servers."""
    return next(unique for unique in map(str, range(1000)) if str(client._ring.order(unique)[0].address) == server)


async def waiting(server: servers.Server) -> dict[str, int]:
    admin = AdminConnection(parse_address(server.address))
    try:
        return {row.function: row.waiting for row in await admin.priority_status()}
    finally:
        await admin.close()


@pytest.fixture
def pair():
    with servers.gearmand() as one, servers.gearmand() as other:
        yield one, other


# ── one dispatcher ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.real
async def test_run_returns_the_result_and_submit_a_handle(gearmand):
    async with AsyncClient(gearmand.address) as client, echo_worker(gearmand.port, "echo"):
        assert await client.run("echo", b"hi", priority="high", unique="u1") == b"hi"
        handle = await client.submit("nobody", b"hi", unique="u2", priority="low")
        assert (handle.server, handle.unique) == (gearmand.address, "u2")
        status = await client.status(handle)
        assert (status.known, status.running) == (True, False)
        assert 0 < (await client.ping())[gearmand.address] < 2  # type: ignore[operator]


@pytest.mark.real
async def test_submit_many_keeps_order_and_takes_any_iterable(gearmand):
    async with AsyncClient(gearmand.address) as client:
        handles = await client.submit_many(Submission("f", unique=f"u{number}") for number in range(1000))
        assert [handle.unique for handle in handles] == [f"u{number}" for number in range(1000)]
        assert len({handle.handle for handle in handles}) == 1000
        assert await client.submit_many([]) == []
    assert await waiting(gearmand) == {"f": 1000}


@pytest.mark.real
async def test_submit_many_reports_every_outcome_where_one_fails(gearmand):
    jobs = [Submission("f", unique="1"), Submission("f", b"x" * 300_000, unique="2"), Submission("f", unique="3")]
    async with AsyncClient(gearmand.address) as client:
        with pytest.raises(BatchError, match="1 of 3 jobs were not taken; the first: job f: payload: 300000") as caught:
            await client.submit_many(jobs)
    first, second, third = caught.value.outcomes
    assert isinstance(first, JobHandle)
    assert isinstance(third, JobHandle)
    assert isinstance(second, PayloadTooLargeError)
    assert await waiting(gearmand) == {"f": 2}


@pytest.mark.real
async def test_an_iterable_that_raises_leaves_nothing_half_sent(gearmand):
    def jobs():
        for number in range(200):
            yield Submission("f", unique=f"u{number}")
        raise ZeroDivisionError

    async with AsyncClient(gearmand.address) as client:
        with pytest.raises(ZeroDivisionError):
            await client.submit_many(jobs())
    assert await waiting(gearmand) == {"f": 128}  # whole batches only


@pytest.mark.real
async def test_a_restart_between_calls_is_not_noticed(gearmand):
    async with AsyncClient(gearmand.address) as client:
        first = await client.submit("f")
        gearmand.kill()
        await asyncio.sleep(0.05)
        with pytest.raises(UnreachableError, match=f"job f: no dispatcher took it: dispatcher {gearmand.address}"):
            await client.submit("f")
        with servers.gearmand(port=gearmand.port) as again:
            second = await client.submit("f")
            assert second.server == first.server
            assert await waiting(again) == {"f": 1}


@pytest.mark.real
async def test_a_kill_during_a_foreground_job_says_that_the_outcome_is_unknown(gearmand):
    async with AsyncClient(gearmand.address) as client, raw_worker(gearmand.port, "f") as worker:
        task = asyncio.create_task(client.run("f", wait_s=10))
        await worker.take()
        gearmand.kill()
        with pytest.raises(OutcomeUnknownError, match="it is unknown whether the dispatcher took it") as caught:
            await task
        assert caught.value.server == gearmand.address
        assert caught.value.submission.function == "f"


async def test_run_never_waits_for_ever():
    async with liar(says(GREETING, created())) as fake, AsyncClient(fake.address, limits=SHORT) as client:
        start = time.monotonic()
        with pytest.raises(JobTimeoutError, match=r"job f: no result within 0\.5 s; it may still run"):
            await client.run("f", wait_s=0.5)
        assert time.monotonic() - start < 2


async def test_a_deadline_before_any_connection_says_so():
    async with liar(silent) as fake, AsyncClient(fake.address) as client:
        with pytest.raises(JobTimeoutError, match=r"no result within 0\.1 s; no dispatcher could be reached"):
            await client.run("f", wait_s=0.1)
        with pytest.raises(UnreachableError, match="not reached before the deadline"):
            await client.submit("f", wait_s=0.1)


async def test_what_a_listener_raises_is_not_taken_for_a_deadline():
    def bad(_data: bytes) -> None:
        raise TimeoutError("mine")

    data = encode(Kind.WORK_DATA, b"H:liar:1", b"x", magic=RES)
    async with liar(says(GREETING, created() + data)) as fake, AsyncClient(fake.address, limits=SHORT) as client:
        with pytest.raises(TimeoutError, match="mine"):
            await client.run("f", on_data=bad)


def test_servers_are_checked_at_once():
    with pytest.raises(UsageError, match="at least one dispatcher"):
        AsyncClient([])
    with pytest.raises(UsageError, match="put an IPv6 address in brackets"):
        AsyncClient(["::1"])


async def test_a_closed_client_refuses():
    client = AsyncClient(f"127.0.0.1:{servers.free_port()}")
    await client.close()
    await client.close()
    with pytest.raises(UnreachableError, match="this client is closed"):
        await client.submit("f")


async def test_the_handle_of_another_clients_server_is_refused():
    async with AsyncClient("127.0.0.1:4730") as client:
        with pytest.raises(UsageError, match=r"'10\.0\.0\.9:4730' is none of its dispatchers"):
            await client.status(JobHandle("10.0.0.9:4730", "H:1", "u"))


# ── several dispatchers ──────────────────────────────────────────────────────────────────────────────────────────


async def test_a_unique_has_its_server_and_few_move_when_one_is_added():
    two, three = Ring(["a", "b"], SHORT), Ring(["b", "a", "c"], SHORT)
    homes = {str(number): str(two.order(str(number))[0]) for number in range(300)}
    moved = {unique for unique, home in homes.items() if str(three.order(unique)[0]) != home}
    assert 100 < sum(home == "a:4730" for home in homes.values()) < 200
    assert 60 < len(moved) < 140
    assert {str(three.order(unique)[0]) for unique in moved} == {"c:4730"}


async def test_a_failed_server_goes_last_until_its_back_off_ends():
    ring = Ring(["a", "b", "c"], SHORT)
    home, *others = ring.order("u")
    home.failed("down")
    assert ring.order("u") == [*others, home]
    assert 0.5 < home.retry_at - asyncio.get_running_loop().time() <= 1
    for _ in range(9):
        home.failed("down")
    assert 29 < home.retry_at - asyncio.get_running_loop().time() <= 30
    home.retry_at = asyncio.get_running_loop().time() - 1
    assert ring.order("u") == [home, *others]


@pytest.mark.real
async def test_jobs_spread_and_those_of_a_dead_server_go_to_the_other(pair):
    one, other = pair
    async with AsyncClient([one.address, other.address]) as client:
        jobs = [Submission("f", unique=f"u{number}") for number in range(200)]
        handles = await client.submit_many(jobs)
        first = {handle.unique for handle in handles if handle.server == one.address}
        assert 50 < len(first) < 150
        one.kill()
        await asyncio.sleep(0.05)
        again = await client.submit_many([Submission("g", unique=job.unique) for job in jobs])
        assert {handle.server for handle in again} == {other.address}
        assert await waiting(other) == {"f": 200 - len(first), "g": 200}
        ping = await client.ping()
        assert ping[one.address] is None
        assert ping[other.address] is not None
        async with echo_worker(other.port, "echo"):
            assert await client.run("echo", b"x", unique=first.pop()) == b"x"


async def test_a_server_that_never_answers_costs_its_own_time_limit_once():
    async with liar(silent) as mute, liar(says(GREETING, *[created(n) for n in range(9)])) as good:
        async with AsyncClient([mute.address, good.address], limits=SHORT) as client:
            unique = first_at(client, mute.address)
            start = time.monotonic()
            assert (await client.submit("f", unique=unique)).server == good.address
            assert 0.25 < time.monotonic() - start < 1.5
            start = time.monotonic()
            assert (await client.submit("f", unique=unique)).server == good.address
            assert time.monotonic() - start < 0.2  # it is in back-off
        assert submitted(mute.heard) == []


async def test_many_callers_wait_for_one_attempt_to_connect():
    async with liar(silent) as mute, AsyncClient(mute.address, limits=SHORT) as client:
        start = time.monotonic()
        outcomes = await asyncio.gather(*(client.submit("f") for _ in range(20)), return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {UnreachableError}
        assert time.monotonic() - start < 1.5
        assert mute.connections == 1


async def test_a_refused_job_goes_to_the_next_server():
    full = encode(Kind.ERROR, b"QUEUE_ERROR", b"Job queue is full", magic=RES)
    async with liar(says(GREETING, full, full)) as one, liar(says(GREETING, created())) as other:
        async with AsyncClient([one.address, other.address], limits=SHORT) as client:
            handle = await client.submit("f", unique=first_at(client, one.address))
            assert handle.server == other.address
        async with AsyncClient(one.address, limits=SHORT) as client:
            with pytest.raises(JobRefusedError, match=r"no dispatcher took it: .*Job queue is full") as caught:
                await client.submit("f")
            assert caught.value.code == "QUEUE_ERROR"


@pytest.mark.parametrize("answer", [says(GREETING, b"", then_close=True), says(GREETING), says(GREETING, b"junk")])
async def test_a_job_lost_between_sending_and_answer_is_never_sent_elsewhere_unasked(answer):
    async with liar(answer) as one, liar(says(GREETING, created())) as other:
        async with AsyncClient([one.address, other.address], limits=SHORT) as client:
            unique = first_at(client, one.address)
            with pytest.raises(OutcomeUnknownError) as caught:
                await client.submit("f", b"p", unique=unique)
            assert caught.value.server == one.address
            assert caught.value.submission == Submission("f", b"p", unique)
            for server in client._ring.servers:
                server.retry_at = 0
            with pytest.raises(BatchError, match="2 of 2") as batch:
                await client.submit_many([Submission("f", unique=unique), Submission("g", unique=unique)])
            assert {type(outcome) for outcome in batch.value.outcomes} == {OutcomeUnknownError}
        assert submitted(other.heard) == []


async def test_retry_unknown_asks_the_same_server_again_and_then_the_next():
    async with (
        liar(says(GREETING, b"", then_close=True)) as one,
        liar(says(GREETING, created())) as other,
        AsyncClient([one.address, other.address], limits=SHORT) as client,
    ):
        unique = first_at(client, one.address)
        handle = await client.submit("f", unique=unique, retry_unknown=True)
        assert handle == JobHandle(other.address, "H:liar:1", unique)
        assert submitted(one.heard) == [unique.encode()] * 2
        assert submitted(other.heard) == [unique.encode()]


async def test_retry_unknown_holds_for_every_job_of_a_batch():
    async with (
        liar(says(GREETING, b"", then_close=True)) as one,
        liar(says(GREETING, created(1) + created(2))) as other,
        AsyncClient([one.address, other.address], limits=SHORT) as client,
    ):
        unique = first_at(client, one.address)
        jobs = [Submission("f", unique=unique), Submission("g", unique=unique)]
        handles = await client.submit_many(jobs, retry_unknown=True)
        assert handles == [JobHandle(other.address, f"H:liar:{number}", unique) for number in (1, 2)]
        assert len(submitted(one.heard)) == 4


@pytest.mark.real
async def test_retry_unknown_meets_its_first_copy_where_only_the_connection_broke(gearmand):
    """A proxy cuts the first connection after the job went through; the second copy is the same job."""

    async def cut(reader, writer, told):
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", gearmand.port)
        try:
            for _ in range(2 if told.connections == 1 else 1000):
                up_writer.write(await reader.read(65536))
                answer = await up_reader.read(65536)
                if told.connections == 1 and b"H:" in answer:
                    return
                writer.write(answer)
        finally:
            up_writer.transport.abort()

    async with liar(cut) as proxy, AsyncClient(proxy.address, limits=Limits(connect_s=1, answer_s=1)) as client:
        handle = await client.submit("f", unique="once", retry_unknown=True)
        assert proxy.connections == 2
        assert handle.unique == "once"
    assert await waiting(gearmand) == {"f": 1}


async def test_if_all_fail_after_an_unknown_outcome_it_stays_unknown():
    async with liar(says(GREETING, b"", then_close=True)) as one:
        dead = f"127.0.0.1:{servers.free_port()}"
        async with AsyncClient([one.address, dead], limits=SHORT) as client:
            with pytest.raises(OutcomeUnknownError) as caught:
                await client.submit("f", unique=first_at(client, one.address), retry_unknown=True)
            assert caught.value.server == one.address
            assert dead in str(caught.value)


async def test_all_down_names_every_server_and_its_reason():
    ports = [servers.free_port(), servers.free_port()]
    async with AsyncClient([f"127.0.0.1:{port}" for port in ports], limits=SHORT) as client:
        with pytest.raises(UnreachableError) as caught:
            await client.run("f", wait_s=2)
    assert all(f"dispatcher 127.0.0.1:{port}: " in str(caught.value) for port in ports)


@pytest.mark.real
async def test_a_server_that_comes_back_is_used_again(pair):
    one, other = pair
    async with AsyncClient([one.address, other.address]) as client:
        unique = first_at(client, one.address)
        one.kill()
        assert (await client.submit("f", unique=unique)).server == other.address
        with contextlib.ExitStack() as stack:
            stack.enter_context(servers.gearmand(port=one.port))
            await asyncio.sleep(1.1)  # the first back-off is a second
            assert (await client.submit("f", unique=unique)).server == one.address
