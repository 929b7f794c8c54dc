"""Line charts for the page: places of lines, ticks and marks, which the template draws as SVG.

Own code: a chart library would be a large dependency of a device for five small charts, and its SVG or JavaScript
would need a weaker content security policy; here the template escapes every text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

# Sizes in units of the page, about a pixel each.
WIDE_CHART, NARROW_CHART, CHART_HEIGHT = 980.0, 480.0, 260.0
LEFT_MARGIN, RIGHT_MARGIN, TOP_MARGIN, BOTTOM_MARGIN = 52.0, 14.0, 12.0, 40.0
MIN_DIFFERENCE = 1e-12  # smaller differences, and smaller values, are drawn as none
LOG_AXIS_MIN_RATIO = 5.0  # of the largest to the smallest value: from here on a logarithmic axis shows more
TICK_COUNT = 5  # wanted on an axis

Scale = Callable[[float], float]  # from a value to its place
Series = Sequence[float | None]  # None: no point here


@dataclass(frozen=True)
class Line:
    """name: for the legend. kind: the CSS class with its colour. points: for an SVG polyline. dots: its points."""

    name: str
    kind: str
    points: str
    dots: list[tuple[float, float]]


@dataclass(frozen=True)
class Tick:
    at: float
    label: str


@dataclass(frozen=True)
class Chart:
    """Everything that the template draws. marks: horizontal lines with a label."""

    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick]
    width: float
    right: float
    height: float = CHART_HEIGHT
    left: float = LEFT_MARGIN
    top: float = TOP_MARGIN
    bottom: float = CHART_HEIGHT - BOTTOM_MARGIN


def chart(
    title: str,
    x: Sequence[float],
    series: Mapping[str, tuple[str, Series]],
    *,
    x_label: str,
    y_label: str,
    x_ticks: dict[float, str] | None = None,
    marks: dict[float, str] | None = None,
    bounds: tuple[float, float] | None = None,
    width: float = NARROW_CHART,
) -> Chart | None:
    """Lay out a chart; None when no series has a point.

    series: (CSS class, y values over x) by name. x_ticks: labels by x value. marks: labels by y value.
    bounds: of the vertical axis; by default it fits the values and the marks.
    """
    marks = marks or {}
    points = [y for _, ys in series.values() for y in ys if y is not None]
    if not x or not points:
        return None
    low, high = bounds or (min([*points, *marks]), max([*points, *marks]))
    x_scale = _linear_scale(min(x), max(x), LEFT_MARGIN, width - RIGHT_MARGIN)
    y_scale, y_values = _vertical_axis(low, high, exact=bounds is not None)
    labels = x_ticks if x_ticks is not None else {value: f"{value:.6g}" for value in _round_values(min(x), max(x))}
    return Chart(
        title,
        x_label,
        y_label,
        [_line(name, kind, x, ys, x_scale, y_scale) for name, (kind, ys) in series.items()],
        [Tick(x_scale(value), label) for value, label in labels.items()],
        [Tick(y_scale(value), f"{value:.6g}") for value in y_values],
        [Tick(y_scale(value), label) for value, label in marks.items()],
        width,
        width - RIGHT_MARGIN,
    )


def _vertical_axis(low: float, high: float, exact: bool) -> tuple[Scale, list[float]]:
    """Return the scale of the vertical axis and the values of its ticks; logarithmic when the values differ much."""
    bottom, top = CHART_HEIGHT - BOTTOM_MARGIN, TOP_MARGIN
    if not exact and low > MIN_DIFFERENCE and high / low > LOG_AXIS_MIN_RATIO:
        low, high = math.log10(low) - 0.05, math.log10(high) + 0.05
        scale = _linear_scale(low, high, bottom, top)
        return lambda value: scale(math.log10(value)), _round_values_between_powers(low, high)
    margin = 0.0 if exact else 0.06 * ((high - low) or abs(high) or 1.0)
    low = low - margin if low < 0 or exact else max(0.0, low - margin)
    return _linear_scale(low, high + margin, bottom, top), _round_values(low, high + margin)


def _linear_scale(low: float, high: float, first: float, last: float) -> Scale:
    """Return the scale that maps low to first, and high to last; places are rounded to a tenth."""
    span = (high - low) or 1.0
    return lambda value: round(first + (value - low) / span * (last - first), 1)


def _round_values_between_powers(low: float, high: float) -> list[float]:
    """Return round values between 10**low and 10**high."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    decades = max(1, math.ceil((high - low) / (2 * TICK_COUNT)))
    powers = range(math.floor(low), math.ceil(high) + 1, decades)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in values if low <= math.log10(value) <= high]


def _round_values(low: float, high: float) -> list[float]:
    """Return round values from low to high, about TICK_COUNT."""
    if high - low <= MIN_DIFFERENCE:
        return [low]
    rough = (high - low) / TICK_COUNT
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * count for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _line(name: str, kind: str, x: Sequence[float], y: Series, x_scale: Scale, y_scale: Scale) -> Line:
    dots = [(x_scale(a), y_scale(b)) for a, b in zip(x, y, strict=True) if b is not None]
    return Line(name, kind, " ".join(f"{a},{b}" for a, b in dots), dots)
