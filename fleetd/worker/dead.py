"""The spool of dead letters: jobs that used up their attempts, kept on this node until the controller has them.

Promises: a letter is on the disk, whole, before its job is answered; it is removed only when the controller says that
it stored it; without a controller it stays for ever. Files are JSON, named by the letter's id, readable by anyone who
may read the folder.
"""

import base64
import json
import logging
import os
import secrets
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Final

from fleetd.codecs.lease import DeadLetter
from fleetd.worker.logs import event

# A lease holds at most 4 MiB; letters take a part of it, and one too large travels without its payload.
LEASE_BYTES: Final = 1024 * 1024
_TRACE_BYTES: Final = 64 * 1024
_REASON_BYTES: Final = 2000


def make_letter(
    function: str, names: tuple[bytes, bytes], payload: bytes, *, attempts: int, reason: str, traceback: str
) -> DeadLetter:
    """Return the letter of one job; `names` are its handle and its unique."""
    handle, unique = names
    return DeadLetter(
        id=secrets.token_hex(16),
        function=function,
        unique=unique.decode(errors="backslashreplace"),
        handle=handle.decode(errors="backslashreplace"),
        attempts=attempts,
        reason=reason[:_REASON_BYTES],
        traceback=traceback[-_TRACE_BYTES:],
        payload=base64.b64encode(payload).decode(),
    )


def write(spool: Path, letter: DeadLetter) -> bool:
    """Put the letter on the disk. A spool that cannot be written is logged with the letter's job; work goes on."""
    place = spool / f"{letter.id}.json"
    draft = spool / f".{letter.id}.draft"
    try:
        spool.mkdir(parents=True, exist_ok=True)
        with draft.open("w", encoding="utf-8") as file:
            json.dump(asdict(letter), file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(place)
        _sync(spool)
    except OSError as error:
        reason = f"{error.strerror or error}"
        event(logging.ERROR, "dead letter cannot be kept", job=letter.handle, spool=spool, error=reason)
        return False
    event(
        logging.ERROR,
        "dead letter",
        function=letter.function,
        job=letter.handle,
        unique=letter.unique,
        attempts=letter.attempts,
        reason=letter.reason,
        file=place,
    )
    return True


def waiting(spool: Path) -> list[DeadLetter]:
    """Return the oldest letters, as many as a lease can carry."""
    letters: list[DeadLetter] = []
    room = LEASE_BYTES
    for file in sorted(_files(spool), key=_age):
        letter = _read(file)
        if letter is None:
            continue
        if len(letter.payload) > LEASE_BYTES // 2:
            reason = f"{letter.reason} (the payload is too large to send; the worker keeps it as {file}.kept)"
            letter = replace(letter, payload="", reason=reason)
        room -= len(letter.payload) + len(letter.traceback) + len(letter.reason) + 500
        if room < 0 and letters:
            break
        letters.append(letter)
    return letters


def acknowledge(spool: Path, ids: list[str]) -> None:
    """Remove the letters that the controller stored. One that travelled without its payload is kept under `.kept`."""
    known = {file.stem: file for file in _files(spool)}
    for name in ids:
        file = known.get(name)  # an id is never made a path: it comes from outside
        if file is None:
            continue
        letter = _read(file)
        with suppress(OSError):
            if letter is not None and len(letter.payload) > LEASE_BYTES // 2:
                file.rename(f"{file}.kept")
            else:
                file.unlink()


def _files(spool: Path) -> list[Path]:
    try:
        return [file for file in spool.iterdir() if file.suffix == ".json" and not file.name.startswith(".")]
    except OSError:
        return []


def _age(file: Path) -> tuple[float, str]:
    try:
        return file.stat().st_mtime, file.name
    except OSError:  # another worker's lease had it stored just now
        return 0.0, file.name


def _read(file: Path) -> DeadLetter | None:
    """Read a letter; what cannot be one is moved out of the way, once, with a line in the log."""
    try:
        return DeadLetter(**json.loads(file.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as error:
        event(logging.WARNING, "not a dead letter; set aside", file=file, error=f"{error}")
        with suppress(OSError):
            file.rename(f"{file}.bad")
        return None


def _sync(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
