"""The style sheet of the report: set like print, in the reader's own serif, light or dark as the reader has it."""

from typing import Final

SHEET: Final = """
:root { color-scheme: light dark;
  --paper: #fdfdfb; --ink: #1d2126; --soft: #5d656e; --hair: #dcdcd6; --wash: #f3f3ee;
  --ours: #1f5f74; --peer: #b3702c; --bad: #a8322a; --good: #2f6b45;
  --p0: #2f7489; --p1: #86a46c; --p2: #c79a4b; --p3: #8d7aa8; --p4: #b5655d; --p5: #6f7f8c; }
@media (prefers-color-scheme: dark) { :root {
  --paper: #14171a; --ink: #e4e5e1; --soft: #98a0a7; --hair: #30363b; --wash: #1c2024;
  --ours: #76bcd2; --peer: #dba364; --bad: #ec8a80; --good: #8cc7a0;
  --p0: #4d9ab1; --p1: #93b377; --p2: #d0a75c; --p3: #a592c2; --p4: #cc8078; --p5: #8796a3; } }
* { box-sizing: border-box }
html { background: var(--paper); color: var(--ink); -webkit-text-size-adjust: 100% }
body { margin: 0 auto; padding: 56px 28px 72px; max-width: 1140px;
  font: 16.5px/1.55 "Iowan Old Style", "Palatino Linotype", Palatino, "URW Palladio L", P052, Georgia, serif;
  font-variant-numeric: oldstyle-nums }
header { border-bottom: 1px solid var(--ink); padding-bottom: 22px; margin-bottom: 26px }
.kicker { font-size: 13px; letter-spacing: .09em; text-transform: uppercase; color: var(--soft); margin: 0 0 6px }
h1 { font-size: 34px; line-height: 1.2; font-weight: normal; margin: 0; overflow-wrap: anywhere }
.facts { color: var(--soft); margin: 8px 0 0 }
.verdict { font-size: 21px; line-height: 1.45; max-width: 44em; margin: 0 0 30px }
h2 { font-size: 21px; font-weight: normal; margin: 44px 0 10px }
h3 { font-size: 16.5px; font-weight: bold; margin: 0 }
p { max-width: 44em; margin: 8px 0 }
.figures { display: flex; flex-wrap: wrap; gap: 14px 48px; margin: 0 0 12px; padding: 0; list-style: none }
.figures li { min-width: 8em }
.figures b { display: block; font-size: 30px; line-height: 1.2; font-weight: normal;
  font-variant-numeric: lining-nums; white-space: nowrap }
.figures span { color: var(--soft); font-size: 14px }
.wide { overflow-x: auto }
table { border-collapse: collapse; width: 100%; font-size: 15px;
  font-variant-numeric: lining-nums tabular-nums }
caption { caption-side: bottom; text-align: left; color: var(--soft); font-size: 14px; padding-top: 8px }
th, td { text-align: right; padding: 6px 0 6px 16px; white-space: nowrap; border-bottom: 1px solid var(--hair) }
th:first-child, td:first-child { text-align: left; padding-left: 0 }
thead th { font-weight: normal; font-style: italic; color: var(--soft); vertical-align: bottom;
  border-bottom: 1px solid var(--ink) }
tbody th { font-weight: normal }
tr.ours th, tr.ours td { font-weight: bold }
tr.best th::after { content: " \\2605"; color: var(--good) }
tr.missed { color: var(--soft) }
tr.missed .late { color: var(--bad); text-decoration: underline; text-underline-offset: 3px }
tr.missed th::after { content: " \\2020"; color: var(--bad) }
tr.bound { font-style: italic; color: var(--soft) }
figure { margin: 30px 0 0 }
figcaption { display: flex; flex-wrap: wrap; align-items: baseline; gap: 4px 20px; margin-bottom: 4px }
.key { color: var(--soft); font-size: 14px; white-space: nowrap }
.key i { display: inline-block; width: 18px; height: 0; margin-right: 6px; vertical-align: middle;
  border-top: 2px solid }
.key i.box { height: 10px; border: 0; background: currentColor }
.key i.pale { opacity: .4 }
svg { display: block; width: 100%; min-width: 640px; height: auto }
svg text { fill: var(--soft); font-size: 13px; font-variant-numeric: lining-nums tabular-nums }
svg .end, svg .cut, svg text.mark { text-anchor: end }
svg .middle { text-anchor: middle }
svg path { fill: none; stroke: none; vector-effect: non-scaling-stroke }
svg .grid { stroke: var(--hair) }
svg .axis { stroke: var(--soft) }
svg .line { stroke-width: 1.5; stroke-linejoin: round }
svg .area { opacity: .88 }
svg .area.pale { opacity: .38 }
svg .ours { stroke: var(--ours); color: var(--ours) } svg .area.ours { stroke: none; fill: var(--ours); opacity: .3 }
svg .peer { stroke: var(--peer) }
svg .busy { stroke: var(--ink) }
svg path.mark { stroke: var(--bad); stroke-dasharray: 5 4 }
svg text.mark { fill: var(--bad) }
svg text.mark, svg .cut { paint-order: stroke; stroke: var(--paper); stroke-width: 4px; stroke-linejoin: round }
.ours-key { color: var(--ours) } .peer-key { color: var(--peer) } .busy-key { color: var(--ink) }
.key span { color: var(--soft) }
.none { color: var(--soft); font-style: italic }
.notes li { max-width: 44em; margin: 4px 0 }
footer { margin-top: 56px; padding-top: 12px; border-top: 1px solid var(--hair); color: var(--soft); font-size: 14px }
@media (max-width: 640px) { body { padding: 28px 16px 48px } h1 { font-size: 26px } .verdict { font-size: 18px } }
@media print { body { padding: 0; max-width: none } figure, table { break-inside: avoid } }
"""


def pools(count: int) -> str:
    """Return the rules that give so many pools their colours; the six of them repeat."""
    return "".join(
        f"svg .area.n{at} {{ fill: var(--p{at % 6}) }} .n{at}-key {{ color: var(--p{at % 6}) }} " for at in range(count)
    )
