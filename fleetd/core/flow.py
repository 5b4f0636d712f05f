"""How jobs flow through a queue: how fast they come, how long the waiting have waited, how many were late.

Arrivals are starts plus the growth of the waiting. Jobs start in the order of their coming, so the horizontal distance
between the curves of arrivals and of starts is the wait, to about a tick: no payload is opened and no clock trusted.
"""

from bisect import bisect_right
from dataclasses import dataclass, replace
from math import inf, sqrt
from typing import Final

from fleetd.core.model import Seconds

WINDOWS_S: Final = (30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0, 10800.0)
ENOUGH: Final = 1500  # arrivals tell enough: a longer window would only lag
APART_S: Final = ((300.0, 5.0), (2400.0, 60.0), (21600.0, 600.0))  # marks up to this age are this far apart
MARKS: Final = 200
CONSISTENT: Final = 3.5  # standard deviations that a shorter window may be off
MOST_BATCHES: Final = 100
BATCHES: Final = 30  # an objective's wait is told apart in so many steps

Batches = tuple[tuple[Seconds, int], ...]


@dataclass(frozen=True, slots=True)
class Flow:
    """The two curves of one queue, as far back as they matter.

    `begun_at`: when it was first read. `marks`: (when, arrivals counted until then), rising. `waiting`: (came at, how
    many) of those that wait, oldest first; the oldest `overdue` of them have been judged late already.
    """

    begun_at: Seconds | None = None
    came: int = 0
    marks: Batches = ()
    waiting: Batches = ()
    overdue: int = 0


@dataclass(frozen=True, slots=True)
class Rate:
    """Arrivals per second, with the standard deviation of the estimate, over the window that it was taken from."""

    per_s: float = 0.0
    sd: float = 0.0
    window_s: Seconds = 0.0
    slope: float = 0.0  # per second and second, where it is significant


def follow(
    flow: Flow, arrived: int, started: int, *, wait_s: Seconds, since: Seconds, now: Seconds
) -> tuple[Flow, int, float]:
    """Return the flow after `arrived` came and `started` left the queue, and how many were judged, and judged late.

    `since`: when the last look was; what came in between is taken to have come in the middle. A job is judged when it
    starts, or as soon as it has waited longer than `wait_s`; one that starts about then is late in part, since when it
    came and when it started are known to a look.
    """
    step_s = now - since
    middle = since + 0.5 * step_s
    waiting = list(flow.waiting)
    if arrived > 0:
        if waiting and middle - waiting[-1][0] < wait_s / BATCHES:
            waiting[-1] = (waiting[-1][0], waiting[-1][1] + arrived)
        else:
            waiting.append((middle, arrived))
    judged, late, overdue = 0, 0.0, flow.overdue
    leaving = started + max(0, -arrived)
    while leaving > 0 and waiting:
        at, count = waiting[0]
        gone = min(leaving, count)
        leaving -= gone
        known = min(gone, overdue)
        overdue -= known
        if gone > known:
            judged += gone - known
            late += (gone - known) * min(1.0, max(0.0, 0.5 + (middle - at - wait_s) / step_s))
        if gone == count:
            del waiting[0]
        else:
            waiting[0] = (at, count - gone)
    past = 0
    for at, count in waiting:
        if now - at <= wait_s:
            break
        past += count
    if past > overdue:
        judged += past - overdue
        late += past - overdue
        overdue = past
    came = flow.came + arrived
    if len(waiting) > MOST_BATCHES:
        waiting = _together(waiting, wait_s, now)
    after = Flow(flow.begun_at, came, _mark(flow.marks, came, now), tuple(waiting), overdue)
    return after, judged, late


def settle(flow: Flow, waiting: int, oldest_s: Seconds | None, now: Seconds) -> Flow:
    """Return the flow of a queue seen for the first time: who waits has waited as long as its oldest, where known."""
    at = now - (oldest_s or 0.0)
    begun = ((at, waiting),) if waiting else ()
    return replace(flow, begun_at=now, waiting=begun, marks=((now, flow.came),), overdue=0)


def spread(flow: Flow, unseen: int, read_at: Seconds, since: Seconds) -> Flow:
    """Return the flow of a queue that could not be read from `read_at` to `since`, and whose waiting grew meanwhile.

    The growth is told only now, but came in all that time: the marks of that time are raised by their share of it.
    """
    if since <= read_at or unseen <= 0:
        return flow
    marks = tuple(
        (at, count + round(unseen * (at - read_at) / (since - read_at)) if at > read_at else count)
        for at, count in flow.marks
    )
    return replace(flow, marks=marks)


def _together(waiting: list[tuple[Seconds, int]], wait_s: Seconds, now: Seconds) -> list[tuple[Seconds, int]]:
    """Put batches together that are late in any case: the older, the coarser."""
    kept: list[tuple[Seconds, int]] = []
    for at, count in waiting:
        if kept and now - at > wait_s and at - kept[-1][0] < 0.1 * (now - at):
            kept[-1] = (kept[-1][0], kept[-1][1] + count)
        else:
            kept.append((at, count))
    return kept


def _mark(marks: Batches, came: int, now: Seconds) -> Batches:
    if marks and now - marks[-1][0] < APART_S[0][1]:
        return marks
    if len(marks) < MARKS:  # thinning out may wait
        return (*marks, (now, came))
    kept: list[tuple[Seconds, int]] = []
    for at, count in marks:
        apart_s = next((apart for age, apart in APART_S if now - at <= age), inf)
        if not kept or at - kept[-1][0] >= 0.999 * apart_s:
            kept.append((at, count))
    while len(kept) > 1 and now - kept[1][0] > APART_S[-1][0]:
        del kept[0]
    return (*kept, (now, came))


def came_since(flow: Flow, at: Seconds) -> tuple[int, Seconds]:
    """Return how many came since a moment, and the moment that they could be counted from."""
    if not flow.marks:
        return 0, at
    index = max(0, bisect_right(flow.marks, (at, flow.came + 1)) - 1)
    begun, count = flow.marks[index]
    return flow.came - count, begun


def rate(flow: Flow, now: Seconds) -> Rate:
    """Return the rate over the longest window that all shorter ones are consistent with, by Poisson's deviation."""
    counts: list[tuple[int, Seconds]] = []
    per_s, deviation, window_s = 0.0, 0.0, 0.0
    for wanted_s in WINDOWS_S:
        count, begun = came_since(flow, now - wanted_s)
        span_s = now - begun
        if span_s <= 0.0:
            break
        guess = max(0, count) / span_s
        if not _consistent(counts, guess):
            break
        per_s, deviation, window_s = guess, sqrt(max(count, 1)) / span_s, span_s
        if span_s < 0.9 * wanted_s or count > ENOUGH:
            break
        counts.append((count, span_s))
    return Rate(per_s, deviation, window_s, _slope(flow, window_s, now))


def _consistent(counts: list[tuple[int, Seconds]], per_s: float) -> bool:
    for count, span_s in counts:
        expected = per_s * span_s
        if abs(count - expected) > CONSISTENT * sqrt(max(1.0, expected)):
            return False
    return True


def _slope(flow: Flow, window_s: Seconds, now: Seconds) -> float:
    """Return the slope between this window and the one before it, where it is no chance."""
    if window_s <= 0.0:
        return 0.0
    both, begun = came_since(flow, now - 2.0 * window_s)
    newer, middle = came_since(flow, now - window_s)
    older, older_s, newer_s = both - newer, middle - begun, now - middle
    if older_s < 0.7 * window_s or newer_s <= 0.0:
        return 0.0
    difference = newer / newer_s - older / older_s
    deviation = sqrt(max(newer, 1)) / newer_s + sqrt(max(older, 1)) / older_s
    return difference / (0.5 * (newer_s + older_s)) if abs(difference) > CONSISTENT * deviation else 0.0


def oldest_s(flow: Flow, now: Seconds) -> Seconds:
    """Return how long the oldest has waited; 0 where none waits."""
    return now - flow.waiting[0][0] if flow.waiting else 0.0
