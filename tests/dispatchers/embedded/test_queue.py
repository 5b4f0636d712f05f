"""The queue's decisions one by one, as packets in and packets out."""

import pytest

from fleetd.codecs.gearman import Kind
from fleetd.dispatchers.embedded.model import WAITING
from fleetd.dispatchers.embedded.rules import MAX_FUNCTIONS, Rules
from tests.dispatchers.embedded.table import Table

BG = Kind.SUBMIT_JOB_BG


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def durable() -> Table:
    return Table(Rules(durable=True))


# ── order


def test_priorities_hold_and_equals_keep_their_order(table: Table) -> None:
    client, worker = table.join(), table.worker(b"f")
    low = table.submit(client, Kind.SUBMIT_JOB_LOW_BG)
    first, second = table.submit(client), table.submit(client, BG)
    high = table.submit(client, Kind.SUBMIT_JOB_HIGH_BG)
    assert [table.grab(worker) for _ in range(5)] == [high, first, second, low, None]


def test_functions_are_served_in_turn(table: Table) -> None:
    client, worker = table.join(), table.worker(b"busy", b"quiet")
    busy = [table.submit(client, BG, name=b"busy") for _ in range(3)]
    quiet = table.submit(client, BG, name=b"quiet")
    assert [table.grab(worker) for _ in range(4)] == [busy[0], quiet, busy[1], busy[2]]


def test_a_job_whose_worker_died_has_its_old_place(table: Table) -> None:
    client, one, other = table.join(), table.worker(b"f"), table.worker(b"f")
    jobs = []
    for _ in range(4):
        table.now += 1
        jobs.append(table.submit(client, BG))
    assert [table.grab(one), table.grab(other)] == jobs[:2]
    table.queue.leave(one, table.now)
    table.queue.leave(other, table.now)
    third = table.worker(b"f")
    assert [table.grab(third) for _ in range(4)] == jobs


# ── one unique, one job


def test_a_background_job_that_joined_a_foreground_job_is_not_lost_with_its_client(table: Table) -> None:
    client, other, worker = table.join(), table.join(), table.worker(b"f")
    handle = table.submit(client, unique=b"u")
    assert table.submit(other, BG, b"u") == handle
    table.queue.leave(client, table.now)
    assert table.grab(worker) == handle


def test_both_clients_get_the_result_and_one_that_asked_twice_gets_it_twice(table: Table) -> None:
    one, two, worker = table.join(), table.join(), table.worker(b"f")
    handle = table.submit(one, unique=b"u")
    assert table.submit(one, unique=b"u") == table.submit(two, unique=b"u") == handle
    table.grab(worker)
    table.tell(worker, Kind.WORK_COMPLETE, handle, b"done")
    assert table.kinds(one) == [Kind.WORK_COMPLETE] * 2
    assert table.kinds(two) == [Kind.WORK_COMPLETE]
    assert table.submit(one, unique=b"u") != handle


def test_the_unique_dash_means_the_payload(table: Table) -> None:
    client = table.join()
    assert table.submit(client, unique=b"-") == table.submit(client, unique=b"-")
    assert table.submit(client, unique=b"payload") != table.submit(client, unique=b"-")
    assert table.submit(client) != table.submit(client)


# ── clients and workers that leave


def test_a_foreground_job_goes_with_its_last_client_unless_it_runs(table: Table) -> None:
    client, worker = table.join(), table.worker(b"f")
    running, waiting = table.submit(client), table.submit(client)
    assert table.grab(worker) == running
    table.queue.leave(client, table.now)
    assert table.queue.by_handle(waiting) is None
    assert table.tell(worker, Kind.WORK_COMPLETE, running, b"") == []
    assert table.grab(worker) is None
    assert not table.queue.jobs


def test_a_queue_does_not_grow_by_jobs_whose_clients_left(table: Table) -> None:
    for _ in range(500):
        client = table.join()
        table.submit(client)
        table.queue.leave(client, table.now)
    (function,) = table.queue.functions.values()
    assert sum(map(len, function.queues)) < 200


def test_attempts_end_in_a_dead_letter_and_the_client_is_told_why(table: Table) -> None:
    client, admin = table.join(), table.join()
    back, front = table.submit(client, BG), table.submit(client)
    for _ in range(3):
        worker = table.worker(b"f")
        assert {table.grab(worker), table.grab(worker)} == {back, front}
        table.queue.leave(worker, table.now)
    warning, fail = table.heard(client)
    assert (warning.kind, fail.kind) == (Kind.WORK_WARNING, Kind.WORK_FAIL)
    assert warning.args == (front, b"its worker's connection closed, attempt 3 of 3")
    assert table.grab(table.worker(b"f")) is None
    table.now += 5
    number = back.decode().rpartition(":")[2]
    assert table.line(admin, "dead") == f"{number}\tf\t\t3\t7\t5\tits worker's connection closed, attempt 3 of 3\n.\n"
    assert table.line(admin, f"dead retry {number}") == "OK\r\n"
    assert table.line(admin, f"dead retry {number}") == "ERR UNKNOWN_JOB\r\n"
    assert table.grab(table.worker(b"f")) == back


def test_a_dead_letter_can_be_dropped(table: Table) -> None:
    table = Table(Rules(attempts=1))
    admin, client = table.join(), table.join()
    for _ in range(2):
        table.submit(client, BG)
        worker = table.worker(b"f")
        table.grab(worker)
        table.queue.leave(worker, table.now)
    assert table.line(admin, "dead drop 1") == "OK\r\n"
    assert table.line(admin, "dead drop x") == "ERR UNKNOWN_JOB\r\n"
    assert table.line(admin, "dead drop all") == "OK\r\n"
    assert table.line(admin, "dead") == ".\n"
    assert not table.queue.jobs


def test_cant_do_leaves_a_running_job_alone(table: Table) -> None:
    """gearmand queues it again, and it runs twice."""
    client, worker, other = table.join(), table.worker(b"f"), table.worker(b"f")
    handle = table.submit(client)
    table.grab(worker)
    table.tell(worker, Kind.CANT_DO, b"f")
    table.tell(worker, Kind.RESET_ABILITIES)
    assert table.grab(other) is None
    assert table.tell(worker, Kind.WORK_COMPLETE, handle, b"x") == []
    assert table.kinds(client) == [Kind.WORK_COMPLETE]


def test_only_the_owner_may_end_a_job(table: Table) -> None:
    client, worker, other = table.join(), table.worker(b"f"), table.worker(b"f")
    handle = table.submit(client)
    table.grab(worker)
    for kind, more in ((Kind.WORK_COMPLETE, (b"",)), (Kind.WORK_FAIL, ()), (Kind.WORK_STATUS, (b"1", b"2"))):
        (answer,) = table.tell(other, kind, handle, *more)
        assert (answer.kind, answer.args[0]) == (Kind.ERROR, b"JOB_NOT_FOUND")
    assert table.heard(client) == []


# ── time


def test_can_do_timeout_takes_the_job_away_and_refuses_the_late_answer(table: Table) -> None:
    client, worker, other = table.join(), table.join(), table.worker(b"f")
    table.tell(worker, Kind.CAN_DO_TIMEOUT, b"f", b"2")
    handle = table.submit(client)
    table.grab(worker)
    table.wait(1.5)
    assert table.grab(other) is None
    table.wait(1.0)
    assert table.grab(other) == handle
    assert table.tell(worker, Kind.WORK_COMPLETE, handle, b"late")[0].kind is Kind.ERROR
    table.tell(other, Kind.WORK_COMPLETE, handle, b"in time")
    assert table.heard(client)[0].args[1] == b"in time"
    table.wait(60)
    assert table.queue.timers.due is None


def test_an_epoch_job_waits_and_then_wakes_a_sleeper(table: Table) -> None:
    client, worker, admin = table.join(), table.worker(b"f"), table.join()
    table.tell(worker, Kind.PRE_SLEEP)
    (answer,) = table.tell(client, Kind.SUBMIT_JOB_EPOCH, b"f", b"u", b"%d" % (table.now + 10), b"")
    assert answer.kind is Kind.JOB_CREATED
    assert table.heard(worker) == []
    assert table.line(admin, "prioritystatus") == "f\t0\t0\t0\t1\n.\n"
    assert table.line(admin, "status") == "f\t1\t0\t1\n.\n"
    table.wait(10)
    assert table.kinds(worker) == [Kind.NOOP]
    assert table.grab(worker) == answer.args[0]
    assert table.tell(client, Kind.SUBMIT_JOB_EPOCH, b"f", b"", b"soon", b"")[0].kind is Kind.ERROR


def test_one_job_wakes_one_worker_and_another_if_the_first_does_not_come(table: Table) -> None:
    client = table.join()
    workers = [table.worker(b"f") for _ in range(3)]
    for worker in workers:
        table.tell(worker, Kind.PRE_SLEEP)
    table.submit(client, BG)
    assert [table.kinds(worker) for worker in workers] == [[Kind.NOOP], [], []]
    table.wait(0.3)
    assert [table.kinds(worker) for worker in workers] == [[], [Kind.NOOP], []]
    table.queue.leave(workers[1], table.now)
    assert table.kinds(workers[2]) == [Kind.NOOP], "at once: the woken one is gone"


def test_a_worker_that_goes_to_sleep_beside_a_job_is_woken_at_once(table: Table) -> None:
    client, worker = table.join(), table.worker(b"f")
    table.submit(client, BG)
    assert [packet.kind for packet in table.tell(worker, Kind.PRE_SLEEP)] == [Kind.NOOP]


def test_oldest_tells_the_age_of_what_waits(table: Table) -> None:
    client, admin, worker = table.join(), table.join(), table.worker(b"f", b"g")
    table.submit(client, Kind.SUBMIT_JOB_LOW_BG)
    table.now += 7.25
    table.submit(client, Kind.SUBMIT_JOB_HIGH_BG)
    assert table.line(admin, "oldest") == "f\t7.250\n.\n"
    table.grab(worker)
    assert table.line(admin, "oldest") == "f\t7.250\n.\n"
    table.grab(worker)
    assert table.line(admin, "oldest") == ".\n"


# ── what is on disk


def test_nothing_is_acknowledged_or_shown_before_it_is_on_disk(durable: Table) -> None:
    client, worker = durable.join(), durable.worker(b"f")
    durable.tell(worker, Kind.PRE_SLEEP)
    assert durable.tell(client, BG, b"f", b"u", b"") == []
    durable.take()
    assert durable.tell(client, Kind.ECHO_REQ, b"behind") == [], "no answer overtakes another"
    assert durable.heard(worker) == []
    durable.settle()
    assert durable.kinds(client) == [Kind.JOB_CREATED, Kind.ECHO_RES]
    assert durable.kinds(worker) == [Kind.NOOP]


def test_a_failed_commit_refuses_exactly_its_own_jobs(durable: Table) -> None:
    """The client's second submission is of a later batch and joins a job of an earlier one: each has its own fate."""
    client, other, worker = durable.join(), durable.join(), durable.worker(b"f")
    durable.tell(other, BG, b"f", b"first", b"")
    durable.take()
    durable.tell(client, BG, b"f", b"second", b"")
    durable.tell(client, BG, b"f", b"first", b"")
    durable.settle(good=False)
    assert durable.kinds(other) == [Kind.ERROR]
    assert durable.heard(client) == []
    durable.commit()
    assert durable.kinds(client) == [Kind.JOB_CREATED, Kind.ERROR]
    assert durable.grab(worker) is not None
    assert durable.grab(worker) is None


def test_an_answer_does_not_wait_for_a_later_batch_than_its_own(durable: Table) -> None:
    client = durable.join()
    durable.tell(client, BG, b"f", b"a", b"")
    durable.take()
    durable.tell(client, BG, b"f", b"b", b"")
    durable.settle()
    assert durable.kinds(client) == [Kind.JOB_CREATED]
    durable.commit(good=False)
    assert durable.kinds(client) == [Kind.ERROR]


def test_ends_and_deaths_of_a_failed_commit_are_written_by_the_next(durable: Table) -> None:
    client = durable.join()
    for unique in (b"a", b"b", b"c"):
        durable.tell(client, BG, b"f", unique, b"")
    durable.commit()
    for _ in range(3):
        worker = durable.worker(b"f")
        handle = durable.grab(worker)
        durable.queue.leave(worker, durable.now)
        assert handle is not None
    worker = durable.worker(b"f")
    durable.tell(worker, Kind.WORK_COMPLETE, durable.grab(worker) or b"", b"")
    durable.commit(good=False)
    durable.commit()
    assert [(row.unique, row.attempts, bool(row.dead)) for row in durable.disk.values()] == [
        (b"a", 3, True),
        (b"c", 0, False),
    ]
    after = durable.crash()
    assert len(after.queue.letters) == 1
    assert [job.state for job in after.queue.jobs.values()] == [WAITING]


def test_a_letter_that_was_revived_and_died_again_is_dead_on_disk(durable: Table) -> None:
    table = Table(Rules(durable=True, attempts=1))
    client, admin = table.join(), table.join()
    table.tell(client, BG, b"f", b"", b"")
    table.commit()
    for _ in range(2):
        worker = table.worker(b"f")
        assert table.grab(worker)
        table.queue.leave(worker, table.now)
        assert table.line(admin, "dead retry all") == ""
    worker = table.worker(b"f")
    table.grab(worker)
    table.queue.leave(worker, table.now)
    table.commit()
    (row,) = table.disk.values()
    assert row.dead
    assert b"".join(admin.out) == b"OK\r\nOK\r\n"


def test_attempts_and_running_jobs_survive_a_crash(durable: Table) -> None:
    client, worker = durable.join(), durable.worker(b"f")
    durable.tell(client, BG, b"f", b"u", b"")
    durable.commit()
    handle = durable.grab(worker)
    durable.queue.leave(worker, durable.now)
    durable.commit()
    running = durable.worker(b"f")
    assert durable.grab(running) == handle
    after = durable.crash()
    (job,) = after.queue.jobs.values()
    assert (job.attempts, job.state, after.queue.handle(job)) == (1, WAITING, handle)
    (answer,) = [p for p in _submit_and_commit(after) if p.kind is Kind.JOB_CREATED]
    assert answer.args[0] != handle


def _submit_and_commit(table: Table) -> list:  # type: ignore[type-arg]
    client = table.join()
    table.tell(client, BG, b"f", b"other", b"")
    table.commit()
    return table.heard(client)


# ── bounds


def test_a_full_queue_refuses(table: Table) -> None:
    client, admin = table.join(), table.join()
    assert table.line(admin, "maxqueue f 2") == "OK\r\n"
    table.submit(client, unique=b"a")
    table.submit(client)
    (answer,) = table.tell(client, BG, b"f", b"", b"")
    assert answer.args == (b"QUEUE_ERROR", b"Job queue is full")
    assert table.submit(client, unique=b"a"), "what joins a job takes no room"
    assert table.line(admin, "maxqueue f") == "OK\r\n"
    table.submit(client)
    assert table.line(admin, "maxqueue f 0 1 0") == "OK\r\n"
    assert table.tell(client, BG, b"f", b"", b"")[0].kind is Kind.ERROR


@pytest.mark.parametrize(
    ("name", "unique", "payload", "code"),
    [
        (b"", b"", b"", b"INVALID_FUNCTION_NAME"),
        (b"a\tb", b"", b"", b"INVALID_FUNCTION_NAME"),
        (b"a\nb", b"", b"", b"INVALID_FUNCTION_NAME"),
        (b"f" * 513, b"", b"", b"INVALID_FUNCTION_NAME"),
        (b"f", b"u" * 65, b"", b"ARGUMENT_TOO_LARGE"),
        (b"f", b"", b"p" * (256 * 1024 + 1), b"ARGUMENT_TOO_LARGE"),
    ],
)
def test_what_would_forge_rows_or_fill_memory_is_refused(
    table: Table, name: bytes, unique: bytes, payload: bytes, code: bytes
) -> None:
    client = table.join()
    (answer,) = table.tell(client, Kind.SUBMIT_JOB, name, unique, payload)
    assert (answer.kind, answer.args[0]) == (Kind.ERROR, code)
    assert not table.queue.jobs


def test_functions_that_nobody_uses_are_forgotten_before_there_are_too_many(table: Table) -> None:
    client, worker = table.join(), table.worker(b"kept")
    for at in range(MAX_FUNCTIONS + 10):
        table.queue.function(b"%d" % at)
    assert len(table.queue.functions) < MAX_FUNCTIONS
    assert table.submit(client, name=b"kept") == table.grab(worker)


def test_a_client_id_cannot_forge_rows(table: Table) -> None:
    worker, admin = table.worker(b"f"), table.join()
    table.tell(worker, Kind.SET_CLIENT_ID, b"me\n99 127.0.0.1 forged : f")
    assert table.line(admin, "workers") == "1 127.0.0.1 me?99 127.0.0.1 forged : f : f\n2 127.0.0.1 - :\n.\n"


# ── tokens


def test_without_the_token_nothing_is_done() -> None:
    table = Table(Rules(token=b"0123456789abcdef"))
    client, admin = table.join(), table.join()
    (answer,) = table.tell(client, BG, b"f", b"", b"")
    assert answer.args[0] == b"AUTHENTICATION_REQUIRED"
    assert client.fault == "SUBMIT_JOB_BG without the token"
    assert table.line(admin, "status").startswith("ERR AUTHENTICATION_REQUIRED")
    assert admin.fault
    assert not table.queue.jobs


def test_with_the_token_everything_is() -> None:
    table = Table(Rules(token=b"0123456789abcdef"))
    client, admin, thief = table.join(), table.join(), table.join()
    assert table.tell(client, Kind.OPTION_REQ, b"token:0123456789abcdef")[0].args == (b"token",)
    assert table.submit(client)
    assert table.line(admin, "token 0123456789abcdef") == "OK\r\n"
    assert table.line(admin, "oldest") == "f\t0.000\n.\n"
    assert table.tell(thief, Kind.OPTION_REQ, b"token:0123456789abcdeF")[0].args[0] == b"AUTHENTICATION_FAILED"
    assert thief.fault == "a wrong token"


def test_a_token_where_none_is_needed_is_taken(table: Table) -> None:
    assert table.tell(table.join(), Kind.OPTION_REQ, b"token:whatever")[0].kind is Kind.OPTION_RES
