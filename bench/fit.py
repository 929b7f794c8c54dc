"""Does accuracy come back: fits without labels on CIFAR-10 against the paper's perturbation and camera drifts."""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.material.cifar import LIMITS, accuracy, lossless, network, normalise
from bench.material.metrics import l2_error, psnr, ssim
from bench.material.perturbation import KAPPA, Perturbation
from bench.report import show
from calibrate import CleanData, FitConfig, fit, measure_clean, tap
from daemon.simulation.drifts import parse_drift

FRAMES, TEST_IMAGES, CLEAN_IMAGES = 512, 1024, 2048
REPORTED_DRAWS = range(10, 20)  # 0 to 9 are for choosing methods and settings on
CAMERA_SEEDS = range(10, 13)
CAMERA = "fixed-pattern=12,cross-talk=0.25,blur=0.7,exposure=-0.5"
NETWORKS = {"resnet20": "resnet32", "resnet56": "resnet20"}  # Φ, and the second network that verifies
MODES = ("shipped", "commissioned")

Drifting = Callable[[np.ndarray], Tensor]  # images (N, H, W, 3) uint8 to normalised (N, 3, H, W)
Drift = tuple[str, Drifting, Perturbation | None]  # name, what it does to images, the paper's where it is one
PASS_FRAMES = 128  # the paper's batch
WORST_AND_SHARES = ("restored_worst", "verified_worst", "recovered_worst", "restored_share", "verified_share")
NUMBERS = ("distorted", "restored", "verified", "recovered", "psnr", "ssim", "l2", "passes", "seconds")


class Setting(NamedTuple):
    """Φ with its verifier, and what is known of clean frames in each mode."""

    name: str
    model: nn.Module
    verifier: nn.Module
    known: dict[str, CleanData | None]
    clean: Tensor  # (TEST_IMAGES, 3, H, W) normalised
    labels: Tensor
    pictures: np.ndarray  # the same test images, as a camera sees them
    unlabelled: np.ndarray


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("RECALD_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="CIFAR-10 and networks (%(default)s)")
    parser.add_argument("--draws", type=int, default=len(REPORTED_DRAWS), help="of the paper's perturbation")
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS), help="Φ")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    rows, clean = [], {}
    for name in args.networks:
        setting = load(args.data, name)
        clean[name] = {
            "model": accuracy(setting.model, setting.clean, setting.labels),
            "verifier": accuracy(setting.verifier, setting.clean, setting.labels),
        }
        for mode in MODES:
            rows += [told(fit_once(setting, mode, FRAMES, *drift)) for drift in drifts(args.draws)]
    summary = _summary(rows, clean)
    _table(clean, rows, summary)
    return {
        "settings": {"frames": FRAMES, "test_images": TEST_IMAGES, "clean_images": CLEAN_IMAGES, "kappa": KAPPA}
        | {"camera": CAMERA, "fit": vars(FitConfig()), "seed": 0},
        "clean": clean,
        "rows": rows,
        "summary": summary,
    }


def load(data: Path, name: str) -> Setting:
    test, training = lossless(data / "cifar10_test.npz"), lossless(data / "cifar10_train_0.npz").pictures
    model = network(data, name)
    known_clean = normalise(lossless(data / "cifar10_train_1.npz").pictures[:CLEAN_IMAGES])
    pictures, labels = test.pictures[:TEST_IMAGES], test.labels[:TEST_IMAGES]
    return Setting(
        name,
        model,
        network(data, NETWORKS[name]),
        {"shipped": None, "commissioned": measure_clean(tap(model), known_clean)},
        normalise(pictures),
        labels,
        pictures,
        training,
    )


def drifts(draws: int) -> Iterator[Drift]:
    yield "none", normalise, None
    for draw in REPORTED_DRAWS[:draws]:
        perturbation = Perturbation(draw)
        yield f"paper, draw {draw}", _paper(perturbation), perturbation
    for seed in CAMERA_SEEDS:
        yield f"camera, seed {seed}", _camera(seed), None


def _paper(perturbation: Perturbation) -> Drifting:
    return lambda images: perturbation(normalise(images))


def _camera(seed: int) -> Drifting:
    drift = parse_drift(CAMERA, seed)
    return lambda images: normalise(np.stack([drift(image, i) for i, image in enumerate(images)]))


def fit_once(
    setting: Setting, mode: str, frames: int, name: str, drift: Drifting, delta: Perturbation | None
) -> dict[str, Any]:
    """Fit to the first unlabelled frames of a drifted camera, and compare on the test images."""
    drifted = drift(setting.pictures)
    known = setting.known[mode]
    reference, source = (known.statistics, known.source) if known else (None, None)
    with counted_passes(setting.model) as passes:
        result = fit(
            setting.model,
            drift(setting.unlabelled[:frames]),
            reference,
            source=source,
            limits=LIMITS,
            clock=time.perf_counter,
        )
    with torch.no_grad():
        restored = result.homogenizer(drifted)
    clean, before = (accuracy(setting.model, f, setting.labels) for f in (setting.clean, drifted))
    after = accuracy(setting.model, restored, setting.labels)
    return {
        "network": setting.name,
        "mode": mode,
        "drift": name,
        "frames": frames,
        "distorted": before,
        "restored": after,
        "verified": accuracy(setting.verifier, restored, setting.labels),
        "recovered": (after - before) / (clean - before) if name != "none" else None,
        "psnr": psnr(setting.clean, restored),
        "ssim": ssim(setting.clean, restored),
        "l2": l2_error(lambda x: result.homogenizer(delta(x)), setting.clean.shape[1:]) if delta else None,
        "start": result.start,
        "passes": passes(),
        "seconds": result.seconds,
        "stage_seconds": result.stage_seconds,
        "loss": result.history[-1],
    }


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[Callable[[], float]]:
    """Count forward and backward passes of PASS_FRAMES frames through the model; a forward pass alone is a third."""
    frames = 0.0

    def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        nonlocal frames
        frames += len(inputs[0]) * (1 if torch.is_grad_enabled() else 1 / 3)

    handle = model.register_forward_pre_hook(count)
    try:
        yield lambda: frames / PASS_FRAMES
    finally:
        handle.remove()


def told(row: dict[str, Any]) -> dict[str, Any]:
    print(", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
    return row


def _summary(rows: Sequence[dict[str, Any]], clean: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """Mean and worst by network, mode and kind of drift, and as shares of the clean accuracy."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["mode"], row["drift"].partition(",")[0]), []).append(row)
    return [_summarise(group, *key, clean[key[0]]) for key, group in groups.items()]


def _summarise(
    group: Sequence[dict[str, Any]], name: str, mode: str, kind: str, clean: dict[str, float]
) -> dict[str, Any]:
    means = {k: float(np.mean([r[k] for r in group])) for k in NUMBERS if group[0][k] is not None}
    worst = {f"{k}_worst": min(r[k] for r in group) for k in ("restored", "verified", "recovered") if k in means}
    shares = {
        "restored_share": means["restored"] / clean["model"],
        "verified_share": means["verified"] / clean["verifier"],
    }
    return {"network": name, "mode": mode, "drifts": kind, "count": len(group)} | means | worst | shares


def _table(
    clean: dict[str, dict[str, float]],
    rows: Sequence[dict[str, Any]],
    summary: Sequence[dict[str, Any]],
) -> None:
    said = "; ".join(f"{n}: {c['model']:.1f}, verifier {c['verifier']:.1f}" for n, c in clean.items())
    show_rows(f"accuracy and SSIM in %, clean {said}", ("network", "mode", "drift", *NUMBERS), rows)
    show_rows("means", ("network", "mode", "drifts", *NUMBERS), summary)
    show_rows("worst, and shares of clean", ("network", "mode", "drifts", *WORST_AND_SHARES), summary)


def show_rows(title: str, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    show(title, columns, [["-" if row.get(c) is None else row[c] for c in columns] for row in rows])
