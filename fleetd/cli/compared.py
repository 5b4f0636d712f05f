"""How a comparison of policies is shown: warnings, a bar on the way, a table with a sentence, JSON, or a page."""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from fleetd.errors import FleetdError
from fleetd.sim.result import Result
from fleetd.sim.verdict import BOUND, best, meets, ours, percent, sentence

if TYPE_CHECKING:
    from fleetd.sim.compare import Say
    from fleetd.sim.report import About

WIDTH: Final = 132  # of what is written to a file or a pipe
WIDE: Final = 100  # from here on a terminal has room for every column


def warned(warnings: Sequence[str]) -> None:
    """Say what stands in the way of an objective, before anything runs."""
    for warning in warnings:
        print(f"fleetd: warning: {warning}", file=sys.stderr)


@contextmanager
def progress() -> "Iterator[Say]":
    """Give what shows how far each run is, on a terminal's standard error; elsewhere nothing is shown."""
    if not sys.stderr.isatty():
        yield lambda _name, _share: None
        return
    columns = (TextColumn("{task.description:12}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, TaskID] = {}

        def say(name: str, share: float) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=1.0)
            bars.update(tasks[name], completed=share)

        yield say


def show(
    results: Sequence[Result], allowed: Mapping[str, float], currency: str, notes: Sequence[str], *, as_json: bool
) -> None:
    """Print the results."""
    if as_json:
        print(json.dumps([one.row() for one in results], indent=1))
        return
    console = Console()
    console = console if console.is_terminal else Console(width=WIDTH)
    console.print(comparison(results, allowed, currency, wide=console.width >= WIDE))
    print("* the cheapest that met the objective; † missed it")
    said = [*notes, *(f"{one.policy}: {note}" for one in results for note in one.notes)]
    for note in dict.fromkeys(said):
        print(f"  {note}")
    print(sentence(results, allowed, currency))


def comparison(results: Sequence[Result], allowed: Mapping[str, float], currency: str, *, wide: bool = True) -> Table:
    """Return the table, a row for each policy; the cheapest that met the objective is marked, who missed it is red."""
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2 if wide else 1, 0, 0))
    winner = best(results, allowed)
    rows = [_cells(one, currency, wide=wide) for one in results]
    # What nobody has is left out: no bound was asked for, no job was lost.
    kept = [
        name for name in rows[0] if any(row[name] not in ("", "0") for row in rows) or name not in ("/bound", "lost")
    ]
    for name in ("POLICY", *kept):
        table.add_column(name, justify="left" if name == "POLICY" else "right", no_wrap=True)
    for one, row in zip(results, rows, strict=True):
        good = one.policy == BOUND or meets(one, allowed)
        mark = " *" if one is winner else "" if good else " †"
        looks = [*(["dim"] if one.policy == BOUND else []), *(["bold"] if one is ours(results) else [])]
        looks += [] if good else ["red"]
        table.add_row(one.policy + mark, *(row[name] for name in kept), style=" ".join(looks))
    return table


def _cells(one: Result, currency: str, *, wide: bool) -> dict[str, str]:
    """Return what a row has under each head; the bound launches nothing, so it has cells with nothing in them."""
    from fleetd.sim.report import duration

    cells = {
        "hours": f"{one.cost_worker_s / 3600:,.1f}",
        currency or "cost": f"{one.cost_money:,.2f}",
        "/bound": f"{one.cost_over_bound:.2f}" if one.cost_over_bound is not None else "",
        "late": percent(one.late_share),
        "p50": duration(one.wait_p50_s),
        "p95": duration(one.wait_p95_s),
        "p99": duration(one.wait_p99_s),
        "launches": f"{one.launches:,}",
        "stops": f"{one.stops:,}",
        "turns": f"{one.reversals_300s:,}",
        "lost": f"{one.lost:,}",
    }
    blank = list(cells)[3:] if one.policy == BOUND else []
    return {name: "" if name in blank else text for name, text in cells.items() if wide or name not in ("p50", "stops")}


def write_report(path: Path, about: "About", results: Sequence[Result]) -> None:
    """Write the page."""
    from fleetd.sim.report import page

    try:
        path.write_text(page(about, results))
    except OSError as error:
        raise FleetdError(f"--report {path}: {error.strerror}") from None
