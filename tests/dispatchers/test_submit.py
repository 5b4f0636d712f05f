"""Submitting over one connection: to a real gearmand, and to dispatchers that lie."""

import asyncio
import socket
import time

import pytest

from fleetd.codecs.gearman import RES, Kind, Packet, encode
from fleetd.dispatchers.address import Address, parse_address
from fleetd.dispatchers.admin import AdminConnection
from fleetd.dispatchers.follow import Follower, Listeners
from fleetd.dispatchers.jobs import (
    ConnectionLostError,
    JobRefusedError,
    JobStatus,
    NotSentError,
    PayloadTooLargeError,
    Submission,
)
from fleetd.dispatchers.submit import Limits, connect
from fleetd.errors import JobError, JobTimeoutError, UnreachableError, UsageError
from tests import servers
from tests.dispatchers.peers import GREETING, echo_worker, liar, raw_worker, says, silent

CREATED = encode(Kind.JOB_CREATED, b"H:liar:1", magic=RES)


@pytest.fixture
async def line(gearmand):
    connection = await connect(parse_address(gearmand.address), Limits(window=16))
    yield connection
    await connection.close()


# ── what may be submitted ────────────────────────────────────────────────────────────────────────────────────────


def test_a_job_without_a_unique_gets_32_hex_digits_of_its_own():
    one, other = Submission("f"), Submission("f")
    assert one.unique != other.unique
    assert len(one.unique) == len(bytes.fromhex(one.unique)) * 2 == 32


@pytest.mark.parametrize(
    ("job", "kind", "says"),
    [
        (Submission(""), UsageError, "function: '' must be printable"),
        (Submission("a\tb"), UsageError, "function: 'a\\tb' must be printable"),
        (Submission("a\n.\nb"), UsageError, "must be printable"),
        (Submission("f" * 513), UsageError, "function: 513 bytes, more than the 512 allowed"),
        (Submission("f", unique=""), UsageError, "unique: '' must be printable"),
        (Submission("f", unique="-"), UsageError, "unique: '-' means"),
        (Submission("f", unique="ü" * 33), UsageError, "unique: 66 bytes, more than the 64 allowed"),
        (Submission("f", "text"), UsageError, "payload: must be bytes, not str"),  # type: ignore[arg-type]
        (Submission("f", priority="urgent"), UsageError, "'urgent' is none of high, normal, low"),  # type: ignore[arg-type]
        (Submission("f", b"x" * 262145), PayloadTooLargeError, "262145 bytes, more than the 262144 allowed"),
    ],
)
def test_what_a_dispatcher_would_mistake_is_refused_here(job, kind, says):
    with pytest.raises(kind) as caught:
        job.encode(background=True)
    assert says in str(caught.value)


def test_the_payload_cap_names_the_way_out_and_can_be_raised():
    job = Submission("f", b"x" * 300_000)
    with pytest.raises(PayloadTooLargeError, match="claim-check"):
        job.encode(background=False)
    assert len(job.encode(background=False, max_payload=300_000)) > 300_000


@pytest.mark.parametrize("name", ["window", "connect_s", "answer_s", "max_payload", "max_result"])
def test_limits_must_be_positive(name):
    with pytest.raises(UsageError, match=f"{name}: must be more than 0"):
        Limits(**{name: 0})


# ── with a real gearmand ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.real
async def test_a_foreground_job_returns_its_result(line, gearmand):
    async with echo_worker(gearmand.port, "echo"):
        assert await line.run(Submission("echo", b"a\0b"), wait_s=5) == b"a\0b"
        assert await line.run(Submission("echo", b""), wait_s=5) == b""


@pytest.mark.real
async def test_many_jobs_at_once_each_get_their_own_result(line, gearmand):
    async with echo_worker(gearmand.port, "echo"):
        jobs = [line.run(Submission("echo", b"%d" % number), wait_s=10) for number in range(300)]
        assert await asyncio.gather(*jobs) == [b"%d" % number for number in range(300)]


@pytest.mark.real
async def test_progress_data_and_warnings_come_in_order_and_then_the_result(line, gearmand):
    heard: list[object] = []
    listeners = Listeners(lambda a, b: heard.append((a, b)), heard.append, lambda data: heard.append(("!", data)))
    async with raw_worker(gearmand.port, "long") as worker:
        task = asyncio.create_task(line.run(Submission("long"), wait_s=5, listeners=listeners))
        job = await worker.take()
        await job.send(Kind.WORK_STATUS, b"1", b"4")
        await job.send(Kind.WORK_DATA, b"part")
        await job.send(Kind.WORK_STATUS, b"half", b"4")  # no number: left out
        await job.send(Kind.WORK_WARNING, b"odd")
        await job.send(Kind.WORK_STATUS, b"4", b"4")
        await job.complete(b"end")
        assert await task == b"end"
    assert heard == [(1, 4), b"part", ("!", b"odd"), (4, 4)]


@pytest.mark.real
async def test_data_that_nobody_listens_to_stands_before_the_result(line, gearmand):
    async with raw_worker(gearmand.port, "long") as worker:
        task = asyncio.create_task(line.run(Submission("long"), wait_s=5))
        job = await worker.take()
        await job.send(Kind.WORK_DATA, b"a")
        await job.send(Kind.WORK_DATA, b"b")
        await job.complete(b"c")
        assert await task == b"abc"


@pytest.mark.real
async def test_what_a_listener_raises_reaches_its_caller_alone(line, gearmand):
    def bad(_numerator: int, _denominator: int) -> None:
        raise ZeroDivisionError

    async with raw_worker(gearmand.port, "long") as worker:
        task = asyncio.create_task(line.run(Submission("long"), wait_s=5, listeners=Listeners(bad)))
        job = await worker.take()
        await job.send(Kind.WORK_STATUS, b"1", b"4")
        with pytest.raises(ZeroDivisionError):
            await task
        assert await line.ping() < 5


@pytest.mark.real
async def test_a_failed_job_raises_and_carries_the_workers_words(line, gearmand):
    async with raw_worker(gearmand.port, "f") as worker:
        task = asyncio.create_task(line.run(Submission("f"), wait_s=5))
        await (await worker.take()).send(Kind.WORK_EXCEPTION, b"ValueError: too small")
        with pytest.raises(JobError, match="job f: ValueError: too small") as caught:
            await task
        assert caught.value.remote == b"ValueError: too small"
        task = asyncio.create_task(line.run(Submission("f"), wait_s=5))
        await (await worker.take()).send(Kind.WORK_FAIL)
        with pytest.raises(JobError, match="job f: failed at its worker") as caught:
            await task
        assert caught.value.remote == b""


@pytest.mark.real
async def test_a_job_past_its_deadline_raises_and_harms_no_other(line, gearmand):
    start = time.monotonic()
    with pytest.raises(JobTimeoutError, match=r"job never: no result within 0\.2 s; it may still run"):
        await line.run(Submission("never"), wait_s=0.2)
    assert 0.15 < time.monotonic() - start < 2
    async with echo_worker(gearmand.port, "echo"):
        assert await line.run(Submission("echo", b"x"), wait_s=5) == b"x"


@pytest.mark.real
async def test_the_late_result_of_an_abandoned_job_is_passed_over(line, gearmand):
    async with raw_worker(gearmand.port, "slow") as worker:
        with pytest.raises(JobTimeoutError):
            await line.run(Submission("slow", unique="same"), wait_s=0.2)
        job = await worker.take()
        second = asyncio.create_task(line.run(Submission("slow", unique="same"), wait_s=5))
        await line.ping()  # the dispatcher has it: it joined the first one's job
        await job.send(Kind.WORK_DATA, b"one,")
        await job.complete(b"two")
        assert await second == b"one,two"  # not doubled by the copy for the one that gave up


@pytest.mark.real
async def test_jobs_of_one_unique_run_once_and_all_hear_each_word_once(line, gearmand):
    heard: dict[int, list[tuple[int, int]]] = {0: [], 1: [], 2: []}

    def run(number: int) -> asyncio.Task[bytes]:
        listeners = Listeners(lambda *progress: heard[number].append(progress))
        return asyncio.create_task(line.run(Submission("f", b"%d" % number, "u"), wait_s=5, listeners=listeners))

    async with raw_worker(gearmand.port, "f") as worker:
        first = [run(0), run(1)]
        job = await worker.take()
        await job.send(Kind.WORK_STATUS, b"1", b"2")
        await worker.settle()
        third = run(2)
        await line.ping()
        await job.send(Kind.WORK_STATUS, b"2", b"2")
        await job.send(Kind.WORK_DATA, b"d")
        await job.complete(b"r")
        assert await asyncio.gather(*first, third) == [b"dr", b"dr", b"dr"]
        assert job.payload == b"0"
    assert heard == {0: [(1, 2), (2, 2)], 1: [(1, 2), (2, 2)], 2: [(2, 2)]}


@pytest.mark.real
async def test_background_jobs_are_answered_in_order_and_queue_by_priority(line, gearmand):
    batch = [
        Submission("f", b"low", "u1", "low"),
        Submission("f", b"normal", "u2"),
        Submission("f", b"high", "u3", "high"),
        Submission("f", b"again", "u2"),
    ]
    handles = await line.submit(batch, wait_s=5)
    assert handles[1] == handles[3]
    assert len(set(handles)) == 3
    admin = AdminConnection(line.address)
    (row,) = await admin.priority_status()
    await admin.close()
    assert (row.high, row.normal, row.low) == (1, 1, 1)
    async with raw_worker(gearmand.port, "f") as worker:
        taken = [await worker.take() for _ in range(3)]
    assert [job.payload for job in taken] == [b"high", b"normal", b"low"]
    assert [job.handle.decode() for job in taken] == [handles[2], handles[1], handles[0]]


@pytest.mark.real
async def test_a_refusal_takes_its_place_among_the_answers(line, gearmand):
    await line.submit([Submission("full", unique="0")], wait_s=5)
    _, writer = await asyncio.open_connection("127.0.0.1", gearmand.port)
    writer.write(b"maxqueue full 1\n")
    await asyncio.sleep(0.2)
    writer.transport.abort()
    batch = [Submission("other"), Submission("full", unique="1"), Submission("other")]
    first, refused, last = await line.submit(batch, wait_s=5)
    assert isinstance(first, str)
    assert isinstance(last, str)
    assert isinstance(refused, JobRefusedError)
    assert refused.code == "QUEUE_ERROR"
    assert "Job queue is full" in str(refused)
    with pytest.raises(JobRefusedError, match="Job queue is full"):
        await line.run(Submission("full", unique="2"), wait_s=5)


@pytest.mark.real
async def test_one_faulty_job_keeps_its_batch_from_being_sent(line):
    with pytest.raises(UsageError):
        await line.submit([Submission("f"), Submission("")], wait_s=5)
    admin = AdminConnection(line.address)
    assert await admin.status() == ()
    await admin.close()


@pytest.mark.real
async def test_status_tells_waiting_running_progress_and_gone(line, gearmand):
    (handle,) = await line.submit([Submission("f")], wait_s=5)
    assert await line.status(handle) == JobStatus(known=True, running=False, numerator=0, denominator=0)
    async with raw_worker(gearmand.port, "f") as worker:
        job = await worker.take()
        await job.send(Kind.WORK_STATUS, b"3", b"7")
        await worker.settle()
        assert await line.status(handle) == JobStatus(known=True, running=True, numerator=3, denominator=7)
        await job.complete()
        await worker.settle()
    assert await line.status(handle) == JobStatus(known=False, running=False, numerator=0, denominator=0)


@pytest.mark.real
async def test_a_killed_dispatcher_fails_everything_at_once_with_one_reason(line, gearmand):
    tasks = [asyncio.create_task(line.run(Submission("never"), wait_s=30)) for _ in range(5)]
    await line.ping()
    start = time.monotonic()
    gearmand.kill()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert time.monotonic() - start < 2
    assert {type(outcome) for outcome in outcomes} == {ConnectionLostError}
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert line.lost is not None
    with pytest.raises(NotSentError):
        await line.submit([Submission("f")], wait_s=5)


@pytest.mark.real
async def test_closing_is_safe_twice_and_fails_what_is_under_way(line):
    task = asyncio.create_task(line.run(Submission("never"), wait_s=30))
    await line.ping()
    await line.close()
    await line.close()
    with pytest.raises(ConnectionLostError, match="closed by this program"):
        await task


@pytest.mark.real
async def test_c_workers_are_workers(line, gearmand):
    program = servers.find("gearman")
    command = [program, "-h", "127.0.0.1", "-p", str(gearmand.port), "-w", "-f", "rev", "tac"]
    worker = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
    try:
        assert await line.run(Submission("rev", b"1\n2\n"), wait_s=10) == b"2\n1\n"
    finally:
        worker.kill()
        await worker.wait()


@pytest.mark.real
async def test_gearmand_drops_a_background_job_that_met_a_foreground_one_whose_client_left(line, gearmand):
    """Why one unique must never be used both ways: the second submission was confirmed, and is gone."""
    async with raw_worker(gearmand.port, "f") as worker:
        other = await connect(line.address)
        waiting = asyncio.create_task(other.run(Submission("f", b"fore", "u"), wait_s=30))
        await other.ping()
        (handle,) = await line.submit([Submission("f", b"back", "u")], wait_s=5)
        assert isinstance(handle, str)
        await other.close()
        with pytest.raises(ConnectionLostError):
            await waiting
        await line.submit([Submission("f", b"marker")], wait_s=5)
        assert (await worker.take()).payload == b"marker"
        assert (await line.status(handle)).known is False


def test_one_that_gave_up_keeps_nothing():
    follower = Follower("f", 1000)
    follower.hear(Packet(Kind.WORK_DATA, (b"H", b"x")))
    follower.leave()
    follower.hear(Packet(Kind.WORK_DATA, (b"H", b"x")))
    assert not follower._inbox


# ── with a dispatcher that lies ──────────────────────────────────────────────────────────────────────────────────

SHORT = Limits(window=4, connect_s=0.3, answer_s=0.3)


@pytest.mark.parametrize(
    ("behave", "says_what"),
    [
        (silent, "connected, but no dispatcher answered within 0.3 s"),
        (says(b"SSH-2.0-OpenSSH\r\n"), "got b'SSH-'; is a Gearman dispatcher listening there?"),
        (says(b"", then_close=True), "closed the connection; is a Gearman dispatcher"),
        (says(GREETING[:9]), "connected, but no dispatcher answered within 0.3 s"),
        (says(GREETING[:9], then_close=True), "closed the connection; is a Gearman"),
        (says(CREATED), "JOB_CREATED where OPTION_RES was due"),
    ],
)
async def test_what_is_no_dispatcher_is_refused_in_time(behave, says_what):
    async with liar(behave) as fake:
        start = time.monotonic()
        with pytest.raises(UnreachableError) as caught:
            await connect(parse_address(fake.address), SHORT)
    assert says_what in str(caught.value)
    assert fake.address in str(caught.value)
    assert time.monotonic() - start < 1.5


async def test_a_closed_port_is_unreachable_at_once():
    port = servers.free_port()
    with pytest.raises(UnreachableError, match=f"127.0.0.1:{port}: .*[Rr]efused|Connect call failed"):
        await connect(Address("127.0.0.1", port), SHORT)


async def test_a_host_that_accepts_nothing_is_unreachable_in_time():
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = Address("127.0.0.1", full.getsockname()[1])
        held = [socket.socket() for _ in range(2)]
        for sock in held:
            sock.setblocking(False)  # noqa: FBT003
            sock.connect_ex((address.host, address.port))
        with pytest.raises(UnreachableError, match=r"no connection within 0\.3 s"):
            await connect(address, SHORT)
        for sock in held:
            sock.close()


async def test_an_old_dispatcher_without_exceptions_is_good_enough():
    refusal = encode(Kind.ERROR, b"UNKNOWN_OPTION", b"no", magic=RES)
    async with liar(says(refusal, CREATED)) as fake:
        line = await connect(parse_address(fake.address), SHORT)
        assert line.exceptions is False
        assert await line.submit([Submission("f")], wait_s=1) == ["H:liar:1"]
        await line.close()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"", "no answer within 0.3 s"),
        (CREATED[:14], "no answer within 0.3 s"),
        (b"garbage" * 9, "expected b'\\x00RES', got b'garb'"),
        (encode(Kind.NO_JOB, magic=RES), "NO_JOB where JOB_CREATED was due"),
        (encode(Kind.ECHO_RES, b"", magic=RES), "ECHO_RES where JOB_CREATED was due"),
        (b"\0RES\0\0\0\x63\0\0\0\0", "unknown packet type 99"),
        (b"\0RES\0\0\0\x08\xff\xff\xff\xff", "JOB_CREATED of 4294967295 bytes"),
    ],
)
async def test_a_dispatcher_that_answers_wrongly_is_given_up_in_time(answer, reason):
    async with liar(says(GREETING, answer)) as fake:
        line = await connect(parse_address(fake.address), SHORT)
        start = time.monotonic()
        with pytest.raises(ConnectionLostError) as caught:
            await line.submit([Submission("f")], wait_s=5)
        assert reason in str(caught.value)
        assert time.monotonic() - start < 1.5
        with pytest.raises(NotSentError) as after:
            await line.ping()
        assert reason in str(after.value)
        await line.close()


async def test_an_error_that_answers_nothing_harms_nobody(caplog):
    stray = encode(Kind.ERROR, b"ODD", b"for no reason", magic=RES)
    async with liar(says(GREETING + stray, CREATED)) as fake:
        line = await connect(parse_address(fake.address), SHORT)
        await asyncio.sleep(0.05)
        assert await line.submit([Submission("f")], wait_s=1) == ["H:liar:1"]
        await line.close()
    assert "an error that answers nothing: (b'ODD', b'for no reason')" in caplog.text


async def test_a_malformed_status_ends_the_connection():
    answer = encode(Kind.STATUS_RES, b"H:1", b"1", b"x", b"0", b"0", magic=RES)
    async with liar(says(GREETING, answer)) as fake:
        line = await connect(parse_address(fake.address), SHORT)
        with pytest.raises(Exception, match="malformed status"):
            await line.status("H:1")
        assert line.lost is not None
        await line.close()


async def test_no_more_than_the_window_is_unanswered_and_those_in_line_were_not_sent():
    async with liar(says(GREETING)) as fake:
        line = await connect(parse_address(fake.address), Limits(window=4, connect_s=1, answer_s=0.5))
        jobs = [line.submit([Submission("f", unique=f"u{number}")], wait_s=5) for number in range(10)]
        outcomes = await asyncio.gather(*jobs, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ConnectionLostError] * 4 + [NotSentError] * 6
        assert fake.heard.count(b"\0REQ") == 5  # the greeting's option, and the window
        await line.close()


async def test_the_deadline_of_one_caller_in_line_means_not_sent():
    async with liar(says(GREETING)) as fake:
        line = await connect(parse_address(fake.address), Limits(window=1, connect_s=1, answer_s=30))
        first = asyncio.create_task(line.submit([Submission("f")], wait_s=0.2))
        await asyncio.sleep(0)
        with pytest.raises(NotSentError):
            await line.submit([Submission("f")], wait_s=0.1)
        with pytest.raises(ConnectionLostError, match=r"did not take the job within 0\.2 s"):
            await first
        await line.close()


async def test_answers_after_a_caller_gave_up_go_to_the_right_ones():
    def created(number: int) -> bytes:
        return encode(Kind.JOB_CREATED, b"H:%d" % number, magic=RES)

    async with liar(says(GREETING, b"", created(1) + created(2))) as fake:
        line = await connect(parse_address(fake.address), SHORT)
        with pytest.raises(ConnectionLostError):
            await line.submit([Submission("f")], wait_s=0.05)
        assert await line.submit([Submission("f")], wait_s=1) == ["H:2"]
        await line.close()


async def test_a_result_beyond_the_bound_fails_the_job_alone():
    chunk = encode(Kind.WORK_DATA, b"H:liar:1", b"x" * 600, magic=RES)
    done = encode(Kind.ECHO_RES, b"fleetd", magic=RES)
    async with liar(says(GREETING, CREATED + chunk + chunk, done)) as fake:
        limits = Limits(connect_s=1, answer_s=1, max_result=1000)
        line = await connect(parse_address(fake.address), limits)
        with pytest.raises(JobError, match="more than the 1000 bytes allowed"):
            await line.run(Submission("f"), wait_s=2)
        assert await line.ping() < 1
        await line.close()
