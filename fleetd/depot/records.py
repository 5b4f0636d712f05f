"""How jobs ended, for those who ask later; and the wish that one be ended before.

Promises: a job's end is on the disk before its dispatcher hears of it; it is kept until it expires, and told then as
unknown. What waits to be told to a webhook is part of the record, so that no restart forgets it.
"""

import base64
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from fleetd.codecs.lease import DeadLetter
from fleetd.codecs.reference import Reference, blob_id, make_reference, result_key
from fleetd.depot.depot import Depot
from fleetd.depot.faults import AbsentError, FullError
from fleetd.errors import UsageError
from fleetd.releases.stores import MissingError

RECORD: Final = ".job"
MOST_RECORDS: Final = 200_000
State = Literal["waiting", "done", "failed", "cancelled"]


@dataclass(frozen=True, slots=True)
class Record:
    """One job that somebody will ask for. `result` is base64; `tell`: the URL that its end is to be posted to."""

    function: str
    unique: str
    expires_at: int
    state: State = "waiting"
    cancel: bool = False
    result: str = ""
    reference: dict[str, Any] | None = None
    reason: str = ""
    tell: str = ""
    told: bool = False
    ended_at: int = 0


@dataclass(frozen=True, slots=True)
class Wanted:
    """A job that is about to be submitted."""

    function: str
    unique: str


class Records:
    """The records of a depot. All functions block."""

    def __init__(self, depot: Depot) -> None:
        self.depot = depot
        self._known: dict[str, tuple[int, bool]] | None = None  # by key: when it expires, and whether it is to be told

    def open(self, jobs: Iterable[Wanted], keep_s: float | None, tell: str) -> int:
        """Note jobs before they are submitted; returns until when. Raises UsageError, FullError."""
        depot = self.depot
        if tell and not allowed(tell, depot.files.webhooks):
            raise UsageError(f"webhook {tell!r:.100}: is none of files.webhooks in the policy")
        until = int(depot.clock() + min(keep_s or depot.files.keep_s, depot.files.longest_s)) + 1
        for job in jobs:
            key = result_key(job.function, job.unique)
            with depot.lock:
                if len(self.index()) >= MOST_RECORDS and key not in self.index():
                    raise FullError(f"files: {MOST_RECORDS} jobs are kept already; wait until some expire")
                self._write(key, Record(job.function, job.unique, until, tell=tell), sure=False)
        return until

    def find(self, key: str) -> Record:
        """Return a record; raises AbsentError."""
        with self.depot.lock:
            known = self.index().get(key)
            if known is not None and known[0] > self.depot.clock():
                try:
                    return Record(**json.loads(self.depot.room.read(key + RECORD)))
                except MissingError:
                    pass
        raise AbsentError(f"job {key[:12]}: nothing is kept of it: it was submitted without keep_s, or long ago")

    def end(self, job: Wanted, state: State, result: bytes | Reference, reason: str = "") -> Record:
        """Note how a job ended, also one whose opening was forgotten by a crash of the machine."""
        depot, key = self.depot, result_key(job.function, job.unique)
        with depot.lock:
            try:
                record = self.find(key)
            except AbsentError:
                record = Record(job.function, job.unique, int(depot.clock() + depot.files.keep_s))
            ended = replace(record, state=state, reason=reason[:2000], ended_at=int(self.depot.clock()))
            if isinstance(result, Reference):
                depot.keep(blob_id(result), record.expires_at)
                result = replace(result, expires_at=max(result.expires_at, record.expires_at))
                ended = replace(ended, reference=asdict(result), result="")
            else:
                ended = replace(ended, reference=None, result=base64.b64encode(result).decode())
            self._write(key, ended)
        return ended

    def cancel(self, key: str) -> Record:
        """Note that nobody wants the job any more: its function can see it."""
        with self.depot.lock:
            record = self.find(key)
            if record.state == "waiting":
                record = replace(record, cancel=True)
                self._write(key, record)
        return record

    def buried(self, letters: Sequence[DeadLetter]) -> None:
        """Note that jobs used up their attempts, whatever ended them."""
        for letter in letters:
            key = result_key(letter.function, letter.unique)
            with self.depot.lock:
                try:
                    if self.find(key).state == "waiting":
                        self.end(Wanted(letter.function, letter.unique), "failed", b"", letter.reason)
                except AbsentError:
                    continue

    def untold(self) -> list[str]:
        """Return the keys of jobs that ended and whose webhook has not heard of it."""
        with self.depot.lock:
            return [key for key, (_, untold) in self.index().items() if untold]

    def told(self, key: str) -> None:
        """Note that a webhook has heard of a job, or never will."""
        with self.depot.lock:
            self._write(key, replace(self.find(key), told=True))

    def sweep(self) -> int:
        """Remove what has expired; return how many."""
        with self.depot.lock:
            now = self.depot.clock()
            old = [key for key, (until, _) in self.index().items() if until <= now]
            for key in old:
                self.depot.room.delete(key + RECORD)
                del self.index()[key]
        return len(old)

    def index(self) -> dict[str, tuple[int, bool]]:
        """Return what is there, read once."""
        if self._known is None:
            room, known = self.depot.room, {}
            for name in room.names():
                if name.endswith(RECORD):
                    record = Record(**json.loads(room.read(name)))
                    known[name.removesuffix(RECORD)] = _entry(record)
            self._known = known
        return self._known

    def _write(self, key: str, record: Record, *, sure: bool = True) -> None:
        self.depot.room.write(key + RECORD, json.dumps(asdict(record)).encode(), sure=sure)
        self.index()[key] = _entry(record)


def reference_of(record: Record) -> Reference | None:
    """Return the reference of a large result."""
    return None if record.reference is None else make_reference(record.reference)


def allowed(url: str, prefixes: Sequence[str]) -> bool:
    """Whether a URL begins with one of these: the same scheme, host and port, and a path below."""
    try:
        one = urlsplit(url)
        clean = one.scheme in ("http", "https") and bool(one.hostname) and "@" not in one.netloc and one.port != 0
    except ValueError:
        return False
    if not clean or ".." in one.path or "\\" in url or "%" in one.path or not url.isascii() or not url.isprintable():
        return False
    return any(_below(url, prefix) for prefix in prefixes)


def _below(url: str, prefix: str) -> bool:
    one, other = urlsplit(url), urlsplit(prefix)
    same = (one.scheme, one.hostname, one.port) == (other.scheme, other.hostname, other.port)
    return same and f"{one.path}/".startswith(f"{other.path.rstrip('/')}/")


def _entry(record: Record) -> tuple[int, bool]:
    return record.expires_at, bool(record.tell) and record.state != "waiting" and not record.told
