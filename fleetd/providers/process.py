"""Local processes as capacity: each node is a worker of ours, started here, living on when the controller ends.

A node's identity is its process id with its start time, so that a recycled number is never mistaken for it. Nothing is
remembered: the truth is `/proc`, where every worker carries its fleet and order on its command line.
"""

import asyncio
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from fleetd.core.model import AppPolicy, Launched, NodeId, Order, PoolPolicy, Seconds, Sighting, Stopped, World
from fleetd.core.ports import Nudge, WorkerLaunch
from fleetd.errors import ProviderError, RefusedError

Words = list[str]  # of a command line
FLAG: Final = "--order-key"
_KEY: Final = re.compile(rb"([\x21-\x7e]+)/([^/]+)/(\d{1,9})")
POLL_S: Final = 0.05
KILL_WAIT_S: Final = 5.0
RELEASE_S: Final = 2.0
TAIL_BYTES: Final = 256 * 1024
LOGS_KEPT: Final = 200


class ProcessOptions(BaseModel):
    """What stands under `process:` in a pool."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    nice: int = Field(
        default=0, ge=0, le=19, description="niceness of the workers, 0 to 19: leave others air to breathe"
    )


class ProcessProvider:
    """Starts workers as processes of this machine."""

    Options: ClassVar[type[ProcessOptions]] = ProcessOptions
    victims: ClassVar[Literal["exact", "ordinal", "advisory"]] = "exact"

    def __init__(self, pool: PoolPolicy, options: ProcessOptions, launch: WorkerLaunch) -> None:
        """`launch` tells what a worker's command line needs."""
        self._pool, self._options, self._launch = pool, options, launch
        self._mark = f"{launch.instance}/{pool.name}/"
        self._turn = asyncio.Lock()  # two launches of one order at the same time must not both find nothing

    async def open(self, nudge: Nudge) -> None:
        """A process ends without telling, so there is nothing to nudge for."""
        del nudge

    async def close(self) -> None:
        """Nothing is held; the workers live on."""

    async def list(self) -> World:
        """Return every worker of this pool that runs on this machine, by whichever controller it was started."""
        _reap()
        found = await self._find()
        return World(tuple(Sighting(name, "up", at.app, at.key) for name, at in found.items()))

    async def launch(self, order: Order) -> Launched:
        """Start what is missing of the order; a worker that runs already under its key is counted, not doubled."""
        app = self._launch.apps.get(order.app)
        if app is None:
            raise RefusedError(f"pool {self._pool.name}: app {order.app}: is unknown here")
        if app.exec and shutil.which(app.exec[0]) is None:
            why = f"no program {app.exec[0]} on this machine; install it, or correct `exec`"
            raise RefusedError(f"pool {self._pool.name}: app {order.app}: {why}")
        async with self._turn:
            logs = await asyncio.to_thread(self._logs)
            names = {at.index: name for name, at in (await self._find()).items() if at.key == order.key}
            for index in range(order.count):
                if index not in names:
                    log = logs / f"{self._pool.name}-{order.key}-{index}.log"
                    pid, start = self._spawn(self._command(app, f"{self._mark}{order.app}/{order.key}/{index}"), log)
                    _CHILDREN[pid] = self._mark, _Found(pid, start, order.app, order.key, index)
                    names[index] = self._name(pid, start)
                    log.replace(self._log_of(names[index]))  # by the node's name, which only its start could tell
        return Launched(order.key, tuple(names.values()))

    async def logs(self, node: NodeId, last: int) -> Sequence[str]:
        """Return the last lines that a worker wrote; the logs of the newest few hundred are kept."""
        return await asyncio.to_thread(self._tail, node, last)

    def _log_of(self, node: NodeId) -> Path:
        return Path(self._launch.state_dir) / "logs" / f"{node.replace('/', '-')}.log"

    def _tail(self, node: NodeId, last: int) -> Sequence[str]:
        try:
            with self._log_of(node).open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
                return log.read().decode(errors="replace").splitlines()[-last:]
        except OSError:
            known = sorted(path.stem for path in self._log_of("x").parent.glob(f"{self._pool.name}-*.log"))
            hint = f"; the newest: {', '.join(name.replace('-', '/', 1) for name in known[-3:])}" if known else ""
            raise ProviderError(f"pool {self._pool.name}: no log of {node} is kept{hint}") from None

    async def stop(self, nodes: Sequence[NodeId], grace_s: Seconds, order: Order | None = None) -> Stopped:
        """Ask each to end, wait for at most `grace_s`, then kill with all its slots; gone already is success."""
        del order
        found = await self._find()
        alive = {name: found[name].pid for name in nodes if name in found}
        for pid in alive.values():  # without any grace, running jobs are to be released, not finished
            _signal(pid, signal.SIGTERM if grace_s else signal.SIGQUIT)
        left = await self._wait(alive, max(grace_s, RELEASE_S))
        trees = await asyncio.to_thread(lambda: [_tree(pid) for pid in left.values()])
        for pid in (member for tree in trees for member in tree):
            _signal(pid, signal.SIGKILL)
        left = await self._wait(left, KILL_WAIT_S)
        if left:
            raise ProviderError(f"pool {self._pool.name}: {', '.join(left)} did not end even by SIGKILL")
        return Stopped(tuple(nodes))

    async def _find(self) -> dict[NodeId, "_Found"]:
        found = await asyncio.to_thread(_scan, self._mark)
        # A process just started is in /proc a moment before its command line is.
        found += [at for mark, at in _CHILDREN.values() if mark == self._mark and _start_time(at.pid) == at.start]
        return {self._name(at.pid, at.start): at for at in found}

    async def _wait(self, alive: dict[NodeId, int], limit_s: Seconds) -> dict[NodeId, int]:
        deadline = time.monotonic() + limit_s
        while True:
            _reap()
            alive = {name: pid for name, pid in alive.items() if _pid(name) is not None}
            if not alive or time.monotonic() >= deadline:
                return alive
            await asyncio.sleep(POLL_S)

    def _name(self, pid: int, start: int) -> NodeId:
        return f"{self._pool.name}/{pid}.{start}"

    def _logs(self) -> Path:
        folder = Path(self._launch.state_dir) / "logs"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _forget_old(folder)
        except OSError as error:
            raise ProviderError(f"pool {self._pool.name}: {folder}: {error.strerror}") from None
        return folder

    def _spawn(self, command: Words, log: Path) -> tuple[int, int]:
        environ = {**os.environ, "FLEETD_JOIN_TOKEN": self._launch.token(self._pool.name)}
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        try:
            pid = os.posix_spawn(
                command[0],
                command,
                environ,
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, str(log), flags, 0o600),
                    (os.POSIX_SPAWN_DUP2, 1, 2),
                ],
                setsid=True,  # a terminal's Ctrl-C is for the controller alone
            )
        except OSError as error:
            raise ProviderError(f"pool {self._pool.name}: cannot start {command[0]}: {error.strerror}") from None
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, pid, self._options.nice)
        start = _start_time(pid)
        if start is None:
            os.waitpid(pid, 0)
            raise ProviderError(f"pool {self._pool.name}: the worker ended at once; its log is {log}")
        return pid, start

    def _command(self, app: AppPolicy, key: str) -> Words:
        command = [sys.executable, "-m", "fleetd.worker", "--app-name", app.name]
        command += ["--fleet", self._launch.fleet, "--pool", self._pool.name]
        command += ["--controller", self._launch.controller_url, FLAG, key]
        for name in ("spool",) if app.exec else ("spool", "cache"):
            folder = "dead" if name == "spool" else name
            command += [f"--{name}", str(Path(self._launch.state_dir) / folder)]
        return [*command, *self._launch.options(app, self._pool)]


def _reap() -> None:
    """Collect our own children that ended, so that none stays as a zombie."""
    for pid in list(_CHILDREN):
        try:
            done, _ = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            done = pid
        if done:
            _CHILDREN.pop(pid, None)


# ── /proc


@dataclass(frozen=True, slots=True)
class _Found:
    """A live worker of ours: `start` in clock ticks since boot, and what its order key says."""

    pid: int
    start: int
    app: str
    key: str
    index: int


# By process id, with their pools' marks. This process's, not one provider's: the next one of a pool reaps them too.
_CHILDREN: Final[dict[int, tuple[str, _Found]]] = {}


def _scan(mark: str) -> list[_Found]:
    """Return every live worker whose command line carries the mark, `INSTANCE/POOL/`, before `APP/KEY/INDEX`."""
    wanted, user = f"{FLAG}\0{mark}".encode(), os.geteuid()
    found, parents = [], {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            line = Path(entry.path, "cmdline").read_bytes()
            ours = wanted in line and entry.stat().st_uid == user  # anybody can write our mark on a command line
        except OSError:
            continue  # it ended meanwhile, or is somebody else's
        stat = _stat(int(entry.name)) if ours else None
        key = _KEY.fullmatch(line.partition(wanted)[2].partition(b"\0")[0])
        if stat is not None and key:
            app, order, index = key.groups()
            parents[int(entry.name)] = stat.parent
            found.append(_Found(int(entry.name), stat.start, app.decode(), order.decode(), int(index)))
    # What a worker starts has the worker's own command line between fork and exec.
    return [at for at in found if parents[at.pid] not in parents]


class _Stat(NamedTuple):
    parent: int
    start: int


def _stat(pid: int) -> _Stat | None:
    """Return fields 4 and 22 (clock ticks since boot) of /proc/PID/stat; None for what is gone or a zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = stat.rpartition(b")")[2].split()  # the name before may hold spaces and parentheses
    return None if fields[0] in (b"Z", b"X") else _Stat(int(fields[1]), int(fields[19]))


def _start_time(pid: int) -> int | None:
    stat = _stat(pid)
    return stat.start if stat else None


def _pid(node: NodeId) -> int | None:
    """Return the process id of a node that is still itself."""
    pid, _, start = node.rpartition("/")[2].partition(".")
    return int(pid) if _start_time(int(pid)) == int(start) else None


def _tree(pid: int) -> list[int]:
    """Return a process and all its descendants: the slots have sessions of their own, no group holds them all."""
    children: dict[int, list[int]] = {}
    for entry in os.scandir("/proc"):
        stat = _stat(int(entry.name)) if entry.name.isdigit() else None
        if stat:
            children.setdefault(stat.parent, []).append(int(entry.name))
    tree = [pid]
    for parent in tree:
        tree += children.get(parent, ())
    return tree


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return  # gone already


def _forget_old(folder: Path) -> None:
    ages = []
    for path in folder.glob("*.log"):
        with suppress(FileNotFoundError):  # another pool of this folder forgets at the same time
            ages.append((path.stat().st_mtime, path))
    for _, path in sorted(ages)[: -LOGS_KEPT or None]:
        path.unlink(missing_ok=True)
