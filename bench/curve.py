"""How many frames a fit needs: CIFAR-10 accuracy from 32 unlabelled frames to 2,048, and where it breaks."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.fit import NUMBERS, TEST_IMAGES, drifts, fit_once, load, show_rows, told
from bench.material.cifar import accuracy
from bench.material.perturbation import KAPPA
from calibrate import FitConfig

NETWORK, DRAWS = "resnet20", 3
COUNTS = (32, 64, 128, 256, 512, 1024, 2048)
MEANS = ("distorted", "restored", "verified", "recovered", "psnr", "seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("RECALD_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="CIFAR-10 and networks (%(default)s)")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of the paper's perturbation (%(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    setting = load(args.data, NETWORK)
    without, *perturbed = list(drifts(args.draws))[: args.draws + 1]
    rows = [told(fit_once(setting, "shipped", n, *drift)) for n in COUNTS for drift in (without, *perturbed)]
    summary = [_summarise(n, [row for row in rows if row["frames"] == n]) for n in COUNTS]
    clean = accuracy(setting.model, setting.clean, setting.labels)
    show_rows(f"accuracy and SSIM in %, clean {clean:.1f}", ("frames", "drift", *NUMBERS), rows)
    show_rows("means", ("frames", "none", *MEANS, "restored_worst"), summary)
    return {
        "settings": {"network": NETWORK, "test_images": TEST_IMAGES, "kappa": KAPPA}
        | {"fit": vars(FitConfig()), "seed": 0},
        "clean": clean,
        "rows": rows,
        "summary": summary,
    }


def _summarise(frames: int, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over the perturbations, their worst, and what a fit makes of clean frames."""
    perturbed = [row for row in rows if row["drift"] != "none"]
    return (
        {"frames": frames, "none": next(row["restored"] for row in rows if row["drift"] == "none")}
        | {key: float(np.mean([row[key] for row in perturbed])) for key in MEANS}
        | {"restored_worst": min(row["restored"] for row in perturbed)}
    )
