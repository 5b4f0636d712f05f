"""Writes the tables of docs/metrics.md and docs/alert-rules.md from the code and the rules. `make docs` runs it."""

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import yaml

from fleetd.control.metrics_names import FAMILIES, Family
from scripts.panels import BOARDS

ROOT: Final = Path(__file__).parent.parent
METRICS: Final = ROOT / "docs" / "metrics.md"
ALERTS: Final = ROOT / "docs" / "alert-rules.md"
RULES: Final = ROOT / "dashboards" / "rules.yaml"


def families() -> str:
    """Return the tables of all metrics, one for each first word of their names."""
    parts = []
    for subject, group in groupby(FAMILIES, _subject):
        rows = [_row(family) for family in group]
        parts.append(_table(f"### {subject}", ("metric", "kind", "labels", "meaning"), rows))
    return "\n\n".join(parts)


def _subject(family: Family) -> str:
    word = family.name.removeprefix("fleetd_").partition("_")[0]
    return {
        "queue": "Queues", "unmatched": "Queues", "pool": "Pools", "wrong": "Pools",
        "workers": "Workers", "worker": "Workers",
        "node": "Nodes", "nodes": "Nodes", "release": "Releases",
        "tick": "Controller", "decisions": "Controller", "commands": "Controller", "journal": "Controller",
        "calls": "Controller", "call": "Controller", "http": "Controller", "leases": "Controller",
        "lease": "Controller", "metrics": "Controller",
    }.get(word, "Fleet")  # fmt: skip


def _row(family: Family) -> tuple[str, ...]:
    labels = ", ".join(f"`{label}`" for label in family.labels)
    return f"`{family.name}`", family.kind, labels, family.help


def boards() -> str:
    """Return the table of the dashboards."""
    rows = [
        (f"`{one.name}.json`", one.title.removeprefix("fleetd: "), str(len(one.panels)), one.about) for one in BOARDS
    ]
    return _table("", ("file", "dashboard", "panels", "answers"), rows)


def alerts() -> str:
    """Return the table of the alerts."""
    rules: list[dict[str, Any]] = [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"] if "alert" in rule
    ]
    rows = [
        (f"[{rule['alert']}](#{rule['alert'].lower()})", rule["labels"]["severity"], rule.get("for", "at once"),
         f"`{' '.join(rule['expr'].split()).replace('|', chr(92) + '|')}`")
        for rule in rules
    ]  # fmt: skip
    return _table("", ("alert", "severity", "for", "fires while"), rows)


def recorded() -> str:
    """Return the table of the recording rules."""
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    rows = [(f"`{rule['record']}`", f"`{' '.join(rule['expr'].split())}`") for rule in rules if "record" in rule]
    return _table("", ("recorded", "as"), rows)


def _table(heading: str, head: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [*((heading, "") if heading else ()), f"| {' | '.join(head)} |", f"|{'---|' * len(tuple(head))}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def renewed(text: str) -> str:
    """Return a document with each block between its marks made anew."""
    for name, make in (("families", families), ("boards", boards), ("alerts", alerts), ("recorded", recorded)):
        before, mark, rest = text.partition(f"<!-- {name}:begin -->\n")
        if mark:
            text = f"{before}{mark}{make()}\n{rest[rest.index(f'<!-- {name}:end -->') :]}"
    return text


if __name__ == "__main__":
    for file in (METRICS, ALERTS):
        file.write_text(renewed(file.read_text()))
