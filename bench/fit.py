"""A fit without labels brings the accuracy back: CIFAR-10 under the paper's perturbation and under a camera's drift."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.arguments import add_data, add_draws
from bench.material.cifar import LIMITS, accuracy, lossless, network, normalise
from bench.material.metrics import l2_error, psnr, ssim
from bench.material.perturbation import KAPPA, Perturbation
from bench.provenance import MATERIAL, METHOD
from bench.report import print_row, show_rows
from calibrate import CleanData, FitConfig, fit, measure_clean, tap
from daemon.simulation.drifts import parse_drift

CODE = (*METHOD, *MATERIAL, "bench/fit.py")

FRAMES, TEST_IMAGES, CLEAN_IMAGES = 512, 1024, 2048
REPORTED_DRAWS = range(10, 20)  # draws 0 to 9 are for choosing methods and settings
CAMERA_SEEDS = range(10, 13)
SEEDS: dict[str, Any] = {"fit": 0, "perturbation": list(REPORTED_DRAWS), "camera": list(CAMERA_SEEDS)}
CAMERA = "fixed-pattern=12,cross-talk=0.25,blur=0.7,exposure=-0.5"
NETWORKS = {"resnet20": "resnet32", "resnet56": "resnet20"}  # Φ, and the second network that verifies its frames
MODES = ("shipped", "commissioned")
PASS_FRAMES = 128  # frames of one counted pass: the paper's batch
FORWARD_SHARE = 1 / 3  # cost of a forward pass alone, as a share of forward and backward

NUMBERS = ("distorted", "restored", "verified", "recovered", "psnr", "ssim", "l2", "passes", "seconds")
WORST_AND_SHARES = ("restored_worst", "verified_worst", "recovered_worst", "restored_share", "verified_share")

ApplyDrift = Callable[[np.ndarray], Tensor]  # images (N, H, W, 3) uint8 to normalised frames (N, 3, H, W)
Row = dict[str, Any]


class DriftCase(NamedTuple):
    """One drift by name; `perturbation` is the paper's δ where the drift is one."""

    name: str
    apply: ApplyDrift
    perturbation: Perturbation | None


class FitTask(NamedTuple):
    """Φ with its verifier, the images, and what is known of clean frames in each mode."""

    name: str
    model: nn.Module
    verifier: nn.Module
    known: dict[str, CleanData | None]
    clean: Tensor  # (TEST_IMAGES, 3, H, W) normalised
    labels: Tensor  # (TEST_IMAGES,)
    pictures: np.ndarray  # the same test images as a camera sees them, (TEST_IMAGES, H, W, 3) uint8
    unlabelled: np.ndarray  # (N, H, W, 3) uint8, to fit to


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    add_draws(parser, len(REPORTED_DRAWS))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="Φ")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    rows: list[Row] = []
    clean = {}
    for name in args.networks:
        task = load(args.data, name)
        clean[name] = {
            "model": accuracy(task.model, task.clean, task.labels),
            "verifier": accuracy(task.verifier, task.clean, task.labels),
        }
        for mode in MODES:
            for case in drift_cases(args.draws):
                rows.append(fit_once(task, mode, FRAMES, case))
                print_row(rows[-1])
    summary = _summary(rows, clean)
    _show_tables(clean, rows, summary)
    return {
        "seeds": SEEDS,
        "settings": {"frames": FRAMES, "test_images": TEST_IMAGES, "clean_images": CLEAN_IMAGES, "kappa": KAPPA}
        | {"camera": CAMERA, "fit": vars(FitConfig()), "seed": SEEDS["fit"]},
        "clean": clean,
        "rows": rows,
        "summary": summary,
    }


def load(data: Path, name: str) -> FitTask:
    """Read the images and the networks from the folder `data`; Φ is called `name`."""
    test, training = lossless(data / "cifar10_test.npz"), lossless(data / "cifar10_train_0.npz").pictures
    model = network(data, name)
    known_clean = normalise(lossless(data / "cifar10_train_1.npz").pictures[:CLEAN_IMAGES])
    pictures, labels = test.pictures[:TEST_IMAGES], test.labels[:TEST_IMAGES]
    return FitTask(
        name,
        model,
        network(data, NETWORKS[name]),
        {"shipped": None, "commissioned": measure_clean(tap(model), known_clean)},
        normalise(pictures),
        labels,
        pictures,
        training,
    )


def drift_cases(draws: int) -> Iterator[DriftCase]:
    """Yield no drift, then the first reported draws of the perturbation, then the camera's drift by each seed."""
    yield DriftCase("none", normalise, None)
    for draw in REPORTED_DRAWS[:draws]:
        perturbation = Perturbation(draw)
        yield DriftCase(f"paper, draw {draw}", _perturbed_by(perturbation), perturbation)
    for seed in CAMERA_SEEDS:
        yield DriftCase(f"camera, seed {seed}", _taken_by_camera(seed), None)


def _perturbed_by(perturbation: Perturbation) -> ApplyDrift:
    return lambda images: perturbation(normalise(images))


def _taken_by_camera(seed: int) -> ApplyDrift:
    drift = parse_drift(CAMERA, seed)
    return lambda images: normalise(np.stack([drift(image, i) for i, image in enumerate(images)]))


def fit_once(task: FitTask, mode: str, frames: int, case: DriftCase) -> Row:
    """Fit to the first unlabelled frames of a drifted camera, and compare accuracies on the test images."""
    known = task.known[mode]
    reference, source = (known.statistics, known.source) if known else (None, None)
    with counted_passes(task.model) as passes:
        result = fit(
            task.model,
            case.apply(task.unlabelled[:frames]),
            reference,
            source=source,
            limits=LIMITS,
            clock=time.perf_counter,
        )
    drifted = case.apply(task.pictures)
    with torch.no_grad():
        restored = result.homogenizer(drifted)
    row = {"network": task.name, "mode": mode, "drift": case.name, "frames": frames}
    row |= _quality(task, case, drifted, restored, result.homogenizer)
    return row | {
        "start": result.start,
        "passes": passes(),
        "seconds": result.seconds,
        "stage_seconds": result.stage_seconds,
        "loss": result.history[-1],
    }


def _quality(task: FitTask, case: DriftCase, drifted: Tensor, restored: Tensor, homogenizer: nn.Module) -> Row:
    clean, before, after = (accuracy(task.model, f, task.labels) for f in (task.clean, drifted, restored))
    perturbation = case.perturbation
    return {
        "distorted": before,
        "restored": after,
        "verified": accuracy(task.verifier, restored, task.labels),
        "recovered": (after - before) / (clean - before) if case.name != "none" else None,
        "psnr": psnr(task.clean, restored),
        "ssim": ssim(task.clean, restored),
        "l2": l2_error(lambda x: homogenizer(perturbation(x)), task.clean.shape[1:]) if perturbation else None,
    }


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Count forward and backward passes of PASS_FRAMES frames through the model, until the context ends."""
    frames = 0.0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal frames
        frames += len(inputs[0]) * (1 if torch.is_grad_enabled() else FORWARD_SHARE)

    handle = model.register_forward_pre_hook(count)
    try:
        yield lambda: frames / PASS_FRAMES
    finally:
        handle.remove()


def _summary(rows: Sequence[Row], clean: dict[str, dict[str, float]]) -> list[Row]:
    """Return mean and worst by network, mode and kind of drift, and the shares of the clean accuracy."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["mode"], row["drift"].partition(",")[0]), []).append(row)
    return [_summarise(group, *key, clean[key[0]]) for key, group in groups.items()]


def _summarise(group: Sequence[Row], name: str, mode: str, kind: str, clean: dict[str, float]) -> Row:
    means = {key: float(np.mean([row[key] for row in group])) for key in NUMBERS if group[0][key] is not None}
    worst = {
        f"{key}_worst": min(row[key] for row in group) for key in ("restored", "verified", "recovered") if key in means
    }
    shares = {
        "restored_share": means["restored"] / clean["model"],
        "verified_share": means["verified"] / clean["verifier"],
    }
    return {"network": name, "mode": mode, "drifts": kind, "count": len(group)} | means | worst | shares


def _show_tables(clean: dict[str, dict[str, float]], rows: Sequence[Row], summary: Sequence[Row]) -> None:
    accuracies = "; ".join(f"{n}: {c['model']:.1f}, verifier {c['verifier']:.1f}" for n, c in clean.items())
    show_rows(f"accuracy and SSIM in %, clean {accuracies}", ("network", "mode", "drift", *NUMBERS), rows)
    show_rows("means", ("network", "mode", "drifts", *NUMBERS), summary)
    show_rows("worst, and shares of clean", ("network", "mode", "drifts", *WORST_AND_SHARES), summary)
