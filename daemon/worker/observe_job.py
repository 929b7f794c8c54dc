"""A drift check: scores of a sensor's newest frames, and whether a challenger would serve them better."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from calibrate.judge import Evidence, objections
from calibrate.scoring.scorer import Measurement
from daemon.worker.context import WorkerContext, clean_without
from deploy.store.artefacts import FACTORY


def observe(context: WorkerContext, job: dict[str, Any], images: np.ndarray) -> dict[str, Any]:
    """Drift scores of images (N, h, w, C) uint8 as they come and as they are served, and accuracy proxies.

    job: `active`, `band`, and where there is a challenger its `challenger` version and `role`.
    Raises StoreError for a homogenizer that cannot be read, ValueError for too few images.
    """
    frames = context.frames(images)
    homogenizer = context.homogenizer(job["active"])
    raw = context.scorer.measure(frames)
    served = context.scorer.measure(frames, homogenizer) if homogenizer else raw
    proxy = served.proxy
    compared = {"challenger": _compare(context, job, frames, raw, served)} if "challenger" in job else {}
    return compared | {
        "raw": raw.drift.score,
        "clean_without": clean_without(Evidence.of(raw), Evidence.of(served), job["band"]),
        "label_shift": served.label_shift,
        "homogenized": served.drift.score,
        "layers": dict(zip(context.scorer.names, served.drift.layers, strict=True)),
        "proxy": {"confidence": proxy.confidence, "certainty": proxy.certainty} if proxy else {},
    }


def _compare(
    context: WorkerContext, job: dict[str, Any], frames: Tensor, raw: Measurement, served: Measurement
) -> dict[str, Any]:
    """Compare a candidate with all that it has to beat, or the previous homogenizer with the active one."""
    version, factory, active = job["challenger"], Evidence.of(raw), Evidence.of(served)
    homogenizer = context.homogenizer(version)
    challenger = Evidence.of(context.scorer.measure(frames, homogenizer)) if homogenizer else factory
    if job["role"] == "previous":
        reason = _objections_to_previous(challenger, active, job["band"])
    elif version == FACTORY:
        reason = "" if clean_without(factory, active, job["band"]) else "the frames look drifted again"
    else:
        champions = {"factory": factory} if job["active"] == FACTORY else {"factory": factory, "active": active}
        # The clean band is not asked for here: a short window reflects the classes in it.
        reason = "; ".join(said for name, one in champions.items() for said in objections(challenger, one, name))
    return {"version": version, "role": job["role"], "score": challenger.score, "objections": reason}


def _objections_to_previous(previous: Evidence, active: Evidence, band: float) -> str:
    """What speaks against a step back; nothing where the frames are clean behind the previous homogenizer alone."""
    if previous.score <= band < active.score:  # then more confident outputs are no excuse
        return ""
    return "; ".join(objections(previous, active, "active", back=True))
