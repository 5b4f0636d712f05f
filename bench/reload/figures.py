"""What the ledger and the sender's list say: how many, how fast, how long they waited, by which release.

Promises: figures come from these two files alone; no runtime's own word is asked. Knows nothing of fleetd.
"""

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from bench.ledger import Verdict, check


class Run(NamedTuple):
    """One line of the ledger: one run of a job."""

    unique: str
    pid: str
    due: float
    started: float
    release: int


class Sent(NamedTuple):
    """One job that the broker has confirmed."""

    unique: str
    due: float
    sent: float


@dataclass(frozen=True, slots=True)
class Waits:
    """Of so many runs, the seconds from the moment that a job was due to its start."""

    count: int
    p50: float
    p99: float
    most: float

    def __str__(self) -> str:
        """In milliseconds, for people."""
        return f"p50 {self.p50 * 1000:.1f} ms, p99 {self.p99 * 1000:.1f} ms, max {self.most * 1000:.0f} ms"


def read_runs(ledger: Path) -> list[Run]:
    """Read the ledger; a line that is just being written is left for the next time."""
    if not ledger.exists():
        return []
    rows = (line.split() for line in ledger.read_text().split("\n")[:-1])
    return [Run(unique, pid, float(due), float(started), int(release)) for unique, pid, due, started, release in rows]


def read_sent(file: Path) -> list[Sent]:
    """Read what the sender noted."""
    rows = (line.split() for line in file.read_text().split("\n")[:-1])
    return [Sent(unique, float(due), float(sent)) for unique, due, sent in rows]


def judge(sent: Sequence[Sent], runs: Sequence[Run], killed: Sequence[int] = ()) -> Verdict:
    """Compare the two by the checker of all campaigns."""
    return check([one.unique for one in sent], [f"{one.unique} {one.pid}" for one in runs], list(map(str, killed)))


def waits(runs: Sequence[Run], apart: Container[str] = ()) -> Waits:
    """Return how long the jobs waited; those in `apart` (let run again by an operator, later) are not among them."""
    found = sorted(one.started - one.due for one in runs if one.unique not in apart)
    if not found:
        return Waits(0, 0.0, 0.0, 0.0)
    return Waits(len(found), _quantile(found, 0.5), _quantile(found, 0.99), found[-1])


def _quantile(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


def rate(runs: Sequence[Run], warm_up: float = 0.1) -> float:
    """Return the starts a second of a queue that was full all the time; its first tenth and its end are not counted."""
    at = sorted(one.started for one in runs)
    first, last = int(len(at) * warm_up), int(len(at) * 0.95)
    if last - first < 2:
        raise ValueError(f"{len(at)} runs are too few to be measured")
    return (last - first) / (at[last] - at[first])


def kept_up(sent: Sequence[Sent], runs: Sequence[Run]) -> float:
    """Return the share of jobs that had started by the time that the last one was due."""
    end = max(one.due for one in sent)
    return len({one.unique for one in runs if one.started <= end}) / len(sent)


def lag(sent: Sequence[Sent]) -> Waits:
    """Return how late the sender itself was, confirmation included."""
    found = sorted(one.sent - one.due for one in sent)
    return Waits(len(found), _quantile(found, 0.5), _quantile(found, 0.99), found[-1])


def by_release(runs: Sequence[Run]) -> dict[int, int]:
    """Return how many runs each release had."""
    return dict(sorted(Counter(one.release for one in runs).items()))


def stillness(runs: Sequence[Run], begin: float, end: float) -> float:
    """Return the longest time within the span in which no job started: how long a swap stopped all work."""
    at = sorted(one.started for one in runs)
    within = [begin, *at[bisect_left(at, begin) : bisect_right(at, end)], end]
    return max(later - earlier for earlier, later in pairwise(within))
