"""Writes what the chart and the kustomization hold of the rest of the repository: `python -m scripts.chart`.

The rights, the alerts, the dashboards, and what the overlays' policies need; and into values.schema.json the policy's
language, so that a misspelt key is refused before anything reaches a cluster. The part of that schema for the other
values is written by hand.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from fleetd.cli.manifests import Asked, needed, text
from fleetd.config import schema
from fleetd.providers.kubernetes import rights

ROOT: Final = Path(__file__).parent.parent
CHART: Final = ROOT / "manifests" / "helm" / "fleetd"
OVERLAYS: Final = ROOT / "manifests" / "kustomize" / "overlays"
DOC: Final = ROOT / "docs" / "kubernetes.md"
MARKS: Final = ("<!-- rights:begin -->\n", "<!-- rights:end -->")
# Helm's expressions are Go's, which cannot look ahead: the empty text passes there, and fleetd refuses it.
CHANGED: Final[Mapping[str, Callable[[str], str]]] = {
    "$ref": lambda text: text.replace("#/$defs/", "#/$defs/policy/$defs/"),
    "pattern": lambda text: text.replace("(?=[0-9])", ""),
}


def files() -> Mapping[Path, str]:
    """Return every file that is written, and what is to stand in it."""
    dashboards = ROOT / "dashboards"
    found = {CHART / "files" / "dashboards" / path.name: path.read_text() for path in dashboards.glob("*.json")}
    found[CHART / "files" / "rules.yaml"] = (dashboards / "rules.yaml").read_text()
    found[CHART / "files" / "rights.yaml"] = _rights()
    found[CHART / "values.schema.json"] = _schema()
    found[DOC] = _doc(DOC.read_text())
    for policy in OVERLAYS.glob("*/policy.yaml"):
        head = (
            "# Printed by `fleetd manifests -p policy.yaml -n fleetd`; print it anew when the policy's pools change.\n"
        )
        found[policy.parent / "pools.yaml"] = head + text(needed(policy, Asked(namespace="fleetd")))
    found[OVERLAYS / "production" / "alerts.yaml"] = _alerts((dashboards / "rules.yaml").read_text())
    return found


def _rights() -> str:
    head = "# Written by scripts/chart.py from fleetd/providers/kubernetes/rights.py: change the code instead.\n"
    lines = [f"- {json.dumps(right)}\n" for right in rights.data()]
    return head + "".join(lines)


def _schema() -> str:
    """Return the schema of the values with that of the policy in it, its references moved along."""
    path = CHART / "values.schema.json"
    whole = json.loads(path.read_text())
    whole["$defs"]["policy"] = _moved({key: value for key, value in schema().items() if key != "$schema"})
    return json.dumps(whole, indent=2) + "\n"


def _moved(node: Any) -> Any:
    if isinstance(node, list):
        return [_moved(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: CHANGED[key](item) if key in CHANGED and isinstance(item, str) else _moved(item)
        for key, item in node.items()
    }


def _alerts(rules: str) -> str:
    head = "# Written by scripts/chart.py from dashboards/rules.yaml: change that instead.\n"
    head += "apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\n"
    head += "metadata:\n  name: fleetd\n  namespace: fleetd\nspec:\n"
    return head + "".join(f"  {line}" if line.strip() else line for line in rules.splitlines(keepends=True))


def _doc(text: str) -> str:
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    return before + MARKS[0] + rights.table() + MARKS[1] + after


if __name__ == "__main__":
    for path, content in files().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
