"""Measure the latency of frames while the daemon fits, judges and compiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.material.camera import Answer, Camera
from bench.material.daemon_run import SIZE, DaemonRun, daemon_run
from bench.report import p99_ratio, percentiles
from daemon.demo.datasets import Dataset
from daemon.simulation.drifts import parse_drift

FIT_FRAMES = 256
FIT_TIMEOUT_S = 300.0
WARM_UP_S = 15.0  # the drift monitor's worker imports torch in this time, which would not count as rest
DRIFTS = (  # in turn: each is a drift, too, for the homogenizer that undoes the other
    "fixed-pattern=16,cross-talk=0.25,blur=0.7,exposure=-0.5",
    "haze=0.5",
)
PROBATION_S = 5.0
STAGES = ("fitting", "judging", "compiling")
REST_STATES = ("factory", "active")


def measure_during_fits(digits: Dataset, fits: int, seconds: float) -> dict[str, Any]:
    """Let a camera drift `fits` times, each after `seconds` of rest; the daemon fits and swaps by itself."""
    with daemon_run(digits, SIZE, FIT_FRAMES, probation=PROBATION_S) as run:
        run.camera.run_for(WARM_UP_S)
        answers: list[Answer] = []
        for number in range(fits):
            answers += _drift_until_swap(run.camera, number, seconds)
        run.camera.settle()
        return {"stages": _by_stage(answers), "fits": _fit_results(run), "frames": run.frame_counts()}


def _drift_until_swap(camera: Camera, number: int, seconds: float) -> list[Answer]:
    answers = camera.run_until(lambda: camera.state in REST_STATES, FIT_TIMEOUT_S) + camera.run_for(seconds)
    before = camera.homogenizer
    camera.drift = parse_drift(DRIFTS[number % len(DRIFTS)], number // len(DRIFTS))
    return answers + camera.run_until(lambda: camera.homogenizer != before, FIT_TIMEOUT_S)


def _by_stage(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return latencies by the state in each result; the stored key `beside` is all three stages together."""
    states = {"rest": REST_STATES, "beside": STAGES, **{stage: (stage,) for stage in STAGES}}
    latencies = {name: np.array([a.latency for a in answers if a.state in those]) for name, those in states.items()}
    return {
        name: {**percentiles(times), "p99_ratio": p99_ratio(times, latencies["rest"])}
        for name, times in latencies.items()
    }


def _fit_results(run: DaemonRun) -> dict[str, int]:
    """Count the fits by their result."""
    samples = (s for s in run.scrape().samples if s.name == "recald_fits_total" and s.value)
    return {sample.labels["result"]: int(sample.value) for sample in samples}
