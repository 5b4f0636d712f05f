"""Draws the live view from a status on standard input: `fleetd status --json | python -m scripts.picture`."""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI

from fleetd.cli import render

PICTURE = Path(__file__).parent.parent / "docs" / "live-view.svg"
# Plain: no font is fetched from anywhere.
FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">
<style>.{unique_id}-matrix {{ font: {char_height}px monospace; line-height: {line_height}px; }} {styles}</style>
<defs>{lines}</defs>
<rect width="{width}" height="{height}" rx="8" fill="#1c1c1c"/>
<g transform="translate({terminal_x}, {terminal_y})">{backgrounds}
<g class="{unique_id}-matrix" xml:space="preserve">{matrix}</g></g>
</svg>"""

if __name__ == "__main__":
    picture = json.load(sys.stdin)
    picture["events"] = picture["events"][-6:]
    console = Console(width=124, record=True, file=sys.stderr)
    console.print(render.fleet(picture, history=(0, 60, 140, 220, 280, 260, 230, 190, 160, 120)))
    PICTURE.write_text(console.export_svg(title="fleetd", theme=MONOKAI, code_format=FRAME, unique_id="view"))
