"""What a dashboard is made of: panels that each say what they show, rows of them, variables.

Every panel has a description, and every figure a unit. A panel that an alert watches links to the alert's runbook.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.builders.common import (
    GraphThresholdsStyleConfig,
    ReduceDataOptions,
    StackingConfig,
    VizLegendOptions,
    VizTooltipOptions,
)
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.text import Panel as Text
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.common import (
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableHide,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.text import TextMode

#: As provisioning/datasources/prometheus.yaml names it.
PROMETHEUS = DataSourceRef("prometheus", "droveway-prometheus")
TAG = "droveway"
RUNBOOKS_PAGE = "droveway-runbooks"
_RUNBOOKS = Path(__file__).parents[2] / "runbooks"

#: Grafana's names of units.
SECONDS, BYTES, BYTES_PER_SECOND, RATIO, COUNT = "s", "bytes", "Bps", "percentunit", "short"

#: Value from which on a colour holds; the first one holds from the bottom.
Steps = tuple[tuple[float | None, str], ...]
NEVER_SHOULD: Steps = ((None, "green"), (1, "red"))
ALWAYS_SHOULD: Steps = ((None, "red"), (1, "green"))
#: Of dirty rate to transfer rate: below a half each round is at most half of the last one; from one on there is no end.
CONVERGENCE: Steps = ((None, "green"), (0.5, "yellow"), (1, "red"))


@dataclass(frozen=True, slots=True)
class Query:
    """One expression; `legend` names its series, `{{label}}` stands for a label's value."""

    expression: str
    legend: str = ""


#: How far back quantiles and means look: migrations are too few for less.
WINDOW = "15m"


def quantiles(metric: str, selector: str = "", by: str = "", of: tuple[float, ...] = (0.5, 0.95)) -> list[Query]:
    """Quantiles of a histogram over the last WINDOW; `by` a label to be told apart."""
    labels = f"le, {by}" if by else "le"
    rates = f"sum by ({labels}) (rate({metric}_bucket{selector}[{WINDOW}]))"
    name = f"{{{{{by}}}}} " if by else ""
    return [Query(f"histogram_quantile({each}, {rates})", f"{name}p{each * 100:g}") for each in of]


def mean(metric: str, selector: str = "", by: str = "", legend: str = "mean") -> Query:
    """The mean of a histogram's observations over the last WINDOW."""
    parts = [f"sum by ({by}) (rate({metric}_{part}{selector}[{WINDOW}]))" for part in ("sum", "count")]
    return Query(" / ".join(parts), legend)


Panel = Timeseries | Stat
Rows = Iterable[tuple[str, Iterable[Panel | Text]]]


def lines(
    title: str,
    description: str,
    *queries: Query,
    unit: str = COUNT,
    steps: Steps = (),
    stacked: bool = False,
    runbook: str = "",
    width: int = 12,
) -> Panel:
    """Figures over time. `steps` are drawn as lines behind them; `width` in 24ths of the page."""
    panel = (
        Timeseries()
        .unit(unit)
        .min(0)
        .fill_opacity(30 if stacked else 8)
        .span_nulls(False)
        .legend(
            VizLegendOptions().show_legend(True).display_mode(LegendDisplayMode.LIST).placement(LegendPlacement.BOTTOM)
        )
        .tooltip(VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
    )
    if stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL))
    if steps:
        panel.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE))
    return _completed(panel, title, description, queries, steps, runbook).span(width).height(8)


def figure(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str = COUNT,
    steps: Steps = (),
    runbook: str = "",
    nothing: str = "",
    width: int = 4,
) -> Panel:
    """The latest value, large. `nothing` is shown when there is none."""
    panel = Stat().unit(unit).reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
    if nothing:
        panel.no_value(nothing)
    return _completed(panel, title, description, (query,), steps, runbook).span(width).height(4)


def _completed(
    panel: Panel, title: str, description: str, queries: Iterable[Query], steps: Steps, runbook: str
) -> Panel:
    """What panels of both kinds have in common."""
    panel.title(title).description(description).datasource(PROMETHEUS)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        target = Dataquery().expr(query.expression).range().ref_id(letter).datasource(PROMETHEUS)
        panel.with_target(target.legend_format(query.legend or "__auto"))
    if steps:
        values = [Threshold(value, colour) for value, colour in steps]
        panel.thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(values))
    if runbook:
        panel.links([DashboardLink("Runbook").type(DashboardLinkType.LINK).url(runbook_address(runbook))])
    return panel


def text(title: str, markdown: str) -> Text:
    """A panel to be read."""
    return Text().title(title).mode(TextMode.MARKDOWN).content(markdown).transparent(True).span(24).height(16)


def runbooks() -> list[Path]:
    """The runbooks, in the order in which their dashboard shows them."""
    return sorted(_RUNBOOKS.glob("*.md"))


def runbook_address(name: str) -> str:
    """Where Grafana shows the runbook of this name: the panel of its number."""
    number = [path.stem for path in runbooks()].index(name) + 1
    return f"/d/{RUNBOOKS_PAGE}?viewPanel={number}"


def variable(name: str, label: str, query: str, *, several: bool = True) -> QueryVariable:
    """One to choose from what Prometheus has. `several`: any number, all at first; else one."""
    made = (
        QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(PROMETHEUS)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .hide(VariableHide.DONT_HIDE)
    )
    return made.multi(True).include_all(True).all_value(".*") if several else made


def page(
    uid: str,
    title: str,
    description: str,
    rows: Rows,
    variables: Iterable[QueryVariable] = (),
) -> Dashboard:
    """A dashboard; its file is named `uid`."""
    made = (
        Dashboard(f"Droveway: {title}")
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .refresh("10s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .link(DashboardLink("Droveway").type(DashboardLinkType.DASHBOARDS).tags([TAG]).keep_time(True))
        .variables(list(variables))
    )
    for name, panels in rows:
        if name:
            made.with_row(Row(name))
        for panel in panels:
            made.with_panel(panel)
    return made
