"""What a dashboard is made of: panels that each say what they show, rows of them, variables.

Every panel has a description, and every figure a unit. A panel that an alert watches links to the alert's runbook.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
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
    FieldColor,
    QueryVariable,
    Row,
    ThresholdsConfig,
)
from grafana_foundation_sdk.builders.prometheus import Dataquery
from grafana_foundation_sdk.builders.stat import Panel as Stat
from grafana_foundation_sdk.builders.text import Panel as Text
from grafana_foundation_sdk.builders.timeseries import Panel as Timeseries
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    BigValueTextMode,
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
    DashboardSpecialValueMapOptions,
    DataSourceRef,
    DynamicConfigValue,
    FieldColorModeId,
    SpecialValueMap,
    SpecialValueMatch,
    Threshold,
    ThresholdsMode,
    ValueMap,
    ValueMappingResult,
    VariableHide,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.text import TextMode

#: As provisioning/datasources/prometheus.yaml names it.
PROMETHEUS = DataSourceRef("prometheus", "droveway-prometheus")
TAG = "droveway"
RUNBOOKS_PAGE = "droveway-runbooks"
_RUNBOOKS = Path(__file__).parents[2] / "runbooks"

#: Grafana's names of units; those of bytes in powers of 1024, as the commands' words are. COUNT is of whole things,
#: NUMBER of what may have decimals.
SECONDS, BYTES, BYTES_PER_SECOND, RATIO = "s", "bytes", "binBps", "percentunit"
COUNT, NUMBER, PER_SECOND = "short", "none", "cps"
#: How far up the axis goes at least: one that is drawn for nothing but zeros ends at 100 of whatever it is.
_LEAST_TOP = {SECONDS: 0.01, BYTES: 1 << 20, BYTES_PER_SECOND: 1 << 20, RATIO: 1.0, COUNT: 1.0, NUMBER: 1.0}

#: Value from which on a colour holds; the first one holds from the bottom.
Steps = tuple[tuple[float | None, str], ...]
NEUTRAL: Steps = ((None, "text"),)
NEVER_SHOULD: Steps = ((None, "green"), (1, "red"))
#: For `says`.
YES_OR_NO = {0: "no", 1: "yes"}
ALWAYS_SHOULD: Steps = ((None, "red"), (1, "green"))
#: Of dirty rate to transfer rate: below a half each round is at most half of the last one; from one on there is no end.
CONVERGENCE: Steps = ((None, "green"), (0.5, "yellow"), (1, "red"))


#: What colour an end has, by its state: anything else means the opposite to somebody who only glances.
ENDS = {"completed": "green", "cancelled": "yellow", "failed": "red"}


@dataclass(frozen=True, slots=True)
class Query:
    """One expression; `legend` names its series, `{{label}}` stands for a label's value.

    It must not come to NaN: a single series that begins with one leaves the whole panel without lines.
    """

    expression: str
    legend: str = ""


#: How far back quantiles and means look: migrations are too few for less.
WINDOW = "15m"


def quantiles(metric: str, selector: str = "", by: str = "", of: tuple[float, ...] = (0.5, 0.95)) -> list[Query]:
    """Quantiles of a histogram over the last WINDOW, where it has observations; `by` a label to be told apart."""
    labels = f"le, {by}" if by else "le"
    rates = f"sum by ({labels}) (rate({metric}_bucket{selector}[{WINDOW}]))"
    name = f"{{{{{by}}}}} " if by else ""
    return [Query(f"histogram_quantile({each}, {rates}) >= 0", f"{name}p{each * 100:g}") for each in of]


def highest(expression: str) -> str:
    """The ten highest of its series at each moment: of a thousand hosts nobody can tell the lines apart."""
    return f"topk(10, {expression})"


def mean(metric: str, selector: str = "", by: str = "", legend: str = "mean") -> Query:
    """The mean of a histogram's observations over the last WINDOW, where it has any."""
    total, count = (f"sum by ({by}) (rate({metric}_{part}{selector}[{WINDOW}]))" for part in ("sum", "count"))
    return Query(f"{total} / ({count} > 0)", legend)


def sent(selector: str = "") -> Query:
    """Guest memory that went over the wire, of migrations that ended within the last WINDOW.

    No rate: it is counted when a migration ends, so that a rate would say of a long one what no link can do.
    """
    kinds = ", ".join(part for part in (selector, 'kind!="zero-skipped"') if part)
    return Query(f"sum by (kind) (increase(droveway_sent_bytes_total{{{kinds}}}[{WINDOW}]))", "{{kind}}")


def failures(selector: str = "") -> Query:
    """Migrations that failed within the last WINDOW, by their reason."""
    of = ", ".join(part for part in ('state="failed"', selector) if part)
    return Query(f"sum by (reason) (increase(droveway_migrations_total{{{of}}}[{WINDOW}])) > 0", "{{reason}}")


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
    nothing: str = "",
    colours: Mapping[str, str] | None = None,
    shades: str = "",
    width: int = 12,
) -> Panel:
    """Figures over time. `steps` are drawn as lines behind them; `nothing` is shown when there is no series at all;
    `colours`: of series, by their legend; `shades`: the colour of which all others are shades; `width` in 24ths of the
    page."""
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
    if unit == COUNT:
        panel.decimals(0)
    if unit in _LEAST_TOP:
        panel.axis_soft_max(_LEAST_TOP[unit])
    if stacked:
        panel.stacking(StackingConfig().mode(StackingMode.NORMAL))
    if nothing:
        panel.no_value(nothing)
    if shades:
        panel.color_scheme(FieldColor().mode(FieldColorModeId.SHADES).fixed_color(shades))
    for legend, colour in (colours or {}).items():
        fixed = {"mode": FieldColorModeId.FIXED, "fixedColor": colour}
        panel.override_by_name(legend, [DynamicConfigValue("color", fixed)])
    if steps:
        panel.thresholds_style(GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.LINE))
    return _completed(panel, title, description, queries, steps, runbook).span(width).height(8)


def figure(
    title: str,
    description: str,
    query: Query,
    *,
    unit: str = COUNT,
    steps: Steps = NEUTRAL,
    runbook: str = "",
    nothing: str = "",
    says: Mapping[int, str] | None = None,
    named: bool = False,
    width: int = 8,
) -> Panel:
    """The value of now, large, and none that is over. `nothing`: what is said where there may be none; without it, that
    nobody tells the value is said, in a colour that no good one has. `says`: words for values; `named`: that of each
    series, beside its legend.

    `steps` are never left out: Grafana would make it red from 80 on.
    """
    without = ValueMappingResult(nothing, "text") if nothing else ValueMappingResult("not known", "orange")
    mappings: list[ValueMap | SpecialValueMap] = [
        SpecialValueMap(DashboardSpecialValueMapOptions(SpecialValueMatch.NULL_AND_NAN, without))
    ]
    if says:
        mappings.append(ValueMap({str(value): ValueMappingResult(word) for value, word in says.items()}))
    panel = (
        Stat()
        .unit(unit)
        .reduce_options(ReduceDataOptions().calcs(["lastNotNull"]))
        .graph_mode(BigValueGraphMode.NONE)
        .mappings([*mappings])
    )
    if named:
        panel.text_mode(BigValueTextMode.VALUE_AND_NAME)
    return _completed(panel, title, description, (query,), steps, runbook, now=True).span(width).height(3)


def _completed(
    panel: Panel,
    title: str,
    description: str,
    queries: Iterable[Query],
    steps: Steps,
    runbook: str,
    *,
    now: bool = False,
) -> Panel:
    """What panels of both kinds have in common. `now`: asked for this moment, not for the time shown."""
    panel.title(title).description(description).datasource(PROMETHEUS)
    for letter, query in zip("ABCDEFGH", queries, strict=False):
        target = Dataquery().expr(query.expression).ref_id(letter).datasource(PROMETHEUS)
        (target.instant if now else target.range)()
        panel.with_target(target.legend_format(query.legend or "__auto"))
    if steps:
        values = [Threshold(value, colour) for value, colour in steps]
        panel.thresholds(ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(values))
    if runbook:
        panel.links([DashboardLink("Runbook").type(DashboardLinkType.LINK).url(runbook_address(runbook))])
    return panel


def text(title: str, markdown: str) -> Text:
    """A panel to be read, as high as its text."""
    panel = Text().title(title).mode(TextMode.MARKDOWN).content(markdown)
    return panel.transparent(True).span(24).height(2 + round(len(markdown.splitlines()) * 0.62))


def runbooks() -> list[Path]:
    """The runbooks, in the order in which their dashboard shows them."""
    return sorted(_RUNBOOKS.glob("*.md"))


def runbook_address(name: str) -> str:
    """Where Grafana shows the runbook of this name: the panel of its number."""
    number = [path.stem for path in runbooks()].index(name) + 1
    return f"/d/{RUNBOOKS_PAGE}?viewPanel={number}"


def variable(name: str, label: str, query: str, *, several: bool = True) -> QueryVariable:
    """One to choose from what Prometheus has. `several`: any number, all at first; else one, the first of them."""
    made = (
        QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(PROMETHEUS)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .hide(VariableHide.DONT_HIDE)
    )
    if not several:
        return made
    everything = VariableOption(selected=True, text=["All"], value=["$__all"])
    return made.multi(True).include_all(True).all_value(".*").current(everything)


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
