"""Keeps the dispatchers of our own that a policy asks for (`gearman: embedded`) running, each a process of its own.

Like a worker it lives on when the controller ends, and the next controller finds it by the folder on its command line:
jobs go on being taken and handed out meanwhile. One that died is started again; its durable jobs are on disk.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fleetd.core.model import Policy
from fleetd.dispatchers.address import parse_address
from fleetd.dispatchers.credentials import TOKEN_FILE_VARIABLE
from fleetd.errors import FleetdError

EVERY_S: Final = 1.0
START_S: Final = 10.0
END_S: Final = 5.0
MODULE: Final = "fleetd.dispatchers.embedded"
_STARTED: Final[dict[int, Path]] = {}  # our children: whoever started them has to collect them


@dataclass(frozen=True, slots=True)
class Embedded:
    """One dispatcher: where it listens, and its folder."""

    listen: str
    data: Path

    def pids(self) -> list[int]:
        """Return the processes that serve this folder; a fresh child of ours has no command line to be seen yet."""
        found = [pid for pid, data in _STARTED.items() if data == self.data]
        mark = f"\0--data\0{self.data}\0".encode()
        with os.scandir("/proc") as entries:
            numbers = [entry.name for entry in entries if entry.name.isdigit()]
        for number in numbers:
            with suppress(OSError):  # it ended meanwhile, or is somebody else's
                line = Path("/proc", number, "cmdline").read_bytes()
                if MODULE.encode() in line and mark in line and int(number) not in found:
                    found.append(int(number))
        return found

    def start(self) -> None:
        """Start it, in a session of its own, its log beside its data."""
        self.data.mkdir(parents=True, exist_ok=True, mode=0o700)
        command = [
            sys.executable,
            "-m",
            MODULE,
            "--listen",
            self.listen,
            "--data",
            str(self.data),
            "--log-format",
            "text",
        ]
        if file := os.environ.get(TOKEN_FILE_VARIABLE):  # what our own connections show; beyond loopback it must be
            command += ["--token-file", file]
        log = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, str(self.data / "log"), log, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
        ]
        try:
            pid = os.posix_spawn(command[0], command, os.environ, file_actions=actions, setsid=True)
        except OSError as error:
            raise FleetdError(f"embedded dispatcher: cannot start {command[0]}: {error.strerror}") from None

        _STARTED[pid] = self.data

    async def answers(self) -> bool:
        """Whether something listens there."""
        address = parse_address(self.listen)
        try:
            async with asyncio.timeout(1.0):
                _, writer = await asyncio.open_connection(address.host, address.port)
        except (OSError, TimeoutError):
            return False
        writer.close()
        return True


def wanted(policy: Policy, folder: Path) -> list[Embedded]:
    """Return the dispatchers that the policy asks for."""
    listens = {str(getattr(source.options, "embedded", "")): name for name, source in policy.sources.items()}
    return [Embedded(listen, folder / "dispatcher" / name) for listen, name in listens.items() if listen]


async def ensure(policy: Policy, folder: Path) -> None:
    """Start what does not run yet, and wait until each answers; raises FleetdError with the place of its log."""
    for one in wanted(policy, folder):
        if not one.pids():
            if await one.answers():
                raise FleetdError(
                    f"embedded dispatcher at {one.listen}: something else listens there; choose another port"
                )
            one.start()
        try:
            async with asyncio.timeout(START_S):
                while not await one.answers():
                    _reap()
                    if not one.pids():
                        raise FleetdError(
                            f"embedded dispatcher at {one.listen}: ended at once; its log: {one.data / 'log'}"
                        )
                    await asyncio.sleep(0.05)
        except TimeoutError:
            raise FleetdError(
                f"embedded dispatcher at {one.listen}: does not answer; its log: {one.data / 'log'}"
            ) from None


async def keep(policy: Callable[[], Policy], folder: Path, say: Callable[[str, str], None]) -> None:
    """Start again what died, for ever; what goes wrong is said once for each time that it changes."""
    said = ""
    while True:
        await asyncio.sleep(EVERY_S)
        _reap()
        try:
            dead = [one for one in wanted(policy(), folder) if not one.pids()]
            if dead:
                await ensure(policy(), folder)
                say("dispatcher", f"embedded dispatcher at {', '.join(one.listen for one in dead)}: started again")
            said = ""
        except FleetdError as error:
            if str(error) != said:
                said = str(error)
                say("error", said)


async def end(policy: Policy, folder: Path) -> None:
    """End the dispatchers; their durable jobs stay on disk."""
    pids = [pid for one in wanted(policy, folder) for pid in one.pids()]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    with suppress(TimeoutError):
        async with asyncio.timeout(END_S):
            while any(one.pids() for one in wanted(policy, folder)):
                _reap()
                await asyncio.sleep(0.05)


def _reap() -> None:
    """Collect dispatchers of ours that ended; workers are their provider's to collect."""
    for pid in list(_STARTED):
        with suppress(ChildProcessError):
            if os.waitpid(pid, os.WNOHANG)[0] == 0:
                continue
        del _STARTED[pid]
