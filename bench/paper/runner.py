"""One piece of the tables of Willis & Oala (2021): a fit and its six metrics."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.material import metrics
from bench.material.cifar import accuracy
from bench.material.perturbation import Perturbation
from bench.paper.pieces import Piece
from bench.paper.scenes import (
    FRAMES,
    KAPPAS,
    RANDOM_SEED,
    SCENES,
    SOURCE_IMAGES,
    VALIDATION_IMAGES,
    Scene,
    Target,
    feature_map,
    target_statistics,
)
from calibrate import FitConfig, FitError, Limits, fit
from calibrate.features.feature_maps import FeatureMap
from calibrate.paper import ReconstructionNetwork, fit_as_published

KEPT_IMAGES = 8
STATISTICS, CRITERION = 10.0, 1.0  # r_stats and r_crit of the paper
OUR_CRITERION = 0.05  # the Gaussian divergence is in hundredths of a nat, the cross-entropy in whole ones
LABELS_ALONE = 1e3  # our fit always matches statistics; beside this weight they move nothing

Stepped = Callable[[int, int, float], None]


class Fitted(NamedTuple):
    rho: nn.Module
    seconds: float
    history: list[float]

    @property
    def loss(self) -> float | None:
        return self.history[-1] if self.history else None


class Runner:
    """Measures pieces; keeps the scenes and the target statistics that they share."""

    def __init__(self, args: argparse.Namespace):
        self._args = args
        self._scenes: dict[str, Scene] = {}
        self._aims: dict[tuple[str, str, str, bool], tuple[FeatureMap, Target]] = {}

    def settings(self, piece: Piece) -> dict[str, Any]:
        """What a piece's result depends on beside its name, as it reads when it comes back from a file."""
        settings: dict[str, Any] = {"frames": FRAMES, "validation_images": VALIDATION_IMAGES}
        settings |= {"kappa": KAPPAS[piece.dataset]}
        if piece.dataset == "cifar10":
            settings |= {"network": self._args.network}
        if piece.rho != "none" and not piece.aims_at_shipped:
            settings |= {"source_images": SOURCE_IMAGES, "random_seed": RANDOM_SEED}
        if piece.rho == "paper":
            settings |= {"epochs": self._args.epochs, "rate": self._args.rate} | _weights(piece)
        if piece.rho == "ours":
            target = "shipped" if piece.aims_at_shipped else "collected"
            settings |= vars(FitConfig()) | {"target": target, "criterion": _our_criterion(piece)}
        plain: dict[str, Any] = json.loads(json.dumps(settings))  # a tuple becomes a list
        return plain

    def scene(self, dataset: str) -> Scene:
        if dataset not in self._scenes:
            self._scenes[dataset] = SCENES[dataset](self._args.data, self._args.network)
        return self._scenes[dataset]

    def run(self, piece: Piece, stepped: Stepped) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """The piece's record, and its first restored images with what Φ says of them; a failed fit has neither."""
        scene, record = self.scene(piece.dataset), {"piece": piece.key, "settings": self.settings(piece)}
        delta = nn.Identity() if piece.row == "CLEAN" else Perturbation(piece.draw, scene.kappa, scene.shape)
        try:
            fitted = self._fit(piece, delta(scene.fitted.frames), stepped)
        except FitError as error:  # one fit that broke is a result, and the others are still wanted
            return record | {"error": str(error)}, {}
        measured, restored = _measure(scene, lambda frames: fitted.rho(delta(frames)))
        cost = {"seconds": fitted.seconds, "steps": len(fitted.history), "loss": fitted.loss}
        return record | measured | cost, _images(scene, restored[:KEPT_IMAGES])

    def _fit(self, piece: Piece, frames: Tensor, stepped: Stepped) -> Fitted:
        if piece.setting == "baseline":
            return Fitted(nn.Identity(), 0.0, [])
        features, target = self._aimed(piece)
        return (self._published if piece.rho == "paper" else self._ours)(piece, frames, features, target, stepped)

    def _aimed(self, piece: Piece) -> tuple[FeatureMap, Target]:
        shared = (piece.dataset, piece.setting, piece.row, piece.aims_at_shipped)
        if shared not in self._aims:
            scene = self.scene(piece.dataset)
            features = feature_map(scene, piece.row, piece.supervised)
            self._aims[shared] = (features, target_statistics(scene, piece.row, features, piece.aims_at_shipped))
        return self._aims[shared]

    def _published(
        self, piece: Piece, frames: Tensor, features: FeatureMap, target: Target, stepped: Stepped
    ) -> Fitted:
        scene = self.scene(piece.dataset)
        weights = _weights(piece)
        torch.manual_seed(piece.draw)
        result = fit_as_published(
            features,
            ReconstructionNetwork(scene.shape[0]),
            frames,
            target,
            labels=scene.fitted.labels if piece.supervised else None,
            criterion=weights["criterion"],
            statistics=weights["statistics"],
            epochs=self._args.epochs,
            rate=self._args.rate,
            seed=piece.draw,
            progress=stepped,
            clock=time.perf_counter,
        )
        return Fitted(result.rho, result.seconds, result.history)

    def _ours(self, piece: Piece, frames: Tensor, features: FeatureMap, target: Target, stepped: Stepped) -> Fitted:
        scene = self.scene(piece.dataset)
        result = fit(
            scene.model,
            frames,
            target,
            features=features,
            labels=scene.fitted.labels if piece.supervised else None,
            criterion=_our_criterion(piece),
            limits=Limits.of(scene.mean, scene.std),
            seed=piece.draw,
            progress=stepped,
            clock=time.perf_counter,
        )
        return Fitted(result.homogenizer, result.seconds, result.history)


def _weights(piece: Piece) -> dict[str, float]:
    """Of the paper's loss."""
    statistics = 0.0 if piece.row == "CRITERION" else STATISTICS
    return {"criterion": CRITERION if piece.supervised else 0.0, "statistics": statistics}


def _our_criterion(piece: Piece) -> float:
    if piece.row == "CRITERION":
        return LABELS_ALONE
    return OUR_CRITERION if piece.supervised else 0.0


def _measure(scene: Scene, transform: metrics.Transform) -> tuple[dict[str, float], Tensor]:
    """The six metrics of ρ∘δ, and the validation images that it restored; PSNR and SSIM are of the fitted ones."""
    fitted, validation = _apply(transform, scene.fitted.frames), _apply(transform, scene.validation.frames)
    return {
        "acc": accuracy(scene.model, fitted, scene.fitted.labels),
        "acc_val": accuracy(scene.model, validation, scene.validation.labels),
        "acc_ver": accuracy(scene.verifier, validation, scene.validation.labels),
        "psnr": metrics.psnr(scene.fitted.frames, fitted),
        "ssim": metrics.ssim(scene.fitted.frames, fitted),
        "l2": metrics.l2_error(transform, scene.shape),
    }, validation


def _apply(transform: metrics.Transform, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([transform(chunk) for chunk in frames.split(256)])


def _images(scene: Scene, restored: Tensor) -> dict[str, np.ndarray]:
    """images (N, H, W, 3) uint8 and label (N,), what Φ takes each for."""
    channels_last = restored.permute(0, 2, 3, 1) * torch.tensor(scene.std) + torch.tensor(scene.mean)
    images = (255 * channels_last).round().clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        label = scene.model(restored).argmax(1)
    return {"images": images.expand(-1, -1, -1, 3).numpy(), "label": label.numpy()}
