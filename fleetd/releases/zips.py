"""Zip files: written so that the same content gives the same bytes, and read without trusting a word of theirs.

Promises: a zip is looked through before anything of it is used: each name stays below its folder, is met once, also
without regard to case, and is a regular file; what is declared and what is really there stays within the limits. All
that is wrong with one is a BundleError in one line.
"""

import errno
import hashlib
import re
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from fleetd.releases.faults import BundleError

MIB: Final = 1024 * 1024
CHUNK: Final = MIB
EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip can tell
REGULAR: Final = (stat.S_IFREG | 0o644) << 16
UNIX: Final = 3
MOST_NAME: Final = 1000
MOST_PART: Final = 255
SMALL: Final = 16 * MIB  # below it, no ratio is a bomb
_ENCRYPTED: Final = 0x1
_DRIVE: Final = re.compile("[A-Za-z]:")
_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
# What zipfile raises on bytes that were never a zip, or were and have been altered.
_BROKEN: Final = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    LookupError,
    OverflowError,
    MemoryError,
)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one zip may unpack to: bytes in all, files, and bytes for each byte of the zip."""

    total: int = 512 * MIB
    files: int = 50_000
    ratio: int = 200


def fault_of_name(name: str) -> str | None:
    """Return what is wrong with the path of a file in a zip, or None."""
    parts = name.split("/")
    if name.startswith("/") or _DRIVE.match(name):
        return "is an absolute path"
    if "\\" in name:
        return "has a backslash"
    if ".." in parts:
        return "leads out of its folder"
    if "" in parts or "." in parts or not name.isprintable():
        return "is not a plain path"
    if len(name) > MOST_NAME or any(len(part.encode()) > MOST_PART for part in parts):
        return "is too long"
    return None


def check_names(names: Iterable[str], place: str) -> None:
    """Refuse names that are unsafe, met twice, or differ only in ways that some file systems do not see."""
    seen: dict[str, str] = {}
    for name in names:
        if fault := fault_of_name(name):
            raise BundleError(f"{place}: the name {name!r:.120} {fault}")
        folded = unicodedata.normalize("NFC", name).casefold()
        if folded in seen:
            what = "is there twice" if seen[folded] == name else f"differs from {seen[folded]!r:.120} only by case"
            raise BundleError(f"{place}: the name {name!r:.120} {what}")
        seen[folded] = name
    for folded, name in seen.items():
        at = folded.find("/")
        while at >= 0:
            if folded[:at] in seen:
                raise BundleError(f"{place}: {seen[folded[:at]]!r:.120} is a file, and a folder in {name!r:.120}")
            at = folded.find("/", at + 1)


@contextmanager
def opened(
    file: Path | BinaryIO, place: str, limits: Limits = Limits(), *, folders: bool = False
) -> Iterator[zipfile.ZipFile]:
    """Open a zip whose names and declared sizes are good; raises BundleError, also for what is met while it is read.

    With `folders`, entries for folders may be in it; they say nothing.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _look_through([one for one in archive.infolist() if not (folders and one.is_dir())], place, limits)
            yield archive
    except _BROKEN as error:
        raise BundleError(f"{place}: is damaged, or is no zip: {_line(error)}") from None
    except OSError as error:
        if error.errno != errno.EINVAL:  # a place before the file's beginning, which only a damaged zip names
            raise
        raise BundleError(f"{place}: is damaged, or is no zip: {_line(error)}") from None


def _look_through(entries: list[zipfile.ZipInfo], place: str, limits: Limits) -> None:
    if len(entries) > limits.files:
        raise BundleError(f"{place}: {len(entries)} files, more than the {limits.files} allowed")
    for entry in entries:
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if kind not in (0, stat.S_IFREG) or entry.is_dir():
            what = "a symbolic link" if kind == stat.S_IFLNK else "not a regular file"
            raise BundleError(f"{place}: {entry.filename!r:.120} is {what}")
        if entry.flag_bits & _ENCRYPTED or entry.compress_type not in _METHODS:
            raise BundleError(f"{place}: {entry.filename!r:.120} is encrypted, or packed in a way not used here")
    check_names([entry.orig_filename for entry in entries], place)
    total = sum(entry.file_size for entry in entries)
    packed = sum(entry.compress_size for entry in entries)
    if total > limits.total:
        raise BundleError(f"{place}: unpacks to {total} bytes, more than the {limits.total} allowed")
    if total > SMALL and total > limits.ratio * max(packed, 1):
        raise BundleError(f"{place}: unpacks to {total // max(packed, 1)} times its size: a zip bomb")


def chunks(archive: zipfile.ZipFile, name: str, place: str) -> Iterator[bytes]:
    """Yield the content of one file, never more than was declared."""
    left = archive.getinfo(name).file_size
    with archive.open(name) as file:
        while data := file.read(CHUNK):
            left -= len(data)
            if left < 0:
                raise BundleError(f"{place}: {name!r:.120} is larger than declared")
            yield data
    if left:
        raise BundleError(f"{place}: {name!r:.120} is smaller than declared")


def digest_of(archive: zipfile.ZipFile, name: str, place: str) -> str:
    """Return the SHA-256 of one file's content."""
    total = hashlib.sha256()
    for data in chunks(archive, name, place):
        total.update(data)
    return total.hexdigest()


def write(file: BinaryIO, contents: Mapping[str, bytes | Path], *, first: tuple[str, ...] = ()) -> None:
    """Write a zip of these files, packed: `first` in that order, then the rest by name; no times, modes or owners."""
    with zipfile.ZipFile(file, "w") as archive:
        for name in (*first, *sorted(set(contents) - set(first))):
            content = contents[name]
            with archive.open(entry(name, packed=True), "w") as out:
                if isinstance(content, bytes):
                    out.write(content)
                    continue
                with content.open("rb") as source:
                    shutil.copyfileobj(source, out, CHUNK)


def entry(name: str, *, packed: bool) -> zipfile.ZipInfo:
    """Return an entry that tells its name alone."""
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system, info.external_attr = UNIX, REGULAR
    info.compress_type = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    return info


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
