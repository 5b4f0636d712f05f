"""`fleetd simulate` and `fleetd replay`: what a policy would have cost, on a trace or on the fleet's own recorded days.

Promises: nothing outside is touched; neither the worker code nor a dispatcher of the policy needs to be there. What is
wrong with a trace, an option or a policy is said before anything runs.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal
from zoneinfo import ZoneInfo

import typer

from fleetd.cli.asking import Json, PolicyFile
from fleetd.core.model import Policy
from fleetd.core.units import seconds
from fleetd.errors import UsageError

if TYPE_CHECKING:
    from fleetd.sim.journal import Recorded
    from fleetd.sim.report import About
    from fleetd.sim.result import Result
    from fleetd.sim.trace import History, Trace
    from fleetd.store.sqlite import Store

app = typer.Typer()
CHARTED_STEPS: Final = 2400
DAY_S: Final = 86400.0
Boots = Annotated[
    list[str] | None, typer.Option("--boot", metavar="POOL=LEAST..MOST", help="how long nodes boot, as rack=60s..120s")
]
Since = Annotated[str, typer.Option("--since", help="an age (7d) or a time (2026-11-24T08:00)")]
Seed = Annotated[int, typer.Option("--seed", help="another number, other luck")]
Tick = Annotated[str, typer.Option("--tick", help="how often is decided")]
Report = Annotated[Path | None, typer.Option("--report", help="also write an HTML page with charts")]


@dataclass(frozen=True, slots=True)
class Case:
    """What is simulated: the jobs, what came before them, and how to call it."""

    name: str
    traces: "Mapping[str, Trace]"
    history: "Mapping[str, History]" = field(default_factory=dict)
    boots: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    start_wall_s: float | None = None
    real: "Result | None" = None
    notes: tuple[str, ...] = ()


@app.command()
def simulate(
    policy: PolicyFile,
    trace: Annotated[Path | None, typer.Option("--trace", help="jobs: submitted_s,service_s[,queue] (csv, gz)")] = None,
    history: Annotated[
        list[str] | None, typer.Option("--history", help="arrivals before: start_s,arrivals; QUEUE=FILE for several")
    ] = None,
    from_journal: Annotated[bool, typer.Option("--from-journal", help="the fleet's own recorded jobs")] = False,
    since: Since = "7d",
    against: Annotated[
        str | None,
        typer.Option("--against", help="keda,asg,step,dask,celery,delayedoff,static,optimal, or none"),
    ] = None,
    tick: Tick = "5s",
    seed: Seed = 0,
    inputs: Annotated[str, typer.Option("--inputs", help="full, or depth: workers tell nothing")] = "full",
    boot: Boots = None,
    start: Annotated[str | None, typer.Option("--start", help="the time of second 0, for schedules")] = None,
    judge_from: Annotated[str, typer.Option("--judge-from", help="jobs before are run and paid, not judged")] = "0s",
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Say what the policy would have cost and how long jobs would have waited, against peers and the optimum."""
    from fleetd.cli.compared import progress, show, warned, write_report
    from fleetd.config import load
    from fleetd.sim.compare import allowed_late, compare
    from fleetd.sim.run import Setup, warn

    if (trace is None) != from_journal:
        raise UsageError("simulate: give it jobs: --trace FILE or --from-journal, one of the two")
    loaded = load(policy, code=False)
    tick_s = _seconds("--tick", tick)
    if trace is None:
        case = _of_journal(loaded, since, seed, boot, tick_s)
    else:
        case = _of_file(loaded, trace, history, boot, start)
    setup = Setup(
        tick_s=tick_s,
        seed=seed,
        inputs=_inputs(inputs),
        judged_from_s=_seconds("--judge-from", judge_from),
        start_wall_s=case.start_wall_s,
        boots=case.boots,
        history=case.history,
        series_step_s=_step_s(case, tick_s) if report else None,
    )
    warnings = warn(loaded, case.traces)
    warned(warnings)
    with progress() as say:
        results = compare(loaded, case.traces, setup, _rivals(against), say)
    results += [case.real] if case.real else []
    if report:
        write_report(report, _about(loaded, case, seed), results)
    show(results, allowed_late(loaded), loaded.currency, case.notes, as_json=as_json)


@app.command()
def replay(
    policy: PolicyFile,
    against: Annotated[Path | None, typer.Option("--against", help="another policy file, to compare with")] = None,
    since: Since = "7d",
    tick: Tick = "5s",
    seed: Seed = 0,
    boot: Boots = None,
    report: Report = None,
    as_json: Json = False,
) -> None:
    """Run one or two policies on the fleet's recorded history, beside what really happened."""
    from fleetd.cli.compared import progress, show, warned, write_report
    from fleetd.config import load
    from fleetd.sim.compare import allowed_late
    from fleetd.sim.run import Setup, simulate, warn

    loaded = load(policy, code=False)
    policies = {policy.stem: loaded}
    if against:
        name = against.stem if against.stem != policy.stem else str(against)
        policies[name] = _same_queues(load(against, code=False), loaded, against)
    tick_s = _seconds("--tick", tick)
    case = _of_journal(loaded, since, seed, boot, tick_s)
    step_s = _step_s(case, tick_s) if report else None
    results: list[Result] = []
    with progress() as say:
        for name, one in policies.items():
            boots = case.boots if one is loaded else _boots(boot, one)
            setup = Setup(
                tick_s=tick_s,
                seed=seed,
                start_wall_s=case.start_wall_s,
                boots=boots,
                history=case.history,
                series_step_s=step_s,
            )
            warned(warn(one, case.traces))
            results.append(replace(simulate(one, case.traces, setup, partial(say, name)), policy=name))
    results += [case.real] if case.real else []
    if report:
        write_report(report, _about(loaded, case, seed), results)
    show(results, allowed_late(loaded), loaded.currency, case.notes, as_json=as_json)


# ── what is simulated


def _of_file(
    policy: Policy, trace: Path, history: Sequence[str] | None, boot: Sequence[str] | None, start: str | None
) -> Case:
    from fleetd.sim.trace import load_history, load_trace

    traces = load_trace(trace, policy.queues)
    before = {}
    for given in history or ():
        queue, sign, path = given.partition("=")
        if not sign and len(policy.queues) > 1:
            raise UsageError(f"--history {given}: which queue of {', '.join(policy.queues)}? Write QUEUE={given}")
        name = queue if sign else next(iter(policy.queues))
        before[name] = load_history(path if sign else given)
    wall_s = None if start is None else _moment("--start", start, policy)
    return Case(trace.name, traces, before, _boots(boot, policy), wall_s)


def _of_journal(policy: Policy, since: str, seed: int, boot: Sequence[str] | None, tick_s: float) -> Case:
    from fleetd.sim.journal import recorded

    store = _store(policy)
    try:
        found: Recorded = recorded(store.history(), policy, _moment("--since", since, policy), seed, max(10.0, tick_s))
    finally:
        store.close()
    zone = ZoneInfo(policy.timezone)
    begin, end = (datetime.fromtimestamp(at, zone) for at in (found.start_s, found.start_s + found.length_s))
    notes = [f"nobody was looking for {found.unseen_s / 3600:.1f} h of that time"] if found.unseen_s else []
    name = f"Recorded from {begin:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}"
    return Case(name, found.traces, found.history, _boots(boot, policy), found.start_s, found.real, tuple(notes))


def _store(policy: Policy) -> "Store":
    """Open what was recorded of a fleet: by its controller, otherwise by its shadow."""
    from fleetd.cli.remote import state_folder
    from fleetd.store.sqlite import Store

    for name in (policy.fleet, f"{policy.fleet}-shadow"):
        if (state_folder(name) / "fleet.db").exists():
            return Store(state_folder(name), read_only=True)
    raise UsageError(
        f"fleet {policy.fleet}: nothing is recorded in {state_folder(policy.fleet)}; `fleetd run` records, "
        "`fleetd run --shadow` does so without touching anything"
    )


def _boots(given: Sequence[str] | None, policy: Policy) -> dict[str, tuple[float, float]]:
    """Return how long nodes boot: as the options say, otherwise as a controller of this fleet has learned."""
    boots = {}
    for text in given or ():
        pool, _, span = text.partition("=")
        least, dots, most = span.partition("..")
        if pool not in policy.pools:
            raise UsageError(f"--boot {text}: no pool {pool!r}; there are {', '.join(policy.pools)}")
        boots[pool] = (_seconds(f"--boot {text}", least), _seconds(f"--boot {text}", most if dots else least))
    unknown = [pool.name for pool in policy.pools.values() if pool.kind != "simulated" and pool.name not in boots]
    return {**_learned(policy, unknown), **boots}


def _learned(policy: Policy, pools: Sequence[str]) -> dict[str, tuple[float, float]]:
    from fleetd.cli.dry import remembered

    if not pools:
        return {}
    seen: dict[str, tuple[float, float]] = {}
    for fleet in (f"{policy.fleet}-shadow", policy.fleet):
        memory, _ = remembered(replace(policy, fleet=fleet))
        known = {name: memory.pools[name].boots_s for name in pools if name in memory.pools}
        seen |= {name: (min(boots_s), max(boots_s)) for name, boots_s in known.items() if boots_s}
    return seen


def _rivals(against: str | None) -> list[str]:
    """Return whom to compare with; where nobody is named: the best known, and the bound if its library is here."""
    from importlib.util import find_spec

    from fleetd.sim.verdict import BOUND

    if against is None:
        return ["keda", "static", *([BOUND] if find_spec("scipy") else [])]
    names = [name.strip() for name in against.split(",")]
    return list(dict.fromkeys(name for name in names if name and name != "none"))


def _same_queues(other: Policy, policy: Policy, path: Path) -> Policy:
    if missing := [name for name in policy.queues if name not in other.queues]:
        raise UsageError(f"--against {path}: has no queue {missing[0]!r}, whose jobs are recorded")
    return other


# ── options


def _seconds(option: str, text: str) -> float:
    try:
        return seconds(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def _moment(option: str, text: str, policy: Policy) -> float:
    """Read a time, in the policy's zone where it names none, or an age."""
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return time.time() - _seconds(option, text)
    return (at if at.tzinfo else at.replace(tzinfo=ZoneInfo(policy.timezone))).timestamp()


def _inputs(text: str) -> Literal["full", "depth"]:
    match text:
        case "full" | "depth":
            return text
        case _:
            raise UsageError(f"--inputs: must be full or depth, not {text!r}")


def _hours(case: Case) -> float:
    last_s = (trace.submitted_s[-1] for trace in case.traces.values() if trace.submitted_s)
    return max(last_s, default=0.0) / 3600.0


def _step_s(case: Case, tick_s: float) -> float:
    if case.real and case.real.series:
        return case.real.series.step_s  # all courses of a page have the same steps
    return max(tick_s, float(int(_hours(case) * 3600.0 / CHARTED_STEPS)))


def _about(policy: Policy, case: Case, seed: int) -> "About":
    from fleetd.sim.compare import allowed_late
    from fleetd.sim.report import About

    zone = ZoneInfo(policy.timezone)
    return About(
        fleet=policy.fleet,
        trace=case.name,
        seed=seed,
        date=f"{datetime.now(zone):%-d %B %Y}",
        hours=_hours(case),
        allowed=allowed_late(policy),
        wait_s={name: queue.objective.wait_s for name, queue in policy.queues.items()},
        slots={name: pool.slots for name, pool in policy.pools.items()},
        currency=policy.currency,
        zone=zone if case.start_wall_s is not None else None,
        start_s=case.start_wall_s or 0.0,
        notes=case.notes,
    )
