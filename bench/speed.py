"""Where the time of a fit goes, and what bfloat16 and channels-last cost or save: side by side on CIFAR-10."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from bench.fit import FRAMES, TEST_IMAGES, Drift, Setting, drifts, fit_once, load, show_rows, told
from bench.material.cifar import accuracy
from bench.material.perturbation import KAPPA
from calibrate import FitConfig
from calibrate.search import objective

NETWORK, DRAWS = "resnet20", 5
VARIANTS = (("float32", "contiguous"), ("float32", "channels last"), ("bfloat16", "contiguous")) + (
    ("bfloat16", "channels last"),
)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
COLUMNS = ("precision", "layout", "restored", "verified", "restored_worst", "passes", "seconds", "seconds_per_pass")
MEANS = ("restored", "verified", "passes", "seconds", "seconds_per_pass")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("RECALD_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="CIFAR-10 and networks (%(default)s)")
    parser.add_argument("--draws", type=int, default=DRAWS, help="of the paper's perturbation (%(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    setting = load(args.data, NETWORK)
    perturbed = list(drifts(args.draws))[1 : args.draws + 1]
    # Draws are outermost: a machine that slows down during the run slows all variants alike.
    rows = [told(_fit(setting, *variant, drift)) for drift in perturbed for variant in VARIANTS]
    summary = [_summarise(rows, *variant) for variant in VARIANTS]
    clean = accuracy(setting.model, setting.clean, setting.labels)
    show_rows(f"means over {args.draws} draws; accuracy in %, clean {clean:.1f}", COLUMNS, summary)
    stages = list(summary[0]["stage_seconds"])
    show_rows("seconds by stage", ("precision", "layout", *stages), [row | row["stage_seconds"] for row in summary])
    return {
        "settings": {"network": NETWORK, "frames": FRAMES, "test_images": TEST_IMAGES, "kappa": KAPPA}
        | {"fit": vars(FitConfig()), "seed": 0, "default_bfloat16": objective.HAS_BFLOAT16},
        "clean": clean,
        "rows": rows,
        "summary": summary,
    }


def _fit(setting: Setting, precision: str, layout: str, drift: Drift) -> dict[str, Any]:
    model: nn.Module = setting.model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    with patch.object(objective, "HAS_BFLOAT16", precision == "bfloat16"):
        row = fit_once(setting._replace(model=model), "shipped", FRAMES, *drift)
    return {"precision": precision, "layout": layout, "seconds_per_pass": row["seconds"] / row["passes"]} | row


def _summarise(rows: Sequence[dict[str, Any]], precision: str, layout: str) -> dict[str, Any]:
    group = [row for row in rows if (row["precision"], row["layout"]) == (precision, layout)]
    return (
        {"precision": precision, "layout": layout, "restored_worst": min(row["restored"] for row in group)}
        | {key: _mean(row[key] for row in group) for key in MEANS}
        | {"stage_seconds": {s: _mean(row["stage_seconds"][s] for row in group) for s in group[0]["stage_seconds"]}}
    )


def _mean(numbers: Iterable[float]) -> float:
    return float(np.mean(list(numbers)))
