"""Hardly any bad homogenizer comes to serve, and most proper fits that help do, on six networks with labels."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.arguments import add_data
from bench.judge.cameras import (
    CHOOSING,
    FITTED,
    HELD_OUT,
    LOOK_FRAMES,
    LOOKS,
    REPLICATED,
    DriftedCamera,
    drifted_cameras,
    reported_seeds,
)
from bench.judge.candidates import BAD_FIT, FIT, GOOD, OTHER, Candidate, Fits, bad_candidates, fit_of_another_camera
from bench.judge.decision import BAND
from bench.judge.ground_truth import COST_POINTS, WIN_POINTS
from bench.judge.situation import Situation
from bench.judge.state import State
from bench.judge.tables import show_tables, summarise
from bench.material.subjects import SUBJECTS
from bench.provenance import MATERIAL, METHOD
from calibrate import CleanData, FitConfig, measure_clean, tap
from calibrate.judge import MIN_KAPPA
from calibrate.source.commissioned import MIN_CLEAN_FRAMES

CODE = (
    *(*METHOD, *MATERIAL, "daemon/recalibration/state_machine.py"),
    *("bench/fit.py", "bench/drifts.py", "bench/judge/*.py"),
)

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "images and networks")
    add = parser.add_argument
    add("--state", type=Path, help="folder for fits and evidence; what is there is not computed again")
    add("--choosing", action="store_true", help="the seeds for choosing rules, instead of those that are reported")
    add("--networks", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), metavar="NAME", help="some of them")
    add("--seeds", nargs="+", type=int, metavar="N", help="some of the seeds")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    rows: list[Row] = []
    for data in args.networks:
        reported = reported_seeds(data)
        for camera in drifted_cameras(data, args.seeds or (CHOOSING if args.choosing else reported), args.data):
            rows += rows_behind(camera, State(args.state))
            print(f"{camera.name}: {camera.text}, {len(rows)} verdicts", flush=True)
    judged, unfitted = [r for r in rows if "candidate" in r], [r for r in rows if "candidate" not in r]
    summary = summarise(judged, unfitted)
    show_tables(summary)
    settings: Row = {"fitted": FITTED, "replicated": REPLICATED, "held_out": HELD_OUT, "looks": LOOKS}
    settings |= {"look_frames": LOOK_FRAMES, "band": BAND, "kappa": MIN_KAPPA}
    settings |= {"win_points": WIN_POINTS, "cost_points": COST_POINTS, "fit": vars(FitConfig())}
    return {
        "seeds": {data: sorted({row["seed"] for row in rows if row["data"] == data}) for data in args.networks},
        "settings": settings,
        "rows": judged,
        "doors": unfitted,
        "summary": summary,
    }


def rows_behind(camera: DriftedCamera, state: State) -> Iterator[Row]:
    """Yield a row for each verdict on a candidate in each situation, or one with the answer where nothing is fitted."""
    fits = Fits(camera, state)
    whole, narrow = camera.whole, camera.narrow
    proper = fits.fit(whole)
    good = Candidate(GOOD, FIT, proper)
    other = Candidate(BAD_FIT, OTHER, fit_of_another_camera(camera, state))
    bad = list(bad_candidates(camera, other, proper, state))
    drifted = Situation(camera, whole, fits, state)
    yield from drifted.rows([good, *bad], None)
    yield from drifted.rows([good, *(candidate for candidate in bad if candidate.kind == BAD_FIT)], other)
    if narrow:
        yield from Situation(camera, narrow, fits, state).rows([Candidate(GOOD, FIT, fits.fit(narrow)), other], None)
    yield from _rows_of_clean_camera(camera.clean, good, state)
    if (clean := _commission(camera)) is not None:
        commissioned = Fits(camera, state, clean)
        candidate = Candidate(GOOD, FIT, commissioned.fit(whole))
        yield from Situation(camera, whole, commissioned, state, clean).rows([candidate], None)


def _rows_of_clean_camera(camera: DriftedCamera, fitted: Candidate, state: State) -> Iterator[Row]:
    """Yield what becomes of a fit whose drift is over, and of one to few classes that were taken for a drift."""
    fits = Fits(camera, state)
    whole = camera.whole
    yield from Situation(camera, whole, fits, state).rows([], None)
    yield from Situation(camera, whole, fits, state).rows([], fitted._replace(name="of a drift that is over"))
    if (view := camera.narrow) and (narrow := Situation(camera, view, fits, state)).answer(None) is None:
        yield from narrow.rows([Candidate(BAD_FIT, FIT, fits.fit(view))], None)


def _commission(camera: DriftedCamera) -> CleanData | None:
    """Measure clean frames of the camera; None where it has too few."""
    rows = camera.clean_rows()
    if len(rows) < MIN_CLEAN_FRAMES:
        return None
    return measure_clean(tap(camera.subject.network), camera.clean.film(rows))
