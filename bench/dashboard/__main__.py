"""Draw the dashboard during a drift and its repair: `python -m bench.dashboard --png FILE`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from bench.dashboard.draw import Moment, draw
from bench.dashboard.panels import load_dashboard, marks, shown_panels
from bench.dashboard.prometheus import INSTANCE, JOB
from bench.dashboard.story import DRIFTING, told

RATE_WINDOW = "10s"  # $__rate_interval of a scrape each second


def main(argv: list[str] | None = None) -> int:
    """Tell the story once and write its picture."""
    args = _parse(argv)
    dashboard = load_dashboard()
    with told(args.seed) as story:
        prometheus = story.prometheus
        variables = {"job": JOB, "instance": INSTANCE, "sensor": DRIFTING, "__rate_interval": RATE_WINDOW}
        began, ended = story.began, story.ended
        events: dict[str, list[float]] = {}
        for expression, colour in marks(dashboard, variables).values():
            curves = prometheus.ask(expression, began, ended)
            events[colour] = sorted({value / 1000 for curve in curves for _, value in curve.samples})
        (series,) = prometheus.ask(f'count({{job="{JOB}"}})', began, ended)
        moment = Moment(began, ended)
        panels = shown_panels(dashboard, variables)
        draw(panels, lambda expression: prometheus.ask(expression, began, ended), events, moment, args.png)
    print(f"written: {args.png}, from {series.samples[-1][1]:.0f} series")
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.dashboard", description=__doc__)
    parser.add_argument("--png", type=Path, required=True, metavar="FILE", help="file for the picture")
    parser.add_argument("--seed", type=int, default=0, help="of the drift and the frames (%(default)d)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
