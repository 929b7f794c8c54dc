"""What frames notice of the fit, the judgement and the compile that go on beside them."""

from __future__ import annotations

from typing import Any

import numpy as np

from bench.material.camera import Answer, Camera
from bench.material.scene import SIZE, Scene, account, scene
from bench.report import percentiles
from bench.swap.latency import p99_ratio
from daemon.demo.material import Material
from daemon.simulation.drifts import parse_drift

FIT_FRAMES = 256
FIT_TIMEOUT_S = 300.0
WARM_UP_S = 15.0  # the drift watch's worker imports torch in them, which is no rest
DRIFTS = (  # in turn, each a drift to the homogenizer that undoes the other
    "fixed-pattern=16,cross-talk=0.25,blur=0.7,exposure=-0.5",
    "haze=0.5",
)
PROBATION_S = 5.0
STAGES = ("fitting", "judging", "compiling")
AT_REST = ("factory", "active")


def measure_beside(digits: Material, fits: int, seconds: float) -> dict[str, Any]:
    """Let a camera drift `fits` times, with `seconds` of rest before each; the daemon follows by itself."""
    with scene(digits, SIZE, FIT_FRAMES, probation=PROBATION_S) as here:
        here.camera.run_for(WARM_UP_S)
        answers = [answer for number in range(fits) for answer in _fit(here.camera, number, seconds)]
        here.camera.settle()
        return {"stages": _by_stage(answers), "fits": _fits(here), "frames": account(here)}


def _fit(camera: Camera, number: int, seconds: float) -> list[Answer]:
    answers = camera.run_until(lambda: camera.state in AT_REST, FIT_TIMEOUT_S) + camera.run_for(seconds)
    before = camera.homogenizer
    camera.drift = parse_drift(DRIFTS[number % len(DRIFTS)], number // len(DRIFTS))
    return answers + camera.run_until(lambda: camera.homogenizer != before, FIT_TIMEOUT_S)


def _by_stage(answers: list[Answer]) -> dict[str, Any]:
    """Latencies by what went on when the frame was served, as its result says; `beside`: the three together."""
    states = {"rest": AT_REST, "beside": STAGES, **{stage: (stage,) for stage in STAGES}}
    latencies = {name: np.array([a.latency for a in answers if a.state in those]) for name, those in states.items()}
    return {
        name: {**percentiles(taken), "p99_ratio": p99_ratio(taken, latencies["rest"])}
        for name, taken in latencies.items()
    }


def _fits(here: Scene) -> dict[str, int]:
    """How many ended in which way."""
    scrape = here.daemon.scrape()
    assert scrape is not None
    return {s.labels["result"]: int(s.value) for s in scrape.samples if s.name == "recald_fits_total" and s.value}
