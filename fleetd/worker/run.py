"""The job boundary: runs one job's function and turns whatever it does into bytes or a `Failure`.

Promises: nothing that a job raises gets past here; the soft limit of a plain function is a TimeoutError raised inside
it by SIGALRM, and costs no system call as long as jobs stay well within their limits.
"""

import asyncio
import math
import signal
import time
import traceback
from dataclasses import dataclass
from typing import Any, Final

from fleetd.worker.jobs import Context, Job, Retry

_NEVER: Final = math.inf


class LimitError(TimeoutError):
    """The job ran longer than its limit."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that did not give a result. `again`: it may be run again, while attempts are left."""

    reason: str
    traceback: str
    again: bool = False


class Alarm:
    """SIGALRM as the soft limit. The timer is left running between jobs and set only when it would ring too late."""

    __slots__ = ("_deadline", "_limit_s", "_rings_at")

    def __init__(self) -> None:
        self._deadline = self._rings_at = _NEVER
        self._limit_s = 0.0

    def install(self) -> None:
        """Take SIGALRM over, in the main thread."""
        signal.signal(signal.SIGALRM, self._ring)

    def start(self, deadline: float, limit_s: float) -> None:
        """Limit what runs from now until `stop`."""
        self._limit_s = limit_s
        self._deadline = deadline
        if deadline < self._rings_at:
            self._set(deadline)

    def stop(self) -> None:
        """Nothing is limited any more."""
        self._deadline = _NEVER

    def _set(self, rings_at: float) -> None:
        self._rings_at = rings_at
        signal.setitimer(signal.ITIMER_REAL, max(1e-3, rings_at - time.monotonic()))

    def _ring(self, *_: object) -> None:
        self._rings_at = _NEVER
        deadline = self._deadline
        if deadline is _NEVER:
            return
        if time.monotonic() < deadline:
            self._set(deadline)
            return
        self._deadline = _NEVER  # raised once, wherever in the job or in its last instruction it lands
        raise LimitError(f"the job ran longer than its limit of {self._limit_s:g} s")


def run_plain(job: Job, payload: bytes, context: Context | None, alarm: Alarm, limit_s: float) -> bytes | Failure:
    """Run a plain function to its end. `limit_s` 0 is unlimited; `context` is for those that want one."""
    try:
        try:
            if limit_s:
                alarm.start(time.monotonic() + limit_s, limit_s)
            result = job.call(payload) if context is None else job.call(payload, context)
        finally:
            alarm.stop()
        return result if type(result) is bytes else as_bytes(job, result)
    except BaseException as error:  # noqa: BLE001 - the job boundary: SystemExit and the like end the job alone
        return _failure(error)


def run_threaded(job: Job, payload: bytes, context: Context | None) -> bytes | Failure:
    """Run a plain function to its end in this thread; nothing limits it here."""
    try:
        return as_bytes(job, job.call(payload) if context is None else job.call(payload, context))
    except BaseException as error:  # noqa: BLE001 - the job boundary
        return _failure(error)


async def run_async(job: Job, payload: bytes, context: Context | None, limit_s: float) -> bytes | Failure:
    """Run an async function to its end; past its limit it is cancelled."""
    limit = asyncio.timeout(limit_s or None)
    try:
        async with limit:
            result = await (job.call(payload) if context is None else job.call(payload, context))
        return as_bytes(job, result)
    except BaseException as error:  # noqa: BLE001 - the job boundary
        if limit.expired() and isinstance(error, TimeoutError):
            late = LimitError(f"the job ran longer than its limit of {limit_s:g} s")
            return _failure(late.with_traceback((error.__cause__ or error).__traceback__))
        return _failure(error)


def as_bytes(job: Job, result: Any) -> bytes:
    """Return what a job returned as it is answered."""
    if isinstance(result, (bytes, bytearray)):
        return bytes(result)
    if isinstance(result, str):
        return result.encode()
    if result is None:
        return b""
    raise TypeError(f"{job.name} returned {type(result).__name__}; a job returns bytes, str, None or a Path")


def _failure(error: BaseException) -> Failure:
    name = type(error).__name__
    if isinstance(error, LimitError):
        name = "TimeoutError"
    try:
        text = str(error)
    except Exception as broken:  # noqa: BLE001 - the exception is the job's own code, too
        text = f"(its text raised {type(broken).__name__})"
    reason = " ".join(f"{name}: {text}".split()) if text else name
    return Failure(reason, _trace(error), again=isinstance(error, (Retry, LimitError)))


def _trace(error: BaseException) -> str:
    """The traceback from the job's own frames on."""
    shown = error.__traceback__
    while shown is not None and shown.tb_next is not None and shown.tb_frame.f_code.co_filename == __file__:
        shown = shown.tb_next
    try:
        return "".join(traceback.format_exception(type(error), error, shown))
    except Exception as broken:  # noqa: BLE001 - formatting calls the exception's own __str__
        return f"{type(error).__name__} (its traceback raised {type(broken).__name__})\n"
