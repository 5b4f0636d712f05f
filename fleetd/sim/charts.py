"""Charts as inline SVG: lines and stacked areas over time, drawn as steps. Text in, text out.

Promises: no colour is set here: everything has a class, and the page's style sheet decides, light or dark; a course of
any length becomes at most `COLUMNS` columns, and what is highest in a column stays visible where that matters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from html import escape
from math import ceil, floor, log10
from typing import Final, Literal

WIDTH: Final = 1200
HEIGHT: Final = 280
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 14, 30
COLUMNS: Final = WIDTH - LEFT - RIGHT
PLOT_H: Final = HEIGHT - TOP - BOTTOM
Keep = Literal["highest", "mean", "last"]


@dataclass(frozen=True, slots=True)
class Shape:
    """One line or area: its values, one a step; `keep` is what stands for the steps that share a column."""

    name: str
    kind: str  # the class that its colour follows from
    values: Sequence[float]
    keep: Keep = "mean"


@dataclass(frozen=True, slots=True)
class Times:
    """What the steps mean: the first begins at `start_s`, each lasts `step_s`. With a `zone`: since 1970."""

    start_s: float
    step_s: float
    zone: tzinfo | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A level that a chart is read against."""

    name: str
    value: float


@dataclass(frozen=True, slots=True)
class Chart:
    """Areas are stacked in their order, lines lie over them. `top` cuts what is higher, and says so."""

    title: str
    times: Times
    areas: Sequence[Shape] = ()
    lines: Sequence[Shape] = ()
    mark: Mark | None = None
    top: float | None = None
    write: Callable[[float], str] = "{:,.0f}".format


def draw(chart: Chart) -> str:
    """Return the chart as an `svg` element."""
    count = max((len(shape.values) for shape in (*chart.areas, *chart.lines)), default=0)
    if not count:
        return '<p class="none">nothing was recorded</p>'
    areas = [thin(shape, count) for shape in chart.areas]
    lines = [thin(shape, count) for shape in chart.lines]
    columns = min(count, COLUMNS)
    stacked = [sum(column) for column in zip(*areas, strict=True)] if areas else []
    peak = max([*stacked, *(max(line) for line in lines if line), chart.mark.value if chart.mark else 0.0])
    top, steps = scale(min(peak, chart.top) if chart.top else peak)
    body = [_grid(steps, top, chart.write), _clock(chart.times, count)]
    low = [0.0] * len(stacked)
    for shape, values in zip(chart.areas, areas, strict=True):
        high = [a + b for a, b in zip(low, values, strict=True)]
        if any(values):
            body.append(f'<path class="area {shape.kind}" d="{_area(low, high, top, columns)}"/>')
        low = high
    body += [
        f'<path class="line {shape.kind}" d="{_line(values, top, columns)}"/>'
        for shape, values in zip(chart.lines, lines, strict=True)
        if values
    ]
    body += _mark(chart, top)
    cut = f'<text class="cut" x="{WIDTH - RIGHT}" y="{TOP + 10}">cut: highest {escape(chart.write(peak))}</text>'
    body += [cut] if peak > top * 1.001 else []
    title = escape(chart.title, quote=True)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{"".join(body)}</svg>'


def thin(shape: Shape, count: int) -> list[float]:
    """Return a value for each column of a chart of `count` steps, as far as this shape goes."""
    values = shape.values
    if count <= COLUMNS:
        return [float(value) for value in values]
    bins = [values[at * count // COLUMNS : (at + 1) * count // COLUMNS] for at in range(COLUMNS)]
    match shape.keep:
        case "highest":
            return [float(max(one)) for one in bins if one]
        case "last":
            return [float(one[-1]) for one in bins if one]
        case _:
            return [sum(one) / len(one) for one in bins if one]


def scale(peak: float) -> tuple[float, list[float]]:
    """Return the top of an axis and its four or five round steps from zero."""
    if peak <= 0:
        return 1.0, [0.0, 1.0]
    rough = peak / 4.0
    unit = 10.0 ** floor(log10(rough))
    step = next(unit * factor for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if unit * factor >= rough * 0.999)
    steps = [step * at for at in range(ceil(peak / step - 1e-9) + 1)]
    return max(peak * 1.04, steps[-1]), steps


# ── paths


def _x(at: float, columns: int) -> str:
    return f"{LEFT + at * COLUMNS / columns:.1f}".removesuffix(".0")


def _y(value: float, top: float) -> str:
    return f"{TOP + PLOT_H * (1.0 - min(max(value, 0.0), top) / top):.1f}".removesuffix(".0")


def _stair(values: Sequence[float], top: float, columns: int, order: range) -> str:
    """Return the moves along a stair from left to right, or back; level stretches are one move."""
    forward, parts, last = order.step > 0, list[str](), ""
    for at in order:
        y = _y(values[at], top)
        if y != last:
            parts.append(f"H{_x(at if forward else at + 1, columns)}V{y}")
            last = y
    return "".join(parts) + f"H{_x(len(values) if forward else 0, columns)}"


def _line(values: Sequence[float], top: float, columns: int) -> str:
    return f"M{LEFT} {_y(values[0], top)}" + _stair(values, top, columns, range(len(values)))


def _area(low: Sequence[float], high: Sequence[float], top: float, columns: int) -> str:
    there = _stair(high, top, columns, range(len(high)))
    back = _stair(low, top, columns, range(len(low) - 1, -1, -1))
    return f"M{LEFT} {_y(high[0], top)}{there}{back}Z"


# ── axes


def _grid(steps: Sequence[float], top: float, write: Callable[[float], str]) -> str:
    parts = []
    for value in steps:
        if value <= top:
            y = _y(value, top)
            kind = "axis" if value == 0 else "grid"
            parts.append(f'<path class="{kind}" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>')
            parts.append(f'<text class="end" x="{LEFT - 8}" y="{float(y) + 4:.1f}">{escape(write(value))}</text>')
    return "".join(parts)


def _mark(chart: Chart, top: float) -> list[str]:
    if chart.mark is None or chart.mark.value > top:
        return []
    y = _y(chart.mark.value, top)
    label = f'<text class="mark" x="{WIDTH - RIGHT}" y="{float(y) - 5:.1f}">{escape(chart.mark.name)}</text>'
    return [f'<path class="mark" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>', label]


_ROUND_S: Final = (60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400, 172800, 604800, 1209600)


def _clock(times: Times, count: int) -> str:
    """Return the axis of time, with some ten labels at round moments."""
    length_s = count * times.step_s
    every_s = next((one for one in _ROUND_S if length_s / one <= 10), 86400 * ceil(length_s / 864000))
    shift_s = _offset_s(times)
    first = ceil((times.start_s + shift_s) / every_s) * every_s - shift_s
    parts, at_s = [], first
    while at_s <= times.start_s + length_s:
        x = LEFT + (at_s - times.start_s) / length_s * COLUMNS
        kind = "end" if x > WIDTH - RIGHT - 30 else "middle" if x > LEFT + 20 else "start"
        parts.append(f'<path class="axis" d="M{x:.1f} {TOP + PLOT_H}v5"/>')
        parts.append(f'<text class="{kind}" x="{x:.1f}" y="{HEIGHT - 8}">{_moment(at_s, every_s, times)}</text>')
        at_s += every_s
    return "".join(parts)


def _offset_s(times: Times) -> float:
    """Return how far the zone is from UTC at the start, so that labels fall on its round hours."""
    if times.zone is None:
        return 0.0
    offset = datetime.fromtimestamp(times.start_s, times.zone).utcoffset()
    return offset.total_seconds() if offset else 0.0


def _moment(at_s: float, every_s: float, times: Times) -> str:
    if times.zone is not None:
        at = datetime.fromtimestamp(at_s, times.zone)
        return f"{at:%a %-d %b}" if every_s >= 86400 else f"{at:%a %H:%M}"
    if every_s < 3600:
        return f"{at_s / 60:.0f} min"
    if every_s >= 86400 and at_s % 86400 == 0:
        return f"day {at_s / 86400:.0f}"
    return f"{at_s / 3600:.0f} h"
