"""Draws the panels of the dashboard with matplotlib, from the answers of a Prometheus."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib

matplotlib.use("Agg")  # no screen
import matplotlib.dates
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.dashboard.panels import PanelQuery, ShownPanel, named
from bench.dashboard.prometheus import Curve

COLUMNS, COLUMN_IN, ROW_IN = 24, 0.62, 0.37  # of Grafana's grid, and their size in the picture
GAP_IN = 0.12
BACKGROUND, PAPER, INK, FAINT = "#111217", "#181b1f", "#ccccdc", "#2c3235"
PALETTE = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#b877d9", "#8ab8ff", "#f2495c", "#37872d", "#fade2a", "#a352cc")
COLOURS = {"green": "#73bf69", "yellow": "#f2cc0c", "red": "#f2495c", "blue": "#5794f2", "purple": "#b877d9"}
MAX_LEGEND = 9  # curves that a legend has room for
MAX_LABEL = 22  # letters of a curve's name
LETTERS_PER_IN = 11  # of the text in tables
DPI = 110
TICKS_PER_IN, MARGINS_IN = 1.6, 2.5  # of the time; beside the curves there are numbers and a legend
PRESENT_S = 3.0  # a scrape each second is at most so old
Ask = Callable[[str], list[Curve]]


class Moment(NamedTuple):
    """What is drawn: the time from `began` to `ended`, s since 1970. Present values are those of the end."""

    began: float
    ended: float


def draw(
    panels: Sequence[ShownPanel], ask: Ask, events: Mapping[str, Sequence[float]], moment: Moment, path: Path
) -> None:
    """Write a picture of all panels. ask: what an expression is over the whole time. events: times by colour."""
    height = max(y + h for _, y, _, h in (panel.place for panel in panels))
    figure = plt.figure(figsize=(COLUMNS * COLUMN_IN, height * ROW_IN), facecolor=BACKGROUND, dpi=DPI)
    for panel in panels:
        _draw_panel(figure, height, panel, ask, events, moment)
    figure.savefig(path, facecolor=BACKGROUND, pil_kwargs={"optimize": True})
    plt.close(figure)


def _draw_panel(
    figure: Figure, rows: int, panel: ShownPanel, ask: Ask, events: Mapping[str, Sequence[float]], moment: Moment
) -> None:
    x, y, w, h = panel.place
    width, height = COLUMNS * COLUMN_IN, rows * ROW_IN
    left, top = x * COLUMN_IN + GAP_IN / 2, y * ROW_IN + GAP_IN / 2
    wide, high = w * COLUMN_IN - GAP_IN, h * ROW_IN - GAP_IN
    if panel.kind == "row":
        figure.text(
            left / width, 1 - (top + high / 2) / height, f"⌄  {panel.title}", color=INK, fontsize=13, va="center"
        )
        return
    frame = figure.add_axes((left / width, 1 - (top + high) / height, wide / width, high / height), facecolor=PAPER)
    frame.set(xticks=[], yticks=[])
    frame.spines[:].set_color(FAINT)
    frame.text(0.1 / wide, 1 - 0.2 / high, panel.title, color=INK, fontsize=10, va="center", transform=frame.transAxes)
    curves = [(query, curve) for query in panel.queries for curve in ask(query.expression)]
    if not curves:
        frame.text(0.5, 0.45, "No data", color=INK, ha="center", va="center", alpha=0.6, transform=frame.transAxes)
        return
    DRAWERS[panel.kind](Canvas(figure, frame, wide, high, panel, events, moment), curves)


class Canvas:
    """The place of one panel in the picture. wide, high: its size, inches."""

    def __init__(
        self,
        figure: Figure,
        frame: Axes,
        wide: float,
        high: float,
        panel: ShownPanel,
        events: Mapping[str, Sequence[float]],
        moment: Moment,
    ):
        self.figure, self.frame, self.wide, self.high = figure, frame, wide, high
        self.panel, self.events, self.moment = panel, events, moment

    def inner(self, left: float = 0.55, right: float = 0.12, top: float = 0.42, bottom: float = 0.3) -> Axes:
        """Return axes inside of the frame, with these margins in inches."""
        box = self.frame.get_position()
        scale_x, scale_y = box.width / self.wide, box.height / self.high
        place = (box.x0 + left * scale_x, box.y0 + bottom * scale_y)
        size = (box.width - (left + right) * scale_x, box.height - (top + bottom) * scale_y)
        axes = self.figure.add_axes((*place, *size), facecolor=PAPER)
        axes.spines[:].set_visible(False)
        axes.tick_params(colors=INK, labelsize=7.5, length=0)
        return axes

    def over_time(self, axes: Axes) -> None:
        """Give axes the time of the picture, and its marks."""
        axes.set_xlim(_date(self.moment.began), _date(self.moment.ended))
        axes.xaxis.set_major_formatter(matplotlib.dates.DateFormatter("%H:%M"))
        minutes = (self.moment.ended - self.moment.began) / 60
        between = max(1, math.ceil(minutes / (TICKS_PER_IN * (self.wide - MARGINS_IN))))
        axes.xaxis.set_major_locator(matplotlib.dates.MinuteLocator(interval=between))
        axes.grid(color=FAINT, linewidth=0.7)
        for colour, times in self.events.items():
            for at in times:
                axes.axvline(_date(at), color=_colour(colour), linewidth=1, linestyle=(0, (3, 3)), alpha=0.9)

    def now(self, curve: Curve) -> float:
        """Return the value of a curve at the end; NaN where it has none then."""
        at, value = curve.samples[-1]
        return value if at > self.moment.ended - PRESENT_S else math.nan


Named = Sequence[tuple[PanelQuery, Curve]]


def _lines(canvas: Canvas, curves: Named) -> None:
    axes = canvas.inner(right=2.0)
    canvas.over_time(axes)
    names = [named(query.legend, curve.labels) for query, curve in curves]
    if canvas.panel.stacked:
        _stack(axes, names, curves, canvas.panel)
    else:
        _plain(axes, names, curves, canvas.panel)
    axes.set_ylim(bottom=0, top=1.02 if canvas.panel.unit == "percentunit" else None)
    axes.yaxis.set_major_formatter(lambda value, _: _text(value, canvas.panel.unit))
    _legend(canvas, names, curves)


def _plain(axes: Axes, names: Sequence[str], curves: Named, panel: ShownPanel) -> None:
    drawn = {}
    for number, (name, (_, curve)) in enumerate(zip(names, curves, strict=True)):
        style = panel.overrides.get(name, {})
        times, values = [_date(at) for at, _ in curve.samples], [value for _, value in curve.samples]
        dashed = (0, (5, 4)) if "lineStyle" in style else "solid"
        axes.plot(
            times, values, color=_of(name, number, panel), linewidth=style.get("lineWidth", 1.6), linestyle=dashed
        )
        drawn[name] = (times, values)
    for name, style in panel.overrides.items():
        below = style.get("fillBelowTo")
        if below in drawn and name in drawn and len(drawn[name][0]) == len(drawn[below][0]):
            axes.fill_between(drawn[name][0], drawn[below][1], drawn[name][1], color=_of(name, 0, panel), alpha=0.25)


def _stack(axes: Axes, names: Sequence[str], curves: Named, panel: ShownPanel) -> None:
    grid = sorted({at for _, curve in curves for at, _ in curve.samples})
    values = [[dict(curve.samples).get(at, 0.0) for at in grid] for _, curve in curves]
    colours = [_of(name, number, panel) for number, name in enumerate(names)]
    axes.stackplot([_date(at) for at in grid], values, colors=colours, alpha=0.55)


def _legend(canvas: Canvas, names: Sequence[str], curves: Named) -> None:
    """List the curves, those with the largest newest values first, with these values."""
    newest = [curve.samples[-1][1] for _, curve in curves]
    order = sorted(range(len(names)), key=lambda i: -newest[i] if not math.isnan(newest[i]) else math.inf)
    x, step = 1 - 1.85 / canvas.wide, 0.2 / canvas.high
    for line, i in enumerate(order[:MAX_LEGEND]):
        y, text = 1 - 0.5 / canvas.high - line * step, names[i][:MAX_LABEL]
        put: dict[str, Any] = {"transform": canvas.frame.transAxes, "va": "center", "fontsize": 7}
        canvas.frame.text(x, y, "▬", color=_of(names[i], i, canvas.panel), **put)
        canvas.frame.text(x + 0.2 / canvas.wide, y, text, color=INK, **put)
        value = _text(newest[i], canvas.panel.unit)
        canvas.frame.text(1 - 0.1 / canvas.wide, y, value, color=INK, ha="right", **put)


def _timeline(canvas: Canvas, curves: Named) -> None:
    axes = canvas.inner(left=1.45)
    canvas.over_time(axes)
    axes.grid(axis="y", visible=False)
    names = list(dict.fromkeys(named(query.legend, curve.labels) for query, curve in curves))
    for query, curve in curves:
        name = named(query.legend, curve.labels)
        spans = [(_date(at), 1.5 / 86400) for at, _ in curve.samples]
        row, colour = len(names) - 1 - names.index(name), _colour(canvas.panel.overrides.get(name, {}).get("color"))
        axes.broken_barh(spans, (row - 0.36, 0.72), facecolors=colour or _colour(canvas.panel.base_colour), linewidth=0)
    axes.set(ylim=(-0.6, len(names) - 0.4), yticks=range(len(names)), yticklabels=[n[:MAX_LABEL] for n in names[::-1]])


def _heat(canvas: Canvas, curves: Named) -> None:
    axes = canvas.inner(left=1.2, right=0.75)
    canvas.over_time(axes)
    axes.grid(visible=False)
    grid = sorted({at for _, curve in curves for at, _ in curve.samples})
    values = np.array([[dict(curve.samples).get(at, math.nan) for at in grid] for _, curve in curves])
    edges = [_date(at) for at in [*grid, grid[-1] + 1]]
    top = canvas.panel.options["color"]["max"]
    mesh = axes.pcolormesh(edges, range(len(curves) + 1), values, cmap="turbo", vmin=0, vmax=top)
    names = [named(query.legend, curve.labels)[:16] for query, curve in curves]
    axes.set(yticks=np.arange(len(names)) + 0.5, yticklabels=names)
    bar = canvas.figure.colorbar(mesh, cax=canvas.inner(left=canvas.wide - 0.6, right=0.45), extend="max")
    bar.outline.set_visible(False)


def _number(canvas: Canvas, curves: Named) -> None:
    shown = [(named(q.legend, c.labels), canvas.now(c)) for q, c in curves]
    shown = [(name, value) for name, value in shown if not math.isnan(value)]
    for number, (name, value) in enumerate(shown):
        x = (number + 0.5) / len(shown)
        put: dict[str, Any] = {"ha": "center", "va": "center", "transform": canvas.frame.transAxes}
        size = min(30.0, 60.0 * canvas.wide / len(shown) / max(3, len(_text(value, canvas.panel.unit))))
        colour = canvas.panel.colour_of(value)
        canvas.frame.text(x, 0.5, _text(value, canvas.panel.unit), color=_colour(colour), fontsize=size, **put)
        canvas.frame.text(x, 0.18, name, color=INK, fontsize=9, **put)


def _bars(canvas: Canvas, curves: Named) -> None:
    axes = canvas.inner(left=1.35, right=0.6, bottom=0.12)
    shown = [(named(q.legend, c.labels), canvas.now(c)) for q, c in curves if not math.isnan(canvas.now(c))]
    shown.sort(key=lambda pair: pair[1])
    highest = 1.0 if canvas.panel.unit == "percentunit" else max(value for _, value in shown)
    for row, (name, value) in enumerate(shown):
        axes.barh(row, highest, color=FAINT, height=0.7)
        axes.barh(row, value, color=_colour(canvas.panel.colour_of(value)), height=0.7)
        axes.text(highest * 1.03, row, _text(value, canvas.panel.unit), color=INK, fontsize=10, va="center")
        axes.text(-highest * 0.03, row, name, color=INK, fontsize=9, va="center", ha="right")
    axes.set(xticks=[], yticks=[], xlim=(0, highest), ylim=(-0.7, max(len(shown) - 0.3, 1.7)))


def _table(canvas: Canvas, curves: Named) -> None:
    renamed = canvas.panel.columns
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for query, curve in curves:
        if math.isnan(canvas.now(curve)):
            continue
        key = tuple(curve.labels.get(label, "") for label in ("alertname", "instance", "sensor"))
        line = lines.setdefault(key, {})
        line |= {label: value for label, value in curve.labels.items() if label in renamed}
        line[f"Value #{query.letter}"] = _cell(canvas, canvas.now(curve))
    starts = np.cumsum([0.15, *(_column_share(column, renamed) * (canvas.wide - 0.2) for column in renamed)])
    for (column, title), left, right in zip(renamed.items(), starts, starts[1:], strict=False):
        put: dict[str, Any] = {"transform": canvas.frame.transAxes, "va": "center", "fontsize": 9}
        canvas.frame.text(left / canvas.wide, 1 - 0.55 / canvas.high, title, color=COLOURS["blue"], **put)
        for row, line in enumerate(lines.values()):
            y, room = 1 - (0.85 + 0.3 * row) / canvas.high, int(LETTERS_PER_IN * (right - left))
            canvas.frame.text(left / canvas.wide, y, line.get(column, "")[:room], color=INK, **put)


def _column_share(column: str, columns: Mapping[str, str]) -> float:
    """Return the share of a table's width; names of alerts are long."""
    weights = {name: 2.0 if name == "alertname" else 1.0 for name in columns}
    return weights[column] / sum(weights.values())


def _cell(canvas: Canvas, value: float) -> str:
    if canvas.panel.unit == "dateTimeFromNow":
        return f"{_text(canvas.moment.ended - value / 1000, 's')} ago"
    return _text(value, canvas.panel.unit)


def _of(name: str, number: int, panel: ShownPanel) -> str:
    return _colour(panel.overrides.get(name, {}).get("color")) or PALETTE[number % len(PALETTE)]


def _colour(given: Any) -> str:
    """Return a colour of matplotlib's for one of Grafana's, or for its object with a fixed colour; "" for none."""
    name = given["fixedColor"] if isinstance(given, dict) else given
    return COLOURS.get(name, str(name)) if name else ""


def _date(at: float) -> float:
    return float(matplotlib.dates.date2num(datetime.fromtimestamp(at)))


def _text(value: float, unit: str) -> str:
    """Return a number as Grafana writes it."""
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.1f}%" if value < 0.9995 else "100%"
    if unit == "s":
        return _duration(value)
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB" if value < 2**30 else f"{value / 2**30:.2f} GiB"
    return f"{value:.0f}" if value == round(value) else f"{value:.2f}"


def _duration(seconds: float) -> str:
    size = abs(seconds)
    if size >= 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds:.2g} s" if size >= 1 or not size else f"{1000 * seconds:.3g} ms"


DRAWERS: dict[str, Callable[[Canvas, Named], None]] = {
    "timeseries": _lines,
    "state-timeline": _timeline,
    "heatmap": _heat,
    "stat": _number,
    "bargauge": _bars,
    "table": _table,
}
