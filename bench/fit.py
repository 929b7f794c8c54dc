"""Does accuracy come back: fits without labels on CIFAR-10 against the paper's perturbation and camera drifts."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.perturbation import KAPPA, Perturbation
from bench.report import show
from calibrate import FitConfig, fit
from daemon.demo import material, networks
from daemon.distort import parse_drift
from daemon.images import read_npz
from deploy.source import build_module

FRAMES, TEST_IMAGES = 512, 1024
REPORTED_DRAWS = range(10, 20)  # 0 to 9 are for choosing methods and settings on
CAMERA_SEEDS = range(10, 13)
CAMERA = "fixed-pattern=12,cross-talk=0.25,blur=0.7,exposure=-0.5"

Drifting = Callable[[np.ndarray], Tensor]  # images (N, H, W, 3) uint8 to normalised (N, 3, H, W)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("RECALD_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="CIFAR-10 and networks (%(default)s)")
    parser.add_argument("--draws", type=int, default=len(REPORTED_DRAWS), help="of the paper's perturbation")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    images, labels = lossless(args.data / "cifar10_test.npz")
    unlabelled, _ = lossless(args.data / "cifar10_train_0.npz")
    unlabelled, images, labels = unlabelled[:FRAMES], images[:TEST_IMAGES], labels[:TEST_IMAGES]
    model = network(args.data, "resnet20-12fca82f.th", "cifar_resnet20")
    verifier = network(args.data, "resnet32-d509ac18.th", "cifar_resnet32")
    clean = {name: accuracy(net, normalise(images), labels) for name, net in (("model", model), ("verifier", verifier))}
    rows = []
    for name, drift in _drifts(args.draws):
        row = {"drift": name} | _one(model, verifier, drift, unlabelled, images, labels)
        row["recovered"] = (row["restored"] - row["distorted"]) / (clean["model"] - row["distorted"])
        rows.append(row)
        print(", ".join(f"{k} {v:.2f}" if isinstance(v, float) else f"{v}" for k, v in row.items()), flush=True)
    groups = {"paper": [r for r in rows if "draw" in r["drift"]], "camera": [r for r in rows if "seed" in r["drift"]]}
    summary = {name: _summary(group) for name, group in groups.items() if group}
    _table(clean, rows, summary)
    return {
        "settings": {"frames": FRAMES, "test_images": TEST_IMAGES, "kappa": KAPPA, "camera": CAMERA}
        | {"fit": vars(FitConfig()), "seed": 0},
        "clean": clean,
        "rows": rows,
        "summary": summary,
    }


def _drifts(draws: int) -> list[tuple[str, Drifting]]:
    paper = [(f"paper, draw {d}", _paper(Perturbation(d))) for d in REPORTED_DRAWS[:draws]]
    camera = [(f"camera, seed {s}", _camera(s)) for s in CAMERA_SEEDS]
    return [*paper, *camera]


def _paper(perturbation: Perturbation) -> Drifting:
    return lambda images: perturbation(normalise(images))


def _camera(seed: int) -> Drifting:
    drift = parse_drift(CAMERA, seed)
    return lambda images: normalise(np.stack([drift(image, i) for i, image in enumerate(images)]))


def _one(
    model: nn.Module, verifier: nn.Module, drift: Drifting, unlabelled: np.ndarray, images: np.ndarray, labels: Tensor
) -> dict[str, Any]:
    drifted = drift(images)
    result = fit(model, drift(unlabelled))
    with torch.no_grad():
        restored = result.homogenizer(drifted)
    return {
        "distorted": accuracy(model, drifted, labels),
        "restored": accuracy(model, restored, labels),
        "verified": accuracy(verifier, restored, labels),
        "start": result.start,
        "seconds": result.seconds,
        "loss": result.history[-1],
    }


def _summary(rows: list[dict[str, Any]]) -> dict[str, float]:
    means = {
        f"{k}_mean": float(np.mean([r[k] for r in rows]))
        for k in ("distorted", "restored", "verified", "recovered", "seconds")
    }
    return means | {"recovered_worst": min(r["recovered"] for r in rows)}


def _table(clean: dict[str, float], rows: list[dict[str, Any]], summary: dict[str, dict[str, float]]) -> None:
    keys = ("distorted", "restored", "verified", "recovered", "seconds")
    body = [[r["drift"], *(r[k] for k in keys)] for r in rows]
    body += [[f"{name}, mean", *(s[f"{k}_mean"] for k in keys)] for name, s in summary.items()]
    title = f"accuracy in %, clean: model {clean['model']:.1f}, verifier {clean['verifier']:.1f}"
    show(title, ("drift", *keys), body)


def lossless(path: Path) -> tuple[np.ndarray, Tensor]:
    arrays = read_npz(path)
    kept = arrays["lossless"]
    return arrays["images"][kept], torch.from_numpy(arrays["labels"][kept].astype(np.int64))


def network(data: Path, weights: str, factory: str) -> nn.Module:
    module = build_module(f"{networks.__name__}:{factory}", data / "models" / weights)
    return module.eval().requires_grad_(False)


def normalise(images: np.ndarray) -> Tensor:
    """(N, H, W, 3) uint8 to (N, 3, H, W) as the networks were trained on."""
    mean, std = torch.tensor(material.IMAGENET_MEAN), torch.tensor(material.IMAGENET_STD)
    return ((torch.from_numpy(images) / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()


def accuracy(network: nn.Module, frames: Tensor, labels: Tensor) -> float:
    """In percent."""
    with torch.no_grad():
        named = torch.cat([network(chunk).argmax(1) for chunk in frames.split(256)])
    return 100 * float((named == labels).float().mean())
