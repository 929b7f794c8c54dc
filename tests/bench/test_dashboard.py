"""The picture of the dashboard has a place for every panel, whatever Prometheus answers."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import pytest

from bench.dashboard.draw import COLUMN_IN, COLUMNS, DPI, Moment, draw
from bench.dashboard.panels import load_dashboard, named, shown_panels, substituted
from bench.dashboard.prometheus import Curve

VARIABLES = {"job": ".+", "instance": "one", "sensor": "front", "__rate_interval": "10s"}
PANELS = shown_panels(load_dashboard(), VARIABLES)
MOMENT = Moment(1_700_000_000.0, 1_700_000_120.0)
TIMES = [MOMENT.began + second for second in range(121)]
LABELS = {"instance": "one", "sensor": "front", "alertname": "RecaldDown", "version": "0.1.0", "layer": "bn1"}


def answered(expression: str) -> list[Curve]:
    """Two curves for every question, one of them with gaps."""
    whole = Curve(LABELS, [(at, 0.5) for at in TIMES])
    return [whole, Curve(LABELS | {"sensor": "rear"}, [(at, math.nan if at % 2 else 0.25) for at in TIMES])]


def test_answers_are_drawn_in_a_picture_that_has_the_size_of_all_panels(tmp_path: Path):
    pictures = []
    for name, ask in {"answers": answered, "none": lambda expression: []}.items():
        draw(PANELS, ask, {"blue": [MOMENT.began + 60]}, MOMENT, tmp_path / f"{name}.png")
        pictures.append(cv2.imread(str(tmp_path / f"{name}.png")).astype(int))
    assert pictures[0].shape == pictures[1].shape
    assert pictures[0].shape[1] == pytest.approx(COLUMNS * COLUMN_IN * DPI, abs=1)
    assert abs(pictures[0] - pictures[1]).mean() > 1


def test_variables_are_substituted_and_a_missing_one_is_found():
    assert substituted('up{job=~"$job"}[$__rate_interval]', VARIABLES) == 'up{job=~".+"}[10s]'
    assert substituted('label_replace(x, "y", "$1", "z", "(.*)")', VARIABLES).count("$1") == 1
    with pytest.raises(KeyError, match="device"):
        substituted("up{$device}", VARIABLES)


def test_a_curve_is_named_as_its_legend_says():
    assert named("{{ sensor }} of {{instance}}{{none}}", LABELS) == "front of one"
