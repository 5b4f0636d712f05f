"""The shared cell: what a slot is doing, in memory that outlives it, and what its supervisor wants of it.

A memfd mapped by both. Its layout, in 8-byte words unless told:

    page 0      order (the supervisor's) · acknowledged order · state · sequence · last end · then the job's record
    counters    one row of 128 words for each function: started, done, failed, seconds, buckets
    payload     the running job's payload; a large one lies beyond the mapping, written with pwrite

Promises: one writer for each word; the state word is written last at a start, and first and last at an end, each an
aligned store, so that a slot killed at any instant leaves a reading that is true: BUSY is a job whose code was running
and whose record and payload are whole; ANSWERING is a job that had ended; IDLE is none. No system call for a job
whose payload is up to `INLINE` bytes.
"""

import mmap
import os
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from math import log2
from struct import Struct
from typing import Final

from fleetd.codecs.gearman import MAX_UNIQUE
from fleetd.codecs.lease import JobCounts

INLINE: Final = 16 * 1024
_PAGE: Final = 4096
_ORDER, _ACK, _STATE, _SEQ, _LAST_END = range(5)
_RECORD_AT: Final = 64
_RECORD: Final = Struct(f"=ddIIHHQ256s{MAX_UNIQUE}s")  # start, limit, row, link, two lengths, payload, handle, unique
_ROW: Final = 128
_STARTED, _DONE, _FAILED, _SECONDS, _BUCKETS = range(5)
_LAST_BUCKET: Final = _ROW - _BUCKETS - 1  # about three weeks


class Want(IntEnum):
    """What the supervisor wants of a slot."""

    WORK = 0
    FENCE = 1  # take nothing new, stay
    STOP = 2  # take nothing new, then end


class State(IntEnum):
    """What a slot is doing."""

    IDLE = 0
    BUSY = 1
    ANSWERING = 2


@dataclass(frozen=True, slots=True)
class Running:
    """The job in a slot. `limit_s` 0 is unlimited; `link` is the index of its dispatcher; `seq` tells jobs apart."""

    seq: int
    start: float
    limit_s: float
    row: int
    link: int
    handle: bytes
    unique: bytes


class Cell:
    """The mapping. `fd` is handed to the slot's process; both sides make their own `Cell` of it."""

    def __init__(self, fd: int, rows: int) -> None:
        self.fd = fd
        self.rows = rows
        self._payload = _PAGE + -(-rows * _ROW * 8 // _PAGE) * _PAGE
        self._size = self._payload + INLINE
        if os.fstat(fd).st_size < self._size:
            os.ftruncate(fd, self._size)
        self._map = mmap.mmap(fd, self._size)
        self._words = memoryview(self._map).cast("Q")
        self._doubles = memoryview(self._map).cast("d")
        self._row = 0
        self._large = False

    # ── the supervisor's side

    def want(self, number: int, want: Want) -> None:
        """Tell the slot what to do; `number` grows with each word."""
        self._words[_ORDER] = number << 2 | want

    @property
    def acknowledged(self) -> int:
        """The newest order of which the slot says that it takes nothing and runs nothing."""
        return self._words[_ACK]

    @property
    def state(self) -> State:
        """What the slot is doing, or was when it died."""
        return State(self._words[_STATE])

    @property
    def last_end(self) -> float:
        """When the slot's last job ended, by the monotonic clock; 0 before the first."""
        return self._doubles[_LAST_END]

    def running(self) -> Running | None:
        """Return the running job, or None: idle, or just changing."""
        seq = self._words[_SEQ]
        if self._words[_STATE] != State.BUSY:
            return None
        start, limit_s, row, link, handle, unique, _, *texts = _RECORD.unpack_from(self._map, _RECORD_AT)
        if self._words[_SEQ] != seq or self._words[_STATE] != State.BUSY:
            return None
        return Running(seq, start, limit_s, row, link, texts[0][:handle], texts[1][:unique])

    def payload(self) -> bytes:
        """Return the payload of the job that a dead slot was running."""
        size = _RECORD.unpack_from(self._map, _RECORD_AT)[6]
        return os.pread(self.fd, size, self._payload)

    def counts(self, row: int) -> JobCounts:
        """Return what this slot did of one function."""
        base = self._base(row)
        started, done, failed = self._words[base : base + 3]
        buckets = self._words[base + _BUCKETS : base + _ROW].tolist()
        found = {str(bucket): count for bucket, count in enumerate(buckets) if count}
        return JobCounts(started, done, failed, self._doubles[base + _SECONDS], found)

    # ── the slot's side

    def order(self) -> tuple[int, Want]:
        """Return the number and the newest word of the supervisor."""
        word = self._words[_ORDER]
        return word >> 2, Want(word & 3)

    def may_grab(self) -> bool:
        """Whether the newest word is to work. For every job, so it makes no tuple."""
        return self._words[_ORDER] & 3 == 0

    def acknowledge(self, number: int) -> None:
        """Say that nothing runs and nothing is taken under this order."""
        self._words[_ACK] = number

    def begin(  # noqa: PLR0917 - once for every job, and keywords cost
        self, row: int, link: int, names: tuple[bytes, bytes], payload: bytes, start: float, limit_s: float
    ) -> None:
        """Write down the job that is about to run; `names` are its handle and its unique."""
        handle, unique = names
        size = len(payload)
        if size <= INLINE:
            self._map[self._payload : self._payload + size] = payload
        else:
            size = self._write_large(payload)
        _RECORD.pack_into(
            self._map, _RECORD_AT, start, limit_s, row, link, len(handle), len(unique), size, handle, unique
        )
        self._row = base = self._base(row)
        words = self._words
        words[_SEQ] += 1
        words[base] += 1
        words[_STATE] = State.BUSY

    def answering(self) -> None:
        """Say that the job's code has ended: what kills the slot from here on is not the job's doing."""
        self._words[_STATE] = State.ANSWERING

    def end(self, start: float, now: float, *, done: bool) -> None:
        """Count the job that ended."""
        base, seconds = self._row, now - start
        milliseconds = seconds * 1000
        bucket = min(int(4 * log2(milliseconds)), _LAST_BUCKET) if milliseconds > 1 else 0
        words = self._words
        self._doubles[base + _SECONDS] += seconds
        words[base + _BUCKETS + bucket] += 1
        words[base + (_DONE if done else _FAILED)] += 1
        self._doubles[_LAST_END] = now
        words[_STATE] = State.IDLE
        if self._large:
            self._large = False
            os.ftruncate(self.fd, self._size)

    def close(self) -> None:
        """Give the mapping and its memory back. Safe twice."""
        self._words.release()
        self._doubles.release()
        self._map.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _base(self, row: int) -> int:
        return _PAGE // 8 + row * _ROW

    def _write_large(self, payload: bytes) -> int:
        """Write beyond the mapping. Without the memory for it the job runs, and only a dead letter would lack it."""
        self._large = True
        with suppress(OSError):
            return os.pwrite(self.fd, payload, self._payload)
        return 0


def make_cell(rows: int) -> Cell:
    """Return a new cell, all zero."""
    return Cell(os.memfd_create("fleetd-cell", os.MFD_CLOEXEC), rows)
