"""Background jobs on disk: SQLite in write-ahead mode, one commit for many jobs.

Promises: `commit` returns once everything of the batch is on disk (synchronous FULL), or raises JournalError and
leaves nothing of it behind; one process at a time may open a folder; a file that is damaged or of another program is
one clear line. Made, used and closed in one thread, which is not the event loop's.

Each commit is a few statements, whatever its size: every step of a statement gives the interpreter's lock away, and a
busy event loop returns it milliseconds later; row by row that would cost more than the disk.
"""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from fleetd.dispatchers.embedded.model import Batch, Row
from fleetd.errors import FleetdError

FILE: Final = "jobs.sqlite"
STRIDE: Final = 10**12  # numbers of one start: those of the next begin here, so that no handle is ever used twice
_APPLICATION: Final = 0x666C6474  # "fldt"
_VERSION: Final = 1
_ROWS: Final = 400  # a statement
_SCHEMA: Final = """\
CREATE TABLE jobs (
  number INTEGER PRIMARY KEY, function BLOB NOT NULL, uniq BLOB NOT NULL, payload BLOB NOT NULL,
  priority INTEGER NOT NULL, since REAL NOT NULL, attempts INTEGER NOT NULL, dead TEXT NOT NULL, died REAL NOT NULL
) STRICT
"""
_COLUMNS: Final = "number, function, uniq, payload, priority, since, attempts, dead, died"
_PLACES: Final = "(?, ?, ?, ?, ?, ?, ?, ?, ?)"
_CHANGE: Final = """\
UPDATE jobs SET attempts = value, dead = '', died = 0 FROM json_each(?) WHERE number = CAST(key AS INTEGER)
"""


class JournalError(FleetdError):
    """The journal cannot be opened, read or written; nothing of the batch is on disk."""


class Journal:
    """One open journal. `start` counts how often it was opened."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._base = sqlite3.connect(self.path, isolation_level=None, timeout=2.0, cached_statements=32)
        except (OSError, sqlite3.Error) as error:
            raise JournalError(f"journal {self.path}: cannot be opened: {_reason(error)}") from None
        try:
            self.start = self._open()
        except sqlite3.Error as error:
            self._base.close()
            raise self._unreadable(error) from None
        except JournalError:
            self._base.close()
            raise

    def _open(self) -> int:
        run = self._base.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        run("PRAGMA synchronous = FULL")
        run("PRAGMA wal_autocheckpoint = 4000")
        run("BEGIN EXCLUSIVE")
        (application,), (version,) = run("PRAGMA application_id").fetchone(), run("PRAGMA user_version").fetchone()
        (tables,) = run("SELECT count(*) FROM sqlite_master").fetchone()
        if not application and not tables:
            run(_SCHEMA)
            run("CREATE TABLE starts (count INTEGER NOT NULL) STRICT")
            run("INSERT INTO starts VALUES (0)")
            run(f"PRAGMA application_id = {_APPLICATION}")
            run(f"PRAGMA user_version = {_VERSION}")
        elif application != _APPLICATION or version != _VERSION:
            raise JournalError(
                f"journal {self.path}: it is of another program or version; choose another --data folder"
            )
        run("UPDATE starts SET count = count + 1")
        (start,) = run("SELECT count FROM starts").fetchone()
        run("COMMIT")
        (sound,) = run("PRAGMA quick_check(1)").fetchone()
        if sound != "ok":
            raise JournalError(f"journal {self.path}: damaged ({' '.join(sound.split())}); {_MEND}")
        return int(start)

    def rows(self) -> Iterator[Row]:
        """Read everything, in the order of waiting. Raises JournalError."""
        try:
            for values in self._base.execute(f"SELECT {_COLUMNS} FROM jobs ORDER BY since, number"):  # noqa: S608
                yield Row(*values)
        except sqlite3.Error as error:
            raise self._unreadable(error) from None

    def commit(self, batch: Batch) -> None:
        """Write a batch and wait for the disk."""
        try:
            self._base.execute("BEGIN IMMEDIATE")
            self._insert(batch.rows)
            if batch.attempts:
                self._base.execute(_CHANGE, (json.dumps(batch.attempts),))
            if batch.ends:
                self._base.execute(
                    "DELETE FROM jobs WHERE number IN (SELECT value FROM json_each(?))", (json.dumps(batch.ends),)
                )
            self._base.execute("COMMIT")
        except (sqlite3.Error, OverflowError) as error:
            with suppress(sqlite3.Error):
                if self._base.in_transaction:
                    self._base.execute("ROLLBACK")
            raise JournalError(f"journal {self.path}: cannot be written: {_reason(error)}") from None

    def _insert(self, rows: Sequence[Row]) -> None:
        for start in range(0, len(rows), _ROWS):
            part = rows[start : start + _ROWS]
            # The full size and the powers of two below it, so that SQLite prepares each statement once.
            at = 0
            while at < len(part):
                size = len(part) if len(part) == _ROWS else 1 << ((len(part) - at).bit_length() - 1)
                values = [
                    value
                    for r in part[at : at + size]
                    for value in (
                        r.number, r.function, r.unique, r.payload, r.priority, r.since, r.attempts, r.dead, r.died,
                    )
                ]  # fmt: skip
                places = ", ".join([_PLACES] * size)
                self._base.execute(f"INSERT OR REPLACE INTO jobs ({_COLUMNS}) VALUES {places}", values)  # noqa: S608
                at += size

    def close(self) -> None:
        """Close the file; safe twice."""
        with suppress(sqlite3.Error):
            self._base.close()

    def _unreadable(self, error: sqlite3.Error) -> JournalError:
        if "locked" in str(error):
            return JournalError(f"journal {self.path}: in use by another dispatcher; give each a --data of its own")
        return JournalError(f"journal {self.path}: cannot be read: {_reason(error)}; {_MEND}")


_MEND: Final = "restore it from a backup, or move it away to begin with an empty queue"


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())
