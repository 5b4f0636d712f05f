"""One run of a foreign worker's program: started in a session of its own, heard, signalled, and buried.

Promises: every process that ends below this one is reaped, whoever started it; a run has ended once its first process
and every other that came of it are gone, so that a second run never meets the first; what it prints are events.
"""

import asyncio
import logging
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from fleetd.errors import UsageError
from fleetd.worker import foreign_start
from fleetd.worker.cgroup import Group
from fleetd.worker.logs import event
from fleetd.worker.output import Overheard

LEFT_S: Final = 0.1  # how often what outlived its first process is looked for
_PAGE: Final = os.sysconf("SC_PAGE_SIZE")


class Reaper:
    """Takes in every child's end, and tells who waits for it."""

    def __init__(self) -> None:
        self._awaited: dict[int, asyncio.Future[int]] = {}

    def expect(self, pid: int) -> asyncio.Future[int]:
        """Return the exit code to come, as `subprocess` counts them. Called right after the start, before any await."""
        return self._awaited.setdefault(pid, asyncio.get_running_loop().create_future())

    def reap(self) -> None:
        """Bury all that has ended; what nobody waits for was an orphan."""
        with suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    return
                told = self._awaited.pop(pid, None)
                if told is not None and not told.done():
                    told.set_result(os.waitstatus_to_exitcode(status))


class Run:
    """The program from its start to its end. `aside` holds the pids of probes, which are none of its processes."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], told_by: signal.Signals, group: Group | None
    ) -> None:
        """Start it; raises UsageError. `told_by` is the signal that it drains on."""
        self.since = time.monotonic()
        self.group = group
        self._output = Overheard(lambda: None)
        procs = str(group.path / "cgroup.procs") if group else ""
        command = [sys.executable, "-I", "-S", foreign_start.__file__, str(int(told_by)), procs, *words]
        actions: list[Any] = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)]
        actions += [(os.POSIX_SPAWN_DUP2, self._output.theirs, fd) for fd in (1, 2)]
        try:
            self.pid = os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True)
        except OSError as error:
            self._output.close()
            raise UsageError(f"cannot start {words[0]}: {error.strerror}") from None
        self._output.shut()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._output.fileno(), self._hear)

    async def end(self, reaper: Reaper, aside: set[int]) -> int:
        """Wait until all of it is gone; returns the exit code of its first process."""
        code = await reaper.expect(self.pid)
        self.pid = 0
        if left := others(aside):
            event(logging.WARNING, "its first process has ended, others live on: they are waited for", left=len(left))
        while others(aside):  # noqa: ASYNC110 - /proc tells nobody
            await asyncio.sleep(LEFT_S)
        self._loop.remove_reader(self._output.fileno())
        self._output.close()
        return code

    def signal(self, number: signal.Signals, aside: set[int]) -> None:
        """Signal its first process, which tells the rest as it likes; all of them where that is gone, or by KILL."""
        pids = [self.pid] if self.pid and number is not signal.SIGKILL else others(aside)
        for pid in pids:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)

    def _hear(self) -> None:
        if not self._output.hear():
            self._loop.remove_reader(self._output.fileno())


def others(aside: set[int]) -> list[int]:
    """Return every live process that descends from this one, but for `aside` and what they started."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            fields = Path(entry.path, "stat").read_bytes().rpartition(b")")[2].split()
        except OSError:
            continue
        if fields[0] not in (b"Z", b"X"):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid for pid in children.get(os.getpid(), ()) if pid not in aside]
    for pid in found:
        found += children.get(pid, ())
    return found


def weight(pids: Sequence[int]) -> int:
    """Return what these processes hold in memory, in bytes; what they share counts for each."""
    pages = 0
    for pid in pids:
        with suppress(OSError, IndexError, ValueError):
            pages += int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1])
    return pages * _PAGE
