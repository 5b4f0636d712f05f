"""The supervisor's side of one slot process, and how processes are started.

Promises: a slot's duplicates are shut down whenever its process has ended, whatever ended it, so that no connection
lingers and the dispatcher queues its jobs again at once.
"""

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import fleetd
from fleetd.dispatchers.address import Address
from fleetd.dispatchers.credentials import TOKEN_VARIABLE as DISPATCHER_TOKEN
from fleetd.dispatchers.credentials import Credentials
from fleetd.dispatchers.work import WorkConnection
from fleetd.errors import UnreachableError
from fleetd.worker.cell import Cell, Want, make_cell
from fleetd.worker.cgroup import Group
from fleetd.worker.control import Control, Message, pair
from fleetd.worker.generation import CONTROL_FD
from fleetd.worker.output import Job, Overheard
from fleetd.worker.process import DUMP_SIGNAL

TOKEN_VARIABLE: Final = "FLEETD_JOIN_TOKEN"  # noqa: S105 - its name, not its value
STEADY_S: Final = 60.0
_STACK_BYTES: Final = 64 * 1024


# Under an interpreter of the release's own, our code comes from here, whatever that environment holds; as part of the
# command, since a PYTHONPATH would go on to every program that a job starts.
_LAUNCH: Final = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from fleetd.worker.generation import main; sys.exit(main())"
)


def spawn(app: Path | None, python: str, sock: socket.socket) -> int:
    """Start a fresh generation process with `sock` as its control socket, in a session of its own; returns its pid."""
    command = [sys.executable, "-m", "fleetd.worker.generation", "--app", str(app)]
    if python and python != sys.executable:
        command = [python, "-P", "-c", _LAUNCH, str(_alone(python)), "--app", str(app)]
    # The app's code has no use for the tokens, and programs that it starts even less: a slot gets its own by message.
    environment = {name: value for name, value in os.environ.items() if name not in (TOKEN_VARIABLE, DISPATCHER_TOKEN)}
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, sock.fileno(), CONTROL_FD),
    ]
    return os.posix_spawn(command[0], command, environment, file_actions=actions, setsid=True)


def _alone(python: str) -> Path:
    """Return a folder, kept in the environment, that holds our package and nothing of what is installed beside it."""
    package = Path(fleetd.__file__).parent
    folder = Path(python).parents[1] / f"fleetd-{sha256(str(package).encode()).hexdigest()[:12]}"
    folder.mkdir(exist_ok=True)
    with suppress(FileExistsError):
        (folder / "fleetd").symlink_to(package)
    return folder


@dataclass(slots=True)
class Dup:
    """A duplicate of a slot's connection to one dispatcher."""

    address: Address
    sock: socket.socket

    def shut(self) -> None:
        """End the connection itself, whoever else holds it. Safe twice."""
        with suppress(OSError):
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()


@dataclass(slots=True, eq=False)
class SlotProcess:
    """One slot as the supervisor knows it. `names` and `attempts` are those of the functions that it serves, by row.

    `condemned` is the sequence of the job that the watchdog kills it for, `sentence` the reason.
    """

    index: int
    control: Control
    cell: Cell
    stack_fd: int
    theirs: socket.socket
    names: tuple[str, ...]
    attempts: tuple[int, ...]
    pid: int | None = None
    since: float = field(default_factory=time.monotonic)
    dups: dict[int, Dup] = field(default_factory=dict)
    released: bool = False
    condemned: int | None = None
    sentence: str = ""
    worn: bool = False  # told to end so that a fresh one takes its place
    told: int = 0
    weighed_at: float = 0.0
    own: int = 0  # bytes of memory, when it was last weighed
    output: Overheard | None = None  # of the first slot of a process
    group: Group | None = None  # likewise
    steady: bool = False  # it has ended a job, or lived for a while

    def want(self, number: int, want: Want) -> None:
        """Tell it what to do: in the cell, which it reads before each GRAB, and by a message, which wakes it."""
        self.told = number
        self.cell.want(number, want)
        self.control.send({"look": number})

    @property
    def at_rest(self) -> bool:
        """Whether it has said, under the newest order, that it takes nothing and runs nothing."""
        return self.cell.acknowledged == self.told

    def messages(self) -> tuple[list[Message], bool]:
        """Return what it said since last time, and whether more may come; a dead process's words are still there."""
        found: list[Message] = []
        with suppress(BlockingIOError):
            while (message := self.control.receive()) is not None:
                found.append(message)
            return found, False
        return found, True

    def hold(self, at: int, address: Address, fd: int) -> None:
        """Keep a duplicate of its connection to one dispatcher."""
        self.drop(at)
        self.dups[at] = Dup(address, socket.socket(fileno=fd))

    def drop(self, at: int) -> None:
        """Let the duplicate go: the slot has closed this connection."""
        dup = self.dups.pop(at, None)
        if dup is not None:
            dup.shut()

    def ended_jobs(self) -> int:
        """How many jobs it has ended, well or not."""
        counts = [self.cell.counts(row) for row in range(len(self.names))]
        return sum(count.done + count.failed for count in counts)

    def dump_stack(self) -> None:
        """Ask for the stack of what runs; it comes without the slot's help."""
        self._signal(DUMP_SIGNAL)

    def kill(self) -> None:
        """End it, and whatever its job has started, now."""
        if self.pid is not None:
            with suppress(OSError):
                os.killpg(self.pid, signal.SIGKILL)
        self._signal(signal.SIGKILL)

    def release(self) -> None:
        """Give its jobs back: killed first, so that no job runs in two places."""
        self.released = True
        self.kill()
        for at in list(self.dups):
            self.drop(at)

    def answer(self, at: int, packet: bytes) -> None:
        """Say the last word of a dead slot's job on its own connection, then close it. Blocks for a second at most.

        Raises UnreachableError, over TLS always: the keys died with the slot.
        """
        dup = self.dups.pop(at, None)
        if dup is None:
            return
        if dup.address.tls:
            dup.shut()
            raise UnreachableError(f"dispatcher {dup.address}: over TLS only its own --attempts can end the job")
        link = WorkConnection(dup.address, dup.sock)
        link.send(packet)
        link.close()

    def stack(self) -> str:
        """What faulthandler wrote of its last moments."""
        return os.pread(self.stack_fd, _STACK_BYTES, 0).decode(errors="replace")

    def note_end(self) -> None:
        """Its process has ended: remember what its cell tells before that is closed."""
        self.steady = self.cell.last_end > 0 or time.monotonic() - self.since > STEADY_S

    def close(self) -> None:
        """Let everything of it go."""
        for at in list(self.dups):
            self.drop(at)
        self.control.close()
        self.theirs.close()
        if self.output is not None:
            self.output.close()
        if self.group is not None:
            self.group.close()
        self.cell.close()
        os.close(self.stack_fd)

    def _signal(self, number: int) -> None:
        if self.pid is not None:
            with suppress(OSError):
                os.kill(self.pid, number)


def make_slots(
    indices: Sequence[int],
    names: Sequence[str],
    attempts: Sequence[int],
    settings: str,
    credentials: Credentials,
    *,
    digest: str,
) -> list[SlotProcess]:
    """Prepare the slots of one process; it is to get `theirs` of the first, where the first messages wait already."""
    slots = []
    for index in indices:
        ours, theirs = pair()
        stack_fd = os.memfd_create("fleetd-stack", os.MFD_CLOEXEC)
        slots.append(SlotProcess(index, ours, make_cell(len(names)), stack_fd, theirs, tuple(names), tuple(attempts)))
    leader, *others = slots
    first: dict[str, Any] = {"index": leader.index, "parent": os.getpid(), "settings": settings}
    first |= {"credentials": asdict(credentials), "others": len(others)}
    leader.output = Overheard(partial(_only_job, slots), slot=leader.index, digest=digest[:12])
    leader.control.send(first, leader.cell.fd, leader.stack_fd, leader.output.theirs)
    leader.output.shut()
    for slot in others:
        leader.control.send({"index": slot.index}, slot.theirs.fileno(), slot.cell.fd)
    return slots


def _only_job(slots: Sequence[SlotProcess]) -> Job | None:
    """Return what the process runs, where that is one job."""
    running = [(slot, job) for slot in slots if slot.cell.fd >= 0 and (job := slot.cell.running()) is not None]
    if len(running) != 1:
        return None
    slot, job = running[0]
    return slot.names[job.row], job.handle, job.unique
