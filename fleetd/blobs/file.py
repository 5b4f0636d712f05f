"""A file as a job's function gets it: as a path, as a stream, or as bytes, fetched when one of them is asked for.

Promises: what `path` and `read` give is verified; a stream is verified with its last byte, and raises there, so that a
function that reads to the end never returns a result of altered content. Everything here blocks.
"""

import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Protocol

from fleetd.blobs.faults import BadFileError
from fleetd.codecs.reference import Reference

MOST_BYTES: Final = 64 * 1024 * 1024


class Source(Protocol):
    """What a file asks of its store. Authors import this module, and no sockets with it."""

    def stream(self, reference: Reference) -> Iterator[bytes]:
        """Yield its bytes, verified with the last of them."""

    def fetch(self, reference: Reference, target: Path, room: Path | None = None) -> None:
        """Write it to a file that appears whole and verified."""


class File:
    """A payload in a store, or one that came with the job itself."""

    def __init__(
        self, content: bytes | Reference, store: Source | None = None, folder: Callable[[], Path] | None = None
    ) -> None:
        """`folder`: gives where to write it, until the job ends."""
        self._content, self._store, self._folder = content, store, folder
        self._path: Path | None = None

    @property
    def size(self) -> int:
        """Its size in bytes."""
        return self._content.size if isinstance(self._content, Reference) else len(self._content)

    @property
    def path(self) -> Path:
        """A file on this node, there until the job ends."""
        if self._path is None:
            assert self._folder is not None, "only a job has a folder"
            path = self._folder() / "payload"
            if isinstance(self._content, Reference):
                assert self._store is not None, "a reference is given out with its store"
                # What is half lies beside the job's own folder, where the job finds it when it begins anew.
                self._store.fetch(self._content, path, path.parent.parent)
            else:
                path.write_bytes(self._content)
            self._path = path
        return self._path

    def read(self, most: int = MOST_BYTES) -> bytes:
        """Return all of it; raises BadFileError where that is more than `most` bytes."""
        if self.size > most:
            raise BadFileError(f"file: {self.size} bytes are too many for memory (at most {most}): use its path")
        return b"".join(self.chunks())

    def chunks(self) -> Iterator[bytes]:
        """Yield it piece by piece, straight from the store."""
        if isinstance(self._content, bytes):
            yield self._content
        elif self._path is not None:
            with self._path.open("rb") as file:
                yield from iter(lambda: file.read(io.DEFAULT_BUFFER_SIZE * 32), b"")
        else:
            assert self._store is not None, "a reference is given out with its store"
            yield from self._store.stream(self._content)

    def open(self) -> io.BufferedReader:
        """Open it as a stream."""
        return io.BufferedReader(_Raw(self.chunks()))


class _Raw(io.RawIOBase):
    """Pieces as a raw stream."""

    def __init__(self, parts: Iterator[bytes]) -> None:
        super().__init__()
        self._parts, self._left = parts, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # of the one kind that BufferedReader gives
        while not self._left:
            part = next(self._parts, None)
            if part is None:
                return 0
            self._left = memoryview(part)
        count = min(len(buffer), len(self._left))
        buffer[:count] = self._left[:count]
        self._left = self._left[count:]
        return count
