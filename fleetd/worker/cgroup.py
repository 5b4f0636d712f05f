"""A memory limit that the kernel holds: a control group for each slot process, where this worker may make one.

Promises: where it may not (no cgroup of ours, no memory controller, others in the same group), `find` says None and
the watchdog weighs the slots instead; nothing is left behind but what a killed worker leaves, and that the next one
removes. Pages that a slot shares with the process it was forked from are not its own here either: the kernel charges
who touched them first. Version 2: https://docs.kernel.org/admin-guide/cgroup-v2.html, version 1 below cgroup-v1/.
"""

import os
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

ROOT: Final = Path("/sys/fs/cgroup")
PREFIX: Final = "fleetd-"
_SERIAL: Final = count(1)


@dataclass(frozen=True, slots=True)
class Group:
    """The control group of one slot process."""

    path: Path

    def enter(self, pid: int) -> None:
        """Move a process in, with what it starts from now on."""
        with suppress(OSError):  # it ended meanwhile
            (self.path / "cgroup.procs").write_text(f"{pid}")

    def killed(self) -> bool:
        """Whether the kernel killed something here for want of memory."""
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                return any(
                    line.startswith("oom_kill ") and line.split()[1] != "0"
                    for line in (self.path / name).read_text("ascii").splitlines()
                )
        return False

    def close(self) -> None:
        """Remove it, once it is empty; one that is not is removed by a later worker."""
        with suppress(OSError):
            self.path.rmdir()


@dataclass(frozen=True, slots=True)
class Groups:
    """Where control groups can be made, and the file that takes a limit."""

    base: Path
    limit_file: str

    def make(self, limit: int) -> Group | None:
        """Return a new group with a limit in bytes; None where the kernel refuses."""
        path = self.base / f"{PREFIX}{os.getpid()}-{next(_SERIAL)}"
        try:
            path.mkdir()
            (path / self.limit_file).write_text(f"{limit}")
            with suppress(OSError):  # what is over the limit is to be ended, not to crawl along in swap
                (path / "memory.swap.max").write_text("0")
        except OSError:
            with suppress(OSError):
                path.rmdir()
            return None
        return Group(path)


def find(root: Path = ROOT, own: Path = Path("/proc/self/cgroup")) -> Groups | None:
    """Return where groups with a memory limit can be made below this worker's own; None where they cannot."""
    try:
        lines = [line.split(":", 2) for line in own.read_text("ascii").splitlines()]
    except OSError:
        return None
    paths = {controllers: path for _, controllers, path in lines}
    old = next((path for names, path in paths.items() if "memory" in names.split(",")), None)
    if old is not None:
        return _usable(Groups(_below(root / "memory", old), "memory.limit_in_bytes"))
    if "" not in paths:
        return None
    base = _below(root, paths[""])
    return _usable(Groups(base, "memory.max")) if _delegated(base) else None


def _below(root: Path, path: str) -> Path:
    """Return the group's folder; inside a container the path that the kernel tells may be the host's."""
    base = root / path.lstrip("/")
    return base if base.is_dir() else root


def _delegated(base: Path) -> bool:
    """Have version 2 give the memory controller to groups below ours, which must have no process of its own then."""
    try:
        if "memory" not in (base / "cgroup.controllers").read_text("ascii").split():
            return False
        if "memory" in (base / "cgroup.subtree_control").read_text("ascii").split():
            return True
        leaf = base / f"{PREFIX}supervisor-{os.getpid()}"
        leaf.mkdir(exist_ok=True)
        (leaf / "cgroup.procs").write_text(f"{os.getpid()}")
        try:
            (base / "cgroup.subtree_control").write_text("+memory")
        except OSError:  # others are in this group, too
            (base / "cgroup.procs").write_text(f"{os.getpid()}")
            leaf.rmdir()
            return False
    except OSError:
        return False
    return True


def _usable(groups: Groups) -> Groups | None:
    """Return the groups if one can be made; what earlier workers left behind is removed on the way."""
    for left in groups.base.glob(f"{PREFIX}*"):
        with suppress(OSError):  # in use
            left.rmdir()
    probe = groups.make(1 << 30)
    if probe is None:
        return None
    probe.close()
    return groups
