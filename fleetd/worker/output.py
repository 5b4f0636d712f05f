"""What jobs print, as lines of the log that say which job it was.

Promises: what Python code prints carries its own job, also where several run side by side; what comes from below it (a
C library, a program that a job started, the last words of a crash) comes by a pipe and carries the slot, and the job
that runs there at that moment. A line is one event, however long it took to be written; none is longer than MOST.
"""

import io
import logging
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from typing import Final, TextIO

from fleetd.worker.logs import event

MOST: Final = 16_384
CHUNK: Final = 65_536
Job = tuple[str, bytes, bytes]  # function, handle, unique
RUNNING: Final[ContextVar[Job | None]] = ContextVar("fleetd_running", default=None)


def told(job: Job | None) -> dict[str, object]:
    """Return what a line says of its job."""
    if job is None:
        return {}
    function, handle, unique = job
    return {
        "function": function,
        "job": handle.decode(errors="backslashreplace"),
        "unique": unique.decode(errors="backslashreplace"),
    }


class Printed(io.TextIOBase):
    """Stands where `sys.stdout` or `sys.stderr` was. `fd` is what programs that are started here write to."""

    encoding = "utf-8"

    def __init__(self, stream: str, fd: int) -> None:
        super().__init__()
        self._stream = stream
        self._fd = fd
        self._begun: dict[Job | None, str] = {}
        self.buffer = _Bytes(self)

    def write(self, text: str, /) -> int:
        """Log every line that is whole now; what is left waits for its end, by job."""
        job = RUNNING.get()
        *lines, rest = (self._begun.pop(job, "") + text).split("\n")
        if len(rest) > MOST:
            lines, rest = [*lines, rest], ""
        for line in lines:
            if line.strip():
                event(logging.INFO, line[:MOST], stream=self._stream, **told(job))
        if rest:
            self._begun[job] = rest
        return len(text)

    def flush(self) -> None:
        """Nothing is held back but the beginning of a line, which waits for its end."""

    def fileno(self) -> int:
        """Return the descriptor below."""
        return self._fd

    def writable(self) -> bool:
        """It is."""
        return True

    def end(self, job: Job | None) -> None:
        """Log what a job that is over began and never ended."""
        if rest := self._begun.pop(job, ""):
            event(logging.INFO, rest[:MOST], stream=self._stream, **told(job))


class _Bytes(io.RawIOBase):
    """The binary side."""

    def __init__(self, printed: Printed) -> None:
        super().__init__()
        self._printed = printed

    def write(self, data: object, /) -> int:
        """Print bytes as text."""
        content = bytes(data)  # type: ignore[call-overload]
        self._printed.write(content.decode(errors="backslashreplace"))
        return len(content)

    def writable(self) -> bool:
        """It is."""
        return True


def redirect(pipe: int) -> TextIO:
    """Send what is printed here to the log, and what comes from below to the pipe; returns the log's stream."""
    log = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    for fd in (1, 2):
        os.dup2(pipe, fd)
    os.close(pipe)
    sys.stdout, sys.stderr = Printed("stdout", 1), Printed("stderr", 2)
    return log


def finish(job: Job | None) -> None:
    """Log what a job that is over printed without the end of a line; None: what no job printed."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, Printed):
            stream.end(job)


class Overheard:
    """The supervisor's end of a slot process's pipe."""

    def __init__(self, running: Callable[[], Job | None], **always: object) -> None:
        self._fd, self.theirs = os.pipe()
        os.set_blocking(self._fd, False)
        self._running, self._always, self._begun = running, always, b""

    def fileno(self) -> int:
        """Return the descriptor, for an event loop."""
        return self._fd

    def hear(self) -> bool:
        """Log the lines that came; return whether more may come."""
        data: bytes | None = None
        with suppress(BlockingIOError):
            data = os.read(self._fd, CHUNK)
        *lines, rest = (self._begun + (data or b"")).split(b"\n")
        if data == b"" or len(rest) > MOST:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if line.strip():
                text = line[:MOST].decode(errors="backslashreplace")
                event(logging.INFO, text, stream="output", **told(self._running()), **self._always)
        self._begun = rest
        return data != b""

    def close(self) -> None:
        """Hear what is left, then let go. Safe twice."""
        if self._fd >= 0:
            self.hear()
            if self._begun:
                event(logging.INFO, self._begun.decode(errors="backslashreplace"), stream="output", **self._always)
            os.close(self._fd)
            self._fd = -1
        self.shut()

    def shut(self) -> None:
        """Close the slot's end here, once it has its own. Safe twice."""
        if self.theirs >= 0:
            os.close(self.theirs)
            self.theirs = -1
