"""Writes dashboards/*.json for Grafana from scripts/panels.py. `make docs` runs it; the JSON is committed."""

import json
from pathlib import Path
from typing import Any, Final

from grafana_foundation_sdk.builders import common, dashboard, heatmap, prometheus, stat, table, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from scripts.panels import ANNOTATIONS, BOARDS, Board, Panel

FOLDER: Final = Path(__file__).parent.parent / "dashboards"
SOURCE: Final = DataSourceRef(type_val="prometheus", uid="${datasource}")
COLOURS: Final = {"decisions": "blue", "releases": "purple", "operators": "orange"}
HEIGHT: Final = 8
LOW: Final = 4  # of a number alone


def drawn(board: Board) -> dict[str, Any]:
    """Return one dashboard as Grafana imports it."""
    made = (
        dashboard.Dashboard(board.title)
        .uid(f"fleetd-{board.name}")
        .description(board.about)
        .tags(["fleetd"])
        .timezone("browser")
        .refresh("10s")
        .time("now-1h", "now")
        .variables([_source(), _names("fleet", "label_values(fleetd_info, fleet)", many=False)])
    )
    for name, query in board.variables.items():
        made = made.with_variable(_names(name, query, many=True))
    made = made.with_variable(_controller())
    made = made.link(_others()).link(_explain())
    for name, (expr, _) in ANNOTATIONS.items():
        mark = dashboard.AnnotationQuery().name(name).datasource(SOURCE).enable(enable=True).expr(expr)
        made = made.annotation(mark.icon_color(COLOURS[name]))
    for number, panel in enumerate(board.panels, 1):
        made = made.with_panel(_panel(panel).id(number))
    raw: dict[str, Any] = json.loads(json.dumps(made.build(), cls=JSONEncoder))
    for mark in raw["annotations"]["list"]:  # what the query editor of Prometheus adds to a mark
        mark["titleFormat"] = ANNOTATIONS[mark["name"]][1]
    return raw


def _source() -> dashboard.DatasourceVariable:
    return dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")


def _names(name: str, query: str, *, many: bool) -> dashboard.QueryVariable:
    made = dashboard.QueryVariable(name).label(name).query(query).datasource(SOURCE)
    made = made.refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
    if not many:
        return made
    everything = VariableOption(selected=True, text="All", value="$__all")
    return made.multi(multi=True).include_all(include_all=True).all_value(".*").current(everything)


def _controller() -> dashboard.TextBoxVariable:
    return dashboard.TextBoxVariable("controller").label("controller's URL").default_value("http://127.0.0.1:7117")


def _others() -> dashboard.DashboardLink:
    made = dashboard.DashboardLink("fleetd").type(DashboardLinkType.DASHBOARDS).tags(["fleetd"])
    return made.as_dropdown(as_dropdown=True).include_vars(include_vars=True).keep_time(keep_time=True)


def _explain() -> dashboard.DashboardLink:
    made = dashboard.DashboardLink("explain").type(DashboardLinkType.LINK).url("${controller}/v1/explain")
    return made.tooltip("Why the fleet is as it is: fleetd explain (needs a token)").target_blank(target_blank=True)


def _panel(panel: Panel) -> Any:
    """Return a panel's builder; what all kinds have in common is set here."""
    match panel.kind:
        case "stat":
            made: Any = stat.Panel()
        case "table":
            made = table.Panel()
        case "heat":
            made = heatmap.Panel().calculate(calculate=False)
        case "stack":
            made = timeseries.Panel().fill_opacity(40)
            made = made.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
        case "lines":
            made = timeseries.Panel()
    made = made.title(panel.title).description(panel.why).unit(panel.unit).datasource(SOURCE)
    made = made.span(panel.width).height(LOW if panel.kind == "stat" else HEIGHT)
    if panel.limits:
        made = made.thresholds(_limits(*panel.limits))
    for at, (expr, legend) in enumerate(panel.queries):
        made = made.with_target(_query(panel, expr, legend).ref_id("ABCDEFGH"[at]))
    return made


def _query(panel: Panel, expr: str, legend: str) -> prometheus.Dataquery:
    query = prometheus.Dataquery().expr(expr).datasource(SOURCE)
    match panel.kind:
        case "table":
            return query.instant().format(PromQueryFormat.TABLE)
        case "heat":
            return query.range().format(PromQueryFormat.HEATMAP).legend_format(legend)
        case "stat":
            return query.instant().legend_format(legend or "__auto")
        case _:
            return query.range().legend_format(legend)


def _limits(yellow: float, red: float) -> dashboard.ThresholdsConfig:
    steps = [Threshold(color="green"), Threshold(value=yellow, color="yellow"), Threshold(value=red, color="red")]
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def files() -> dict[str, str]:
    """Return every dashboard's file by name."""
    return {f"{board.name}.json": json.dumps(drawn(board), indent=1) + "\n" for board in BOARDS}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text)
