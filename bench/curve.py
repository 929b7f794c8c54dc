"""A fit needs few frames: CIFAR-10 accuracy after fits on 32 to 2,048 unlabelled frames."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from bench.arguments import add_data, add_draws
from bench.fit import CODE as FIT_CODE
from bench.fit import NUMBERS, SEEDS, TEST_IMAGES, Row, drift_cases, fit_once, load
from bench.material.cifar import accuracy
from bench.material.perturbation import KAPPA
from bench.report import print_row, show_rows
from calibrate import FitConfig

CODE = (*FIT_CODE, "bench/curve.py")

NETWORK, DRAWS = "resnet20", 3
FRAME_COUNTS = (32, 64, 128, 256, 512, 1024, 2048)
MEANS = ("distorted", "restored", "verified", "recovered", "psnr", "seconds")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    add_draws(parser, DRAWS)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    task = load(args.data, NETWORK)
    cases = list(drift_cases(args.draws))[: args.draws + 1]  # no drift, and the perturbations
    rows = []
    for frames in FRAME_COUNTS:
        for case in cases:
            rows.append(fit_once(task, "shipped", frames, case))
            print_row(rows[-1])
    summary = [_summarise(count, [row for row in rows if row["frames"] == count]) for count in FRAME_COUNTS]
    clean = accuracy(task.model, task.clean, task.labels)
    show_rows(f"accuracy and SSIM in %, clean {clean:.1f}", ("frames", "drift", *NUMBERS), rows)
    show_rows("means", ("frames", "none", *MEANS, "restored_worst"), summary)
    return {
        "seeds": SEEDS | {"perturbation": SEEDS["perturbation"][: args.draws]},
        "settings": {"network": NETWORK, "test_images": TEST_IMAGES, "kappa": KAPPA}
        | {"fit": vars(FitConfig()), "seed": SEEDS["fit"]},
        "clean": clean,
        "rows": rows,
        "summary": summary,
    }


def _summarise(frames: int, rows: Sequence[Row]) -> Row:
    """Return means and worst over the perturbations, and the accuracy of a fit to clean frames as `none`."""
    perturbed = [row for row in rows if row["drift"] != "none"]
    return (
        {"frames": frames, "none": next(row["restored"] for row in rows if row["drift"] == "none")}
        | {key: float(np.mean([row[key] for row in perturbed])) for key in MEANS}
        | {"restored_worst": min(row["restored"] for row in perturbed)}
    )
