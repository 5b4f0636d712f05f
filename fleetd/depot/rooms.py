"""Where a depot keeps bytes: a folder, or a bucket. Documents are small and whole; data comes piece by piece.

Promises: a document is on the disk, whole, once it is written; data that came stays until it is removed, so that who
sends it can go on where it broke. A bucket's bytes do not pass through here: it signs addresses for them, good for one
request and an hour.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, Protocol

from fleetd.blobs.line import CHUNK, Where
from fleetd.depot.faults import ConflictError, FullError
from fleetd.errors import FleetdError
from fleetd.releases.stores import MissingError, ObjectStore

PART: Final = 64 * 1024 * 1024  # an object of a bucket; what is lost at most where a transfer breaks
SIGNED_S: Final = timedelta(hours=1)
KEY: Final = "files.store"
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


class Room(Protocol):
    """Documents by name, and the data of blobs."""

    def read(self, name: str) -> bytes:
        """Return a document; raises MissingError."""

    def write(self, name: str, body: bytes, *, sure: bool = True) -> None:
        """Put a document in its place; not `sure`: a crash of the machine may forget it."""

    def delete(self, name: str) -> None:
        """Remove a document; one that is not there is no fault."""

    def names(self) -> list[str]:
        """Return the names of all documents."""

    def have(self, blob: str, size: int) -> int:
        """Return how many bytes of a blob are here, from its beginning."""

    def to(self, blob: str, have: int, size: int) -> Where:
        """Return where the bytes after those go."""

    def whence(self, blob: str, offset: int, size: int) -> Where:
        """Return where the bytes from `offset` on are."""

    def digest(self, blob: str, size: int) -> str | None:
        """Bring a blob to the disk and return its SHA-256; None where only its reader can tell."""

    def drop(self, blob: str) -> None:
        """Remove a blob's data."""


class FolderRoom:
    """Documents and data in a folder of the controller's machine."""

    def __init__(self, folder: Path) -> None:
        self._documents, self._data = folder / "documents", folder / "data"
        with _told(folder):
            for one in (self._documents, self._data):
                one.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._taking: dict[str, tuple[int, Any]] = {}  # by blob: how much was hashed, and the hash so far
        self._busy: set[str] = set()

    def read(self, name: str) -> bytes:
        """Return a document."""
        with _told(self._documents):
            try:
                return (self._documents / name).read_bytes()
            except FileNotFoundError:
                raise MissingError(f"files: there is no {name}") from None

    def write(self, name: str, body: bytes, *, sure: bool = True) -> None:
        """Put a document in its place, on the disk where it must be `sure`."""
        new = self._documents / f".{name}.{secrets.token_hex(4)}"
        with _told(self._documents):
            try:
                with new.open("xb") as file:
                    file.write(body)
                    file.flush()
                    if sure:
                        os.fdatasync(file.fileno())
                new.rename(self._documents / name)
            finally:
                new.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        """Remove a document."""
        with _told(self._documents):
            (self._documents / name).unlink(missing_ok=True)

    def names(self) -> list[str]:
        """Return the names, without what is just being written."""
        with _told(self._documents):
            return [name for name in os.listdir(self._documents) if not name.startswith(".")]  # noqa: PTH208 - names

    def have(self, blob: str, size: int) -> int:
        """Return how many bytes there are."""
        del size
        try:
            return (self._data / blob).stat().st_size
        except FileNotFoundError:
            return 0

    def to(self, blob: str, have: int, size: int) -> Where:
        """Let them come here."""
        return Where(f"/v1/blobs/{blob}/data?offset={have}", "POST", have, size - have)

    def whence(self, blob: str, offset: int, size: int) -> Where:
        """Let them come from here."""
        return Where(f"/v1/blobs/{blob}/data?offset={offset}", "GET", offset, size - offset)

    def digest(self, blob: str, size: int) -> str | None:
        """Hash what was not hashed as it came."""
        at, total = self._taking.pop(blob, (0, None))
        with _told(self._data), (self._data / blob).open("a+b") as file:
            file.flush()
            os.fdatasync(file.fileno())
            if at == size and total is not None:
                return str(total.hexdigest())
            total = hashlib.sha256()
            file.seek(0)
            while part := file.read(CHUNK):
                total.update(part)
        return str(total.hexdigest())

    def drop(self, blob: str) -> None:
        """Remove the data."""
        self._taking.pop(blob, None)
        with suppress(FileNotFoundError):
            (self._data / blob).unlink()

    def open(self, blob: str, offset: int) -> BinaryIO:
        """Open a blob to be read from `offset` on."""
        with _told(self._data):
            file = (self._data / blob).open("rb", buffering=0)
            file.seek(offset)
            return file

    @contextmanager
    def taking(self, blob: str, offset: int, size: int) -> Iterator["Intake"]:
        """Take bytes in after `offset`, from one sender at a time; raises ConflictError."""
        if blob in self._busy:
            raise ConflictError(f"file {blob[:12]}: is being sent by another just now")
        self._busy.add(blob)
        try:
            with _told(self._data), (self._data / blob).open("ab", buffering=0) as file:
                if file.tell() != offset:
                    raise ConflictError(f"file {blob[:12]}: {file.tell()} bytes are here; go on from there")
                at, total = self._taking.pop(blob, (0, None))
                if at != offset or total is None:
                    total = None if offset else hashlib.sha256()
                intake = Intake(file, offset, size, total)
                try:
                    yield intake
                finally:  # also where the sender left: what came is kept
                    if intake.total is not None:
                        self._taking[blob] = (intake.at, intake.total)
        finally:
            self._busy.discard(blob)


class Intake:
    """One blob as it comes. `total` is its hash, where all of it was seen."""

    def __init__(self, file: Any, at: int, size: int, total: Any) -> None:
        self._file, self.at, self._size, self.total = file, at, size, total

    def write(self, parts: Sequence[bytes]) -> None:
        """Take the next bytes; blocks. Raises FullError, and ConflictError where there are more than was said."""
        for part in parts:
            if self.at + len(part) > self._size:
                raise ConflictError(f"file: more than the {self._size} bytes that were announced")
            left = memoryview(part)
            try:
                while left:
                    left = left[self._file.write(left) :]
            except OSError as error:
                self.total = None
                kind = FullError if error.errno in FULL else FleetdError
                raise kind(f"files: the store cannot take it: {error.strerror}") from None
            self.at += len(part)
            if self.total is not None:
                self.total.update(part)


class BucketRoom(ObjectStore):
    """Objects below s3://BUCKET/PREFIX: each document is one, and each 64 MiB of a blob."""

    def __init__(self, where: str) -> None:
        super().__init__(where, key=KEY)

    def read(self, name: str) -> bytes:
        """Return a document."""
        with self._told("read a document"):
            return bytes(self._obstore.get(self._store, name).bytes())

    def write(self, name: str, body: bytes, *, sure: bool = True) -> None:
        """Put a document."""
        del sure
        with self._told("keep a document"):
            self._obstore.put(self._store, name, body)

    def have(self, blob: str, size: int) -> int:
        """Return the bytes in whole parts, as far as none is missing."""
        with self._told("list a file's parts"):
            found = {str(one["path"]): one["size"] for batch in self._obstore.list(self._store, blob) for one in batch}
        at = 0
        while at < size and found.get(_part(blob, at)) == min(PART, size - at):
            at += min(PART, size - at)
        return at

    def to(self, blob: str, have: int, size: int) -> Where:
        """Let the next part go straight to the bucket."""
        return Where(self._signed("PUT", _part(blob, have)), "PUT", have, min(PART, size - have))

    def whence(self, blob: str, offset: int, size: int) -> Where:
        """Let a part come straight from the bucket."""
        skip = offset % PART
        return Where(self._signed("GET", _part(blob, offset)), "GET", offset, min(PART - skip, size - offset), skip)

    def digest(self, blob: str, size: int) -> str | None:
        """Leave it to the reader: the bytes did not come by here."""
        del blob, size
        return None

    def drop(self, blob: str) -> None:
        """Remove all parts."""
        with self._told("remove a file"):
            paths = [str(one["path"]) for batch in self._obstore.list(self._store, blob) for one in batch]
            if paths:
                self._obstore.delete(self._store, paths)

    def _signed(self, method: str, name: str) -> str:
        with self._told("sign an address"):
            return str(self._obstore.sign(self._store, method, name, SIGNED_S))


def open_room(where: str) -> Room:
    """Return the room at a folder or at s3://BUCKET/PREFIX; raises FleetdError."""
    return BucketRoom(where) if where.startswith("s3://") else FolderRoom(Path(where))


def _part(blob: str, offset: int) -> str:
    return f"{blob}/{offset // PART:08}"


@contextmanager
def _told(place: Path) -> Iterator[None]:
    """Turn an OSError into one line; a full disk is a full store."""
    try:
        yield
    except OSError as error:
        kind = FullError if error.errno in FULL else FleetdError
        raise kind(f"files: {place}: {error.strerror or error}") from None
