"""One simulation as one HTML page that needs nothing else: the verdict, the table of policies, the course over time.

Promises: no script, no external resource, nothing that a browser must fetch; every name in it is escaped; the same
results give the same page, since the date is an argument. Decides nothing: what counts as better is in `verdict`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import tzinfo
from html import escape
from itertools import accumulate
from typing import Final

from fleetd import __version__
from fleetd.sim.charts import Chart, Mark, Shape, Times, draw
from fleetd.sim.result import Result, Series
from fleetd.sim.sheet import SHEET, pools
from fleetd.sim.verdict import BOUND, best, best_peer, cost, late_allowed, meets, ours, percent, sentence


@dataclass(frozen=True, slots=True)
class About:
    """What was simulated. `allowed` late jobs and `wait_s` by queue, `slots` by pool; `zone`: steps are wall times."""

    fleet: str
    trace: str
    seed: int
    date: str
    hours: float
    allowed: Mapping[str, float]
    wait_s: Mapping[str, float]
    slots: Mapping[str, int] = field(default_factory=dict)
    currency: str = ""
    zone: tzinfo | None = None
    start_s: float = 0.0  # what the course counts from
    notes: Sequence[str] = ()


def page(about: About, results: Sequence[Result]) -> str:
    """Return the page. The first result, or the one named fleetd, is ours."""
    mine = ours(results)
    name = escape(about.fleet)
    style = SHEET + pools(len(mine.series.ready) if mine.series else 0)
    body = [
        _head(about, mine),
        f'<p class="verdict">{escape(sentence(results, about.allowed, about.currency))}</p>',
        _figures(about, results),
        "<h2>The policies compared</h2>",
        _table(about, results),
        _queues(about, mine) if len(mine.queues) > 1 else "",
        *_courses(about, results),
        _reading(about, results),
        f"<footer>fleetd {__version__}, simulate; seed {about.seed}; {escape(about.date)}</footer>",
    ]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}: a simulation</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><meta name="color-scheme" '
        f'content="light dark"><style>{style}</style></head>\n<body>\n' + "\n".join(body) + "\n</body></html>\n"
    )


# ── words and figures


def _head(about: About, mine: Result) -> str:
    facts = f"{mine.jobs:,} jobs over {_hours(about.hours)}, seed {about.seed}, {about.date}"
    return (
        f'<header><p class="kicker">Fleet {escape(about.fleet)}, simulated</p>'
        f'<h1>{escape(about.trace)}</h1><p class="facts">{escape(facts)}</p></header>'
    )


def _figures(about: About, results: Sequence[Result]) -> str:
    mine, peer = ours(results), best_peer(results, about.allowed)
    price = f"{mine.cost_money:,.2f}" if mine.cost_money else f"{mine.cost_worker_s / 3600.0:,.1f} h"
    figures = [
        (price, f"{about.currency} spent" if mine.cost_money else "of workers"),
        *([(f"{mine.cost_over_bound:.2f}", "of the least possible cost")] if mine.cost_over_bound is not None else []),
        (percent(mine.late_share), f"late, {percent(late_allowed(mine, about.allowed))} allowed"),
        (duration(mine.wait_p95_s), "waited at most by 95 % of jobs"),
    ]
    if peer is not None and cost(peer, results):
        ratio = cost(mine, results) / cost(peer, results) - 1.0
        sign = "+" if ratio > 0 else MINUS
        figures.append((f"{sign}{abs(100 * ratio):.0f} %", f"against {peer.policy}"))
    rows = "".join(f"<li><b>{escape(value)}</b><span>{escape(text)}</span></li>" for value, text in figures)
    return f'<ul class="figures">{rows}</ul>'


MINUS: Final = "\u2212"
READING: Final = """\
<h2>How to read this</h2>
<p>A worker is paid from the order that launches it until it stops: while it boots, while it drains, and for at least
the minimum of its pool. The bound is what nobody can do better: it knows every job beforehand and starts each within
its objective. A job is late when it waits longer than the objective of its queue. A reversal is a launch within 300 s
of a stop in the same pool, or the reverse.</p>"""
HEADS: Final = (
    "policy", "worker hours", "cost", "over the bound", "late", "wait, p50", "p95", "p99",
    "launches", "stops", "reversals", "never started",
)  # fmt: skip


def _table(about: About, results: Sequence[Result]) -> str:
    heads = [f"cost, {about.currency}" if name == "cost" and about.currency else name for name in HEADS]
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in heads)
    winner = best(results, about.allowed)
    rows = "".join(_row(about, results, one, winner) for one in results)
    missed = any(not meets(one, about.allowed) for one in results if one.policy != BOUND)
    stars = ["★ the cheapest that met the objective"] if winner else ["no policy met the objective"]
    stars += [
        f"† missed the objective: more late than {percent(_allowed(about, results))}, or jobs never started"
    ] * missed
    caption = "; ".join(stars)
    return (
        f'<div class="wide"><table><caption>{escape(caption)}.</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _allowed(about: About, results: Sequence[Result]) -> float:
    return late_allowed(ours(results), about.allowed)


def _row(about: About, results: Sequence[Result], one: Result, winner: Result | None) -> str:
    bound = one.policy == BOUND
    missed = not bound and not meets(one, about.allowed)
    kinds = [
        word
        for word, holds in (
            ("ours", one is ours(results)), ("best", one is winner), ("missed", missed), ("bound", bound),
        )
        if holds
    ]  # fmt: skip
    over = "" if one.cost_over_bound is None else f"{one.cost_over_bound:.2f}"
    cells = [f"{one.cost_worker_s / 3600.0:,.1f}", f"{one.cost_money:,.2f}", over]
    if bound:
        cells += [""] * (len(HEADS) - 4)
    else:
        cells += [percent(one.late_share), duration(one.wait_p50_s), duration(one.wait_p95_s)]
        cells += [
            duration(one.wait_p99_s),
            *(f"{n:,}" for n in (one.launches, one.stops, one.reversals_300s, one.lost)),
        ]
    faults = (3, len(HEADS) - 2) if one.lost else (3,)
    tds = "".join(f"<td{' class=late' if at in faults else ''}>{escape(cell)}</td>" for at, cell in enumerate(cells))
    return f'<tr class="{" ".join(kinds)}"><th scope="row">{escape(one.policy)}</th>{tds}</tr>'


def _queues(about: About, mine: Result) -> str:
    head = "".join(
        f'<th scope="col">{name}</th>' for name in ("queue", "jobs", "objective", "late", "allowed", "wait, p95")
    )
    rows = []
    for name, queue in mine.queues.items():
        allowed = about.allowed.get(name, 1.0)
        kind = "missed" if queue.late_share > allowed + 1e-9 else ""
        cells = (f"{queue.jobs:,}", duration(queue.objective_s), percent(queue.late_share), percent(allowed))
        tds = "".join(f"<td{' class=late' if at == 2 else ''}>{cell}</td>" for at, cell in enumerate(cells))
        tds += f"<td>{duration(queue.wait_p95_s)}</td>"
        rows.append(f'<tr class="{kind}"><th scope="row">{escape(name)}</th>{tds}</tr>')
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    return f'<h2>The queues under {escape(mine.policy)}</h2><div class="wide">{table}</div>'


def _reading(about: About, results: Sequence[Result]) -> str:
    notes = [*about.notes, *(f"{one.policy}: {note}" for one in results for note in one.notes)]
    said = "".join(f"<li>{escape(note)}</li>" for note in dict.fromkeys(notes))
    listed = f'<h2>To be known</h2><ul class="notes">{said}</ul>' if said else ""
    return listed + READING


# ── the course over time


def _courses(about: About, results: Sequence[Result]) -> list[str]:
    mine, peer = ours(results), best_peer(results, about.allowed)
    series = mine.series
    if series is None:
        return []
    rival = peer if peer is not None and peer.series is not None else None
    times = Times(about.start_s + series.start_s, series.step_s, about.zone)
    return [
        "<h2>The course of it</h2>",
        _backlog(times, mine, rival),
        _capacity(about, times, mine, rival),
        _waits(about, times, mine, rival),
        _money(about, times, mine, rival),
    ]


def _backlog(times: Times, mine: Result, rival: Result | None) -> str:
    area = [Shape(mine.policy, "ours", _series(mine).waiting, "highest")]
    lines = [Shape(mine.policy, "ours", _series(mine).waiting, "highest")]
    if rival:
        lines.insert(0, Shape(rival.policy, "peer", _series(rival).waiting, "highest"))
    return _figure(Chart("Jobs that wait", times, area, lines), _two(mine, rival))


def _capacity(about: About, times: Times, mine: Result, rival: Result | None) -> str:
    series = _series(mine)
    ready = [
        Shape(f"{name}, ready", f"n{at}", _times(counts, about.slots.get(name, 1)))
        for at, (name, counts) in enumerate(series.ready.items())
    ]
    coming = [
        Shape(f"{name}, coming", f"n{at} pale", _times(series.coming[name], about.slots.get(name, 1)))
        for at, name in enumerate(series.ready)
        if any(series.coming.get(name, ()))
    ]
    lines = [Shape("jobs that run", "busy", series.running)]
    if rival:
        lines.insert(0, Shape(f"{rival.policy}, ready and coming", "peer", _held(about, _series(rival))))
    keys = [
        (shape.name, shape.kind.split()[0], "box pale" if "pale" in shape.kind else "box") for shape in ready + coming
    ]
    keys += [(shape.name, shape.kind, "") for shape in reversed(lines)]
    return _figure(Chart("Slots by pool, and jobs that run", times, ready + coming, lines), keys)


def _waits(about: About, times: Times, mine: Result, rival: Result | None) -> str:
    lines = [Shape(mine.policy, "ours", _series(mine).wait_p95_s, "highest")]
    if rival:
        lines.insert(0, Shape(rival.policy, "peer", _series(rival).wait_p95_s, "highest"))
    limit = min(about.wait_s.values(), default=0.0)
    mark = Mark(f"objective {duration(limit)}", limit) if limit else None
    ordered = sorted(value for line in lines for value in line.values)
    usual = ordered[int(0.995 * (len(ordered) - 1))] if ordered else 0.0
    top = max(3.0 * limit, 1.15 * usual) or None
    chart = Chart("Wait of 95 % of the jobs handed in at the time", times, (), lines, mark, top, duration)
    return _figure(chart, _two(mine, rival))


def _money(about: About, times: Times, mine: Result, rival: Result | None) -> str:
    priced = any(_series(mine).money)
    lines = [Shape(mine.policy, "ours", _spent(_series(mine), times, priced=priced), "last")]
    if rival:
        lines.insert(0, Shape(rival.policy, "peer", _spent(_series(rival), times, priced=priced), "last"))
    title = f"Money spent so far, {about.currency}" if priced else "Node hours so far"
    peak = max((line.values[-1] for line in lines if line.values), default=0.0)
    write = "{:,.0f}".format if peak >= 10 else "{:,.2f}".format
    return _figure(Chart(title.rstrip(", "), times, (), lines, write=write), _two(mine, rival))


def _series(result: Result) -> Series:
    assert result.series is not None, "charts are drawn of results that have their course"
    return result.series


def _times(counts: Sequence[int], slots: int) -> Sequence[float]:
    return counts if slots == 1 else [count * slots for count in counts]


def _held(about: About, series: Series) -> list[float]:
    """Return the slots of all pools, up or coming."""
    total = [0.0] * len(series.running)
    for kind in (series.ready, series.coming):
        for name, counts in kind.items():
            slots = about.slots.get(name, 1)
            for at, count in enumerate(counts):
                total[at] += count * slots
    return total


def _spent(series: Series, times: Times, *, priced: bool) -> list[float]:
    if priced:
        return list(accumulate(series.money))
    columns = [*series.ready.values(), *series.coming.values()]
    return list(accumulate(sum(column) * times.step_s / 3600.0 for column in zip(*columns, strict=True)))


def _two(mine: Result, rival: Result | None) -> list[tuple[str, str, str]]:
    return [(mine.policy, "ours", ""), *([(rival.policy, "peer", "")] if rival else [])]


def _figure(chart: Chart, keys: Sequence[tuple[str, str, str]]) -> str:
    """Return a chart under its title and the key to its colours: (name, colour, class of the swatch)."""
    swatches = "".join(
        f'<span class="key {kind}-key"><i class="{shape}"></i><span>{escape(name)}</span></span>'
        for name, kind, shape in keys
    )
    return (
        f"<figure><figcaption><h3>{escape(chart.title)}</h3>{swatches}</figcaption>"
        f'<div class="wide">{draw(chart)}</div></figure>'
    )


def duration(value_s: float) -> str:
    """Return a wait as people write it: 0 s, 0.4 s, 28 s, 4.5 min, 2.1 h."""
    if value_s < 10:
        return f"{value_s:.1f} s".replace(".0 s", " s")
    if value_s < 120:
        return f"{value_s:.0f} s"
    if value_s < 7200:
        return f"{value_s / 60:.1f} min".replace(".0 min", " min")
    return f"{value_s / 3600:.1f} h".replace(".0 h", " h")


def _hours(hours: float) -> str:
    return (
        f"{hours * 60:.0f} minutes" if hours < 2 else f"{hours:,.0f} hours" if hours < 96 else f"{hours / 24:,.1f} days"
    )
