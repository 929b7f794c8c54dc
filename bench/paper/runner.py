"""Run one experiment of the tables of Willis & Oala (2021): a fit and its six metrics."""

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
from bench.paper.datasets import (
    DATASETS,
    FRAMES,
    KAPPAS,
    RANDOM_SEED,
    SOURCE_IMAGES,
    VALIDATION_IMAGES,
    DataSet,
    Target,
    feature_map,
    target_statistics,
)
from bench.paper.experiments import Experiment
from calibrate import FitConfig, FitError, Limits, fit
from calibrate.features.feature_maps import FeatureMap
from calibrate.paper import ReconstructionNetwork, fit_as_published

KEPT_IMAGES = 8
PAPER_STATISTICS, PAPER_CRITERION = 10.0, 1.0  # r_stats and r_crit of the paper
OUR_CRITERION = 0.05  # the Gaussian divergence is in hundredths of a nat, the cross-entropy in whole nats
OUR_CRITERION_ALONE = 1e3  # our fit always matches statistics, too; next to this weight they have no effect

Stepped = Callable[[int, int, float], None]


class Fitted(NamedTuple):
    """A fitted ρ, its seconds, and the loss by step."""

    rho: nn.Module
    seconds: float
    history: list[float]

    @property
    def loss(self) -> float | None:
        return self.history[-1] if self.history else None


class Runner:
    """Runs experiments; keeps the data sets and the target statistics that several of them need."""

    def __init__(self, args: argparse.Namespace):
        self._args = args
        self._data_sets: dict[str, DataSet] = {}
        self._targets: dict[tuple[str, str, str, bool], tuple[FeatureMap, Target]] = {}

    def settings(self, experiment: Experiment) -> dict[str, Any]:
        """Return the settings that the result depends on, next to the name, in the form that JSON gives back."""
        settings: dict[str, Any] = {"frames": FRAMES, "validation_images": VALIDATION_IMAGES}
        settings |= {"kappa": KAPPAS[experiment.dataset]}
        if experiment.dataset == "cifar10":
            settings |= {"network": self._args.network}
        if experiment.rho != "none" and not experiment.uses_shipped_statistics:
            settings |= {"source_images": SOURCE_IMAGES, "random_seed": RANDOM_SEED}
        if experiment.rho == "paper":
            settings |= {"epochs": self._args.epochs, "rate": self._args.rate} | _weights(experiment)
        if experiment.rho == "ours":
            target = "shipped" if experiment.uses_shipped_statistics else "collected"
            settings |= vars(FitConfig()) | {"target": target, "criterion": _our_criterion(experiment)}
        plain: dict[str, Any] = json.loads(json.dumps(settings))  # a tuple becomes a list
        return plain

    def data_set(self, dataset: str) -> DataSet:
        """Return the data set of this name; it is loaded once."""
        if dataset not in self._data_sets:
            self._data_sets[dataset] = DATASETS[dataset](self._args.data, self._args.network)
        return self._data_sets[dataset]

    def run(self, experiment: Experiment, stepped: Stepped) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        """Return the record, and the first restored images with the labels by Φ; a failed fit has no images."""
        data_set = self.data_set(experiment.dataset)
        record = {"piece": experiment.key, "settings": self.settings(experiment)}
        delta: Callable[[Tensor], Tensor] = nn.Identity()
        if experiment.row != "CLEAN":
            delta = Perturbation(experiment.draw, data_set.kappa, data_set.shape)
        try:
            fitted = self._fit(experiment, delta(data_set.fitted.frames), stepped)
        except FitError as error:  # a failed fit is a result, and the other experiments go on
            return record | {"error": str(error)}, {}
        measured, restored = _measure(data_set, lambda frames: fitted.rho(delta(frames)))
        cost = {"seconds": fitted.seconds, "steps": len(fitted.history), "loss": fitted.loss}
        return record | measured | cost, _images(data_set, restored[:KEPT_IMAGES])

    def _fit(self, experiment: Experiment, frames: Tensor, stepped: Stepped) -> Fitted:
        if experiment.setting == "baseline":
            return Fitted(nn.Identity(), 0.0, [])
        features, target = self._target(experiment)
        run_fit = self._published if experiment.rho == "paper" else self._ours
        return run_fit(experiment, frames, features, target, stepped)

    def _target(self, experiment: Experiment) -> tuple[FeatureMap, Target]:
        row, shipped = experiment.row, experiment.uses_shipped_statistics
        key = (experiment.dataset, experiment.setting, row, shipped)
        if key not in self._targets:
            data_set = self.data_set(experiment.dataset)
            features = feature_map(data_set, row, experiment.supervised)
            self._targets[key] = (features, target_statistics(data_set, row, features, shipped))
        return self._targets[key]

    def _published(
        self, experiment: Experiment, frames: Tensor, features: FeatureMap, target: Target, stepped: Stepped
    ) -> Fitted:
        data_set = self.data_set(experiment.dataset)
        weights = _weights(experiment)
        torch.manual_seed(experiment.draw)
        result = fit_as_published(
            features,
            ReconstructionNetwork(data_set.shape[0]),
            frames,
            target,
            labels=data_set.fitted.labels if experiment.supervised else None,
            criterion=weights["criterion"],
            statistics=weights["statistics"],
            epochs=self._args.epochs,
            rate=self._args.rate,
            seed=experiment.draw,
            progress=stepped,
            clock=time.perf_counter,
        )
        return Fitted(result.rho, result.seconds, result.history)

    def _ours(
        self, experiment: Experiment, frames: Tensor, features: FeatureMap, target: Target, stepped: Stepped
    ) -> Fitted:
        data_set = self.data_set(experiment.dataset)
        result = fit(
            data_set.model,
            frames,
            target,
            features=features,
            labels=data_set.fitted.labels if experiment.supervised else None,
            criterion=_our_criterion(experiment),
            limits=Limits.of(data_set.mean, data_set.std),
            seed=experiment.draw,
            progress=stepped,
            clock=time.perf_counter,
        )
        return Fitted(result.homogenizer, result.seconds, result.history)


def _weights(experiment: Experiment) -> dict[str, float]:
    """Return the weights of the paper's loss."""
    statistics = 0.0 if experiment.row == "CRITERION" else PAPER_STATISTICS
    return {"criterion": PAPER_CRITERION if experiment.supervised else 0.0, "statistics": statistics}


def _our_criterion(experiment: Experiment) -> float:
    if experiment.row == "CRITERION":
        return OUR_CRITERION_ALONE
    return OUR_CRITERION if experiment.supervised else 0.0


def _measure(data_set: DataSet, transform: metrics.Transform) -> tuple[dict[str, float], Tensor]:
    """Return the six metrics of ρ∘δ and the restored validation images; PSNR and SSIM are of the fitted images."""
    fitted, validation = _apply(transform, data_set.fitted.frames), _apply(transform, data_set.validation.frames)
    return {
        "acc": accuracy(data_set.model, fitted, data_set.fitted.labels),
        "acc_val": accuracy(data_set.model, validation, data_set.validation.labels),
        "acc_ver": accuracy(data_set.verifier, validation, data_set.validation.labels),
        "psnr": metrics.psnr(data_set.fitted.frames, fitted),
        "ssim": metrics.ssim(data_set.fitted.frames, fitted),
        "l2": metrics.l2_error(transform, data_set.shape),
    }, validation


def _apply(transform: metrics.Transform, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([transform(chunk) for chunk in frames.split(256)])


def _images(data_set: DataSet, restored: Tensor) -> dict[str, np.ndarray]:
    """Return the images (N, H, W, 3) uint8 and the label (N,) that Φ gives each."""
    channels_last = restored.permute(0, 2, 3, 1) * torch.tensor(data_set.std) + torch.tensor(data_set.mean)
    images = (255 * channels_last).round().clamp(0, 255).to(torch.uint8)
    with torch.no_grad():
        label = data_set.model(restored).argmax(1)
    return {"images": images.expand(-1, -1, -1, 3).numpy(), "label": label.numpy()}
