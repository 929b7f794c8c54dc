"""The parts of the dashboard: queries, and panels that all have a title, a unit and a description."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias, TypeVar

from grafana_foundation_sdk.builders import (
    bargauge,
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common as options
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

DATASOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
FLEET = ('job=~"$job"',)
DEVICE = (*FLEET, 'instance="$instance"')
CAMERA = (*DEVICE, 'sensor="$sensor"')
HEIGHT = 8  # of a panel, in units of Grafana's grid, which has 24 columns
GREEN, YELLOW, RED, BLUE, GREY = "green", "yellow", "red", "blue", "#8e8e8e"

Panel = TypeVar("Panel", bound=Any)  # a builder of any kind of panel; they have no common base with these methods
Query: TypeAlias = prometheus.Dataquery


class About(NamedTuple):
    """What every panel says of itself. unit: a name of Grafana's. width: columns of 24."""

    title: str
    description: str
    unit: str
    width: int = 12
    height: int = HEIGHT


def series(metric: str, *matchers: str) -> str:
    """Return the selector of a metric, such as up{job=~"$job"}."""
    return f"{metric}{{{', '.join(matchers)}}}"


def rate(metric: str, *matchers: str) -> str:
    """Return the events a second of a counter."""
    return f"rate({series(metric, *matchers)}[$__rate_interval])"


def quantile(share: float, histogram: str, *matchers: str, by: str = "") -> str:
    """Return the value that this share of a histogram's observations does not exceed. by: a label to keep."""
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({share:g}, sum by ({labels}) ({rate(f'{histogram}_bucket', *matchers)}))"


def query(expression: str, legend: str) -> Query:
    """Return a query over the time of the dashboard. legend: may name labels, as {{sensor}}."""
    return Query().expr(expression).legend_format(legend).datasource(DATASOURCE).range()


def newest(expression: str, legend: str) -> Query:
    """Return a query of the present values alone."""
    return Query().expr(expression).legend_format(legend).datasource(DATASOURCE).instant()


def rows(expression: str) -> Query:
    """Return a query of the present values as rows of a table."""
    return Query().expr(expression).datasource(DATASOURCE).instant().format(PromQueryFormat.TABLE)


def lines(about: About, *queries: Query) -> timeseries.Panel:
    """Return a panel of curves, with the newest value of each in its legend."""
    legend = common.VizLegendOptions().display_mode(options.LegendDisplayMode.TABLE).calcs(["lastNotNull"])
    legend = legend.placement(options.LegendPlacement.RIGHT).show_legend(True)
    panel = timeseries.Panel().legend(legend).tooltip(_tooltip()).fill_opacity(0).line_width(2)
    return _described(panel.show_points(options.VisibilityMode.NEVER), about, queries)


def stacked(about: About, *queries: Query) -> timeseries.Panel:
    """Return a panel of curves, one on top of the other."""
    stacking = common.StackingConfig().mode(options.StackingMode.NORMAL).group("A")
    return lines(about, *queries).stacking(stacking).fill_opacity(40).line_width(1)


def number(about: About, *queries: Query) -> stat.Panel:
    """Return a panel of large numbers."""
    return _described(stat.Panel().graph_mode(options.BigValueGraphMode.NONE), about, queries)


def bars(about: About, *queries: Query) -> bargauge.Panel:
    """Return a panel of one bar for each series."""
    panel = bargauge.Panel().orientation(options.VizOrientation.HORIZONTAL)
    return _described(panel.display_mode(options.BarGaugeDisplayMode.BASIC), about, queries)


def timeline(about: About, *queries: Query) -> statetimeline.Panel:
    """Return a panel of one row for each series, coloured while its value is 1."""
    panel = statetimeline.Panel().show_value(options.VisibilityMode.NEVER).merge_values(True).row_height(0.8)
    panel = panel.legend(common.VizLegendOptions().show_legend(False)).fill_opacity(70).line_width(0)
    return _described(panel, about, queries)


def heat(about: About, scale_max: float, *queries: Query) -> heatmap.Panel:
    """Return a panel of one row for each series, coloured by its value."""
    colour = heatmap.HeatmapColorOptions().scheme("Turbo").steps(64).min(0).max(scale_max)
    panel = heatmap.Panel().calculate(False).color(colour).show_legend().show_tooltip()
    return _described(panel.rows_frame(heatmap.RowsHeatmapOptions().value(about.title)), about, queries)


def listing(about: About, *queries: Query, columns: dict[str, str]) -> table.Panel:
    """Return a table that joins the queries by their labels. columns: fields in their order, and how to name them."""
    panel = _described(table.Panel().show_header(True), about, queries)  # without any option it would be null
    panel = panel.with_transformation(models.DataTransformerConfig("merge", options={}))
    keep = {"include": {"names": list(columns)}}
    panel = panel.with_transformation(models.DataTransformerConfig("filterFieldsByName", options=keep))
    order = {"renameByName": columns, "indexByName": {name: place for place, name in enumerate(columns)}}
    return panel.with_transformation(models.DataTransformerConfig("organize", options=order))


def coloured(panel: Panel, *steps: tuple[float | None, str]) -> Panel:
    """Colour values by steps: each from its value on; the first is None, for all below."""
    thresholds = dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE)
    thresholds = thresholds.steps([models.Threshold(value, colour) for value, colour in steps])
    return panel.thresholds(thresholds).color_scheme(dashboard.FieldColor().mode(models.FieldColorModeId.THRESHOLDS))


def drawn(panel: Panel, name: str, **properties: Any) -> Panel:
    """Draw one series, by its legend, in another way. properties: of Grafana's `custom`, and color."""
    values = [models.DynamicConfigValue(f"custom.{key}", value) for key, value in properties.items() if key != "color"]
    if "color" in properties:
        fixed = {"mode": "fixed", "fixedColor": properties["color"]}
        values.append(models.DynamicConfigValue("color", fixed))
    return panel.override_by_name(name, values)


def _described(panel: Panel, about: About, queries: tuple[Query, ...]) -> Panel:
    panel = panel.title(about.title).description(about.description).unit(about.unit).datasource(DATASOURCE)
    for letter, each in zip("ABCDEFGH", queries, strict=False):
        panel = panel.with_target(each.ref_id(letter))
    return panel.height(about.height).span(about.width)


def _tooltip() -> common.VizTooltipOptions:
    return common.VizTooltipOptions().mode(options.TooltipDisplayMode.MULTI)
