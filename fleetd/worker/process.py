"""A slot's process: how it is set up after the fork, and how it ends.

Promises: signals meant for the worker as a whole are the supervisor's business and do nothing here, while programs and
processes that a job starts get them back as usual; a crash leaves its stack in the file that the supervisor gave; what
the app registered with atexit runs at an orderly end.
"""

import asyncio
import atexit
import faulthandler
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from fleetd.dispatchers.credentials import Credentials
from fleetd.worker.cell import Cell
from fleetd.worker.control import Control, Message
from fleetd.worker.files import Desk
from fleetd.worker.jobs import Job
from fleetd.worker.logs import event, set_up
from fleetd.worker.output import finish, redirect
from fleetd.worker.settings import Settings, load
from fleetd.worker.slot import Slot

HELD: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP, signal.SIGHUP, signal.SIGCONT)
START_S: Final = 10.0
DUMP_SIGNAL: Final = signal.SIGRTMIN + 5  # out of the way of what apps use


def hold_signals() -> None:
    """Let the worker's signals do nothing here. By a handler: SIG_IGN would be inherited by programs started here."""
    for number in HELD:
        signal.signal(number, _nothing)


def give_signals_to_forks() -> None:
    """Have processes that a job forks obey signals again: a TERM must end them, or multiprocessing could not.

    They are blocked around the fork, because one that came before the child has let go of the handlers would be lost.
    """

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, HELD)

    def unblock() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)

    def let_go() -> None:
        for number in HELD:
            signal.signal(number, signal.SIG_DFL)
        unblock()

    os.register_at_fork(before=block, after_in_parent=unblock, after_in_child=let_go)


def _nothing(*_: object) -> None:
    pass


def name_process(name: str) -> None:
    """Show up in `ps` and `top` as what this is."""
    with suppress(OSError):
        Path("/proc/self/comm").write_text(name, "ascii")


def serve(control: Control, first: Message, jobs: Sequence[Job]) -> int:
    """Be a slot until it is over; `first` is the supervisor's first message with the cell and the stack's file."""
    settings = load(first.body["settings"])
    index, parent = int(first.body["index"]), int(first.body["parent"])
    credentials = Credentials(**first.body.pop("credentials"))
    cell_fd, stack_fd, pipe = first.fds
    seats = [Seat(index, control, Cell(cell_fd, len(jobs))), *_other_seats(control, first, len(jobs))]
    with suppress(PermissionError):  # already the leader of a session, where it was started afresh
        os.setsid()
    for seat in seats:
        seat.control.send({"hello": os.getpid()})
    name_process(f"fleetd-slot-{index}")
    hold_signals()
    # The first signal makes the C library look functions up, which takes some kilobytes of stack. Better now than on
    # the small one that faulthandler brings, below which it would overwrite the heap.
    signal.raise_signal(signal.SIGCONT)
    give_signals_to_forks()
    faulthandler.enable(stack_fd)
    faulthandler.register(DUMP_SIGNAL, stack_fd)
    set_up(settings.log_format, redirect(pipe), slot=index, digest=settings.digest[:12])
    if not _wait_for_parent(parent):
        return 0
    asyncio.run(_serve(seats, settings, jobs, parent, credentials))
    atexit._run_exitfuncs()  # noqa: SLF001 - a fork ends by os._exit, which runs none of them
    finish(None)
    return 0


class Seat(NamedTuple):
    """One of the slots that share this process."""

    number: int
    control: Control
    cell: Cell


def _other_seats(control: Control, first: Message, rows: int) -> Iterator[Seat]:
    """Yield the slots that share this process with the first one; their messages came with its own."""
    for _ in range(int(first.body["others"])):
        message = control.wait(START_S)
        if message is not None:
            sock, cell = message.fds
            yield Seat(int(message.body["index"]), Control(socket.socket(fileno=sock)), Cell(cell, rows))


async def _serve(
    seats: Sequence[Seat], settings: Settings, jobs: Sequence[Job], parent: int, credentials: Credentials
) -> None:
    threads = ThreadPoolExecutor(len(seats), "job") if len(seats) > 1 else None
    desk = Desk(settings)
    async with asyncio.TaskGroup() as tasks:
        for number, control, cell in seats:
            name = "_".join(f"{os.uname().nodename}/{settings.pool}/{settings.digest[:12]}/{number}".split())
            slot = Slot(
                settings,
                name,
                control,
                cell,
                jobs=jobs,
                parent=parent,
                credentials=credentials,
                threads=threads,
                desk=desk,
            )
            tasks.create_task(slot.run())


def leave(code: int) -> None:
    """End a forked process: without the interpreter's tear-down, which would touch, and so copy, every shared page."""
    with suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _wait_for_parent(parent: int) -> bool:
    """The process between the generation and this one ends just now; then the supervisor is the parent."""
    for _ in range(1000):
        if os.getppid() == parent:
            return True
        time.sleep(0.001)
    event(logging.WARNING, "the supervisor is gone already")
    return False


def apply(settings: Settings) -> None:
    """Set a generation's process up: its name and its log."""
    name_process("fleetd-gen")
    set_up(settings.log_format, digest=settings.digest[:12])
