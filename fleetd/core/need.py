"""How many slots a queue's jobs need, seen from a pool that boots in so many seconds.

For boots of L seconds the slots in use at t + L, were there plenty, are

    load = sum over running jobs of P(still runs L from now) + λ(t+L) · ∫0..L S(u) du

with S the survival of service times (`life`) and λ the forecast arrival rate (`flow`, `forecast`): the modified offered
load (Jennings, Mandelbaum, Massey, Whitt: "Server staffing to meet time-varying demand", 1996). On top come a margin
(`margin`) and slots for those that wait now and will still wait then. A pool that boots faster than the objective
allows to wait needs no margin: it boots just in time, for jobs that would otherwise be late.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import ceil, floor, hypot, sqrt
from statistics import NormalDist
from typing import Final

from fleetd.core.capacity import Group
from fleetd.core.forecast import growth
from fleetd.core.learn import HEADROOM, prior
from fleetd.core.life import Curve, draw, lived, still_running
from fleetd.core.margin import Load, Risk, wanted
from fleetd.core.memory import QueueMemory, Wanted
from fleetd.core.model import QueuePolicy, Seconds

HORIZON_BOOTS: Final = 2.0  # a number of slots is judged by the lateness after so many boots
WAITING_SHARE: Final = 0.25  # of the jobs that will still wait have to be worked off at once
FRESH_S: Final = 4.5
FRESH_LOAD: Final = 0.5
MOST_MISSED: Final = 0.5  # of the boots that jobs wait for
TICK_S: Final = 2.0  # what an order may come later than it should


@dataclass(frozen=True, slots=True)
class Boot:
    """A pool's boots: nearly all are over after `late_s`, half of them after `middle_s`; `paid_s` what one costs."""

    late_s: Seconds
    middle_s: Seconds
    paid_s: Seconds
    known_s: tuple[Seconds, ...] = ()

    def or_guess(self, tightest_s: Seconds) -> "Boot":
        """Return itself; or, where no boot is known yet, the hope that one is fast enough: the first ones will tell."""
        return self if self.known_s else replace(self, late_s=0.5 * tightest_s, middle_s=0.5 * tightest_s)

    def in_time(self, wait_s: Seconds) -> bool:
        """Whether nearly all boots are over before a job has waited too long; a look sees their ends a little late."""
        return self.late_s <= wait_s + TICK_S

    def within(self, share: float) -> Seconds:
        """Return the time that this share of the boots takes at most."""
        known = sorted(self.known_s)
        return known[min(len(known) - 1, int(share * len(known)))] if known else self.late_s

    def slower(self, than_s: Seconds) -> float:
        """Return the share of boots that take longer."""
        return sum(boot_s > than_s for boot_s in self.known_s) / max(1, len(self.known_s))


@dataclass(frozen=True, slots=True)
class Term:
    """What an app needs, seen from one pool, in slots, and the parts of it: what `explain --deep` shows."""

    boot_s: Seconds
    need: float
    load: Load = field(default=Load(0.0, 0.0, 0.0))
    wanted: Wanted = Wanted()  # load and margin, before those that wait
    waiting: float = 0.0
    just_in_time: bool = False
    bridged: bool = False
    keep: float = 0.0
    keep_s: Seconds = 0.0  # for so long, if the need stays below it

    def judged(self, need: float, keep: float, keep_s: Seconds) -> "Term":
        """Return the term with what is to be had and kept at last."""
        parts = self.load, self.wanted, self.waiting, self.just_in_time, self.bridged
        return Term(self.boot_s, need, *parts, keep, keep_s)


@dataclass(slots=True)
class Seen:
    """A queue with what runs in it, for one tick. `unseen`: running jobs whose age nobody tells."""

    rule: QueuePolicy
    memory: QueueMemory
    ages_s: tuple[Seconds, ...]
    unseen: int
    curve: Curve = field(init=False)

    def __post_init__(self) -> None:
        self.curve = self.memory.life.curve or draw(self.memory.life, (), prior(self.rule))

    def hurry_s(self, boot: Boot) -> Seconds:
        """Return how long before a job is late its slot has to be ordered, if none becomes free.

        Waiting for one saves a boot. While fewer jobs are late than may be, more of the boots ordered so may be slow.
        """
        memory, allowed = self.memory, 1.0 - self.rule.objective.share
        measured = (memory.late + allowed) / (memory.judged + 1.0)
        missed = allowed * min(MOST_MISSED / allowed, allowed / measured) if allowed else 0.0
        return min(boot.late_s, boot.within(1.0 - missed)) if missed > allowed else boot.late_s

    def load(self, ahead_s: Seconds, now: Seconds) -> tuple[Load, Risk]:
        """Return the slots that its jobs will use `ahead_s` from now, and what its late jobs cost."""
        mean, variance = still_running(self.curve, self.ages_s, ahead_s)
        each_s = lived(self.curve, ahead_s)
        if self.unseen:
            share = max(0.0, 1.0 - each_s / self.curve.mean_s)  # of jobs met at any moment of their service
            mean += self.unseen * share
            variance += self.unseen * share * (1.0 - share)
        per_s = self.per_s(ahead_s, now)
        load = Load(mean + per_s * each_s, variance + per_s * each_s, each_s * self.memory.rate.sd)
        wait_s = self.rule.objective.wait_s
        return load, Risk(self.memory.price_s, per_s, wait_s, self.curve.mean_s, self.curve.cv2)

    def per_s(self, ahead_s: Seconds, now: Seconds) -> float:
        """Return the forecast arrival rate.

        The measured rate is that of the middle of its window; a trend, or a season that has proven itself, brings it
        up to now, and may raise it for what is ahead.
        """
        rate = self.memory.rate
        behind_s = 0.5 * rate.window_s
        if rate.slope:
            per_s = rate.per_s + rate.slope * behind_s + max(0.0, rate.slope) * ahead_s
        else:
            per_s = rate.per_s * growth(self.memory.season, now, ahead_s, behind_s)
        return min(2.0 * rate.per_s, max(0.5 * rate.per_s, per_s))


def ahead(
    seen: Sequence[Seen], boot: Boot, groups: Sequence[tuple[Boot, Group]], now: Seconds, last: Wanted | None
) -> Term:
    """Return the need seen from a pool that boots more slowly than jobs may wait: forecast and margin.

    `last`: what was wanted before. It holds for a moment while the load is about the same, and then the search begins
    there: of a thousand queues only some are worked out anew in a tick.
    """
    if not seen:
        return Term(boot.late_s, 0.0)
    pairs = [one.load(boot.late_s, now) for one in seen]
    loads = [load for load, _ in pairs]
    load = loads[0]
    if len(loads) > 1:
        load = Load(sum(x.mean for x in loads), sum(x.variance for x in loads), hypot(*(x.error for x in loads)))
    if last is None or last.at is None or now - last.at >= FRESH_S or abs(load.mean - last.load) > FRESH_LOAD:
        risks = [risk for _, risk in pairs]
        slots = wanted(load, risks, boot.paid_s, HORIZON_BOOTS * boot.late_s, last.slots if last else 0)
        last = Wanted(slots, load.mean, now)
    there = sum([group.slots for _, group in groups])
    waiting = sum([_still_waiting(one, there, boot.late_s) for one in seen])
    somebody = 1.0 if any(one.memory.waiting for one in seen) else 0.0  # however short the jobs, one has to run them
    return Term(boot.late_s, max(somebody, last.slots + waiting), load, last, waiting)


def bridged(seen: Sequence[Seen], boot: Boot, now: Seconds, ratio: float) -> Term:
    """Return the need seen from a slow pool whose lacks a dearer one, that boots just in time, makes up for.

    Late jobs are that one's care; here a slot pays while it is used for a larger share of its time than `ratio`, what
    it costs over what the dearer one's costs: the newsvendor's quantile of the load (Arrow, Harris, Marschak, 1951).
    """
    pairs = [one.load(boot.late_s, now)[0] for one in seen]
    load = Load(sum(x.mean for x in pairs), sum(x.variance for x in pairs), hypot(*(x.error for x in pairs)))
    spread = hypot(sqrt(load.variance), load.error)
    quantile = load.mean + spread * NormalDist().inv_cdf(min(0.999, max(0.001, 1.0 - ratio)))
    return Term(boot.late_s, max(0.0, quantile), load, bridged=True)


def _still_waiting(one: Seen, slots: int, ahead_s: Seconds) -> float:
    """Return the slots for those that wait now and, at the present capacity, will still wait then."""
    queued, mean_s = one.memory.waiting, one.curve.mean_s
    if not queued:
        return 0.0
    left = float(queued)
    if mean_s < ahead_s:
        left = max(0.0, queued - 0.5 * max(0.0, slots / mean_s - one.memory.rate.per_s) * ahead_s)
    share = max(WAITING_SHARE, mean_s / (mean_s + ahead_s))  # jobs longer than a boot need slots of their own
    return share * left * mean_s / (mean_s + HEADROOM * one.rule.objective.wait_s)


def just_in_time(seen: Sequence[Seen], boot: Boot, groups: Sequence[tuple[Boot, Group]], now: Seconds) -> Term:
    """Return the need seen from a pool that boots faster than jobs may wait: slots in use, and those for the late."""
    slots = sum(_in_time(group, other, boot, now) for other, group in groups)
    short = sum(lacking(one, boot, groups, now) for one in seen)
    running = float(sum(len(one.ages_s) + one.unseen for one in seen))
    queued = sum(one.memory.waiting for one in seen)
    need = max(running, slots + short if short > 0.0 else min(float(slots), running + queued))
    return Term(boot.late_s, need, Load(running, 0.0, 0.0), waiting=short, just_in_time=True)


def _in_time(group: Group, its: Boot, boot: Boot, now: Seconds) -> int:
    """Return the slots of a pool that there will be when a node with boots like `boot`, ordered now, is up."""
    if its.known_s == boot.known_s:
        return group.slots
    return group.up_by(now + boot.late_s, its.middle_s)


def lacking(one: Seen, boot: Boot, groups: Sequence[tuple[Boot, Group]], now: Seconds) -> float:
    """Return the slots without which those that wait would be late.

    A slot that is ordered now takes one job when it is up and more until the objective's time is over. Whole slots'
    worth of work are ordered at once, since later it would take more of them; what is less may still find a slot that
    becomes free, and is ordered once there is no more time to lose, or where there is no slot at all.
    """
    most, queued = 0.0, 0
    for came_at, count in one.memory.flow.waiting:
        queued += count
        slack_s = max(one.rule.objective.wait_s - (now - came_at), boot.middle_s)
        each = 1.0 + max(0.0, slack_s - boot.middle_s) / one.curve.mean_s
        slots = (queued - _supply(one, slack_s, groups, now)) / each
        urgent = slack_s <= one.hurry_s(boot) + TICK_S or not boot.known_s or not groups
        most = max(most, float(ceil(slots - 1e-6) if urgent else floor(slots)))
    return most


def _supply(one: Seen, within_s: Seconds, groups: Sequence[tuple[Boot, Group]], now: Seconds) -> float:
    """Return how many jobs the slots that are there or coming can start within so many seconds."""
    mean_s = one.curve.mean_s
    stay, _ = still_running(one.curve, one.ages_s, within_s)
    ended = len(one.ages_s) - stay + one.unseen * min(1.0, lived(one.curve, within_s) / mean_s)
    steady = sum(group.up for _, group in groups) * (within_s / mean_s - 0.5)  # slots that are busy all the time
    coming = 0.0
    for boot, group in groups:
        for ordered_at, slots in group.coming:
            left_s = max(0.0, ordered_at + boot.middle_s - now)
            if left_s <= within_s:
                coming += slots * (1.0 + max(0.0, (within_s - left_s) / mean_s - 0.5))
    return max(ended, steady) + coming
