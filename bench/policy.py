"""What the policy costs on traces, beside the peers and the clairvoyant bound; writes docs/benchmarks-policy.md.

python -m bench policy FOLDER [--part main|peers|ticks|pools|robust ...] [--trace NAME ...] [--no-page]

FOLDER holds NAME.jobs.csv.gz and NAME.history.csv for each trace, as `fleetd simulate` takes them. Nothing here knows a
trace by name but `SCHEDULES`: what the owner of such a queue would have written into the policy.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Final

from bench.page import machine, renew
from fleetd.config import load_text
from fleetd.core.model import Policy
from fleetd.sim.bound import bound, bound_pools
from fleetd.sim.compare import peers
from fleetd.sim.result import Result
from fleetd.sim.run import Setup, simulate, simulate_peer
from fleetd.sim.trace import History, Trace, load_history, load_trace

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "benchmarks-policy.md"
TOP: Final = """\
# What the policy costs

Every row is reproducible: `make bench-policy TRACES=FOLDER`. Cost is worker-seconds from the launch order to the stop,
boots and drains included, over the clairvoyant lower bound, which starts every job within 30 s. A job is late when it
waits more than 30 s; 5 % may be. The first 600 s are run and paid for, and not judged. One slot a node. `cloud` boots
in 60 to 120 s, is billed for at least 60 s, and holds at least one node (none where a trace has less than half a job at
a time); `pods` boot in 5 to 30 s and hold none.
"""
TWO_POOLS: Final = """\
Money over the two-pool bound. Woken machines cost a quarter, boot in 60 to 180 s, 3 % of their boots fail, and there
are 0.8 times the mean load of them."""
POLICY: Final = """\
version: 1
fleet: measured
sources: {{main: {{gearman: {{servers: ["127.0.0.1:4730"]}}}}}}
apps: {{work: {{release: {{path: "."}}}}}}
queues: {{jobs: {{app: work, source: main, match: jobs, objective: {{wait: 30s, share: 95%}}}}}}
pools:
{pools}
stability: {stability}
{more}
"""
POOLS: Final = {
    "cloud": "  cloud: {{simulated: {{boot: [60s, 120s]{fail}}}, apps: [work], slots: 1, min: {least}, max: 2000, "
    "price: 1/h, billing: {{minimum: 60s}}}}",
    "pods": "  pods: {{simulated: {{boot: [5s, 30s]{fail}}}, apps: [work], slots: 1, min: 0, max: 2000, price: 1/h}}",
    "woken": "  woken: {{simulated: {{boot: [60s, 180s], boot_failure: 3%}}, apps: [work], slots: 1, min: 0, "
    "max: {most}, price: 0.25/h}}",
}
PAID_S: Final = {"cloud": 90.0, "pods": 17.5}
SCHEDULES: Final = {
    "rush": 'schedules:\n  morning: {cron: "0 9 * * mon-fri", for: 90m, floor: {work: 45}}\n'
    '  evening: {cron: "0 18 * * mon-fri", for: 30m, floor: {work: 45}}'
}
STABILITIES: Final = ("thrifty", "calm", "bounded")
ALLOWED: Final = 0.05
JUDGED_FROM_S: Final = 600.0
FEW: Final = 0.5  # mean load below which a pool of slow boots may be empty


@dataclass(frozen=True, slots=True)
class Case:
    """One run: a trace, pools, a policy of ours (a stability) or a peer's name, and what is out of the ordinary."""

    trace: str
    pools: tuple[str, ...]
    who: str = "thrifty"
    tick_s: float = 5.0
    inputs: str = "full"
    blind: tuple[tuple[float, float], ...] = ()
    fail: str = ""
    never: tuple[str, ...] = ()
    hint: float | None = None  # the owner's word of the service time, in seconds
    label: str = ""
    folder: str = ""


@dataclass(slots=True)
class Book:
    """The cases that have run."""

    folder: Path
    names: Sequence[str]
    results: dict[Case, Result] = field(default_factory=dict)
    bounds: dict[tuple[str, str], float] = field(default_factory=dict)

    def run(self, cases: Sequence[Case]) -> None:
        """Run what has not run yet, two at a time."""
        todo = [replace(case, folder=str(self.folder)) for case in cases if case not in self.results]
        with ProcessPoolExecutor(2) as workers:
            for case, (result, took_s) in zip(todo, workers.map(run, todo), strict=True):
                self.results[replace(case, folder="")] = result
                print(f"{case.label or case.who:12} {case.trace:10} {'+'.join(case.pools):10} {case.tick_s:g} s: "
                      f"{result.cost_worker_s / self.least(case.trace, case.pools[0]):.3f} at "
                      f"{100 * result.late_share:.2f} %, p99 {result.wait_p99_s:.0f} s, {result.lost} lost, "
                      f"{result.reversals_300s} reversals ({took_s:.0f} s)", flush=True)  # fmt: skip

    def least(self, trace: str, pool: str) -> float:
        """Return the clairvoyant bound in worker-seconds."""
        key = (trace, pool)
        if key not in self.bounds:
            jobs, _ = read(str(self.folder), trace)
            self.bounds[key] = bound(jobs, 30.0, PAID_S.get(pool, 120.0))
        return self.bounds[key]

    def ratio(self, case: Case) -> float:
        """Return a case's cost over the bound."""
        return self.results[case].cost_worker_s / self.least(case.trace, case.pools[0])


@cache
def read(folder: str, name: str) -> tuple[Trace, History]:
    """Return a trace and its history."""
    at = Path(folder)
    return load_trace(at / f"{name}.jobs.csv.gz", ("jobs",))["jobs"], load_history(at / f"{name}.history.csv")


def load_of(trace: Trace) -> float:
    """Return the mean number of jobs that run."""
    return sum(trace.service_s) / (trace.submitted_s[-1] or 1.0)


def policy_of(case: Case, trace: Trace) -> Policy:
    """Return the policy file of a case, loaded as any other."""
    fail = f", boot_failure: {case.fail}" if case.fail else ""
    least = 0 if load_of(trace) < FEW else 1
    pools = [POOLS[name].format(fail=fail, least=least, most=int(0.8 * load_of(trace))) for name in case.pools]
    stability = case.who if case.who in STABILITIES else "thrifty"
    text = POLICY.format(pools="\n".join(pools), stability=stability, more=SCHEDULES.get(case.trace, ""))
    if case.hint is not None:
        text = text.replace("match: jobs,", f"match: jobs, service: {case.hint:g}s,")
    return load_text(text, f"{case.trace}.yaml", Path())


def run(case: Case) -> tuple[Result, float]:
    """Run a case; returns its result and the seconds that it took."""
    trace, history = read(case.folder, case.trace)
    if case.label == "Pareto(1.5)":
        trace = heavy(trace)
    setup = Setup(
        tick_s=case.tick_s,
        inputs="depth" if case.inputs == "depth" else "full",
        judged_from_s=JUDGED_FROM_S,
        history={"jobs": history},
        blind=case.blind,
        never_up=frozenset(case.never),
    )
    policy, begun = policy_of(case, trace), time.perf_counter()
    if case.who in STABILITIES:
        result = simulate(policy, {"jobs": trace}, setup)
    else:
        result = simulate_peer(policy, {"jobs": trace}, setup, peers()[case.who])
    return result, time.perf_counter() - begun


def heavy(trace: Trace) -> Trace:
    """Return the trace with service times of a Pareto distribution of shape 1.5 and the same mean."""
    import random  # noqa: PLC0415
    from array import array  # noqa: PLC0415

    chance, mean = random.Random(15), sum(trace.service_s) / len(trace.service_s)
    least = mean * 0.5 / 1.5
    return Trace(
        trace.submitted_s, array("d", [min(36000.0, least * chance.paretovariate(1.5)) for _ in trace.service_s])
    )


# ── the parts


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table."""
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def cell(book: Book, case: Case) -> str:
    """Return cost over bound and late share; bold where the objective is met."""
    result = book.results[case]
    text = f"{book.ratio(case):.3f} at {100 * result.late_share:.1f} %"
    return f"**{text}**" if result.late_share <= ALLOWED and not result.lost else text


def main_part(book: Book) -> str:
    """Ours, on every trace and pool: thrifty, calm, and with the inputs of foreign workers."""
    parts = []
    for pool in ("cloud", "pods"):
        cases = {
            name: (
                Case(name, (pool,), tick_s=1.0),
                Case(name, (pool,), "calm"),
                Case(name, (pool,), inputs="depth"),
            )
            for name in book.names
        }
        book.run([case for three in cases.values() for case in three])
        rows = []
        for name, (thrifty, calm, depth) in cases.items():
            result = book.results[thrifty]
            rows.append([
                name, f"{book.least(name, pool):.0f}", cell(book, thrifty), f"{result.wait_p99_s:.0f} s",
                str(result.reversals_300s), cell(book, calm), str(book.results[calm].reversals_300s), cell(book, depth),
                str(result.lost),
            ])  # fmt: skip
        head = ["trace", "bound, worker-s", "thrifty, 1 s tick", "p99 wait", "reversals", "calm, 5 s tick", "reversals",
                "depth only, 5 s tick", "lost"]  # fmt: skip
        parts.append(f"### One pool: {pool}\n\n{table(head, rows)}")
    return "\n\n".join(parts)


def peers_part(book: Book) -> str:
    """The peers at their own pace; beside them ours, where `main` has run before."""
    names = [name for name in peers() if name != "static"]
    parts = []
    for pool in ("cloud", "pods"):
        ours = {name: Case(name, (pool,), tick_s=1.0) for name in book.names}
        theirs = {(name, who): Case(name, (pool,), who) for name in book.names for who in names}
        book.run(list(theirs.values()))
        rows, gains = [], []
        for name in book.names:
            good = {who: book.ratio(theirs[name, who]) for who in names
                    if book.results[theirs[name, who]].late_share <= ALLOWED}  # fmt: skip
            best = min(good, key=lambda who: good[who], default="none meets it")
            mine = cell(book, ours[name]) if ours[name] in book.results else "see above"
            if good and ours[name] in book.results:
                gains.append(1.0 - book.ratio(ours[name]) / good[best])
            rows.append([name, mine, *(cell(book, theirs[name, who]) for who in names), best])
        said = f" Cheaper than that, median of the traces: {100 * median(gains):.0f} %." if gains else ""
        head = ["trace", "fleetd, 1 s tick", *names, "the best that meets it"]
        parts.append(f"### Beside the peers: {pool}\n\n{table(head, rows)}\n\nBold meets the objective.{said}")
    return "\n\n".join(parts)


def ticks_part(book: Book) -> str:
    """The same policy at two paces."""
    rows = []
    for pool in ("cloud", "pods"):
        one = [Case(name, (pool,), tick_s=1.0) for name in book.names]
        five = [Case(name, (pool,), tick_s=5.0) for name in book.names]
        book.run([*one, *five])
        for fast, slow in zip(one, five, strict=True):
            change = book.ratio(slow) / book.ratio(fast) - 1.0
            rows.append([fast.trace, pool, cell(book, fast), cell(book, slow), f"{100 * change:+.1f} %"])
    return "### The pace of the tick\n\n" + table(["trace", "pool", "1 s", "5 s", "cost at 5 s"], rows)


def pools_part(book: Book) -> str:
    """Two pools: woken machines at a quarter of the price, and pods."""
    rows = []
    names = [name for name in peers() if name != "static"]
    for name in [name for name in book.names if load_of(read(str(book.folder), name)[0]) >= 4.0]:
        trace, _ = read(str(book.folder), name)
        least = bound_pools(trace, 30.0, [(120.0, 0.25, int(0.8 * load_of(trace))), (17.5, 1.0, None)])
        ours = Case(name, ("woken", "pods"))
        theirs = [Case(name, ("woken", "pods"), who) for who in names]
        book.run([ours, *theirs])
        good = [one for one in theirs if book.results[one].late_share <= ALLOWED]
        best = min(good, key=lambda one: book.results[one].cost_money, default=None)
        mine = book.results[ours].cost_money
        their = book.results[best].cost_money if best else None
        rows.append([
            name, f"{mine / least:.3f} at {100 * book.results[ours].late_share:.1f} %",
            f"{their / least:.3f} ({best.who})" if their and best else "none meets it",
            f"{100 * (1 - mine / their):.0f} %" if their else "",
        ])  # fmt: skip
    head = ["trace", "fleetd", "best cascade of a peer", "cheaper"]
    return f"### Two pools\n\n{TWO_POOLS}\n\n{table(head, rows)}"


def robust_part(book: Book) -> str:
    """What goes wrong, and what it cost."""
    rows = []
    for name in [name for name in book.names if load_of(read(str(book.folder), name)[0]) >= 4.0][:3]:
        trace, _ = read(str(book.folder), name)
        mean_s = sum(trace.service_s) / len(trace.service_s)
        peak_s = busiest(trace)
        plain = Case(name, ("cloud",))
        cases = [
            plain,
            replace(plain, blind=((peak_s, peak_s + 600.0),), label="blind 10 min in the peak"),
            replace(plain, fail="20%", label="20 % of boots fail"),
            replace(plain, hint=30.0 * mean_s, label="service hint x30"),
            replace(plain, hint=mean_s / 30.0, label="service hint /30"),
            replace(plain, label="Pareto(1.5)"),
            Case(name, ("woken", "cloud"), never=("woken",), label="the cheap pool never comes up"),
        ]
        book.run(cases)
        for case in cases:
            extra = book.results[case].cost_worker_s / book.results[plain].cost_worker_s - 1.0
            late = f"{100 * book.results[case].late_share:.1f} %"
            rows.append([name, case.label or "nothing", late, f"{100 * extra:+.1f} %", str(book.results[case].lost)])
    return "### When things go wrong (cloud, 5 s tick)\n\n" + table(
        ["trace", "what", "late", "worker-seconds against nothing wrong", "lost"], rows
    )


def busiest(trace: Trace) -> float:
    """Return the start of the ten minutes with the most arrivals."""
    counts: dict[int, int] = {}
    for at in trace.submitted_s:
        counts[int(at // 600)] = counts.get(int(at // 600), 0) + 1
    return 600.0 * max(counts, key=lambda step: counts[step])


PARTS: Final[dict[str, Callable[[Book], str]]] = {
    "main": main_part,
    "peers": peers_part,
    "ticks": ticks_part,
    "pools": pools_part,
    "robust": robust_part,
}


def main(argv: list[str]) -> int:
    """Run the parts asked for and renew the page."""
    parser = argparse.ArgumentParser(prog="bench policy", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", help="of the traces; without one nothing is measured")
    parser.add_argument("--part", action="append", choices=list(PARTS), help="default: all")
    parser.add_argument("--trace", action="append", help="default: all of the folder")
    parser.add_argument("--no-page", dest="page", action="store_false", help="print only, leave docs/ alone")
    given: Any = parser.parse_args(argv)
    if given.folder is None:
        print("policy: give the folder of the traces: python -m bench policy FOLDER")
        return 0
    names = given.trace or sorted(path.name.removesuffix(".jobs.csv.gz") for path in given.folder.glob("*.jobs.csv.gz"))
    book = Book(given.folder, names)
    for part in given.part or list(PARTS):
        begun = time.perf_counter()
        text = PARTS[part](book)
        print(text, flush=True)
        if given.page:
            took = f"`python -m bench policy FOLDER --part {part}`, {time.perf_counter() - begun:.0f} s"
            renew(part, f"{took}\n\n{text}", "", PAGE, TOP)
    if given.page:
        renew("machine", machine(["fleetd"]), "The machine", PAGE, TOP)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
