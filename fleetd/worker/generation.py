"""A generation: imports the app once, proves it, then forks slots on the supervisor's word.

Started by the supervisor alone, with its control socket as descriptor 3. Where the app left threads running, forking
is unsafe: it says so and ends, and every slot is then a process of this program that imports the app itself. The
health check runs in a fork, so that what it opens is not shared by the slots; it is the supervisor who ends one that
takes too long.

Promises: it never talks to a dispatcher; it has no thread; it ends when the supervisor does.
"""

import encodings.idna  # noqa: F401 - getaddrinfo wants it: once here, not a megabyte in each slot after the fork
import gc
import os
import resource
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

from fleetd.worker.app import MANIFEST, AppError, check, find_app, health_check, load
from fleetd.worker.control import Control, Message
from fleetd.worker.jobs import Job
from fleetd.worker.process import apply, hold_signals, leave, serve
from fleetd.worker.settings import load as load_settings

CONTROL_FD: Final = 3
IMPORT_NICE: Final = 10
CAP_SYS_NICE: Final = 23
START_S: Final = 10.0
_TRACE_CHARACTERS: Final = 30_000


def main() -> int:
    """Import the app, then be a zygote or, where the first message names one, a slot."""
    os.set_inheritable(CONTROL_FD, False)  # noqa: FBT003
    control = Control(socket.socket(fileno=CONTROL_FD))
    first = control.wait(START_S)
    if first is None:
        return 0
    settings = load_settings(first.body["settings"])
    assert settings.app is not None, "a generation is started for an app"
    hold_signals()
    apply(settings)
    # Bytecode is told from stale by the second and the size of its source: too coarse for code that changes in place.
    sys.dont_write_bytecode = not (settings.app / MANIFEST).is_file()
    with _behind_running_jobs():
        try:
            app = find_app(settings.app)
            jobs, healthy = load(app), health_check(app)
        except AppError as error:
            return _failed(control, error)
        threads = _other_threads()
        if healthy is not None and not first.fds:
            control.send({"imported": True})
            if not _prove(control, partial(check, app, healthy), fork=not threads):
                return AppError.exit_code
    if first.fds:
        return serve(control, first, jobs)
    return _be_zygote(control, jobs, threads)


@contextmanager
def _behind_running_jobs() -> Iterator[None]:
    """Let an import take only the time that running jobs leave, where the kernel lets us have our priority back."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    if not may_raise_to(before):
        yield
        return
    os.setpriority(os.PRIO_PROCESS, 0, max(before, IMPORT_NICE))
    try:
        yield
    finally:
        os.setpriority(os.PRIO_PROCESS, 0, before)


def may_raise_to(nice: int) -> bool:
    """Whether this process may have this priority back: by CAP_SYS_NICE, or within RLIMIT_NICE (20 less the value)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_NICE)
    if limit == resource.RLIM_INFINITY or nice >= 20 - limit:
        return True
    status = Path("/proc/self/status").read_text("ascii", "replace")
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) >> CAP_SYS_NICE & 1)


def _prove(control: Control, healthy: Callable[[], None], *, fork: bool) -> bool:
    """Run the health check and say what was wrong; in this process only where a fork would be unsafe."""
    between = os.fork() if fork else 0
    if between:
        code = os.waitstatus_to_exitcode(os.waitpid(between, 0)[1])
        if code not in (0, AppError.exit_code):
            control.send({"failed": f"the health check's process ended with {code}"})
        return code == 0
    code = 1
    try:
        healthy()
        code = 0
    except AppError as error:
        code = _failed(control, error)
    except BaseException:  # noqa: BLE001 - a fork: nothing may unwind into the zygote's code
        traceback.print_exc()
    if fork:
        leave(code)
    return code == 0


def _failed(control: Control, error: AppError) -> int:
    control.send({"failed": str(error), "traceback": error.traceback[-_TRACE_CHARACTERS:]})
    return error.exit_code


def _be_zygote(control: Control, jobs: Sequence[Job], threads: Sequence[str]) -> int:
    control.send({"ready": [[job.name, job.attempts] for job in jobs], "threads": list(threads)})
    if threads:
        return 0
    gc.collect()
    gc.freeze()  # what the slots share is never touched by their collectors, and so never copied
    while (message := control.wait(None)) is not None:
        (fd,) = message.fds
        if not _fork(control, fd, jobs):
            control.send({"fork_failed": message.body["fork"]})
        os.close(fd)
    return 0


def _fork(control: Control, fd: int, jobs: Sequence[Job]) -> bool:
    """Make a slot that is the supervisor's child, by a process in between that ends at once."""
    try:
        between = os.fork()
    except OSError:
        return False
    if between:
        return os.waitpid(between, 0)[1] == 0
    try:
        if os.fork():
            os._exit(0)
    except OSError:
        os._exit(1)
    control.close()
    _be_slot(fd, jobs)
    return False


def _be_slot(fd: int, jobs: Sequence[Job]) -> None:
    code = 1
    try:
        control = Control(socket.socket(fileno=fd))
        first: Message | None = control.wait(START_S)
        code = serve(control, first, jobs) if first is not None else 0
    except BaseException:  # noqa: BLE001 - the end of the process: nothing may unwind into the zygote's code
        traceback.print_exc()
    finally:
        leave(code)


def _other_threads() -> list[str]:
    """The names of all threads but this one: Python's and those of C libraries alike."""
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    others = [int(task.name) for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid()]
    return [names.get(task, f"a library's, {task}") for task in others]


if __name__ == "__main__":
    sys.exit(main())
