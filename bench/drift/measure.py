"""False drift alarms are rarer than configured on clean streams, and drifts that cost accuracy are told soon."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from typing import Any

import numpy as np
import torch

from bench.arguments import add_data, add_state
from bench.drift.alarms import (
    WINDOW_S,
    Alarm,
    ByScore,
    TwoSampleTest,
    WithBaseline,
    levels,
    probabilities,
    river_detectors,
)
from bench.drift.replay import VIEWS, WINDOW, Recorded, record, windows
from bench.drifts import COLOUR_DRIFTS, DRIFTS, STRENGTHS
from bench.material.subjects import SUBJECTS, Subject
from bench.provenance import MATERIAL, METHOD
from bench.report import show_rows
from bench.state_file import append_line, read_lines
from calibrate import tap
from calibrate.baseline.baseline import Baseline, SensorState
from calibrate.baseline.learning import learn_baseline
from daemon.config import DriftConfig
from daemon.settings.values import DAY, alarm_rate_of
from daemon.simulation.drifts import parse_drift
from daemon.simulation.random_drifts import film

CODE = (*METHOD, *MATERIAL, "calibrate/baseline/*.py", "bench/drift/*.py", "daemon/recalibration/drift_alarm.py")

DATA = ("CIFAR-10", "CIFAR-10, light", "GTSRB", "MNIST", "X-rays")
HEALTHY, HELD_OUT = 2048, 1000  # frames that the baseline is learned from, and frames that are replayed
CLEAN_WINDOWS = 3200  # of each network and view: 25 of these are 5 million frames
DRIFTED_FRAMES = 320  # behind each drift
MAX_WINDOWS = 60  # that a drift has time to be told: 2 minutes at 30 frames/s
SEED = 10  # of the drifts, the streams and the frames; 0 to 9 are for choosing
RATES = ("1 per 1h", "1 per 1d", "1 per 90d")
RATE = RATES[-1]
RIVAL_WINDOWS = 1600
LOSS = 3.0  # points of accuracy, from which on a drift must be told
SHOWN = ("all content", "scenes of few classes")  # views in which drifts must be told
KEY = ("data", "part", "view", "case", "alarm")  # case: the configured rate, or the drift

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "data sets and networks")
    add_state(parser)
    parser.add_argument("--seed", type=int, default=SEED, help="of drifts and streams (%(default)s)")
    parser.add_argument("--networks", nargs="+", choices=SUBJECTS, default=DATA, metavar="NAME", help="(%(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    rows: list[Row] = []
    known = {tuple(row[key] for key in KEY): row for row in read_lines(args.state)}
    for name in args.networks:
        watched = Watched(name, SUBJECTS[name](args.data), args.seed)
        for key, make in watched.cases():
            row = known.get(key)
            if row is None:
                row = dict(zip(KEY, key, strict=True)) | make()
                append_line(args.state, row)
            rows.append(row)
        print(f"{name}: {len(rows)} rows", flush=True)
    summary = summarise(rows)
    _show(summary)
    return {
        "seeds": {"stream": args.seed, "drift": args.seed},
        "settings": {"healthy": HEALTHY, "held_out": HELD_OUT, "window": WINDOW, "window_s": WINDOW_S, "rate": RATE},
        "rows": rows,
        "summary": summary,
    }


class Watched:
    """One network, its healthy frames, and frames of the same camera that are replayed."""

    def __init__(self, name: str, subject: Subject, seed: int):
        self._name, self._subject, self._seed = name, subject, seed
        images, labels = subject.scene
        order = np.random.default_rng(seed).permutation(len(labels))
        self._held_out = order[: min(HELD_OUT, len(order) // 3)]
        healthy = order[len(self._held_out) :][:HEALTHY]
        self._healthy = record(subject, images[healthy], labels[torch.from_numpy(healthy)])
        self._clean = record(subject, images[self._held_out], labels[torch.from_numpy(self._held_out)])
        classes = self._healthy.logits.shape[1]
        self._baseline: Baseline = learn_baseline(self._healthy.statistics, WINDOW, classes)
        self._reference = tap(subject.network).reference
        self._states = lru_cache(maxsize=1)(self._states_of)  # of one view, for all rates

    def cases(self) -> Iterator[tuple[tuple[str, ...], Callable[[], Row]]]:
        """Yield the key of each row, and what measures it."""
        for view in VIEWS:
            for rate in RATES:
                yield (self._name, "clean", view, rate, "baseline"), partial(self._false_alarms_at, rate, view)
            for alarm, make in self._alarms().items():
                yield (self._name, "clean", view, "", alarm), partial(self._false_alarms, make, view, RIVAL_WINDOWS)
        for kind, texts in DRIFTS.items():
            if self._subject.channels == 1 and kind in COLOUR_DRIFTS:
                continue
            for strength, text in zip(STRENGTHS, texts, strict=True):
                yield from self._cases_of_drift(f"{kind}, {strength}", text)

    def _cases_of_drift(self, drift: str, text: str) -> Iterator[tuple[tuple[str, ...], Callable[[], Row]]]:
        filmed = cache(partial(self._film, text))  # once, where it is needed
        for view in SHOWN:
            alarms: dict[str, Callable[[], Alarm]] = {"baseline": partial(self._with_baseline, RATE)}
            for alarm, make in (alarms | self._alarms()).items():
                yield (self._name, "drift", view, drift, alarm), partial(self._delay, filmed, view, make)

    def _with_baseline(self, rate: str) -> WithBaseline:
        return WithBaseline(self._baseline, DriftConfig(false_alarms=alarm_rate_of(rate)))

    def _alarms(self) -> dict[str, Callable[[], Alarm]]:
        level = WINDOW_S / DriftConfig().false_alarms.interval  # of a window, for the same rate of false alarms
        return {
            "drift score": partial(ByScore, self._reference, DriftConfig()),
            "two-sample test, pixels": partial(TwoSampleTest, levels, self._healthy, level),
            "two-sample test, softmax": partial(TwoSampleTest, probabilities, self._healthy, level),
            **river_detectors(),
        }

    def _false_alarms_at(self, rate: str, view: str) -> Row:
        alarm, states = self._with_baseline(rate), self._states(view)
        return _false_alarms_row(map(alarm.observe, states), len(states))

    def _false_alarms(self, make: Callable[[], Alarm], view: str, count: int) -> Row:
        alarm = make()
        shown = windows(self._clean, view, count, self._seed)
        return _false_alarms_row((alarm(self._clean, rows) for rows in shown), count)

    def _states_of(self, view: str) -> list[SensorState]:
        shown = windows(self._clean, view, CLEAN_WINDOWS, self._seed)
        return [self._baseline.compare(self._clean.statistics[torch.from_numpy(rows)]) for rows in shown]

    def _film(self, text: str) -> Recorded:
        images, labels = self._subject.scene
        rows = self._held_out[:DRIFTED_FRAMES]
        shown = images[rows] if images.ndim == 4 else images[rows][..., None]
        filmed = film(parse_drift(text, self._seed), shown)
        return record(self._subject, filmed if images.ndim == 4 else filmed[..., 0], labels[torch.from_numpy(rows)])

    def _delay(self, film: Callable[[], Recorded], view: str, make: Callable[[], Alarm]) -> Row:
        """Return after how many windows an alarm comes, None for never; and what the drift costs in view, in points."""
        drifted, alarm = film(), make()
        for rows in windows(self._clean, view, MAX_WINDOWS // 2, self._seed):
            alarm(self._clean, rows)  # detectors that learn do so here
        shown = list(windows(drifted, view, MAX_WINDOWS, self._seed))
        delay = next((number for number, rows in enumerate(shown, 1) if alarm(drifted, rows)), None)
        seen = torch.from_numpy(np.concatenate(shown))
        before, after = (frames.logits[seen].argmax(1) == drifted.labels[seen] for frames in (self._clean, drifted))
        lost = 100 * float(before.float().mean() - after.float().mean())
        return {"delay": delay, "lost": lost}


def _false_alarms_row(alarms: Iterator[bool], count: int) -> Row:
    return {"windows": count, "alarms": _onsets(alarms), "hours": count * WINDOW_S / 3600}


def _onsets(alarms: Iterator[bool]) -> int:
    count, before = 0, False
    for alarm in alarms:
        count += alarm and not before
        before = alarm
    return count


def summarise(rows: list[Row]) -> dict[str, Any]:
    """Return false alarms by alarm, rate and view, and how soon drifts that cost LOSS points are told, by network."""
    clean = [row for row in rows if row["part"] == "clean"]
    costly = [row for row in rows if row["part"] == "drift" and row["lost"] >= LOSS]
    return {
        "false_alarms": [
            _false_alarms_of(alarm, rate, view, part)
            for alarm, rate, view in dict.fromkeys((r["alarm"], r["case"], r["view"]) for r in clean)
            if (part := [r for r in clean if (r["alarm"], r["case"], r["view"]) == (alarm, rate, view)])
        ],
        "delays": [
            _delays_of(data, view, alarm, part)
            for data, view, alarm in dict.fromkeys((r["data"], r["view"], r["alarm"]) for r in costly)
            if (part := [r for r in costly if (r["data"], r["view"], r["alarm"]) == (data, view, alarm)])
        ],
    }


def _false_alarms_of(alarm: str, rate: str, view: str, rows: list[Row]) -> Row:
    hours = sum(row["hours"] for row in rows)
    allowed = hours * 3600 / alarm_rate_of(rate).interval if rate else None
    frames, alarms = (sum(row[key] for row in rows) for key in ("windows", "alarms"))
    return {
        "alarm": alarm,
        "rate": rate,
        "view": view,
        "frames": frames * WINDOW,
        "alarms": alarms,
        "allowed": allowed,
        "a_day": alarms * DAY / (hours * 3600),
    }


def _delays_of(data: str, view: str, alarm: str, rows: list[Row]) -> Row:
    delays = [row["delay"] or np.inf for row in rows]
    missed = sorted((row for row in rows if row["delay"] is None), key=lambda row: -row["lost"])
    return {
        "data": data,
        "view": view,
        "alarm": alarm,
        "drifts": len(rows),
        "within_2": float(np.mean([delay <= 2 for delay in delays])),
        "within_10": float(np.mean([delay <= 10 for delay in delays])),
        "told": float(np.mean(np.isfinite(delays))),
        "worst_missed": f"{missed[0]['case']}: {missed[0]['lost']:.1f} points" if missed else "",
    }


def _show(summary: dict[str, Any]) -> None:
    columns = ("alarm", "rate", "view", "frames", "alarms", "allowed", "a_day")
    show_rows("False alarms on clean streams", columns, summary["false_alarms"])
    shown = ("data", "view", "alarm", "drifts", "within_2", "within_10", "told", "worst_missed")
    show_rows(f"Drifts that cost {LOSS:g} points or more: share told within so many windows", shown, summary["delays"])
