"""Our own releases under load: one is activated every few seconds, every fifth is broken, each job is accounted for.

The capacity is measured first, by the first release, from a full queue. Then the load runs at a share of it: in peace,
with releases, and in peace again. The waits are compared with those of both peaceful loads together, so that what else
the machine does, more or less of it from minute to minute, weighs as little as it can.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.reload import figures, release
from bench.reload.fleet import Dispatcher, Fleet, Shape, fleet
from bench.reload.loads import Books, Load, books, send
from bench.reload.release import Release

SHARE: Final = 0.7
GUESS: Final = 1000  # jobs for each second of the run that measures the capacity
CALM: Final = 0.5  # so much of the load is enough to know the waits without releases
LOOK_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of the campaign."""

    jobs: int = 200_000
    ms: float = 6.0
    every_s: float = 10.0
    seed: int = 1
    first_s: float = 8.0
    even: bool = False
    dispatcher: Dispatcher = "embedded"
    shape: Shape = field(default_factory=Shape)


@dataclass(slots=True)
class Fate:
    """What became of one release: seconds from its activation on; `line` is the journal's."""

    release: Release
    digest: str
    activated_at: float
    refused_s: float | None = None
    reason: str = ""
    everywhere_s: float | None = None
    line: str = ""


@dataclass(frozen=True, slots=True)
class Result:
    """What the campaign found."""

    terms: Terms
    capacity: float
    rate: float
    swapped: Books
    calm: Books
    fates: Sequence[Fate]
    seconds: float

    @property
    def pause_s(self) -> float:
        """What the swaps added at p99."""
        return self.swapped.waits.p99 - self.calm.waits.p99

    @property
    def broken(self) -> list[Fate]:
        """The releases that had to be turned back."""
        return [fate for fate in self.fates if fate.release.fault]

    @property
    def faults(self) -> list[str]:
        """What the campaign asked for and did not get."""
        found = [str(load.verdict) for load in (self.swapped, self.calm) if not load.verdict.good]
        found += [f"{fate.release} was not refused" for fate in self.broken if fate.refused_s is None]
        found += [
            f"{fate.release} was refused: {fate.reason}"
            for fate in self.fates
            if not fate.release.fault and fate.refused_s is not None
        ]
        ran = figures.by_release(self.swapped.runs)
        found += [
            f"{fate.release} never ran a job"
            for fate in self.fates
            if not fate.release.fault and fate.release.number not in ran
        ]
        return found


@dataclass(slots=True)
class Watch:
    """Looks at the status all the time, and notes when a release was refused or had reached every node."""

    fleet: Fleet
    fates: dict[str, Fate] = field(default_factory=dict)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Look until it is over."""
        while not self.over.wait(LOOK_S):
            rollout = self.fleet.rollout()
            if rollout:
                self.see(rollout)

    def see(self, rollout: dict[str, Any]) -> None:
        """Note what is new."""
        now = time.monotonic()
        for digest, reason in (rollout.get("refused") or {}).items():
            fate = self.fates.get(digest)
            if fate is not None and fate.refused_s is None:
                fate.refused_s, fate.reason = now - fate.activated_at, str(reason)
                self.fleet.note(f"{fate.release}: refused after {fate.refused_s:.1f} s: {reason}")
        nodes = {digest: count for digest, count in (rollout.get("nodes") or {}).items() if count}
        for digest in nodes if len(nodes) == 1 else ():
            fate = self.fates.get(digest)
            if fate is not None and fate.everywhere_s is None:
                fate.everywhere_s = now - fate.activated_at
                self.fleet.note(f"{fate.release}: on all nodes after {fate.everywhere_s:.1f} s")


def run(terms: Terms, say: Callable[[str], None]) -> Result:
    """Run the campaign."""
    begun = time.monotonic()
    with fleet(terms.dispatcher, terms.shape, say) as made:
        made.first()
        first = _send(made, terms, "first", int(GUESS * terms.first_s), 0).settle()
        full = figures.rate(first.runs)
        rate = full * SHARE
        releases = release.plan(max(1, int(terms.jobs / rate / terms.every_s)))
        made.note(f"capacity {full:.0f} jobs/s; {terms.jobs} jobs at {rate:.0f}/s, {len(releases)} releases")
        made.push(releases)
        made.note("all releases are built and pushed")
        before = _in_peace(made, terms, "calm before", rate)
        swapped, fates = _swap(made, terms, releases, rate)
        made.note(f"with releases: {swapped.verdict}; {swapped.waits}")
        calm = books(_in_peace(made, terms, "calm after", rate), before)
    return Result(terms, full, rate, swapped, calm, fates, time.monotonic() - begun)


def _send(made: Fleet, terms: Terms, name: str, jobs: int, rate: float) -> Load:
    seed = terms.seed * 16 + ("first", "calm before", "swapped", "calm after").index(name)
    return send(made, name, jobs=jobs, rate=rate, ms=terms.ms, seed=seed, even=terms.even)


def _in_peace(made: Fleet, terms: Terms, name: str, rate: float) -> Books:
    found = _send(made, terms, name, int(terms.jobs * CALM / 2), rate).settle()
    made.note(f"{name}: {found.verdict}; {found.waits}")
    return found


def _swap(made: Fleet, terms: Terms, releases: Sequence[Release], rate: float) -> tuple[Books, list[Fate]]:
    watch = Watch(made)
    watcher = threading.Thread(target=watch.run)
    watcher.start()
    try:
        load = _send(made, terms, "swapped", terms.jobs, rate)
        _activate_often(watch, releases, terms.every_s, load)
        found = load.settle()
    finally:
        watch.over.set()
        watcher.join()
    lines = made.journal()
    for fate in watch.fates.values():
        if fate.refused_s is not None:
            fate.line = next((line for line in lines if fate.digest[:12] in line and "refused" in line), "")
    return found, list(watch.fates.values())


def _activate_often(watch: Watch, releases: Sequence[Release], every_s: float, load: Load) -> None:
    """Activate one after the other at an even pace, for as long as jobs are sent: later would prove nothing."""
    made = watch.fleet
    due = time.monotonic() + every_s / 2
    for one in releases:
        while time.monotonic() < due and load.sender.poll() is None:
            time.sleep(0.05)
        if load.sender.poll() is not None:
            return
        due += every_s
        digest = made.digests[one.number]
        watch.fates[digest] = Fate(one, digest, time.monotonic())
        made.note(f"{one}: activated")
        made.activate(one.number)
