"""The rules: promtool takes them, its unit tests pass, and every alert has a test and a runbook."""

import re
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from scripts.dashboards import FOLDER
from scripts.metrics import ALERTS as ALERTS_DOC
from scripts.metrics import METRICS, renewed
from tests import servers

HERE: Final = Path(__file__).parent
RULES: Final[dict[str, Any]] = yaml.safe_load((FOLDER / "rules.yaml").read_text())
CASES: Final[dict[str, Any]] = yaml.safe_load((HERE / "rules.test.yaml").read_text())
ALERTS: Final = [rule for group in RULES["groups"] for rule in group["rules"] if "alert" in rule]
RECORDED: Final = [rule["record"] for group in RULES["groups"] for rule in group["rules"] if "record" in rule]
RUNBOOK: Final = (FOLDER.parent / "docs" / "alert-rules.md").read_text()


@pytest.mark.real
@pytest.mark.parametrize("argv", [["check", "rules", str(FOLDER / "rules.yaml")], ["test", "rules", "rules.test.yaml"]])
def test_promtool_is_content(argv: list[str]) -> None:
    done = subprocess.run(
        [servers.find("promtool"), *argv], capture_output=True, text=True, cwd=HERE, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_shown_to_fire_and_to_be_quiet_before() -> None:
    shown: dict[str, set[bool]] = {}
    for case in CASES["tests"]:
        for test in case.get("alert_rule_test", ()):
            shown.setdefault(test["alertname"], set()).add(bool(test["exp_alerts"]))
    assert shown == {rule["alert"]: {True, False} for rule in ALERTS}


def test_every_recorded_rule_is_shown_with_its_value() -> None:
    assert {test["expr"] for case in CASES["tests"] for test in case.get("promql_expr_test", ())} == set(RECORDED)
    for name in RECORDED:
        assert re.fullmatch(r"[a-z_]+:fleetd_[a-z_]+:[a-z0-9_]+", name), "level:metric:operation"


def test_every_alert_says_how_bad_it_is_what_is_wrong_and_what_to_do() -> None:
    for rule in ALERTS:
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        text = RUNBOOK.partition(f"\n### {rule['alert']}\n")[2].partition("\n### ")[0]
        assert len(text.split()) > 25, f"{rule['alert']} has no runbook in docs/alert-rules.md"
    assert re.findall(r"^### (\w+)$", RUNBOOK, re.MULTILINE) == [rule["alert"] for rule in ALERTS]


@pytest.mark.parametrize("file", [METRICS, ALERTS_DOC], ids=lambda file: str(file.name))
def test_the_tables_in_the_docs_are_those_of_the_code(file: Path) -> None:
    assert renewed(file.read_text()) == file.read_text(), "run `make docs`"


def test_a_table_that_is_out_of_date_is_noticed() -> None:
    text = METRICS.read_text()
    assert renewed(text.replace("| `fleetd_epoch` | gauge |", "| `fleetd_epoch` | counter |")) == text
