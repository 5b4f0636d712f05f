"""Traces: the jobs of a simulation, and the history before them, read from CSV files.

Promises: what is returned is in order, finite and not empty; anything else is one line that names the file and the
row, counted as an editor counts lines (the header is row 1).
"""

import csv
import gzip
import zlib
from array import array
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf, isfinite
from pathlib import Path
from typing import IO, Any, Final, cast

from fleetd.core.model import Seconds
from fleetd.errors import UsageError

JOBS: Final = ("submitted_s", "service_s")
HISTORY: Final = ("start_s", "arrivals")
SHOWN: Final = 40  # characters of a wrong value that are repeated


@dataclass(frozen=True, slots=True)
class Trace:
    """Jobs of one queue in the order of their submission: seconds from the start, and of work on one slot."""

    submitted_s: "array[float]"
    service_s: "array[float]"


@dataclass(frozen=True, slots=True)
class History:
    """Arrivals before the start: (start_s, how many) for every `step_s`; the starts are negative."""

    step_s: Seconds
    rows: tuple[tuple[Seconds, int], ...]


def load_trace(path: Path | str, queues: Collection[str]) -> dict[str, Trace]:
    """Read jobs by queue. Without a `queue` column there must be exactly one queue. Raises UsageError."""
    traces: dict[str, Trace] = {}
    with _rows(path, JOBS, ("queue",)) as (columns, rows):
        if "queue" not in columns and len(queues) != 1:
            raise UsageError(
                f"{path}: row 1: the policy has {len(queues)} queues: add a column `queue` with their names"
            )
        at, took, name = columns["submitted_s"], columns["service_s"], columns.get("queue")
        only = next(iter(queues), "")
        for number, row in rows:
            queue = only if name is None else row[name]
            trace = traces.get(queue)
            if trace is None:
                if queue not in queues:
                    known = ", ".join(sorted(queues))
                    raise UsageError(f"{path}: row {number}: queue: {_shown(queue)} is not in the policy ({known})")
                trace = traces[queue] = Trace(array("d"), array("d"))
            try:
                submitted_s, service_s = float(row[at]), float(row[took])
            except ValueError:
                submitted_s = service_s = -1.0
            last_s = trace.submitted_s[-1] if trace.submitted_s else 0.0
            if not (last_s <= submitted_s < inf and 0.0 <= service_s < inf):
                raise UsageError(f"{path}: row {number}: {_fault(row[at], row[took], last_s)}")
            trace.submitted_s.append(submitted_s)
            trace.service_s.append(service_s)
    if not traces:
        raise UsageError(f"{path}: row 1: there are no jobs after it")
    return traces


def load_history(path: Path | str) -> History:
    """Read the arrivals before the start, in steps of equal length. Raises UsageError."""
    result: list[tuple[Seconds, int]] = []
    step_s = 0.0
    with _rows(path, HISTORY, ()) as (columns, rows):
        for number, row in rows:
            place = f"{path}: row {number}"
            start_s = _number(row[columns["start_s"]], f"{place}: start_s")
            arrivals = _number(row[columns["arrivals"]], f"{place}: arrivals")
            if arrivals < 0 or arrivals != int(arrivals):
                raise UsageError(f"{place}: arrivals: {arrivals:g} is not a count")
            if start_s >= 0:
                raise UsageError(f"{place}: start_s: {start_s:g} is not before the start, which is 0")
            gap_s = start_s - result[-1][0] if result else -start_s
            if gap_s <= 0:
                raise UsageError(f"{place}: start_s: {start_s:g} is not after the row before ({result[-1][0]:g})")
            if len(result) > 1 and abs(gap_s - step_s) > 1e-6 * step_s:
                raise UsageError(f"{place}: start_s: the step is {gap_s:g} s, before it was {step_s:g} s")
            step_s = gap_s
            result.append((start_s, int(arrivals)))
    if not result:
        raise UsageError(f"{path}: row 1: there is no history after it")
    return History(step_s, tuple(result))


# ── files

Rows = tuple[Mapping[str, int], Iterator[tuple[int, list[str]]]]


@contextmanager
def _rows(path: Path | str, needed: Sequence[str], more: Sequence[str]) -> Iterator[Rows]:
    """Give the columns by name and the rows with their numbers; what a file can have wrong becomes a UsageError."""
    reader = None
    try:
        with _open(Path(path)) as file:
            reader = csv.reader(map(bytes.decode, file))  # line by line, so that a fault is found in its own row
            header = [name.strip("\ufeff ") for name in next(reader, [])]
            if not set(needed) <= set(header) <= {*needed, *more} or len(set(header)) < len(header):
                wanted = ",".join(needed) + "".join(f"[,{name}]" for name in more)
                raise UsageError(f"{path}: row 1: the header is to be {wanted}, it is {_shown(','.join(header))}")
            yield {name: place for place, name in enumerate(header)}, _numbered(path, reader, len(header))
    except (EOFError, gzip.BadGzipFile, zlib.error, UnicodeDecodeError, csv.Error) as error:
        row = reader.line_num + (not isinstance(error, csv.Error)) if reader else 1
        what = "not text in UTF-8" if isinstance(error, UnicodeDecodeError) else "cut off or damaged here"
        raise UsageError(f"{path}: row {row}: the file is {what} ({error})") from None
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror or error}") from None


def _open(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # whatever its name is
    return cast("IO[bytes]", gzip.open(path)) if packed else path.open("rb")


def _numbered(path: Path | str, reader: Any, width: int) -> Iterator[tuple[int, list[str]]]:
    for row in reader:
        if len(row) == width:
            yield reader.line_num, row
        elif row:  # an empty line is no row
            said = f"has {len(row)} values and not {width}: the file is cut off or damaged here"
            raise UsageError(f"{path}: row {reader.line_num}: {said}")


# ── faults


def _fault(submitted: str, service: str, last_s: Seconds) -> str:
    """Say in words what is wrong with a job's row."""
    for name, text in zip(JOBS, (submitted, service), strict=True):
        value = _float(text)
        if value is None:
            return f"{name}: {_shown(text)} is not a number"
        if not isfinite(value):
            return f"{name}: {_shown(text)} is not finite"
        if value < 0:
            return f"{name}: {value:g} is negative"
    return f"submitted_s: {submitted.strip()} is before the row above it ({last_s:g}): sort the file by submitted_s"


def _number(text: str, place: str) -> float:
    value = _float(text)
    if value is None or not isfinite(value):
        raise UsageError(f"{place}: {_shown(text)} is not a {'finite ' if value is not None else ''}number")
    return value


def _float(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _shown(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")
