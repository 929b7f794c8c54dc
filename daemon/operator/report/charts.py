"""Curves as coordinates for an SVG: the template draws them, so that every text in them is escaped."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

WIDE, NARROW, HEIGHT = 980.0, 480.0, 260.0  # units of the page, about a pixel each
LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 12.0, 40.0
LEAST = 1e-12  # what is nearer to zero, or to another value, is drawn as if it were that
WIDE_RANGE = 5.0  # from which on a logarithmic axis shows more
TICKS = 5

Scale = Callable[[float], float]
Series = Sequence[float | None]  # None where there is nothing to draw


@dataclass(frozen=True)
class Line:
    """name: for the legend. kind: the class that gives its colour. dots: of each point that there is."""

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
    title: str
    x_label: str
    y_label: str
    lines: list[Line]
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Tick]  # horizontal lines with a meaning
    width: float
    right: float
    height: float = HEIGHT
    left: float = LEFT
    top: float = TOP
    bottom: float = HEIGHT - BOTTOM


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
    width: float = NARROW,
) -> Chart | None:
    """One chart of series by name, each with its class, over x; None where there is nothing to draw.

    bounds: of the vertical axis, otherwise as the values need. marks: values with a meaning. x_ticks: labels by place.
    """
    marks = marks or {}
    values = [y for _, ys in series.values() for y in ys if y is not None] + list(marks)
    if not x or not any(y is not None for _, ys in series.values() for y in ys):
        return None
    low, high = bounds or (min(values), max(values))
    across = linear(min(x), max(x), LEFT, width - RIGHT)
    up, y_ticks = _vertical(low, high, exact=bounds is not None)
    lines = [_line(name, kind, x, ys, across, up) for name, (kind, ys) in series.items()]
    labels = x_ticks if x_ticks is not None else {value: _label(value) for value in _round_values(min(x), max(x))}
    return Chart(
        title,
        x_label,
        y_label,
        lines,
        [Tick(_place(across(value)), label) for value, label in labels.items()],
        [Tick(_place(up(value)), _label(value)) for value in y_ticks],
        [Tick(_place(up(value)), label) for value, label in marks.items()],
        width,
        width - RIGHT,
    )


def linear(low: float, high: float, first: float, last: float) -> Scale:
    """From values to places."""
    span = (high - low) or 1.0
    return lambda value: first + (value - low) / span * (last - first)


def _vertical(low: float, high: float, exact: bool) -> tuple[Scale, list[float]]:
    """The scale of the vertical axis and where its ticks are; logarithmic where values lie far apart."""
    bottom, top = HEIGHT - BOTTOM, TOP
    if not exact and low > LEAST and high / low > WIDE_RANGE:
        low, high = math.log10(low) - 0.05, math.log10(high) + 0.05
        scale = linear(low, high, bottom, top)
        return lambda value: scale(math.log10(value)), _round_powers(low, high)
    margin = 0.0 if exact else 0.06 * ((high - low) or abs(high) or 1.0)
    low = low - margin if low < 0 or exact else max(0.0, low - margin)
    return linear(low, high + margin, bottom, top), _round_values(low, high + margin)


def _round_powers(low: float, high: float) -> list[float]:
    """Some values whose logarithms lie between these."""
    factors = (1, 2, 5) if high - low < 3 else (1,)
    every = max(1, math.ceil((high - low) / (2 * TICKS)))  # decades
    powers = range(math.floor(low), math.ceil(high) + 1, every)
    values = [factor * 10.0**power for power in powers for factor in factors]
    return [value for value in values if low <= math.log10(value) <= high]


def _round_values(low: float, high: float) -> list[float]:
    """Some values between these that people call round."""
    if high - low <= LEAST:
        return [low]
    rough = (high - low) / TICKS
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [step * count for count in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def _line(name: str, kind: str, x: Sequence[float], y: Series, across: Scale, up: Scale) -> Line:
    dots = [(_place(across(a)), _place(up(b))) for a, b in zip(x, y, strict=True) if b is not None]
    return Line(name, kind, " ".join(f"{a},{b}" for a, b in dots), dots)


def _place(value: float) -> float:
    return round(value, 1)


def _label(value: float) -> str:
    return f"{value:.6g}"
