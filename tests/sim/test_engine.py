"""The engine against theory: a recursion, Erlang's formula, and a simulation that is slow and plain."""

import random
from array import array
from collections import Counter
from heapq import heapreplace
from math import inf, sqrt

import pytest

from fleetd.core.model import Work
from fleetd.sim.engine import Station
from fleetd.sim.stream import Stream
from fleetd.sim.trace import Trace
from tests.sim.fleets import poisson, trace


def station(*traces: Trace, slots: int = 0, recent_first: bool = False) -> Station:
    """A station with a stream for each trace, by falling priority."""
    made = Station([Stream([(f"q{n}", one)]) for n, one in enumerate(traces)], recent_first=recent_first)
    for node in range(slots):
        made.add(node, 1)
    return made


def recursion(jobs: Trace, slots: int) -> list[float]:
    """The waits on `slots` servers, first come first served, after Kiefer and Wolfowitz: when is the next one free?"""
    free, waits = [0.0] * slots, []
    for at, took in zip(jobs.submitted_s, jobs.service_s, strict=True):
        start = max(at, free[0])
        waits.append(start - at)
        heapreplace(free, start + took)
    return waits


def chunked(chance: random.Random, end: float) -> list[float]:
    """Moments to stop and look at, some of them often in a row."""
    return sorted(chance.uniform(0.0, end) for _ in range(chance.randrange(1, 200)))


# ── the waits


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("recent_first", [False, True])
def test_waits_are_those_of_the_recursion(seed, recent_first):
    """However often it is looked at. Whole seconds in half of the seeds make arrivals and ends coincide."""
    chance = random.Random(seed)
    slots, count = chance.randrange(1, 12), 3000
    gap = 20.0 / slots * chance.uniform(0.8, 1.5)
    jobs = poisson(chance, 1.0 / gap, 20.0, count)
    if seed % 2:
        jobs = Trace(array("d", map(round, jobs.submitted_s)), array("d", map(round, jobs.service_s)))
    made = station(jobs, slots=slots, recent_first=recent_first)
    for moment in chunked(chance, jobs.submitted_s[-1]):
        made.run(moment)
    made.run(1e9)
    assert list(made.streams[0].waits) == pytest.approx(recursion(jobs, slots), abs=1e-9)
    assert (made.waiting, made.running) == (0, 0)


def test_waiting_in_a_busy_system_is_what_erlang_says():
    """M/M/10 at a load of 0.75: the share that waits, and the mean wait, to within three times the sampling error."""
    seed, slots, mean_s, load = 7, 10, 20.0, 7.5
    print("seed", seed)
    term, total = 1.0, 1.0
    for n in range(1, slots):
        term *= load / n
        total += term
    last = term * load / slots * slots / (slots - load)
    waits_share = last / (total + last)
    mean_wait_s = waits_share * mean_s / (slots - load)
    jobs = poisson(random.Random(seed), load / mean_s, mean_s, 800_000)
    made = station(jobs, slots=slots)
    made.run(1e9)
    waits = list(made.streams[0].waits)
    for measured, expected in ((waits, mean_wait_s), ([float(w > 0.0) for w in waits], waits_share)):
        batches = [sum(measured[i : i + 8000]) / 8000 for i in range(0, len(measured), 8000)]
        mean = sum(batches) / len(batches)
        error = sqrt(sum((b - mean) ** 2 for b in batches) / (len(batches) - 1) / len(batches))
        assert error < 0.02 * expected
        print(mean, expected, error)
        assert abs(mean - expected) < 3.0 * error


Act = tuple[float, str, int]


def plainly(traces: list[Trace], acts: list[Act]) -> tuple[list[list[float]], dict[int, list[float]]]:
    """Waits by stream, and by slot the ends of its jobs: event after event, everything looked at anew."""
    waits: list[list[float]] = [[] for _ in traces]
    ends: dict[int, list[float]] = {}
    runs: dict[int, float] = {}  # slot: end
    open_, idle = set[int](), list[int]()
    acts = [*acts, (inf, "", -1)]
    heads = [0] * len(traces)
    while True:
        starts = [
            jobs.submitted_s[head] for jobs, head in zip(traces, heads, strict=True) if head < len(jobs.submitted_s)
        ]
        now = min([*runs.values(), acts[0][0], *(starts if idle else ())])
        if now == inf:
            return waits, ends
        for slot in sorted((s for s, end in runs.items() if end == now), key=lambda s: s):
            del runs[slot]
            ends.setdefault(slot, []).append(now)
            if slot in open_:
                idle.append(slot)
        if acts[0][0] == now:
            _, kind, slot = acts.pop(0)
            if kind == "close":
                open_.discard(slot)
                idle = [s for s in idle if s != slot]
            elif slot not in open_:
                open_.add(slot)
                if slot not in runs:
                    idle.append(slot)
        for stream, jobs in enumerate(traces):
            while idle and heads[stream] < len(jobs.submitted_s) and jobs.submitted_s[heads[stream]] <= now:
                head = heads[stream]
                waits[stream].append(now - jobs.submitted_s[head])
                runs[idle.pop(0)] = now + jobs.service_s[head]
                heads[stream] += 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("streams", [1, 2, 3])
def test_slots_that_come_and_go_and_priorities_are_as_in_a_plain_simulation(seed, streams):
    chance = random.Random(f"{seed}/{streams}")
    jobs = [poisson(chance, 0.25 / streams, 10.0, 150) for _ in range(streams)]
    last = max(one.submitted_s[-1] for one in jobs)
    acts: list[Act] = [(0.0, "open", 0)]
    slots = chance.randrange(2, 6)
    acts += [(chance.uniform(0.0, last / 2), "open", slot) for slot in range(1, slots)]
    opened = {slot: at for at, _, slot in acts}
    for _ in range(60):
        slot = chance.randrange(1, slots)
        acts.append((chance.uniform(opened[slot], last), chance.choice(["close", "open"]), slot))
    acts.sort()
    made = station(*jobs)
    places: dict[int, range] = {}
    for at, kind, slot in acts:
        for moment in sorted(chance.uniform(made.now, at) for _ in range(2)):
            made.run(moment)
        made.run(at)
        if slot not in places:
            places[slot] = made.add(slot, 1)
        elif kind == "close":
            made.close(places[slot])
        else:
            made.reopen(places[slot])
    made.run(1e9)
    waits, _ = plainly(jobs, acts)
    for stream, expected in zip(made.streams, waits, strict=True):
        assert list(stream.waits) == pytest.approx(expected, abs=1e-9)


def test_a_higher_priority_starts_first_and_cuts_nothing():
    low, high = trace((0, 10), (1, 10), (2, 10)), trace((3, 5), (4, 5))
    made = station(high, low, slots=1)
    made.run(100)
    assert list(made.streams[0].waits) == [7.0, 11.0]
    assert list(made.streams[1].waits) == [0.0, 19.0, 28.0]


def test_queues_of_one_priority_start_in_the_order_of_submission():
    made = Station([Stream([("a", trace((0, 10), (2, 10))), ("b", trace((1, 10), (2, 1)))])])
    made.add(0, 1)
    made.run(15)
    assert made.counts() == {"a": (1, 0), "b": (1, 1)}
    assert made.take_work() == {"a": Work(1, 1, 0, 10.0, (), {53: 1}), "b": Work(1, 0, 0, 0.0, (5.0,), {})}
    made.run(100)
    assert [(w.queue, list(w.started)) for w in made.waits()] == [("a", [0.0, 18.0]), ("b", [9.0, 28.0])]


# ── who gets a job


@pytest.mark.parametrize(("recent_first", "slots"), [(False, [0, 1, 2]), (True, [2, 2, 2])])
def test_the_next_job_goes_to_the_longest_idle_or_to_the_last_busy(recent_first, slots):
    made = station(trace((1, 1), (3, 1), (5, 1)), slots=3, recent_first=recent_first)
    took = []
    for moment in (1.5, 3.5, 5.5):
        made.run(moment)
        took += [end[1] for end in made.ends]
    assert took == slots


# ── slots


def test_a_closed_slot_ends_its_job_and_takes_no_other():
    made = station(trace((0, 10), (1, 10)), slots=1)
    made.run(2)
    assert made.close([0]) == 10.0
    made.run(50)
    assert (made.waiting, made.running, made.streams[0].done) == (1, 0, [0])
    assert made.close([0]) == 50.0


def test_a_slot_reopened_while_its_job_runs_goes_on_as_if_nothing_had_been():
    made = station(trace((0, 10), (1, 10)), slots=1)
    made.run(2)
    made.close([0])
    made.reopen([0])
    made.reopen([0])
    made.run(50)
    assert list(made.streams[0].waits) == [0.0, 9.0]
    assert list(made.idle) == [0]


def test_waiting_jobs_start_the_moment_a_slot_opens():
    made = station(trace((0, 10), (1, 10), (2, 10)))
    made.run(5)
    made.add(0, 2)
    assert (made.waiting, made.running) == (1, 2)
    made.run(30)
    assert list(made.streams[0].waits) == [5.0, 4.0, 13.0]


# ── looks


def test_work_is_told_once_with_ages_and_buckets():
    made = station(trace((0, 0.0005), (0, 1.0), (1, 100.0), (2, 7.0)), slots=2)
    made.run(4)
    assert made.take_work() == {"q0": Work(4, 2, 0, 1.0005, (2.0, 3.0), Counter({0: 1, 39: 1}))}
    made.run(5)
    assert made.take_work() == {"q0": Work(0, 0, 0, 0.0, (3.0, 4.0), {})}


def test_what_nobody_asks_for_is_forgotten():
    made = station(trace((0, 1), (3, 1)), slots=1)
    made.run(2)
    made.forget_work()
    made.run(5)
    assert made.take_work()["q0"].done == 1


def test_worked_time_is_the_sum_over_jobs_up_to_now():
    made = station(trace((0, 10), (2, 4), (20, 100)), slots=2)
    made.run(5)
    assert made.worked_s() == pytest.approx(8.0)
    made.run(25)
    assert made.worked_s() == pytest.approx(19.0)
    assert made.busy() == {1: 1}


def test_waits_may_be_asked_for_from_a_moment_on():
    made = station(trace((0, 10), (1, 10), (9, 1), (11, 1)), slots=1)
    made.run(15)
    (waits,) = made.waits(from_s=1.0)
    assert (list(waits.started), list(waits.unstarted)) == ([9.0], [6.0, 4.0])
