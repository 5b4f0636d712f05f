"""Draws the main panels' data of a real rush into docs/metrics-*.svg: `python -m tests.dashboards.draw`.

What is drawn is what Prometheus answers to the panels' own queries; `rsvg-convert` makes a PNG of one for a look.
"""

import json
import tempfile
from html import escape
from math import isnan
from pathlib import Path
from typing import Any, Final

from fleetd.sim.charts import HEIGHT, WIDTH, Chart, Shape, Times, draw
from scripts.dashboards import FOLDER
from tests.dashboards.rush import Ran, rush

DOCS: Final = FOLDER.parent / "docs"
# Which panel of which dashboard is drawn into which file.
PICTURES: Final = {
    "metrics-waiting": ("queue", "Waiting and running"),
    "metrics-nodes": ("pool", "Nodes by phase"),
    "metrics-jobs": ("queue", "Starts and ends"),
    "metrics-releases": ("releases", "Nodes by release"),
    "metrics-cost": ("cost", "Cost an hour by pool"),
}
COLOURS: Final = ("#3366cc", "#dc7f1e", "#2a9d5c", "#b03a7a", "#7a5cc2", "#8a6d3b", "#c0392b", "#4d9aa8")
HEAD: Final = 54  # above the chart: its title and what the colours mean
STYLE: Final = """\
text { font: 15px sans-serif; fill: #333 } .end { text-anchor: end } .middle { text-anchor: middle }
.title { font-size: 19px } .line { fill: none; stroke-width: 2.5 } .axis { stroke: #777 } .grid { stroke: #ddd }
"""


def picture(board: str, title: str, ran: Ran) -> str:
    """Return one panel as an SVG."""
    panel = next(one for one in json.loads((FOLDER / f"{board}.json").read_text())["panels"] if one["title"] == title)
    stacked = panel["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal"
    shapes = [
        Shape(_named(target["legendFormat"], one["metric"]), "", _steps(one["values"], ran), "highest")
        for target in panel["targets"]
        for one in ran.course(target["expr"])
    ]
    shapes = [shape for shape in shapes if any(shape.values)][: len(COLOURS)]
    shapes = [Shape(shape.name, f"c{at}", shape.values, shape.keep) for at, shape in enumerate(shapes)]
    chart = Chart(
        panel["title"],
        Times(0.0, 1.0),
        areas=shapes if stacked else (),
        lines=() if stacked else shapes,
        write="{:,.3g}".format,
    )
    colours = "".join(
        f".line.c{at} {{ stroke: {one} }} .area.c{at} {{ fill: {one} }}\n" for at, one in enumerate(COLOURS)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT + HEAD}"><style>{STYLE}{colours}</style>'
        f'<rect width="100%" height="100%" fill="white"/><text class="title" x="10" y="22">{escape(panel["title"])}'
        f"</text>{_legend(shapes)}"
        f'<svg y="{HEAD}" width="{WIDTH}" height="{HEIGHT}">{draw(chart)}</svg></svg>\n'
    )


def _legend(shapes: list[Shape]) -> str:
    parts, x = [], 10
    for at, shape in enumerate(shapes):
        parts.append(f'<rect x="{x}" y="34" width="14" height="14" fill="{COLOURS[at]}"/>')
        parts.append(f'<text x="{x + 19}" y="47">{escape(shape.name)}</text>')
        x += 40 + 8 * len(shape.name)
    return "".join(parts)


def _named(legend: str, labels: dict[str, str]) -> str:
    for name, value in labels.items():
        legend = legend.replace("{{" + name + "}}", value)
    return legend


def _steps(values: list[list[Any]], ran: Ran) -> list[float]:
    """Return one value a second from the rush's begin on; 0 where there is none."""
    found = {round(float(at) - ran.start): float(value) for at, value in values}
    course = [found.get(second, 0.0) for second in range(int(ran.end - ran.start))]
    return [0.0 if isnan(value) else value for value in course]


def main() -> None:
    """Run a rush and renew the pictures."""
    with tempfile.TemporaryDirectory() as home, rush(Path(home)) as ran:
        for name, (board, title) in PICTURES.items():
            (DOCS / f"{name}.svg").write_text(picture(board, title, ran))


if __name__ == "__main__":
    main()
