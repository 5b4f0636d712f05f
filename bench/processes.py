"""Programs under measurement: started, read from /proc, and ended with everything that they started.

Promises: a program dies with the benchmark, even after a SIGKILL; `ended` leaves none of its descendants alive, and
touches nothing else.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).resolve().parent.parent
TICK_S: Final = 1 / os.sysconf("SC_CLK_TCK")
_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG: Final = 1
_STOP_S: Final = 8.0


class Process(NamedTuple):
    """One line of /proc/PID/stat, as far as it matters. `cpu_s` includes the children that it has reaped."""

    pid: int
    name: str
    parent: int
    cpu_s: float
    born: int


def start(arguments: Sequence[str], environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `python ARGUMENTS` in a session of its own, from the repository's root."""
    with log.open("ab") as out:
        return subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            preexec_fn=lambda: _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL),  # noqa: PLW1509
        )


@contextlib.contextmanager
def ended(programs: Sequence[subprocess.Popen[bytes]]) -> Iterator[None]:
    """End the programs on the way out: SIGTERM to each, then SIGKILL to whatever is left of their trees."""
    try:
        yield
    finally:
        known = {process.pid: process.born for process in tree(programs)}
        for program in programs:
            program.terminate()
        give_up_at = time.monotonic() + _STOP_S
        for program in programs:
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(max(0.1, give_up_at - time.monotonic()))
        for process in _all():
            if known.get(process.pid) == process.born:
                with contextlib.suppress(OSError):
                    os.kill(process.pid, signal.SIGKILL)
        for program in programs:
            program.wait(5)


def tree(programs: Iterable[subprocess.Popen[bytes]]) -> list[Process]:
    """Return the programs and all their descendants that are alive."""
    processes = _all()
    inside = {program.pid for program in programs}
    while True:
        more = {process.pid for process in processes if process.parent in inside} - inside
        if not more:
            return [process for process in processes if process.pid in inside]
        inside |= more


def cpu_s(programs: Iterable[subprocess.Popen[bytes]]) -> float:
    """Return the CPU seconds of the programs' trees, user and system, the reaped included."""
    return sum(process.cpu_s for process in tree(programs))


class Memory(NamedTuple):
    """A process's memory in bytes: its own alone (USS), its share of everything (PSS), and all that it sees (RSS)."""

    own: int
    share: int
    seen: int


def memory(pid: int) -> Memory:
    """Read /proc/PID/smaps_rollup."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return Memory(sizes["Private_Clean"] + sizes["Private_Dirty"], sizes["Pss"], sizes["Rss"])


def _all() -> list[Process]:
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208 - some hundred entries, many times
        if entry.isdigit():
            with contextlib.suppress(OSError):
                found.append(_parse(Path(f"/proc/{entry}/stat").read_text("utf-8", "replace")))
    return found


def _parse(stat: str) -> Process:
    # The name, field 2, may hold anything, spaces and brackets included: the rest is counted from its end.
    head, _, tail = stat.rpartition(")")
    pid, _, name = head.partition(" (")
    fields = tail.split()
    return Process(int(pid), name, int(fields[1]), sum(map(int, fields[11:15])) * TICK_S, int(fields[19]))
