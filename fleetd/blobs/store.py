"""The fleet's store of files, as those see it who send and fetch: resumed where it broke, verified to the last byte.

Promises: memory does not grow with a file's size; what is fetched has the SHA-256 and the size of its reference, or is
not given out; a transfer that breaks goes on where the store has it, as long as something moves within `patience_s`;
what is kept of a broken one is taken up again by the next, also by another process. Everything here blocks.
"""

import fcntl
import hashlib
import io
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final

from fleetd.blobs.faults import BadFileError, of_others
from fleetd.blobs.line import ANSWER_S, CHUNK, DONE_S, Line, Where
from fleetd.codecs.reference import ID, Reference, blob_id, make_reference
from fleetd.errors import FleetdError, ProtocolError, UnreachableError

PATIENCE_S: Final = 30.0
TRANSFER_S: Final = 24 * 3600.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0
OnBytes = Callable[[int, int], None]


class ChangedError(BadFileError):
    """The file was written to while it was sent."""


@dataclass(frozen=True, slots=True)
class Store:
    """The store of one fleet, at its controller. `fleet`: whose references are followed; "": of whichever it knows.

    `patience_s`: how long it is asked again while it does not answer; `transfer_s`: the longest of one transfer.
    """

    line: Line
    fleet: str = ""
    patience_s: float = PATIENCE_S
    transfer_s: float = TRANSFER_S

    def ask(self, method: str, path: str, value: Any = None, wait_s: float = ANSWER_S) -> dict[str, Any]:
        """Return the answer to a question, asked again while nobody answers; raises FleetdError."""
        for again in self._tries():
            try:
                return self.line.ask(method, path, value, wait_s=wait_s)
            except UnreachableError as error:
                again(error)
        raise AssertionError("the last try has returned or raised")

    # ── sending

    def send(self, path: Path, keep_s: float | None = None, on_bytes: OnBytes | None = None) -> Reference:
        """Send a file and return its reference; one that was sent half before is sent from there on.

        Raises UnreachableError, StoreFullError, BadFileError where the file changed meanwhile, OSError.
        """
        with path.open("rb") as file:
            told = os.fstat(file.fileno())
            about = f"{socket.gethostname()}\0{path.absolute()}\0{told.st_size}\0{told.st_mtime_ns}\0{told.st_ino}"
            blob = hashlib.sha256(about.encode(errors="surrogateescape")).hexdigest()[:32]
            try:
                return self._send(file, told.st_size, blob, keep_s, on_bytes)
            except ChangedError:  # what the store has of it is of another content; then it goes as a new one
                file.seek(0)
                return self._send(file, os.fstat(file.fileno()).st_size, secrets.token_hex(16), keep_s, on_bytes)

    def send_bytes(self, content: bytes, keep_s: float | None = None) -> Reference:
        """Send bytes and return their reference; raises as `send` does."""
        return self._send(io.BytesIO(content), len(content), secrets.token_hex(16), keep_s, None)

    def _send(self, file: BinaryIO, size: int, blob: str, keep_s: float | None, on_bytes: OnBytes | None) -> Reference:
        keep = {} if keep_s is None else {"keep_s": keep_s}
        self.ask("POST", "/v1/blobs", {"id": blob, "size": size, **keep})
        source = _Source(file, size, on_bytes)
        for again in self._tries():
            before = source.at
            try:
                while (where := self._next(blob)) is not None:
                    self.line.send(where, source.parts(where.offset, where.size))
                return make_reference(self._done(blob, source.digest()))
            except UnreachableError as error:
                again(error, moved=source.at != before)
        raise AssertionError("the last try has returned or raised")

    def _next(self, blob: str) -> Where | None:
        answer = self.line.ask("POST", "/v1/blobs/next", {"id": blob})
        return None if answer.get("url") is None else _where(answer)

    def _done(self, blob: str, digest: str) -> dict[str, Any]:
        asked = {"id": blob, "sha256": digest}
        answer = self.line.ask("POST", "/v1/blobs/done", asked, wait_s=DONE_S)
        if answer["sha256"] != digest:
            raise ChangedError("file: what the store has of it is of another content; it was written to meanwhile")
        return answer

    # ── fetching

    def stream(self, reference: Reference) -> Iterator[bytes]:
        """Yield a blob's bytes; they are verified with the last of them. Raises BadFileError, UnreachableError."""
        digest, left = hashlib.sha256(), reference.size
        for part in self._from(reference, 0):
            digest.update(part)
            left -= len(part)
            if not left:
                check_digest(reference, digest.hexdigest())
            yield bytes(part)
        if not reference.size:
            check_digest(reference, digest.hexdigest())

    def fetch(self, reference: Reference, target: Path, room: Path | None = None) -> None:
        """Write a blob to a file that appears whole and verified; what an earlier call left half is taken up again.

        `room`: the folder for what is half, on the file system of `target`; its own by default. Raises BadFileError,
        UnreachableError, FleetdError where the disk is full.
        """
        self.check(reference)
        name = f".{reference.sha256[:32]}.part"
        with _half(room or target.parent, name) as file:
            try:
                at, digest = _hashed(file, reference.size)
                for data in self._from(reference, at):
                    digest.update(data)
                    file.write(data)
            except OSError as error:
                if of_others(error):
                    raise
                raise FleetdError(f"{target}: cannot write: {error.strerror or error}") from None
            part = Path(file.name)
            try:
                check_digest(reference, digest.hexdigest())
            except BadFileError:
                part.unlink(missing_ok=True)
                raise
            part.rename(target)

    def check(self, reference: Reference) -> str:
        """Return a reference's blob; raises BadFileError where it may not or need not be asked for."""
        try:
            blob = blob_id(reference, self.fleet)
        except ProtocolError as error:
            raise BadFileError(str(error)) from None
        late_s = time.time() - reference.expires_at
        if late_s > 0:
            raise BadFileError(f"{_name(reference)}: expired {late_s:.0f} s ago: submit the job with its file again")
        return blob

    def _from(self, reference: Reference, at: int) -> Iterator[memoryview]:
        """Yield what follows `at`, however often the connection breaks; nothing of it is verified here."""
        blob = self.check(reference)
        for again in self._tries():
            before = at
            try:
                while at < reference.size:
                    came = at
                    for part in self._parts(blob, reference, at):
                        at += len(part)
                        yield part
                    if at == came:
                        break
            except UnreachableError as error:
                again(error, moved=at != before)
                continue
            if at == reference.size:
                return
            short = f"{_name(reference)}: truncated: the store gave {at} of its {reference.size} bytes"
            again(UnreachableError(short), moved=at != before)

    def _parts(self, blob: str, reference: Reference, at: int) -> Iterator[memoryview]:
        answer = self.line.ask("GET", f"/v1/blobs/{blob}?offset={at}")
        if (answer["total"], answer["sha256"]) != (reference.size, reference.sha256):
            raise BadFileError(f"{_name(reference)}: altered: the store has another size or SHA-256 for it")
        return self.line.receive(_where(answer))

    def _tries(self) -> Iterator[Callable[..., None]]:
        """Yield once for each try. What is yielded is called with the error of a try; it raises it once that is last.

        Only tries without progress count against the patience.
        """
        begun = stuck = time.monotonic()
        pause_s = FIRST_PAUSE_S

        def again(error: UnreachableError, *, moved: bool = False) -> None:
            nonlocal stuck, pause_s
            now = time.monotonic()
            if moved:
                stuck, pause_s = now, FIRST_PAUSE_S
            if now - stuck >= self.patience_s or now - begun >= self.transfer_s:
                raise error
            if self.line.stop.called.wait(pause_s):
                raise error
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

        while True:
            yield again


class _Source:
    """A file that is read here and there, and hashed once from its beginning to its end."""

    def __init__(self, file: BinaryIO, size: int, on_bytes: OnBytes | None) -> None:
        self._file, self._size, self._on_bytes = file, size, on_bytes
        self._digest, self._hashed = hashlib.sha256(), 0
        self.at = 0

    def parts(self, offset: int, size: int) -> Iterator[bytes]:
        self._hash_to(offset)
        self._file.seek(offset)
        self.at, left = offset, size
        while left > 0:
            part = self._file.read(min(CHUNK, left))
            if not part:
                raise ChangedError("file: it became shorter while it was sent")
            self._take(self.at, part)
            left -= len(part)
            yield part
            self.at += len(part)
            if self._on_bytes is not None:
                self._on_bytes(self.at, self._size)

    def digest(self) -> str:
        self._hash_to(self._size)
        if self._file.read(1):
            raise ChangedError("file: it became longer while it was sent")
        return self._digest.hexdigest()

    def _hash_to(self, offset: int) -> None:
        self._file.seek(self._hashed)
        while self._hashed < offset:
            part = self._file.read(min(CHUNK, offset - self._hashed))
            if not part:
                raise ChangedError("file: it became shorter while it was sent")
            self._take(self._hashed, part)

    def _take(self, at: int, part: bytes) -> None:
        if at + len(part) > self._hashed:
            self._digest.update(memoryview(part)[self._hashed - at :])
            self._hashed = at + len(part)


def check_digest(reference: Reference, digest: str) -> None:
    """Raise BadFileError where the content is not that of the reference."""
    if digest != reference.sha256:
        raise BadFileError(f"{_name(reference)}: altered: its content's SHA-256 is not that of the reference")


def _where(answer: dict[str, Any]) -> Where:
    names = ("url", "method", "offset", "size", "skip")
    return Where(**{name: answer[name] for name in names})


def _name(reference: Reference) -> str:
    found = ID.search(reference.uri)
    return f"file {found[0][:12] if found else reference.uri:.60}"


@contextmanager
def _half(room: Path, name: str) -> Iterator[BinaryIO]:
    """Open what there is of a file so far; where another process is at it, one of our own."""
    room.mkdir(parents=True, exist_ok=True)
    shared = (room / name).open("a+b", buffering=0)
    if _mine(shared, room / name):
        with shared:
            yield shared
        return
    shared.close()
    own = room / f"{name}.{secrets.token_hex(4)}"
    with own.open("x+b", buffering=0) as file:
        try:
            yield file
        finally:
            own.unlink(missing_ok=True)


def _mine(file: BinaryIO, path: Path) -> bool:
    """Lock a file; False where another has it, or has just put it in its place."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except (BlockingIOError, FileNotFoundError):
        return False


def _hashed(file: BinaryIO, size: int) -> tuple[int, "hashlib._Hash"]:
    """Hash what is there already; more than there should be is none of it."""
    digest, at = hashlib.sha256(), 0
    file.seek(0)
    while part := file.read(CHUNK):
        digest.update(part)
        at += len(part)
    if at > size:
        file.truncate(0)
        return 0, hashlib.sha256()
    return at, digest
