"""Archives that a Linux kernel unpacks at its start (cpio, "newc"): entries to bytes.

Promises: the same entries give the same bytes: no time, no owner and no inode of the machine that wrote them, all is
root's. The length is a multiple of 512, since firmware loses the second of two archives that are not aligned.
"""

import stat
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from fleetd.errors import UsageError

ALIGN: Final = 512
_MAGIC: Final = "070701"
_TRAILER: Final = "TRAILER!!!"
_TYPES: Final = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR)


@dataclass(frozen=True, slots=True)
class Entry:
    """A file by its full mode (type and permissions); `data` is its content or where a link leads to.

    `device` is the number of a character device.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def file(name: str, data: bytes, mode: int = 0o644) -> Entry:
    """Return a file."""
    return Entry(name, stat.S_IFREG | mode, data)


def folder(name: str, mode: int = 0o755) -> Entry:
    """Return a folder."""
    return Entry(name, stat.S_IFDIR | mode)


def link(name: str, to: str) -> Entry:
    """Return a symbolic link."""
    return Entry(name, stat.S_IFLNK | 0o777, to.encode())


def device(name: str, major: int, minor: int, mode: int = 0o600) -> Entry:
    """Return a character device."""
    return Entry(name, stat.S_IFCHR | mode, device=(major, minor))


def pack(entries: Iterable[Entry]) -> bytes:
    """Return the archive. Entries come in the order given: a folder before what is in it."""
    made = bytearray()
    for number, entry in enumerate(entries, 1):
        _check(entry)
        made += _record(number, entry)
    made += _record(0, Entry(_TRAILER, 0))
    return bytes(made) + bytes(-len(made) % ALIGN)


def _check(entry: Entry) -> None:
    parts = entry.name.split("/")
    if not entry.name or "\0" in entry.name or any(part in ("", ".", "..") for part in parts):
        raise UsageError(f"{entry.name!r:.80}: is no name in a cpio archive; it must be relative and without '..'")
    if stat.S_IFMT(entry.mode) not in _TYPES:
        raise UsageError(f"{entry.name!r:.80}: mode {entry.mode:o} is no file, folder, link or character device")


def _record(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, time, size, the archive's device (2), what device this is (2), name's size, checksum
    fields = (number, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, *entry.device, len(name), 0)
    head = (_MAGIC + "".join(f"{field:08X}" for field in fields)).encode() + name
    return _padded(head) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
