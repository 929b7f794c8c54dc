"""What a recalibration goes by, noted while it goes on: at its end that makes the dossier."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from calibrate import FitResult
from calibrate.features.statistics import FeatureStatistics
from calibrate.homogenizer import KNOTS, Homogenizer
from calibrate.judge import Evidence, Verdict, finite
from daemon.images import spread
from deploy.model.card import Normalisation
from deploy.store.dossier import Dossier, read_dossier

LEVELS = tuple(range(0, 256, 15))  # grey levels at which the answer of a homogenizer to an even frame is told
DIGITS = 4  # of its weights: a page draws them, the artefact holds them


class DossierBuilder:
    """Of one recalibration. facts: what is the same for all of a worker's, by the names of the dossier."""

    def __init__(
        self,
        job: Mapping[str, Any],
        facts: Mapping[str, Any],
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.perf_counter,
    ):
        self._content: dict[str, Any] = {**facts, **{name: job[name] for name in ("sensor", "trigger", "seed", "band")}}
        self._content |= {"active": job["active"], "earlier": [], "seconds": []}
        self._frames = {"until": job["until"], "refused": job["refused"], "fitted": 0, "held_out": 0}
        self._clock, self._monotonic = clock, monotonic
        self._since = monotonic()

    def lap(self, stage: str) -> None:
        """A stage ends here."""
        now = self._monotonic()
        self._content["seconds"].append((stage, now - self._since))
        self._since = now

    def frames(self, held_out: int, shape: tuple[int, ...]) -> None:
        """How many judge, and their shape (h, w, C)."""
        self._frames |= {"held_out": held_out, "shape": shape}

    def champions(self, evidence: Mapping[str, Evidence]) -> None:
        self._content["evidence"] = {name: one.as_dict() for name, one in evidence.items()}
        self.lap("incumbents")

    def earlier(self, version: str, verdict: Verdict) -> None:
        """A homogenizer of the sensor's past was tried."""
        tried = {"version": version, "accepted": verdict.accepted, "reason": verdict.reason}
        self._content["earlier"].append(tried)

    def fitted(self, result: FitResult, frames: int) -> None:
        fit = {"start": result.start, "start_losses": result.start_losses, "history": result.history}
        self._content |= {"fit": finite(fit)}
        self._content["seconds"] += [(f"fit: {stage}", seconds) for stage, seconds in result.stage_seconds.items()]
        self._frames["fitted"] = frames
        self._since = self._monotonic()

    def judged(self, candidate: Homogenizer, verdict: Verdict) -> None:
        normalisation = self._content["normalisation"]
        self._content |= {"verdict": verdict.as_dict(), "extents": extents(candidate, normalisation)}
        self.lap("judging")

    def build(self, answer: Mapping[str, Any]) -> Dossier:
        """With what it came to: result, reason and, where another homogenizer shall serve, its version."""
        came_to = {"result": answer["result"], "reason": answer["reason"], "candidate": answer.get("version")}
        return read_dossier({**self._content, **came_to, "frames": self._frames, "at": self._clock()})


def extents(homogenizer: Homogenizer, normalisation: Normalisation) -> dict[str, Any]:
    """What ρ does to a frame, as a dossier tells it."""
    mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
    kernel = homogenizer.kernel.detach()
    channels, size = range(len(kernel)), homogenizer.offset.shape[1:]
    grey = torch.tensor(LEVELS, dtype=torch.float32)
    even = ((grey[:, None] / 255 - mean) / std)[:, :, None, None].expand(-1, *size)  # (levels, C, H, W)
    with torch.no_grad():
        answered = (homogenizer(even).mean((2, 3)) * std + mean) * 255
    offset = homogenizer.offset.detach().abs().amax((0, 2, 3)) * std * 255
    tensors = {
        "curve": homogenizer.curve.detach(),
        "offset": offset,
        "response": answered,
        "colour": kernel.sum((2, 3)),
    }
    tensors["kernels"] = kernel[channels, channels]
    return {"knots": KNOTS, "levels": LEVELS} | {name: _rounded(tensor) for name, tensor in tensors.items()}


def digest_of(statistics: FeatureStatistics) -> str:
    """SHA-256 of names, means and variances, so that two references can be told apart."""
    whole = hashlib.sha256(repr(statistics.names).encode())
    for tensor in (*statistics.means, *statistics.variances):
        whole.update(tensor.detach().cpu().to(torch.float32).contiguous().numpy().astype("<f4").tobytes())
    return whole.hexdigest()


def examples(images: np.ndarray, count: int) -> list[bytes]:
    """At most `count` of the images (n, h, w, C) uint8, evenly from all, as PNG files."""
    return [_png(images[index]) for index in spread(len(images), count)]


def _png(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".png", np.ascontiguousarray(image[:, :, ::-1]))  # OpenCV takes blue first
    assert done
    return data.tobytes()


def _rounded(tensor: Tensor) -> Any:
    if tensor.dim() > 1:
        return [_rounded(part) for part in tensor]
    return finite([float(f"{value:.{DIGITS}g}") for value in tensor.tolist()])
