"""The journal, the memory, the history and the dead letters of one fleet, in one SQLite file.

Promises: what `commit` returned from is on the disk, also after a crash of the machine where it was `durable`; what
`add_dead` returned is on the disk in any case; a second controller on the same folder is refused; all that it raises is
FleetdError. Writes are one at a time, from whichever threads; reads never wait for them. May not decide anything, nor
know what a memory means.
"""

import fcntl
import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError

from fleetd.codecs.history import HistoryRow, dump_row, load_row
from fleetd.codecs.lease import DeadLetter
from fleetd.core.memory import Memory
from fleetd.errors import FleetdError

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS memory (id INTEGER PRIMARY KEY CHECK (id = 1), body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, epoch INTEGER NOT NULL,
    kind TEXT NOT NULL, text TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS dead (
    id TEXT PRIMARY KEY, at REAL NOT NULL, pool TEXT NOT NULL, node TEXT NOT NULL, letter TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS history (at REAL PRIMARY KEY, body TEXT NOT NULL) STRICT;
"""
HISTORY_S: Final = 35 * 86400.0  # five weeks, so that a month can be looked back at with its first week's season
JOURNAL_ROWS: Final = 200_000
PRUNE_EVERY: Final = 1000
BUSY_S: Final = 5.0
_MEMORY: Final = TypeAdapter(Memory)


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the journal: `at` in seconds since 1970 for people; order is by `seq`."""

    kind: str
    text: str
    at: float = 0.0
    seq: int = 0
    epoch: int = 0


def dump_memory(memory: Memory) -> bytes:
    """Return a memory as JSON."""
    return _MEMORY.dump_json(memory)


def load_memory(body: str | bytes) -> Memory | None:
    """Read a memory; None where another version wrote what cannot be read."""
    try:
        return _MEMORY.validate_json(body)
    except ValidationError:
        return None


class Store:
    """One fleet's file, `fleet.db` in its state folder."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        """Open or make it; raises FleetdError where that is impossible or, to write, another controller has it."""
        self.folder = folder
        self._path = folder / "fleet.db"
        self._handle: int | None = None
        self._writes = self._rows = 0
        self._turn = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        try:
            if not read_only:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._handle = _lock(folder / "lock")
                self._db = self._connect("rwc")
                self._db.execute("PRAGMA journal_mode=WAL")
                self._db.executescript(SCHEMA)
            self._reader = self._connect("ro")
            self._reader.execute("SELECT count(*) FROM memory")
        except sqlite3.Error as error:
            self.close()
            hint = "" if isinstance(error, sqlite3.OperationalError) else "; move the file away to start anew"
            raise FleetdError(f"{self._path}: {error}{hint}") from None
        except OSError as error:
            self.close()
            raise FleetdError(f"{folder}: cannot keep the fleet's state here: {error.strerror}") from None

    def close(self) -> None:
        """Let go of the file; safe twice."""
        with self._turn:
            for db in (self._reader, self._db):
                if db is not None:
                    db.close()
            self._reader = self._db = None
            if self._handle is not None:
                os.close(self._handle)
                self._handle = None

    @property
    def writable(self) -> bool:
        """Whether this is the process that holds the fleet's folder: its controller, the only one that may write."""
        return self._handle is not None

    def meta(self, key: str, default: str | None = None) -> str | None:
        """Return a remembered setting; `default` is stored where there is none yet."""
        rows = self._read("SELECT value FROM meta WHERE key = ?", (key,))
        if rows:
            return str(rows[0][0])
        if default is not None:
            self.set_meta(key, default)
        return default

    def set_meta(self, key: str, value: str) -> None:
        """Remember a setting."""
        with self._write(durable=True) as db:
            db.execute(
                "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value", (key, value)
            )

    def memory(self) -> Memory | None:
        """Return the last memory; None where there is none, or where another version wrote what cannot be read.

        Losing it is survivable by design: the nodes are found again as strays and adopted.
        """
        rows = self._read("SELECT body FROM memory")
        return load_memory(rows[0][0]) if rows else None

    def epoch(self) -> int:
        """Return the newest epoch that the journal knows: keys of orders must not come again even without a memory."""
        return int(self._read("SELECT coalesce(max(epoch), 0) FROM journal")[0][0])

    def commit(self, memory: Memory, entries: Iterable[Entry] = (), *, durable: bool = False) -> None:
        """Write memory and journal in one transaction. `durable`: it survives the machine's crash, not only ours."""
        rows = [(entry.at or time.time(), memory.epoch, entry.kind, entry.text) for entry in entries]
        body = dump_memory(memory)
        with self._write(durable=durable) as db:
            db.execute("INSERT OR REPLACE INTO memory VALUES (1, ?)", (body,))
            db.executemany("INSERT INTO journal (at, epoch, kind, text) VALUES (?, ?, ?, ?)", rows)
            self._writes += 1
            if self._writes % PRUNE_EVERY == 0:
                db.execute("DELETE FROM journal WHERE seq <= (SELECT max(seq) FROM journal) - ?", (JOURNAL_ROWS,))

    def journal(self, *, after: int = 0, last: int = 100) -> list[Entry]:
        """Return the newest `last` entries after a sequence number, oldest first."""
        rows = self._read(
            "SELECT kind, text, at, seq, epoch FROM journal WHERE seq > ? ORDER BY seq DESC LIMIT ?", (after, last)
        )
        return [Entry(*row) for row in reversed(rows)]

    def journal_page(self, limit: int, *, after: int | None = None, before: int | None = None) -> list[Entry]:
        """Return entries, oldest first: the first `limit` after a number, otherwise the newest, or those before one."""
        columns = "SELECT kind, text, at, seq, epoch FROM journal"
        if after is not None:
            rows = self._read(f"{columns} WHERE seq > ? ORDER BY seq LIMIT ?", (after, limit))
        else:
            end = before if before is not None else 2**62
            rows = self._read(f"{columns} WHERE seq < ? ORDER BY seq DESC LIMIT ?", (end, limit))[::-1]
        return [Entry(*row) for row in rows]

    def add_history(self, row: HistoryRow) -> None:
        """Keep a row of the history; what is older than `HISTORY_S` is forgotten."""
        with self._write(durable=False) as db:
            db.execute("INSERT OR REPLACE INTO history VALUES (?, ?)", (row.at_s, dump_row(row)))
            self._rows += 1
            if self._rows % PRUNE_EVERY == 1:
                db.execute("DELETE FROM history WHERE at < ?", (row.at_s - HISTORY_S,))

    def history(self, since_s: float = 0.0) -> Iterator[HistoryRow]:
        """Yield the rows that begin at or after a time (seconds since 1970), oldest first."""
        if not self._read("SELECT 1 FROM sqlite_master WHERE name = 'history'"):
            return  # an older version wrote this file, and it was never opened to write since
        for at_s, body in self._read("SELECT at, body FROM history WHERE at >= ? ORDER BY at", (since_s,)):
            yield load_row(at_s, body)

    def add_dead(self, pool: str, node: str, letters: Iterable[DeadLetter]) -> list[str]:
        """Keep dead letters and return their ids; one that is here already is not stored twice."""
        bodies = {
            letter.id: json.dumps({name: getattr(letter, name) for name in DeadLetter.__slots__}) for letter in letters
        }
        rows = [(name, time.time(), pool, node, body) for name, body in bodies.items()]
        with self._write(durable=True) as db:  # the worker forgets what it is told is kept
            db.executemany("INSERT OR IGNORE INTO dead VALUES (?, ?, ?, ?, ?)", rows)
        return list(bodies)

    def dead(self, last: int = 100, *, before: int | None = None) -> list[tuple[int, dict[str, Any]]]:
        """Return the newest dead letters, newest first, each with its number, `at`, `pool` and `node`.

        `before`: those before that number, whether its letter is still here or not.
        """
        rows = self._read(
            "SELECT rowid, at, pool, node, letter FROM dead WHERE rowid < ? ORDER BY rowid DESC LIMIT ?",
            (2**62 if before is None else before, last),
        )
        return [(seq, {"at": at, "pool": pool, "node": node, **json.loads(raw)}) for seq, at, pool, node, raw in rows]

    def dead_letter(self, name: str) -> dict[str, Any] | None:
        """Return one dead letter by its id."""
        rows = self._read("SELECT at, pool, node, letter FROM dead WHERE id = ?", (name,))
        return next(({"at": at, "pool": pool, "node": node, **json.loads(raw)} for at, pool, node, raw in rows), None)

    def drop_dead(self, name: str) -> None:
        """Forget a dead letter."""
        with self._write(durable=True) as db:
            db.execute("DELETE FROM dead WHERE id = ?", (name,))

    def sentences(self, at: float, last: int = 500) -> dict[str, tuple[float, str]]:
        """Return what was last said of each app and pool at or before `at` (seconds since 1970), and when."""
        rows = self._read(
            "SELECT at, text FROM journal WHERE kind = 'sentence' AND at <= ? ORDER BY seq DESC LIMIT ?", (at, last)
        )
        said: dict[str, tuple[float, str]] = {}
        for when, text in rows:
            about, _, sentence = text.partition(": ")
            said.setdefault(about, (when, sentence))
        return said

    def count_dead(self) -> int:
        """Return how many dead letters there are."""
        return int(self._read("SELECT count(*) FROM dead")[0][0])

    def _connect(self, mode: str) -> sqlite3.Connection:
        return sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_S,
            check_same_thread=False,
            isolation_level=None,
        )

    def _read(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        if self._reader is None:
            raise FleetdError(f"{self._path}: is closed")
        try:
            return self._reader.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise FleetdError(f"{self._path}: cannot read: {error}") from None

    @contextmanager
    def _write(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """Give the connection to one writer at a time, in a transaction of its own that is kept whole or not at all."""
        with self._turn:
            if self._db is None:
                raise FleetdError(f"{self._path}: is not open for writing")
            try:
                self._db.execute(f"PRAGMA synchronous={'FULL' if durable else 'NORMAL'}")
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise FleetdError(f"{self._path}: cannot write: {error}") from None
            finally:
                if self._db.in_transaction:
                    with suppress(sqlite3.Error):
                        self._db.execute("ROLLBACK")


def _lock(path: Path) -> int:
    """Hold the folder for this process; the kernel lets go of it when the process ends, however it ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(handle, 20).decode(errors="replace").strip()
        os.close(handle)
        raise FleetdError(f"{path.parent}: another controller (process {holder}) runs this fleet") from None
    except OSError:
        os.close(handle)
        raise
    os.ftruncate(handle, 0)
    os.write(handle, str(os.getpid()).encode())
    return handle
