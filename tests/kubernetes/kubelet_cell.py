"""The walls of a container of the test kubelet: `python kubelet_cell.py CELL.json`, as root.

Promises: the program sees a root of its own (an overlay on a folder, thrown away at its end) with its mounts in it, its
own processes, host name and message queues, runs as who it is to be, with no capability more; it gets the signals that
this process gets, and its exit code is this process's. Nothing is ever mounted where the machine could see it: the
mounts end with the last process in them, and all of these end with the kubelet, however that ends. Not walled off: the
network (pods share the machine's), memory and processor time, and system calls (seccomp).

The standard library alone, in one file: it is started for each container.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

LIBC = ctypes.CDLL(None, use_errno=True)
READ_ONLY, NO_SUID, REMOUNT, BIND, RECURSIVE, PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
NEW_NS, NEW_UTS, NEW_IPC, NEW_PID = 0x20000, 0x4000000, 0x8000000, 0x20000000
PDEATHSIG, CAPBSET_DROP, NO_NEW_PRIVS = 1, 24, 38
# What container engines leave a container by default, by the numbers of capability.h.
USUAL = (0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31)
NAMES = {"NET_BIND_SERVICE": 10, "CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "SETGID": 6, "SETUID": 7, "KILL": 5}
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
FAILED = 128  # the exit code of a container that never began


def main(path: Path) -> int:
    """Build the cell, run its program and return its exit code."""
    LIBC.prctl(PDEATHSIG, signal.SIGKILL)
    cell = json.loads(path.read_text())
    failed = os.open(path.with_suffix(".failed"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC)
    try:
        _check(LIBC.unshare(NEW_NS | NEW_UTS | NEW_IPC | NEW_PID), "unshare")
        mount("none", "/", "", RECURSIVE | PRIVATE)
        socket.sethostname(cell["hostname"][:63])
    except OSError as error:
        return _fail(failed, error)
    child = os.fork()  # the first process of the new kind: it is number 1 there
    if child == 0:
        _begin(cell, failed)
    signals = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2]

    def pass_on(number: int, frame: FrameType | None) -> None:
        del frame
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, number)

    for number in signals:
        signal.signal(number, pass_on)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return 128 - code if code < 0 else code


def _begin(cell: dict[str, Any], failed: int) -> NoReturn:
    try:
        _furnish(cell)
        _become(cell)
        os.chdir(cell["cwd"])
        os.execvpe(cell["argv"][0], cell["argv"], cell["env"])
    except OSError as error:
        os._exit(_fail(failed, error))


def _fail(failed: int, error: OSError) -> int:
    """Say why nothing began, in a file that is open since before the walls were up."""
    os.write(failed, (f"{error.strerror}: {error.filename}" if error.filename else str(error)).encode())
    return FAILED


# ── the root


def _furnish(cell: dict[str, Any]) -> None:
    """Enter a root with everything mounted in it."""
    base = Path(cell["scratch"])
    # A file system of its own: an overlay's upper layer may not be within its lower one.
    mount("tmpfs", str(base), "tmpfs", 0, "mode=755")
    for name in ("upper", "work", "root"):
        (base / name).mkdir()
    layers = f"lowerdir={cell['root']},upperdir={base / 'upper'},workdir={base / 'work'}"
    root = base / "root"
    mount("overlay", str(root), "overlay", 0, layers)
    for name in ("proc", "sys", "dev"):
        (root / name).mkdir(exist_ok=True)
    mount("proc", str(root / "proc"), "proc", NO_SUID)
    mount("/sys", str(root / "sys"), "", BIND | RECURSIVE)
    sources = [*cell["mounts"], *({"source": f"/dev/{name}", "target": f"/dev/{name}"} for name in DEVICES)]
    handles = [os.open(one["source"], os.O_PATH) for one in sources]
    os.chroot(root)  # before the targets are made: what is a link there must not lead out
    os.chdir("/")
    for folder in map(Path, cell["searchable"]):
        folder.chmod(folder.stat().st_mode | 0o5)
    _make_devices()
    for one, handle in zip(sources, handles, strict=True):
        _bind(handle, one["target"], read_only=bool(one.get("read_only")))
    if cell["read_only"]:
        mount("none", "/", "", REMOUNT | BIND | READ_ONLY)


def _make_devices() -> None:
    mount("tmpfs", "/dev", "tmpfs", NO_SUID, "mode=755")
    Path("/dev/shm").mkdir()
    mount("tmpfs", "/dev/shm", "tmpfs", NO_SUID, "mode=1777")
    for name, target in (("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")):
        Path("/dev", name).symlink_to(target)


def _bind(handle: int, target: str, *, read_only: bool) -> None:
    source, place = f"/proc/self/fd/{handle}", Path(target)
    if Path(source).is_dir():
        place.mkdir(parents=True, exist_ok=True)
    else:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    mount(source, target, "", BIND)
    if read_only:
        mount("none", target, "", REMOUNT | BIND | READ_ONLY)
    os.close(handle)


def mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    """Mount, or raise OSError."""
    given = [source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), data.encode() or None]
    _check(LIBC.mount(*given), target)


def _check(result: int, what: str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


# ── who it is


def _become(cell: dict[str, Any]) -> None:
    """Be the user, without what that user has no use for."""
    kept = set(() if "ALL" in cell["drop"] else USUAL) - {NAMES.get(name, -1) for name in cell["drop"]}
    kept |= {NAMES[name] for name in cell["add"] if name in NAMES}
    for number in range(64):
        if not cell["privileged"] and number not in kept:
            LIBC.prctl(CAPBSET_DROP, number, 0, 0, 0)  # refused for those that the kernel does not know
    os.setgroups(cell["groups"])
    os.setgid(cell["gid"])
    os.setuid(cell["uid"])
    if cell["no_new_privileges"]:
        LIBC.prctl(NO_NEW_PRIVS, 1, 0, 0, 0)
    LIBC.prctl(PDEATHSIG, signal.SIGKILL)  # a change of user takes it back
    os.umask(0o022)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
