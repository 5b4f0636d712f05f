"""The text commands of a Gearman dispatcher, sans I/O: commands to bytes, the lines of an answer to values.

Promises: never reads or writes anything itself; holds at most `max_line` bytes of an unfinished line and `max_bytes`
of an answer; a malformed answer raises `ProtocolError` that names the command, the line and the field. One thing is
mended on the way: a negative count (gearmand#301 shows -1 running jobs) is read as 0.

Checked against gearmand 1.1.20. Left out: `maxqueue`, `create function`, `drop function`, `shutdown` and `verbose`,
because fleetd observes a dispatcher and never configures it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from fleetd.errors import FleetdError, ProtocolError

MAX_LINE: Final = 64 * 1024
MAX_ANSWER: Final = 8 * 1024 * 1024  # some 100,000 functions


class CommandRefusedError(FleetdError):
    """The dispatcher understood that this is a command and said no; the connection stays in step."""


@dataclass(frozen=True, slots=True)
class Command:
    """A line to send. `block`: the answer is lines up to a lone dot; otherwise it is one line.

    `repeatable`: sending it twice does no more than sending it once.
    """

    text: str
    block: bool = True
    repeatable: bool = True

    def encode(self) -> bytes:
        """Return the bytes to send."""
        return self.text.encode() + b"\n"


STATUS: Final = Command("status")
PRIORITY_STATUS: Final = Command("prioritystatus")
WORKERS: Final = Command("workers")
SHOW_JOBS: Final = Command("show jobs")
VERSION: Final = Command("version", block=False)
OLDEST: Final = Command("oldest")  # the embedded dispatcher's own; any other answers with CommandRefusedError


def cancel_job(handle: str) -> Command:
    """Return the command that takes a waiting job out of the queue; raises ProtocolError for no possible handle."""
    if not handle or not handle.isascii() or not handle.isprintable() or " " in handle:
        raise ProtocolError(f"gearman admin: cancel job: {handle!r:.80} is no job handle")
    return Command(f"cancel job {handle}", block=False, repeatable=False)


@dataclass(frozen=True, slots=True)
class FunctionStatus:
    """A line of `status`. `total` jobs include those `running`; `workers` are all that could, not the idle ones."""

    function: str
    total: int
    running: int
    workers: int


@dataclass(frozen=True, slots=True)
class FunctionBacklog:
    """A line of `prioritystatus`: jobs that wait and do not run, by priority."""

    function: str
    high: int
    normal: int
    low: int
    workers: int

    @property
    def waiting(self) -> int:
        """Jobs of every priority."""
        return self.high + self.normal + self.low


@dataclass(frozen=True, slots=True)
class FunctionAge:
    """A line of `oldest`: how many seconds the oldest waiting job of a function waits. Without one there is no line."""

    function: str
    age_s: float


@dataclass(frozen=True, slots=True)
class Peer:
    """A line of `workers`: any connection, clients and admin connections too (they have no functions)."""

    fd: int
    host: str
    client_id: str
    functions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QueuedJob:
    """A line of `show jobs`: a job that waits or runs, the line does not tell which.

    `ignored`: cancelled, or in the foreground and nobody waits for it any more; it goes away unrun.
    """

    handle: str
    retries: int
    ignored: bool
    background: bool


@dataclass(slots=True)
class AnswerDecoder:
    """Gathers the answer to one command from bytes that arrive in pieces of any size."""

    command: Command
    max_line: int = MAX_LINE
    max_bytes: int = MAX_ANSWER
    _line: bytearray = field(default_factory=bytearray)
    _lines: list[str] = field(default_factory=list)
    _size: int = 0

    def feed(self, data: bytes) -> tuple[str, ...] | None:
        """Take the next bytes; return the answer's lines once it is whole, None before.

        Raises CommandRefusedError where the dispatcher knows no such command, and ProtocolError for a line or an
        answer that is too long and for bytes after the answer's end: such a connection must be dropped.
        """
        self._size += len(data)
        if self._size > self.max_bytes:
            raise self._fail(f"an answer of more than {self.max_bytes} bytes")
        at, end = 0, len(data)
        while (stop := data.find(b"\n", at)) >= 0:
            self._hold(data, at, stop)
            at = stop + 1
            if self._ends(bytes(self._line)):
                if at != end:
                    raise self._fail(f"{end - at} bytes after the answer's end")
                return tuple(self._lines)
            self._line.clear()
        self._hold(data, at, end)
        return None

    def _hold(self, data: bytes, start: int, stop: int) -> None:
        if len(self._line) + stop - start > self.max_line:
            raise self._fail(f"line {len(self._lines) + 1} is longer than {self.max_line} bytes")
        self._line += data[start:stop]

    def _ends(self, raw: bytes) -> bool:
        """Keep one line; whether it was the last."""
        line = raw.removesuffix(b"\r").decode(errors="backslashreplace")
        if not self.command.block:
            self._lines.append(line)
            return True
        if line == ".":
            return True
        # A row holds tabs, or (of `workers`) begins with a number: this is a refusal, and no dot follows it.
        if not self._lines and line.startswith("ERR ") and "\t" not in line:
            raise _refusal(self.command.text, line)
        self._lines.append(line)
        return False

    def _fail(self, what: str) -> ProtocolError:
        return ProtocolError(f"gearman admin: {self.command.text}: {what}")


def parse_status(lines: Sequence[str]) -> tuple[FunctionStatus, ...]:
    """Read the answer to `status`; raises ProtocolError."""
    names = ("total", "running", "workers")
    return tuple(FunctionStatus(name, *counts) for name, counts in _rows("status", lines, names))


def parse_priority_status(lines: Sequence[str]) -> tuple[FunctionBacklog, ...]:
    """Read the answer to `prioritystatus`; raises ProtocolError."""
    names = ("high", "normal", "low", "workers")
    return tuple(FunctionBacklog(name, *counts) for name, counts in _rows("prioritystatus", lines, names))


def parse_oldest(lines: Sequence[str]) -> tuple[FunctionAge, ...]:
    """Read the answer to `oldest`; raises ProtocolError."""
    ages = []
    for number, line in enumerate(lines, 1):
        name, tab, age = line.rpartition("\t")
        whole, _, part = age.partition(".")
        if not tab or not (whole + part).isascii() or not (whole + part).isdigit() or len(age) > 24:
            raise _bad("oldest", number, f"expected 'function<TAB>seconds', got {line!r:.80}")
        ages.append(FunctionAge(name, float(age)))
    return tuple(ages)


def parse_jobs(lines: Sequence[str]) -> tuple[QueuedJob, ...]:
    """Read the answer to `show jobs`; raises ProtocolError."""
    rows = _rows("show jobs", lines, ("retries", "ignored", "background"))
    return tuple(QueuedJob(name, retries, bool(gone), bool(back)) for name, (retries, gone, back) in rows)


def parse_workers(lines: Sequence[str]) -> tuple[Peer, ...]:
    """Read the answer to `workers`; raises ProtocolError. A client id may hold spaces, but not ' : '."""
    peers = []
    for number, line in enumerate(lines, 1):
        head, colon, functions = f"{line} ".partition(" : ")
        parts = head.split(" ", 2)
        if not colon or len(parts) != 3:
            raise _bad("workers", number, f"expected 'fd host id : functions', got {line!r:.80}")
        fd = _count("workers", number, "fd", parts[0])
        peers.append(Peer(fd, parts[1], parts[2], tuple(functions.split())))
    return tuple(peers)


def parse_version(lines: Sequence[str]) -> str:
    """Read the answer to `version`; raises CommandRefusedError or ProtocolError."""
    line = _only("version", lines)
    if line.startswith("ERR"):
        raise _refusal("version", line)
    if not line.startswith("OK ") or not line[3:].strip():
        raise _bad("version", 1, f"expected 'OK VERSION', got {line!r:.80}")
    return line[3:].strip()


def parse_cancel(lines: Sequence[str]) -> bool:
    """Read the answer to `cancel job`: whether such a job waited; raises CommandRefusedError or ProtocolError."""
    line = _only("cancel job", lines)
    if line == "OK":
        return True
    if line.startswith("ERR UNKNOWN_JOB"):
        return False
    if line.startswith("ERR"):
        raise _refusal("cancel job", line)
    raise _bad("cancel job", 1, f"expected 'OK' or 'ERR …', got {line!r:.80}")


def _rows(command: str, lines: Sequence[str], names: tuple[str, ...]) -> list[tuple[str, list[int]]]:
    """Split rows from the right: a function's name may itself hold a tab."""
    rows = []
    for number, line in enumerate(lines, 1):
        name, *counts = line.rsplit("\t", len(names))
        if len(counts) != len(names):
            raise _bad(command, number, f"expected {len(names) + 1} fields, got {len(counts) + 1}: {line!r:.80}")
        pairs = zip(names, counts, strict=True)
        rows.append((name, [_count(command, number, label, text) for label, text in pairs]))
    return rows


def _count(command: str, number: int, label: str, text: str) -> int:
    digits = text.removeprefix("-")
    if not digits.isascii() or not digits.isdigit() or len(digits) > 18:
        raise _bad(command, number, f"{label}: {text!r:.40} is not a whole number")
    return max(0, int(text))


def _only(command: str, lines: Sequence[str]) -> str:
    if len(lines) != 1:
        raise _bad(command, len(lines), f"expected 1 line, got {len(lines)}")
    return lines[0]


def _bad(command: str, number: int, what: str) -> ProtocolError:
    return ProtocolError(f"gearman admin: {command}: line {number}: {what}")


def _refusal(command: str, line: str) -> CommandRefusedError:
    """Read a refusal: gearmand writes its text of a refusal with a plus for each space."""
    said = line.removeprefix("ERR").strip().replace("+", " ")
    return CommandRefusedError(f"gearman admin: {command}: refused: {said:.200}")
