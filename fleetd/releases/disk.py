"""Files that are whole or not there: locks between processes, scratch folders, and what must reach the disk."""

import errno
import fcntl
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from fleetd.errors import FleetdError
from fleetd.releases.faults import BundleError, on_disk

LOCKS: Final = "locks"
SCRATCH: Final = ".tmp-"


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold a lock between processes, until their end at most; without `wait`, yield False where another has it."""
    handle = _hold(path, wait=wait)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            path.unlink(missing_ok=True)
            os.close(handle)


def _hold(path: Path, *, wait: bool) -> int | None:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            there = path.stat()
        except (BlockingIOError, FileNotFoundError) as error:
            os.close(handle)
            if isinstance(error, BlockingIOError):
                return None
            continue
        except BaseException:
            os.close(handle)
            raise
        if os.path.samestat(os.fstat(handle), there):
            return handle
        os.close(handle)  # its holder removed it while we waited: whoever comes next locks another file


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """Give a folder to work in, on the file system of `parent`, and remove it, and those that killed processes left.

    To be used under the lock of `name`.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent, name)
    folder = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{name}-", dir=parent))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path, name: str) -> None:
    """Remove what was left of work on `name`."""
    for left in parent.glob(f"{SCRATCH}{name}-*"):
        shutil.rmtree(left, ignore_errors=True)


def settle(folder: Path) -> None:
    """Bring every file and folder below to the disk: a name that survives a crash then has its content, too."""
    for here, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(here, name))
        _sync(Path(here))


def put_in_place(new: Path, target: Path) -> None:
    """Rename a settled folder to its place; one that is there already gives way."""
    old = new.with_name(f"{new.name}-old")
    if target.exists():
        target.rename(old)  # new.parent is a scratch folder: it goes with that
    new.rename(target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    if path.is_symlink():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Capped(io.FileIO):
    """A file that takes no more than so many bytes; the disk's faults are told as such, not as the sender's."""

    def __init__(self, path: Path, most: int, place: str) -> None:
        super().__init__(path, "wb")
        self._path, self._most, self._place, self._size = path, most, place, 0

    def write(self, data: Any) -> int:
        """Write; raises FleetdError with the place."""
        if self._size + len(data) > self._most:
            raise BundleError(f"{self._place}: has more than the {self._most} bytes allowed")
        with on_disk(self._path, "write"):
            wrote = super().write(data)
        if wrote is None:
            raise FleetdError(f"{self._path}: cannot write: {os.strerror(errno.EAGAIN)}")
        self._size += wrote
        return wrote
