"""Collects the evidence of one recalibration while it runs, and builds its dossier at the end."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from calibrate import FitResult
from calibrate.defects import NO_STEP
from calibrate.features.statistics import FeatureStatistics
from calibrate.homogenizer import TONE_KNOTS, Homogenizer
from calibrate.judge import Evidence, Verdict, json_values
from calibrate.shading import squared_radius
from calibrate.split import AnyHomogenizer
from daemon.images import evenly_spaced
from daemon.levels import MAX_LEVEL, to_depth, to_levels
from deploy.model.card import Normalisation
from deploy.store.dossier import STARTS_SEPARATOR, Dossier, read_dossier

RESPONSE_LEVELS = tuple(range(0, 256, 15))  # grey levels of the even frames whose response a dossier records
SHADING_RADII = 9  # distances from the middle for which a dossier records the gain of a shading
WEIGHT_DIGITS = 4  # significant digits of weights in a dossier: a page draws them, the artefact holds them in full


class DossierBuilder:
    """The dossier of one recalibration. Its keys are stored on disk; deploy.store.dossier explains them."""

    def __init__(
        self,
        job: Mapping[str, Any],
        provenance: Mapping[str, Any],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.perf_counter,
    ):
        """provenance: the parts that all dossiers of a worker share (WorkerContext.provenance)."""
        from_job = {name: job[name] for name in ("sensor", "trigger", "seed", "band", "active")}
        self._content: dict[str, Any] = {**provenance, **from_job, "earlier": [], "seconds": []}
        self._frames = {"until": job["until"], "refused": job["refused"], "fitted": 0, "held_out": 0}
        self._clock, self._monotonic = clock, monotonic
        self._stage_start = monotonic()

    def end_stage(self, stage: str) -> None:
        """Note how long the stage took that ends now."""
        now = self._monotonic()
        self._content["seconds"].append((stage, now - self._stage_start))
        self._stage_start = now

    def add_held_out(self, images: np.ndarray) -> None:
        """Note the number of frames that judge (n, h, w, C), their shape, and which values they have."""
        peak = float(to_levels(images.max(initial=0))) / MAX_LEVEL
        self._frames |= {"held_out": len(images), "shape": images.shape[1:], "depth": images.dtype.name, "peak": peak}

    def add_champions(self, evidence: Mapping[str, Evidence]) -> None:
        """Note the evidence of what a candidate has to beat, by "factory" and "active"."""
        self._content["evidence"] = {name: measured.as_dict() for name, measured in evidence.items()}
        self.end_stage("incumbents")

    def add_recall(self, version: str, verdict: Verdict) -> None:
        """Note that an earlier homogenizer of the sensor was tried."""
        tried = {"version": version, "accepted": verdict.accepted, "reason": verdict.reason}
        self._content["earlier"].append(tried)

    def add_fit(self, fits: Sequence[FitResult], device: str) -> None:
        """Note how the fits of a candidate went, to how many frames they fitted, and where they computed, in words."""
        self._content |= {"fit": json_values(describe_fits(fits) | {"device": device})}
        for fitted in fits:
            self._content["seconds"] += [(f"fit: {stage}", seconds) for stage, seconds in fitted.stage_seconds.items()]
        self._frames["fitted"] = sum(fitted.frames for fitted in fits)
        self._stage_start = self._monotonic()

    def add_second_fit(self, fits: Sequence[FitResult]) -> None:
        """Note to how many frames the second fit fitted, and how long it took."""
        self._frames["replicated"] = sum(fitted.frames for fitted in fits)
        self.end_stage("second fit")

    def add_refused_split(self, verdict: Verdict) -> None:
        """Note that one homogenizer for each of two cameras was refused; a single one is fitted next."""
        self._content["refused_split"] = verdict.reason

    def add_verdict(self, candidate: AnyHomogenizer, verdict: Verdict) -> None:
        """Note the judge's verdict, and what the candidate does to a frame; of a split one, what each branch does."""
        effects = [describe_effect(branch, self._content["normalisation"]) for branch in candidate.branches]
        self._content |= {"verdict": verdict.as_dict(), "extents": effects[0], "other_extents": effects[1:]}
        self.end_stage("judging")

    def build(self, answer: Mapping[str, Any]) -> Dossier:
        """Build the dossier. answer: of the job, with result, reason, and the version that may serve, if any.

        Raises ValueError for a part that a dossier cannot hold.
        """
        outcome = {"result": answer["result"], "reason": answer["reason"], "candidate": answer.get("version")}
        return read_dossier({**self._content, **outcome, "frames": self._frames, "at": self._clock()})


def describe_fits(fits: Sequence[FitResult]) -> dict[str, Any]:
    """Return start, start_losses and history of the fits as those of one; the names of starts say of which branch."""
    if len(fits) == 1:
        return {"start": fits[0].start, "start_losses": fits[0].start_losses, "history": fits[0].history}
    numbered = list(enumerate(fits, 1))
    return {
        "start": STARTS_SEPARATOR.join(f"{n}: {fitted.start}" for n, fitted in numbered),
        "start_losses": {f"{n}: {name}": loss for n, fitted in numbered for name, loss in fitted.start_losses.items()},
        "history": [loss for fitted in fits for loss in fitted.history],
    }


def describe_effect(homogenizer: Homogenizer, normalisation: Normalisation) -> dict[str, Any]:
    """Describe what ρ does to a frame, by the keys of deploy.store.dossier (its part "extents")."""
    mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)  # (C,)
    kernel = homogenizer.kernel.detach()  # (C, C, k, k)
    size = homogenizer.offset.shape[1:]  # (C, H, W)
    grey = torch.tensor(RESPONSE_LEVELS, dtype=torch.float32)
    even_frames = ((grey[:, None] / 255 - mean) / std)[:, :, None, None].expand(-1, *size)  # (levels, C, H, W)
    with torch.no_grad():
        response = (_without_shading(homogenizer)(even_frames).mean((2, 3)) * std + mean) * 255  # (levels, C)
    tensors = {
        "curve": homogenizer.curve.detach(),
        "offset": homogenizer.offset.detach().abs().amax((0, 2, 3)) * std * 255,
        "response": response,
        "colour": kernel.sum((2, 3)),
        "kernels": kernel[range(len(kernel)), range(len(kernel))],
    }
    if homogenizer.defect_step is not None and bool((homogenizer.defect_step < NO_STEP).any()):
        tensors["defect_step"] = homogenizer.defect_step.detach() * std * 255
    if homogenizer.gain is not None and bool((homogenizer.gain != 1).any()):
        tensors["shading"] = _along_the_radius(homogenizer.gain.detach())
    rounded = {name: _round_weights(tensor) for name, tensor in tensors.items()}
    return {"knots": TONE_KNOTS, "levels": RESPONSE_LEVELS} | rounded


def _without_shading(homogenizer: Homogenizer) -> Homogenizer:
    """Return ρ as it is in the middle of the picture, where a lens loses no light."""
    if homogenizer.gain is None:
        return homogenizer
    middle = homogenizer.with_parts()
    assert middle.gain is not None
    middle.gain.data.fill_(1)
    return middle


def _along_the_radius(gain: Tensor) -> Tensor:
    """Return the gain (1, 1, H, W) of a lens from the middle to a corner, (SHADING_RADII,)."""
    radius = squared_radius(*gain.shape[2:]).sqrt().flatten()
    wanted = torch.linspace(0, 1, SHADING_RADII)
    return gain.cpu().flatten()[(radius - wanted[:, None]).abs().argmin(1)]


def digest_statistics(statistics: FeatureStatistics) -> str:
    """Return the SHA-256 of names, means and variances, so that two references can be told apart."""
    digest = hashlib.sha256(repr(statistics.names).encode())
    for tensor in (*statistics.means, *statistics.variances):
        digest.update(tensor.detach().cpu().to(torch.float32).contiguous().numpy().astype("<f4").tobytes())
    return digest.hexdigest()


def encode_examples(images: np.ndarray, count: int) -> list[bytes]:
    """Encode at most `count` of the images (n, h, w, C), evenly spread, as PNG files: of 8 bits, finer ones of 16."""
    return [_encode_png(images[index]) for index in evenly_spaced(len(images), count)]


def _encode_png(image: np.ndarray) -> bytes:
    storable = image if image.dtype == np.uint8 else to_depth(image, np.dtype(np.uint16))
    done, data = cv2.imencode(".png", np.ascontiguousarray(storable[:, :, ::-1]))  # OpenCV takes blue first
    assert done
    return data.tobytes()


def _round_weights(tensor: Tensor) -> Any:
    if tensor.dim() > 1:
        return [_round_weights(part) for part in tensor]
    return json_values([float(f"{value:.{WEIGHT_DIGITS}g}") for value in tensor.tolist()])
