"""The panels our dashboards are made of, and what all of them share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Final, TypeVar

from grafana_foundation_sdk.builders import common as common_builders
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import (
    heatmap,
    prometheus,
    stat,
    statetimeline,
    table,
    timeseries,
)
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.queries import SERIES, of_instance

GREEN: Final = "green"
YELLOW: Final = "#EAB839"
RED: Final = "red"
DATASOURCE: Final = dashboard.DataSourceRef(type_val="prometheus", uid="${datasource}")

AnyPanel = stat.Panel | table.Panel | timeseries.Panel | heatmap.Panel | statetimeline.Panel
_P = TypeVar("_P", stat.Panel, table.Panel, timeseries.Panel, heatmap.Panel, statetimeline.Panel)

Levels = Mapping[float, str]
"""Colours from a value on; what is below the lowest is green, unless 0 says otherwise."""


@dataclass(frozen=True)
class Query:
    """An expression and the name of its series; `dashed` is for what others are compared with."""

    expr: str
    legend: str = SERIES
    dashed: str | None = None


@dataclass(frozen=True)
class Row:
    """A heading and the panels below it, in lines of 24 columns."""

    title: str
    panels: Sequence[AnyPanel]


def stat_of(
    title: str,
    description: str,
    unit: str,
    expr: str,
    *,
    levels: Levels | None = None,
    decimals: int | None = None,
    width: int = 4,
) -> stat.Panel:
    """One number of now, with its course behind it."""
    panel = _described(stat.Panel(), title, description, unit, width, height=4)
    panel = panel.with_target(_target(0, Query(expr, title)))
    panel = panel.thresholds(_thresholds(levels or {}))
    panel = panel.color_mode(common.BigValueColorMode.VALUE)
    panel = panel.graph_mode(common.BigValueGraphMode.AREA)
    panel = panel.reduce_options(common_builders.ReduceDataOptions().calcs(["lastNotNull"]))
    return panel if decimals is None else panel.decimals(decimals)


def graph(
    title: str,
    description: str,
    unit: str,
    *queries: Query | str,
    levels: Levels | None = None,
    stacked: bool = False,
    maximum: float | None = None,
    width: int = 8,
) -> timeseries.Panel:
    """Values over time; `levels` are drawn as lines."""
    panel = _described(timeseries.Panel(), title, description, unit, width, height=8)
    panel = panel.min(0).fill_opacity(30 if stacked else 8).line_width(1)
    panel = panel.show_points(common.VisibilityMode.NEVER)
    panel = panel.legend(
        common_builders.VizLegendOptions()
        .display_mode(common.LegendDisplayMode.TABLE)
        .placement(common.LegendPlacement.BOTTOM)
        .show_legend(True)
        .calcs(["lastNotNull", "max"])
    )
    panel = panel.tooltip(
        common_builders.VizTooltipOptions()
        .mode(common.TooltipDisplayMode.MULTI)
        .sort(common.SortOrder.DESCENDING)
    )
    if stacked:
        panel = panel.stacking(
            common_builders.StackingConfig().mode(common.StackingMode.NORMAL).group("A")
        )
    if maximum is not None:
        panel = panel.max(maximum)
    if levels:
        panel = panel.thresholds(_thresholds(levels)).thresholds_style(
            common_builders.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.LINE)
        )
    for position, query in enumerate(map(_query, queries)):
        panel = panel.with_target(_target(position, query))
        if query.dashed is not None:
            panel = panel.override_by_regexp(query.dashed, _dashed())
    return panel


def heatmap_of(
    title: str, description: str, unit: str, expr: str, *, width: int = 12
) -> heatmap.Panel:
    """How often each bucket of a histogram was hit, over time."""
    panel = _described(heatmap.Panel(), title, description, unit, width, height=8)
    panel = panel.with_target(
        _target(0, Query(expr, "{{le}}")).format(PromQueryFormat.HEATMAP)  # buckets, not sums
    )
    panel = panel.calculate(False).cell_gap(1)
    panel = panel.color(
        heatmap.HeatmapColorOptions()
        .mode(HeatmapColorMode.SCHEME)
        .scheme("Spectral")
        .scale(HeatmapColorScale.EXPONENTIAL)
        .exponent(0.5)
        .steps(64)
        .reverse(False)
    )
    panel = panel.y_axis(heatmap.YAxisConfig().unit(unit))
    panel = panel.scale_distribution(
        common_builders.ScaleDistributionConfig().type(common.ScaleDistribution.LINEAR)
    )
    # Nothing is drawn where no step fell.
    panel = panel.filter_values(heatmap.FilterValueRange().le(1e-9))
    return panel.show_legend()


def timeline(
    title: str,
    description: str,
    query: Query,
    states: Mapping[int, tuple[str, str]],
    *,
    width: int = 12,
) -> statetimeline.Panel:
    """States over time; `states` maps values to a word and its colour."""
    panel = _described(statetimeline.Panel(), title, description, "short", width, height=7)
    panel = panel.with_target(_target(0, query)).row_height(0.8).merge_values(True)
    panel = panel.show_value(common.VisibilityMode.AUTO).line_width(0).fill_opacity(70)
    panel = panel.color_scheme(
        build.FieldColor().mode(dashboard.FieldColorModeId.THRESHOLDS)
    ).thresholds(_thresholds({}))
    return panel.mappings(
        [
            dashboard.ValueMap(
                options={
                    str(value): dashboard.ValueMappingResult(text=word, color=colour, index=index)
                    for index, (value, (word, colour)) in enumerate(states.items())
                }
            )
        ]
    )


def table_of(
    title: str,
    description: str,
    queries: Mapping[str, str],
    *,
    units: Mapping[str, str],
    columns: Sequence[str],
    width: int = 24,
    height: int = 6,
) -> table.Panel:
    """Series as lines: labels in `columns`, then a column of values for each of `queries`.

    A query without a name is asked for its labels alone.
    """
    panel = _described(table.Panel(), title, description, "short", width, height)
    panel = panel.align(common.FieldTextAlignment.AUTO).filterable(True)
    renamed: dict[str, str] = {}
    hidden = {"Time": True, "__name__": True}
    for position, (name, expr) in enumerate(queries.items()):
        target = _target(position, Query(expr, "")).instant().format(PromQueryFormat.TABLE)
        panel = panel.with_target(target)
        value = f"Value #{_ref_id(position)}" if len(queries) > 1 else "Value"
        if name:
            renamed[value] = name
        else:
            hidden[value] = True
        if name in units:
            unit = dashboard.DynamicConfigValue(id_val="unit", value=units[name])
            panel = panel.override_by_name(name, [unit])
    if len(queries) > 1:
        panel = panel.with_transformation(
            dashboard.DataTransformerConfig(id_val="merge", options={})
        )
    order = {name: index for index, name in enumerate((*columns, *renamed))}
    return panel.with_transformation(
        dashboard.DataTransformerConfig(
            id_val="organize",
            options={
                "excludeByName": hidden,
                "includeByName": {},
                "indexByName": order,
                "renameByName": renamed,
            },
        )
    )


class _Annotation(dashboard.AnnotationQuery):
    """An annotation with what Prometheus's data source adds to them and the SDK leaves out."""

    title_format: str = ""

    def to_json(self) -> dict[str, object]:
        extra = {"titleFormat": self.title_format, "tagKeys": "instance,module"}
        return {**super().to_json(), **extra}


class _AnnotationBuilder(build.AnnotationQuery):
    def __init__(self, name: str, colour: str, title_format: str, expr: str) -> None:
        super().__init__()
        annotation = _Annotation(name=name, datasource=DATASOURCE, icon_color=colour, expr=expr)
        annotation.title_format = title_format
        self._internal = annotation


def dashboard_of(
    uid: str, title: str, description: str, rows: Sequence[Row]
) -> dashboard.Dashboard:
    """A dashboard of ours, with variables, links to the others and marks of alerts and starts."""
    built = build.Dashboard(f"Moshi {title}").uid(uid).description(description)
    built = built.tags(["moshi-ctl"]).readonly().refresh("10s").time("now-1h", "now")
    built = built.timezone("browser").tooltip(dashboard.DashboardCursorSync.CROSSHAIR)
    for variable in _variables():
        built = built.with_variable(variable)
    built = built.link(
        build.DashboardLink("moshi-ctl")
        .type(dashboard.DashboardLinkType.DASHBOARDS)
        .tags(["moshi-ctl"])
        .include_vars(True)
        .keep_time(True)
    )
    firing = ('alertname=~"Moshi.+"', 'alertstate="firing"')
    start = of_instance("process_start_time_seconds")
    for name, colour, title_format, expr in (
        (
            "Critical alerts",
            RED,
            "{{alertname}}",
            of_instance("ALERTS", *firing, 'severity="critical"'),
        ),
        ("Warnings", YELLOW, "{{alertname}}", of_instance("ALERTS", *firing, 'severity="warning"')),
        ("Starts", "blue", "Start of {{instance}}", f"changes({start}[1m]) > 0"),
    ):
        built = built.annotation(_AnnotationBuilder(name, colour, title_format, expr))
    numbers = count(1)
    for row in rows:
        built = built.with_row(build.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            built = built.with_panel(panel.id(next(numbers)))
    return built.build()


def _variables() -> Sequence[build.DatasourceVariable | build.QueryVariable]:
    return [
        build.DatasourceVariable("datasource").label("Data source").type("prometheus"),
        # All means all of these, not every job of a Prometheus that others use, too. A worker that
        # never answered has alerts and nothing else.
        _variable(
            "job",
            "Job",
            'label_values({__name__=~"moshi_build_info|ALERTS", alertname=~"|Moshi.+"}, job)',
            all_value=None,
        ),
        # Not of moshi_build_info: a worker that is down is to be found, too.
        _variable(
            "instance",
            "Worker",
            'label_values(up{job=~"$job"}, instance)',
            # Alerts about something that is absent have no such label.
            all_value=".*",
        ),
        _variable(
            "module",
            "Module",
            'label_values(moshi_module_info{job=~"$job", instance=~"$instance"}, module)',
            all_value=".*",
        ),
    ]


def _variable(name: str, label: str, query: str, *, all_value: str | None) -> build.QueryVariable:
    everything = dashboard.VariableOption(selected=True, text=["All"], value=["$__all"])
    variable = (
        build.QueryVariable(name)
        .label(label)
        .datasource(DATASOURCE)
        # 1: label_values, as Grafana's editor of variables has it.
        .query({"qryType": 1, "query": query, "refId": f"variable-{name}"})
        .refresh(dashboard.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(dashboard.VariableSort.NATURAL_ASC)
        .multi(True)
        .include_all(True)
        .current(everything)
    )
    return variable if all_value is None else variable.all_value(all_value)


def _described(panel: _P, title: str, description: str, unit: str, width: int, height: int) -> _P:
    described = panel.title(title).description(description).unit(unit)
    return described.datasource(DATASOURCE).span(width).height(height)


def _query(query: Query | str) -> Query:
    return Query(query) if isinstance(query, str) else query


def _ref_id(position: int) -> str:
    return "ABCDEFGH"[position]


def _target(position: int, query: Query) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).ref_id(_ref_id(position)).range()
    return target.legend_format(query.legend) if query.legend else target


def _thresholds(levels: Levels) -> build.ThresholdsConfig:
    steps = [dashboard.Threshold(value=None, color=levels.get(0.0, GREEN))]
    steps += [
        dashboard.Threshold(value=value, color=colour)
        for value, colour in sorted(levels.items())
        if value != 0.0
    ]
    return build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(steps)


def _dashed() -> list[dashboard.DynamicConfigValue]:
    return [
        dashboard.DynamicConfigValue(
            id_val="custom.lineStyle", value={"fill": "dash", "dash": [10, 10]}
        ),
        dashboard.DynamicConfigValue(id_val="custom.fillOpacity", value=0),
    ]
