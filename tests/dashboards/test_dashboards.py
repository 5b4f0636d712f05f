"""Every panel of every dashboard answers from a real Prometheus that scraped a real fleet through a rush."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from fleetd.control import metrics_names as names
from scripts.dashboards import FOLDER, files
from scripts.panels import ANNOTATIONS, BOARDS
from tests.dashboards.rush import Ran, rush

SEVEN: Final = {"overview", "queue", "pool", "nodes", "releases", "cost", "controller"}
# What a good minute and a half may leave at zero. Everything else has to move.
QUIET: Final = {
    ("queue", "Blind"),  # the source is well
    ("nodes", "Not shown"),
    ("nodes", "Quarantined"),
    ("nodes", "Lost or failed"),
    ("controller", "Paused"),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ran]:
    with rush(tmp_path_factory.mktemp("rush")) as made:
        yield made


def panels() -> list[tuple[str, dict[str, Any]]]:
    """(dashboard, panel) as they are in the committed files."""
    boards = {file.stem: json.loads(file.read_text()) for file in sorted(FOLDER.glob("*.json"))}
    return [(name, panel) for name, board in boards.items() for panel in board["panels"]]


def values(series: list[dict[str, Any]]) -> list[float]:
    found = [float(value) for one in series for _, value in one["values"]]
    return [value for value in found if value == value]  # noqa: PLR0124 - not a NaN


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(240)
def test_every_query_of_every_panel_returns_data(ran: Ran) -> None:
    empty, still = [], []
    for board, panel in panels():
        found = [values(ran.course(target["expr"])) for target in panel["targets"]]
        empty += [
            f"{board}: {panel['title']}: {target['expr']}"
            for target, numbers in zip(panel["targets"], found, strict=True)
            if not numbers
        ]
        if not any(any(numbers) for numbers in found):
            still.append((board, panel["title"]))
    assert empty == [], "these queries return nothing:\n" + "\n".join(empty)
    assert set(still) <= QUIET, f"these panels are zero all the time: {set(still) - QUIET}"


@pytest.mark.real
@pytest.mark.slow
def test_every_annotation_marks_something(ran: Ran) -> None:
    assert [name for name, (expr, _) in ANNOTATIONS.items() if not values(ran.course(expr))] == []


@pytest.mark.real
@pytest.mark.slow
def test_every_variable_offers_names(ran: Ran) -> None:
    for file in FOLDER.glob("*.json"):
        for variable in json.loads(file.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
                assert found, variable
                series = ran.course(found[1].replace("$fleet", "rush"))
                assert {one["metric"][found[2]] for one in series}, variable["query"]


@pytest.mark.real
@pytest.mark.slow
def test_every_metric_of_the_table_was_scraped_and_none_beside_it(ran: Ran) -> None:
    told = {name for name in ran.ask("label/__name__/values") if name.startswith("fleetd_")}
    bare = {re.sub("_(bucket|sum|count)$", "", name) for name in told}
    table = {family.name for family in names.FAMILIES}
    assert bare - table == set()
    assert table - bare == set()


@pytest.mark.real
@pytest.mark.slow
def test_the_rush_is_told_as_it_was(ran: Ran) -> None:
    """Of what was submitted the counts are known: 170 good jobs, 4 that fail, one that crashes twice, 3 of no queue."""

    def last(expr: str) -> float:
        return values(ran.course(expr))[-1]

    assert last('fleetd_queue_jobs_total{queue="nap", outcome="done"}') == 90
    assert last('fleetd_queue_jobs_total{queue="report", outcome="done"}') == 80
    # On a node whose code is still on trial the crash is tried once more.
    assert last('fleetd_queue_jobs_total{queue="nap", outcome="failed"}') in (6, 7)
    assert last("fleetd_unmatched_jobs_total") == 3
    assert last('sum(fleetd_worker_jobs_total{outcome="done"})') == 173
    assert last("sum(fleetd_worker_crashes_total)") >= 2
    assert last('fleetd_dead_letters_received_total{queue="nap"}') == 5
    assert last('fleetd_queue_service_seconds_count{queue="report"}') == 80
    assert last('fleetd_queue_arrived_jobs_total{queue="report"}') == 80
    assert last("max(max_over_time(fleetd_pool_breaker_open[2m]))") == 1
    assert last('fleetd_calls_total{adapter="cloud", call="launch", outcome="error"}') >= 1
    assert last('fleetd_http_refused_total{code="401"}') == 1
    assert last('count(fleetd_release_info{role="refused"})') == 1


@pytest.mark.real
@pytest.mark.slow
def test_prometheus_takes_the_rules_and_records(ran: Ran) -> None:
    groups = ran.ask("rules")["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
    assert values(ran.course("fleet:fleetd_pool_busy_slots:ratio"))


def test_there_are_the_seven_dashboards_and_they_are_as_the_code_draws_them() -> None:
    assert {board.name for board in BOARDS} == SEVEN
    committed = {file.name: file.read_text() for file in FOLDER.glob("*.json")}
    assert committed == files(), "run `make docs`"


def test_each_panel_says_what_to_read_off_it_and_asks_only_of_metrics_that_there_are() -> None:
    known = {family.name for family in names.FAMILIES} | {"process_resident_memory_bytes", "process_cpu_seconds_total"}
    for board, panel in panels():
        assert panel["description"].endswith("."), (board, panel["title"])
        assert panel["targets"], (board, panel["title"])
        for target in panel["targets"]:
            used = {re.sub("_bucket$", "", name) for name in re.findall(r"\b(?:fleetd|process)_\w+", target["expr"])}
            assert used <= known, (board, panel["title"], used - known)
            assert "fleet=" in target["expr"] or "job=" in target["expr"], "one fleet's panel shows one fleet"


def test_dashboards_link_to_each_other_and_to_explain_and_show_what_was_decided() -> None:
    for file in FOLDER.glob("*.json"):
        raw = json.loads(file.read_text())
        assert raw["uid"] == f"fleetd-{file.stem}"
        assert {mark["name"] for mark in raw["annotations"]["list"]} == {"decisions", "releases", "operators"}
        assert any(link["url"].endswith("/v1/explain") for link in raw["links"])
        assert any(link["type"] == "dashboards" and link["tags"] == ["fleetd"] for link in raw["links"])
        assert {"datasource", "fleet"} <= {variable["name"] for variable in raw["templating"]["list"]}
        places = [tuple(panel["gridPos"].values()) for panel in raw["panels"]]
        assert len(set(places)) == len(places), "no two panels in one place"


def test_no_metric_is_left_without_a_panel_or_a_rule() -> None:
    """What nobody looks at is not worth counting. Left out are names that only others are divided by or joined with."""
    rules = (FOLDER / "rules.yaml").read_text()
    shown = " ".join(target["expr"] for _, panel in panels() for target in panel["targets"]) + rules
    unseen = {family.name for family in names.FAMILIES if not re.search(rf"\b{family.name}", shown)}
    assert unseen == {names.INFO.name}  # the dashboards' variable `fleet` is made of it


def test_the_folder_holds_nothing_else() -> None:
    found = {path.name for path in Path(FOLDER).iterdir()}
    assert found == {f"{name}.json" for name in SEVEN} | {"rules.yaml"}
