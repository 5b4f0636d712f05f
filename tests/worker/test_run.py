"""The job boundary, in this process."""

import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from fleetd.worker.jobs import make_job
from fleetd.worker.run import Alarm, Failure, run_async, run_plain


@pytest.fixture(autouse=True)
def _own_alarm() -> Iterator[None]:
    """Give SIGALRM back to pytest-timeout after each test."""
    before = signal.getsignal(signal.SIGALRM)
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    yield
    signal.signal(signal.SIGALRM, before)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def _run(function: Any, limit_s: float = 0.0) -> bytes | Failure:
    alarm = Alarm()
    alarm.install()
    context = None
    return run_plain(make_job("f", function), b"x", context, alarm, limit_s)


@pytest.mark.parametrize(("result", "sent"), [(b"r", b"r"), ("ä", "ä".encode()), (None, b""), (bytearray(b"b"), b"b")])
def test_results_become_bytes(result: Any, sent: bytes) -> None:
    assert _run(lambda payload: result) == sent


class _NastyError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("even this")


def test_an_exception_whose_text_raises_is_a_failure_like_any_other() -> None:
    def job(payload: bytes) -> None:
        raise _NastyError

    outcome = _run(job)
    assert isinstance(outcome, Failure)
    assert outcome.reason == "_NastyError: (its text raised RuntimeError)"


def test_the_limit_raises_timeout_error_which_the_job_may_catch() -> None:
    def job(payload: bytes) -> bytes:
        try:
            time.sleep(5)
        except TimeoutError:
            return b"cleaned up"
        return b"never"

    assert _run(job, 0.05) == b"cleaned up"


def test_a_timer_left_over_hits_no_later_job() -> None:
    alarm = Alarm()
    alarm.install()
    context = None
    quick = make_job("f", lambda payload: b"quick")
    nap = make_job("g", lambda payload: time.sleep(0.15))
    assert run_plain(quick, b"", context, alarm, 0.1) == b"quick"
    assert run_plain(nap, b"", context, alarm, 0.0) == b"", "unlimited"
    assert run_plain(nap, b"", context, alarm, 10.0) == b""
    late = run_plain(nap, b"", context, alarm, 0.05)
    assert isinstance(late, Failure)
    assert late.again


async def test_an_async_jobs_own_timeout_error_is_no_limit() -> None:
    async def job(payload: bytes) -> None:
        raise TimeoutError("mine")

    context = None
    outcome = await run_async(make_job("f", job), b"", context, 5)
    assert outcome == Failure("TimeoutError: mine", outcome.traceback if isinstance(outcome, Failure) else "")
