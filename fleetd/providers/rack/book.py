"""What is known of a rack's machines: whom we woke and why, what of them was seen, who may boot. One file a pool.

Promises: several processes use it at the same time (the controller, the boot service, commands), each change is one
transaction; a token is kept as its digest only, is issued for a wake of ours inside its window, and is taken once. All
calls are short and may come from any thread. `now` is the wall's clock in seconds since 1970, which the processes share
and which outlives them. May not decide anything: what follows from what is known is the provider's to say.
"""

import hashlib
import json
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fleetd.codecs.magic import mac_text
from fleetd.errors import FleetdError

Seconds = float
Stage = Literal["dhcp", "script", "kernel", "initrd", "base", "app", "enrolled"]  # of a boot, in their order

SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS machines (
    mac TEXT PRIMARY KEY, name TEXT NOT NULL DEFAULT '', wakes INTEGER NOT NULL DEFAULT 0,
    boots_s TEXT NOT NULL DEFAULT '[]', failures INTEGER NOT NULL DEFAULT 0, quarantined_until REAL NOT NULL DEFAULT 0,
    why TEXT NOT NULL DEFAULT ''
) STRICT;
CREATE TABLE IF NOT EXISTS wakes (
    mac TEXT NOT NULL, number INTEGER NOT NULL, node TEXT NOT NULL UNIQUE, key TEXT NOT NULL, app TEXT NOT NULL,
    at REAL NOT NULL, until REAL NOT NULL, sent INTEGER NOT NULL DEFAULT 0, sent_at REAL NOT NULL DEFAULT 0,
    token_sha256 TEXT, used_at REAL, up_at REAL, stop_at REAL, grace_s REAL NOT NULL DEFAULT 0,
    ended_at REAL, reason TEXT NOT NULL DEFAULT '', PRIMARY KEY (mac, number)
) STRICT;
CREATE UNIQUE INDEX IF NOT EXISTS one_wake ON wakes (mac) WHERE ended_at IS NULL;
CREATE INDEX IF NOT EXISTS tokens ON wakes (token_sha256);
CREATE INDEX IF NOT EXISTS wakes_at ON wakes (at);
CREATE TABLE IF NOT EXISTS sightings (
    mac TEXT PRIMARY KEY, at REAL NOT NULL, stage TEXT NOT NULL, ip TEXT NOT NULL, arch TEXT NOT NULL,
    first_at REAL NOT NULL, booted_at REAL NOT NULL DEFAULT 0
) STRICT;
CREATE TABLE IF NOT EXISTS admitted (
    mac TEXT PRIMARY KEY, name TEXT NOT NULL UNIQUE, by TEXT NOT NULL, at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS reports (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, text TEXT NOT NULL, told INTEGER NOT NULL DEFAULT 0
) STRICT;
"""
BUSY_S: Final = 5.0
WAKES_KEPT: Final = 50  # of a machine; a token of an older one is unknown
BOOTS_KEPT: Final = 20
PENDING_KEPT: Final = 1000  # anybody on the LAN can invent an address
REPORTS_KEPT: Final = 1000


class TokenError(FleetdError):
    """A token is not taken. The text names the machine where it is known, never the token."""


class UsedError(TokenError):
    """It was taken before."""


class UnknownError(TokenError):
    """No wake has it: never issued, replaced by a newer one, or long ago."""


class LateError(TokenError):
    """Its wake is over, or its window is."""


@dataclass(frozen=True, slots=True)
class Wake:
    """One time that we switched a machine on: `node` is what it is called until it goes off again.

    `sent`: how often it was told to come on, last at `sent_at`; `used_at`: when its token was taken; `up_at`: its
    worker's first word; `stop_at`: when it was asked to go, in `grace_s`; with `ended_at`, the `reason` it is over.
    """

    mac: str
    number: int
    node: str
    key: str
    app: str
    at: Seconds
    until: Seconds
    sent: int = 0
    sent_at: Seconds = 0.0
    token_sha256: str | None = None
    used_at: Seconds | None = None
    up_at: Seconds | None = None
    stop_at: Seconds | None = None
    grace_s: Seconds = 0.0
    ended_at: Seconds | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """The last that was seen of an address booting: `booted_at` is the last time that its boot began (dhcp, script)."""

    mac: str
    at: Seconds
    stage: str
    ip: str
    arch: str
    first_at: Seconds
    booted_at: Seconds = 0.0


@dataclass(frozen=True, slots=True)
class Record:
    """What is remembered of a machine: how often we woke it, how long its boots took, why it is kept out until when."""

    mac: str
    name: str = ""
    wakes: int = 0
    boots_s: tuple[Seconds, ...] = ()
    failures: int = 0
    quarantined_until: Seconds = 0.0
    why: str = ""


class Book:
    """The book of one pool, `rack/POOL.sqlite` in the fleet's state folder."""

    def __init__(self, state_dir: Path | str, pool: str) -> None:
        """Open or make it; raises FleetdError where that is impossible."""
        self.pool = pool
        self.path = Path(state_dir) / "rack" / f"{pool}.sqlite"
        self._turn = threading.Lock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._db = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(SCHEMA)
        except OSError as error:
            raise FleetdError(f"{self.path.parent}: cannot keep the rack's book here: {error.strerror}") from None
        except sqlite3.Error as error:
            self._db.close()
            raise FleetdError(f"{self.path}: {error}; move the file away to start a new book") from None

    def close(self) -> None:
        """Let go of the file; safe twice."""
        with self._turn:
            self._db.close()

    # ── wakes

    def wake(self, mac: str, key: str, app: str, now: Seconds, window_s: Seconds, *, name: str = "") -> Wake:
        """Begin a wake for an order; for `window_s` a token may be had for it. One that was under way is over."""
        mac = mac_text(mac)
        with self._change() as db:
            db.execute("INSERT OR IGNORE INTO machines (mac) VALUES (?)", (mac,))
            if name:
                db.execute("UPDATE machines SET name = ? WHERE mac = ?", (name, mac))
            db.execute("UPDATE machines SET wakes = wakes + 1 WHERE mac = ?", (mac,))
            number, known = db.execute("SELECT wakes, name FROM machines WHERE mac = ?", (mac,)).fetchone()
            _end(db, mac, "woken again", now)
            node = f"{self.pool}/{known or mac.replace(':', '')}.{number}"
            row = (mac, number, node, key, app, now, now + window_s)
            db.execute("INSERT INTO wakes (mac, number, node, key, app, at, until) VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            db.execute("DELETE FROM wakes WHERE mac = ? AND number <= ?", (mac, number - WAKES_KEPT))
            return _one(db, mac)

    def current(self, mac: str) -> Wake | None:
        """Return the wake of a machine that is not over."""
        return next(iter(self._wakes("mac = ? AND ended_at IS NULL", mac_text(mac))), None)

    def wakes(self) -> list[Wake]:
        """Return every wake that is not over."""
        return self._wakes("ended_at IS NULL")

    def history(self, since: Seconds) -> list[Wake]:
        """Return the wakes begun since then, those that are over included."""
        return self._wakes("at >= ?", since)

    def ended(self, since: Seconds) -> list[Wake]:
        """Return the wakes that were over since then."""
        return self._wakes("ended_at >= ?", since)

    def of(self, node: str) -> Wake | None:
        """Return the wake that a node's name means, over or not."""
        return next(iter(self._wakes("node = ?", node)), None)

    def sent(self, wake: Wake, now: Seconds) -> None:
        """Note that the machine was told to come on."""
        self._set(wake, "sent = sent + 1, sent_at = ?", now)

    def up(self, wake: Wake, now: Seconds) -> None:
        """Note its worker's first word: that is how long its boot took."""
        with self._change() as db:
            changed = db.execute(
                "UPDATE wakes SET up_at = ? WHERE node = ? AND up_at IS NULL AND ended_at IS NULL", (now, wake.node)
            ).rowcount
            if changed:
                (old,) = db.execute("SELECT boots_s FROM machines WHERE mac = ?", (wake.mac,)).fetchone()
                boots = [*json.loads(old), round(now - wake.at, 3)][-BOOTS_KEPT:]
                db.execute("UPDATE machines SET boots_s = ? WHERE mac = ?", (json.dumps(boots), wake.mac))

    def stopping(self, wake: Wake, now: Seconds, grace_s: Seconds) -> None:
        """Note that it was asked to go; asked again, the earlier end counts."""
        self._set(
            wake,
            "grace_s = CASE WHEN stop_at IS NULL THEN ?1 ELSE min(grace_s, ?2 - stop_at + ?1) END,"
            " stop_at = coalesce(stop_at, ?2)",
            grace_s,
            now,
        )

    def end(self, mac: str, reason: str, now: Seconds) -> bool:
        """End a machine's wake; False where there was none."""
        with self._change() as db:
            return _end(db, mac_text(mac), reason, now)

    # ── tokens

    def token(self, mac: str, now: Seconds) -> str | None:
        """Issue the token of the machine's wake, replacing one that was issued and not taken; None outside of a window.

        What asks again after its token was taken has booted again by itself: it gets none.
        """
        token = secrets.token_urlsafe(32)
        with self._change() as db:
            changed = db.execute(
                "UPDATE wakes SET token_sha256 = ? WHERE mac = ? AND ended_at IS NULL AND stop_at IS NULL"
                " AND used_at IS NULL AND at <= ? AND until >= ?",
                (_digest(token), mac_text(mac), now, now),
            ).rowcount
        return token if changed else None

    def redeem(self, token: str, now: Seconds) -> Wake:
        """Take a token, once, and return its wake; raises UsedError, UnknownError or LateError, and reports it."""
        problem: TokenError
        with self._change() as db:
            row = db.execute("SELECT * FROM wakes WHERE token_sha256 = ?", (_digest(token),)).fetchone()
            wake = Wake(**row) if row else None
            match wake:
                case None:
                    problem = UnknownError(f"{self.pool}: a token that was never issued, or was replaced, was refused")
                case Wake(used_at=float() as used_at):
                    ago = f"{max(0.0, now - used_at):.0f} s after its first use"
                    problem = UsedError(f"{wake.node}: its token was used a second time, {ago}: refused")
                case _ if wake.ended_at is not None or now > wake.until:
                    why = f"its wake is over: {wake.reason}" if wake.ended_at is not None else "its window is over"
                    problem = LateError(f"{wake.node}: its token came too late and was refused: {why}")
                case _:
                    db.execute("UPDATE wakes SET used_at = ? WHERE node = ?", (now, wake.node))
                    return _one(db, wake.mac)
            _report(db, str(problem), now)
        raise problem

    # ── what was seen

    def see(self, mac: str, stage: Stage, ip: str, arch: str, now: Seconds) -> None:
        """Note how far an address is in its boot; unknown ones, too."""
        booted = now if stage in ("dhcp", "script") else 0.0
        with self._change() as db:
            db.execute(
                "INSERT INTO sightings (mac, at, stage, ip, arch, first_at, booted_at) VALUES (?, ?, ?, ?, ?, ?, ?)"
                " ON CONFLICT (mac) DO UPDATE SET at = excluded.at, stage = excluded.stage,"
                " ip = CASE excluded.ip WHEN '' THEN ip ELSE excluded.ip END,"
                " arch = CASE excluded.arch WHEN '' THEN arch ELSE excluded.arch END,"
                " booted_at = max(booted_at, excluded.booted_at)",
                (mac_text(mac), now, stage, ip, arch, now, booted),
            )
            db.execute(
                "DELETE FROM sightings WHERE mac IN (SELECT mac FROM sightings WHERE mac NOT IN"
                " (SELECT mac FROM machines UNION SELECT mac FROM admitted) ORDER BY at DESC LIMIT -1 OFFSET ?)",
                (PENDING_KEPT,),
            )

    def sightings(self) -> dict[str, Seen]:
        """Return the last that was seen of every address."""
        return {row["mac"]: Seen(**row) for row in self._read("SELECT * FROM sightings")}

    def pending(self) -> list[Seen]:
        """Return the addresses that were seen, and are of no machine that we know; the latest first."""
        known = "SELECT mac FROM machines WHERE name <> '' UNION SELECT mac FROM admitted"
        return [
            Seen(**r)
            for r in self._read(f"SELECT * FROM sightings WHERE mac NOT IN ({known}) ORDER BY at DESC")  # noqa: S608 - constants
        ]

    # ── who belongs

    def know(self, names: dict[str, str]) -> None:
        """Take in the machines of the inventory, name by address; what it no longer has loses its name."""
        given = {mac_text(mac): name for mac, name in names.items()}
        with self._change() as db:
            gone = "UPDATE machines SET name = '' WHERE mac NOT IN (SELECT value FROM json_each(?))"
            db.execute(gone, (json.dumps(list(given)),))
            db.executemany(
                "INSERT INTO machines (mac, name) VALUES (?, ?) ON CONFLICT (mac) DO UPDATE SET name = excluded.name",
                list(given.items()),
            )

    def admit(self, mac: str, name: str, by: str = "", now: Seconds = 0.0) -> None:
        """Let an address boot, by a name; raises FleetdError where another machine has that name."""
        mac = mac_text(mac)
        with self._change() as db:
            other = db.execute(
                "SELECT mac FROM machines WHERE name = ?1 AND mac <> ?2"
                " UNION SELECT mac FROM admitted WHERE name = ?1 AND mac <> ?2",
                (name, mac),
            ).fetchone()
            if other:
                raise FleetdError(f"{self.pool}: {name} is {other[0]} already; give {mac} another --name")
            db.execute(
                "INSERT INTO admitted (mac, name, by, at) VALUES (?, ?, ?, ?)"
                " ON CONFLICT (mac) DO UPDATE SET name = excluded.name, by = excluded.by",
                (mac, name, by, now),
            )

    def admitted(self) -> dict[str, str]:
        """Return the names of the machines that were admitted by command, by address."""
        return {row["mac"]: row["name"] for row in self._read("SELECT mac, name FROM admitted")}

    def forget(self, mac: str) -> bool:
        """Take an admission back, and drop what was seen of the address; False where nothing was known."""
        mac = mac_text(mac)
        with self._change() as db:
            admitted = db.execute("DELETE FROM admitted WHERE mac = ?", (mac,)).rowcount
            seen = db.execute("DELETE FROM sightings WHERE mac = ?", (mac,)).rowcount
            return bool(admitted or seen)

    # ── how machines fare

    def records(self) -> dict[str, Record]:
        """Return what is remembered of every machine."""
        rows = self._read("SELECT * FROM machines")
        return {row["mac"]: Record(**{**row, "boots_s": tuple(json.loads(row["boots_s"]))}) for row in map(dict, rows)}

    def failed(self, mac: str, why: str, until: Seconds) -> None:
        """Count a failure of a machine, and keep it out until then."""
        with self._change() as db:
            db.execute("INSERT OR IGNORE INTO machines (mac) VALUES (?)", (mac_text(mac),))
            change = "UPDATE machines SET failures = failures + 1, quarantined_until = ?, why = ? WHERE mac = ?"
            db.execute(change, (until, why, mac_text(mac)))

    def free(self, mac: str) -> bool:
        """Forget a machine's failures; False where there were none."""
        change = "UPDATE machines SET failures = 0, quarantined_until = 0, why = '' WHERE mac = ? AND failures > 0"
        with self._change() as db:
            return bool(db.execute(change, (mac_text(mac),)).rowcount)

    # ── what is to be told

    def report(self, text: str, now: Seconds) -> None:
        """Leave word for the journal."""
        with self._change() as db:
            _report(db, text, now)

    def reports(self, after: int = 0) -> list[tuple[int, Seconds, str]]:
        """Return what was left for the journal after that number: number, time, sentence."""
        return [(r["seq"], r["at"], r["text"]) for r in self._read("SELECT * FROM reports WHERE seq > ?", after)]

    def news(self) -> list[str]:
        """Return what nobody was told yet, each once."""
        if not self._read("SELECT 1 FROM reports WHERE told = 0 LIMIT 1"):
            return []
        with self._change() as db:
            rows = db.execute("UPDATE reports SET told = 1 WHERE told = 0 RETURNING seq, text").fetchall()
        return [row["text"] for row in sorted(rows, key=lambda row: int(row["seq"]))]

    # ── the file

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self._turn:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                except BaseException:
                    self._db.execute("ROLLBACK")
                    raise
                self._db.execute("COMMIT")
            except sqlite3.Error as error:
                raise FleetdError(f"{self.path}: {error}") from None

    def _read(self, query: str, *values: Any) -> Sequence[Any]:
        with self._turn:
            try:
                return self._db.execute(query, values).fetchall()
            except sqlite3.Error as error:
                raise FleetdError(f"{self.path}: {error}") from None

    def _wakes(self, where: str, *values: Any) -> list[Wake]:
        return [Wake(**row) for row in self._read(f"SELECT * FROM wakes WHERE {where} ORDER BY at, mac", *values)]  # noqa: S608 - ours

    def _set(self, wake: Wake, change: str, *values: Any) -> None:
        place = f"?{len(values) + 1}" if "?1" in change else "?"
        with self._change() as db:
            db.execute(f"UPDATE wakes SET {change} WHERE node = {place}", (*values, wake.node))  # noqa: S608 - ours


def _end(db: sqlite3.Connection, mac: str, reason: str, now: Seconds) -> bool:
    change = "UPDATE wakes SET ended_at = ?, reason = ? WHERE mac = ? AND ended_at IS NULL"
    return bool(db.execute(change, (now, reason, mac)).rowcount)


def _one(db: sqlite3.Connection, mac: str) -> Wake:
    return Wake(**db.execute("SELECT * FROM wakes WHERE mac = ? AND ended_at IS NULL", (mac,)).fetchone())


def _report(db: sqlite3.Connection, text: str, now: Seconds) -> None:
    seq = db.execute("INSERT INTO reports (at, text) VALUES (?, ?)", (now, text)).lastrowid or 0
    db.execute("DELETE FROM reports WHERE seq <= ?", (seq - REPORTS_KEPT,))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
