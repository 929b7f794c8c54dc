"""A drift check: scores a sensor's newest frames, and compares a challenger with the active homogenizer on them."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from torch import Tensor

from calibrate.baseline.frames import FrameStatistics
from calibrate.estimate.estimator import Estimate
from calibrate.judge import MIN_LOOK_DROP_SHARE, Evidence, objection_to
from calibrate.scoring.scorer import Measurement
from daemon.worker.accuracy import estimate_accuracy, proxies
from daemon.worker.context import WorkerContext, is_harmful, raw_frames_clean
from daemon.worker.frame_pictures import encode_pair
from deploy.store.artefacts import FACTORY, StoreError

log = logging.getLogger(__name__)


def observe(context: WorkerContext, job: dict[str, Any], images: np.ndarray) -> dict[str, Any]:
    """Return drift scores of images (N, h, w, C), raw and as served, accuracy proxies, and the estimated accuracy.

    job: `sensor`, `active`, `band`, and for a comparison `challenger` (a version) and its `role`; for the baseline
    `fresh`, how many of the newest frames no check has seen, `may_learn`, whether they may be healthy ones, `learn`, in
    how many seconds of such frames a baseline is learned, `relearn`, whether what was learned is forgotten first
    ("relearned"), `alarm`, whether the drift alarm is raised, and `now` (monotonic, s); `show`, whether somebody looks
    at the newest frame.
    Raises StoreError for an active homogenizer that cannot be read, ValueError for too few images.
    """
    if job["relearn"]:
        _forget(context, job["sensor"])
    frames = context.frames(images)
    homogenizer = context.homogenizer(job["active"])
    scorer = context.scorer_of(job["sensor"])
    raw = scorer.measure(frames)
    served = scorer.measure(frames, homogenizer) if homogenizer else raw
    return (
        _comparison(context, job, frames, raw, served)
        | _camera(context, job, raw, served)
        | _now_and_then(context, job, images, raw, served)
        | _shown(context, job, images, frames)
        | {
            "raw": raw.drift.score,
            "raw_clean": raw_frames_clean(Evidence.of(raw), Evidence.of(served), job["band"]),
            "harmful": is_harmful(Evidence.of(raw), Evidence.of(served), job["band"]),
            "relearned": job["relearn"],
            "label_shift": served.label_shift,
            "homogenized": served.drift.score,
            "layers": dict(zip(scorer.names, served.drift.layers, strict=True)),
            "proxy": proxies(raw, served, context.estimator),
            "accuracy": _estimates(context, {"raw": raw, "homogenized": served}),
        }
    )


def _forget(context: WorkerContext, sensor: str) -> None:
    """Forget what was learned of a sensor's healthy frames and pictures; a fault in here costs no drift check."""
    context.pictures.forget(sensor)
    try:
        context.baselines.forget(sensor)
    except OSError as error:
        log.warning("%s: what was learned of its healthy frames cannot be removed: %s", sensor, error)
        context.faults.append("keeping")


def _camera(context: WorkerContext, job: dict[str, Any], raw: Measurement, served: Measurement) -> dict[str, Any]:
    """Return what the baselines say of the camera, by stage."""
    baselines, sensor, active = context.baselines, job["sensor"], job["active"]
    states = {"homogenized": baselines.compare(sensor, active, context.statistics(served))}
    states["raw"] = (
        states["homogenized"] if active == FACTORY else baselines.compare(sensor, FACTORY, context.statistics(raw))
    )
    return {"camera": {stage: state for stage, state in states.items() if state is not None}}


def _now_and_then(
    context: WorkerContext, job: dict[str, Any], images: np.ndarray, raw: Measurement, served: Measurement
) -> dict[str, Any]:
    """Learn from a healthy window, and read out what happened to the camera ("read_outs"): seconds, but seldom.

    "learned" tells how far the baseline of what serves is learned.
    """
    new = images[len(images) - job["fresh"] :]
    if job["may_learn"] and (served.drift.score <= job["band"] or served.label_shift):
        _learn(context, job, new, context.statistics(served))
    read = _read_outs(context, job, new[:0] if raw.label_shift else new)
    learned = context.baselines.progress(job["sensor"], job["active"], job["learn"], len(images))
    return {"learned": learned, "read_outs": read}


def _shown(context: WorkerContext, job: dict[str, Any], images: np.ndarray, frames: Tensor) -> dict[str, Any]:
    """Return {"shown": ...}, the newest frame for people; {} where nobody looks. A fault in here costs no check."""
    if not job.get("show"):
        return {}
    try:
        homogenizer = context.homogenizer(job["active"])
        return {"shown": encode_pair(images[-1], frames[-1:], homogenizer, context.frozen.card.normalisation)}
    except Exception:
        log.exception("%s: the newest frame is not shown", job["sensor"])
        context.faults.append("page_frame")
        return {}


def _learn(context: WorkerContext, job: dict[str, Any], new: np.ndarray, as_served: FrameStatistics) -> None:
    """Learn from a healthy window; a fault in here costs no drift check."""
    try:
        context.baselines.learn(job["sensor"], job["active"], as_served, len(new), job["learn"], job["now"])
        if job["active"] == FACTORY:
            context.pictures.add_healthy(job["sensor"], new, job["learn"], job["now"])
    except Exception:
        log.exception("%s: nothing is learned from a healthy window", job["sensor"])
        context.faults.append("learning")


def _read_outs(context: WorkerContext, job: dict[str, Any], new: np.ndarray) -> dict[str, Any]:
    """Return what the pictures say happened to the camera; a fault in here costs no drift check."""
    try:
        return context.pictures.watch(job["sensor"], new, job["alarm"], job["now"])
    except Exception:
        log.exception("%s: what happened to the camera is not read out", job["sensor"])
        context.faults.append("read_outs")
        return {"found": [], "words": []}


def _estimates(context: WorkerContext, stages: dict[str, Measurement]) -> dict[str, Estimate]:
    """Return the estimated accuracy by stage; {} without an estimate for the frames as served."""
    estimates = {stage: estimate_accuracy(context.estimator, measured) for stage, measured in stages.items()}
    if estimates["homogenized"] is None:
        return {}
    return {stage: estimate for stage, estimate in estimates.items() if estimate is not None}


def _comparison(
    context: WorkerContext, job: dict[str, Any], frames: Tensor, raw: Measurement, served: Measurement
) -> dict[str, Any]:
    """Return {"challenger": ...}; {} without one. One that cannot be read costs the comparison, and not the scores."""
    if "challenger" not in job:
        return {}
    try:
        return {"challenger": _compare(context, job, frames, raw, served)}
    except StoreError as error:
        log.warning("%s %s is not compared: %s", job["role"], job["challenger"][:12], error)
        context.faults.append("comparison")
        return {}


def _compare(
    context: WorkerContext, job: dict[str, Any], frames: Tensor, raw: Measurement, served: Measurement
) -> dict[str, Any]:
    """Compare a candidate with every champion, or the previous homogenizer with the active one."""
    version, band, factory, active = job["challenger"], job["band"], Evidence.of(raw), Evidence.of(served)
    homogenizer = context.homogenizer(version)
    challenger = Evidence.of(context.scorer_of(job["sensor"]).measure(frames, homogenizer)) if homogenizer else factory
    if job["role"] == "previous":
        objection = objection_to(challenger, active, "active")
    elif version == FACTORY:
        objection = "" if raw_frames_clean(factory, active, band) else "the frames look drifted again"
    else:
        champions = {"factory": factory} if job["active"] == FACTORY else {"factory": factory, "active": active}
        # The clean band is not asked for here: a short window reflects the classes in it.
        objections = [objection_to(challenger, c, name, MIN_LOOK_DROP_SHARE) for name, c in champions.items()]
        objection = "; ".join(filter(None, objections))
    # Few classes hide what a candidate gains. On probation what serves stays where the one before is no better.
    abstains = job["role"] == "candidate" and bool(objection) and challenger.label_shift
    return {"version": version, "role": job["role"], "objections": objection, "abstains": abstains}
