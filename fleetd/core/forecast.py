"""What the next minutes bring: the season's growth, where it has been the better guess than "as now".

The season is a week in quarters of an hour, in the policy's own time: how many came in each, as far as is known. It is
used as a growth factor alone, season(t + L) / season(t), and only while its error has been below that of persistence;
it can raise a forecast and never lowers one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import floor
from typing import Final

from fleetd.core.model import Seconds

STEP_S: Final = 900.0
WEEK: Final = 672  # steps
MEMORY: Final = 0.5  # of a step's count that a newer week leaves
ERRORS: Final = 0.98  # of the errors' memory that a step leaves
BETTER: Final = 0.9  # of persistence's error is what the season's may be
PROVEN: Final = 96  # steps that both guesses are judged by before the season is believed: a day
MOST_GROWTH: Final = 4.0


@dataclass(frozen=True, slots=True)
class Season:
    """Arrivals by step of the week (-1: not known), the step under way, and the two errors."""

    steps: tuple[float, ...] = ()
    step: int | None = None
    count: int = 0
    before: float = -1.0  # arrivals of the step before this
    whole: bool = False  # this step was seen from its start
    season_error: float = 0.0
    persistence_error: float = 0.0
    judged: int = 0  # steps


def observe(season: Season, arrived: int, now: Seconds) -> Season:
    """Return the season with arrivals counted; at the end of a step it is learned and the two guesses are judged."""
    step = floor(now / STEP_S)
    if step == season.step:
        return replace(season, count=season.count + arrived) if arrived else season
    if season.step is None or step != season.step + 1 or not season.whole:
        return replace(season, step=step, count=arrived, before=-1.0, whole=season.step is not None)
    return replace(_learn(season), step=step, count=arrived, before=float(season.count), whole=True)


def _learn(season: Season) -> Season:
    assert season.step is not None
    steps = list(season.steps) or [-1.0] * WEEK
    at, actual = season.step % WEEK, float(season.count)
    known, previous = steps[at], steps[at - 1]
    steps[at] = actual if known < 0.0 else MEMORY * known + (1.0 - MEMORY) * actual
    season = replace(season, steps=tuple(steps))
    if known < 0.0 or previous < 0.0 or season.before < 0.0:
        return season
    guess = season.before * _growth(previous, known)
    return replace(
        season,
        season_error=ERRORS * season.season_error + abs(actual - guess),
        persistence_error=ERRORS * season.persistence_error + abs(actual - season.before),
        judged=season.judged + 1,
    )


def _growth(now: float, then: float) -> float:
    return min(MOST_GROWTH, (then + 1.0) / (now + 1.0))


def proven(season: Season) -> bool:
    """Whether the season has been the better guess."""
    return season.judged >= PROVEN and season.season_error < BETTER * season.persistence_error


def growth(season: Season, now: Seconds, ahead_s: Seconds, behind_s: Seconds) -> float:
    """Return by what to multiply a rate of `behind_s` ago to have that of now, or of `ahead_s` from now if more."""
    if not proven(season):
        return 1.0
    then, at_once, before = (_at(season, at) for at in (now + ahead_s, now, now - behind_s))
    return _growth(before, max(then, at_once)) if min(then, at_once, before) >= 0.0 else 1.0


def _at(season: Season, at: Seconds) -> float:
    """Return the season at a moment, straight between the middles of the steps; -1 where it is not known."""
    place = at / STEP_S - 0.5
    low = floor(place)
    one, other = season.steps[low % WEEK], season.steps[(low + 1) % WEEK]
    return -1.0 if one < 0.0 or other < 0.0 else one + (other - one) * (place - low)


def prime_season(season: Season, rows: Iterable[tuple[Seconds, int]], step_s: Seconds) -> Season:
    """Return the season after a history of (start, arrivals per `step_s`), oldest first."""
    for start_s, arrivals in rows:
        season = observe(season, arrivals, start_s + 0.5 * step_s)
    return season
