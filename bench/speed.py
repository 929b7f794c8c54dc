"""bfloat16 convolutions make a fit faster at the same accuracy; a channels-last model is compared with them."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

from bench.arguments import add_data, add_draws
from bench.fit import CODE as FIT_CODE
from bench.fit import FRAMES, SEEDS, TEST_IMAGES, DriftCase, FitTask, Row, drift_cases, fit_once, load
from bench.material.cifar import accuracy
from bench.material.perturbation import KAPPA
from bench.report import print_row, show_rows
from calibrate import FitConfig
from calibrate.search import objective

CODE = (*FIT_CODE, "bench/speed.py")

NETWORK, DRAWS = "resnet20", 5
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
VARIANTS = [(precision, layout) for precision in ("float32", "bfloat16") for layout in LAYOUTS]
COLUMNS = ("precision", "layout", "restored", "verified", "restored_worst", "passes", "seconds", "seconds_per_pass")
MEANS = ("restored", "verified", "passes", "seconds", "seconds_per_pass")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    add_draws(parser, DRAWS)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    task = load(args.data, NETWORK)
    rows = []
    for case in list(drift_cases(args.draws))[1 : args.draws + 1]:  # outermost: a slow phase hits all variants alike
        for variant in VARIANTS:
            rows.append(_fit(task, *variant, case))
            print_row(rows[-1])
    summary = [_summarise(rows, *variant) for variant in VARIANTS]
    clean = accuracy(task.model, task.clean, task.labels)
    show_rows(f"means over {args.draws} draws; accuracy in %, clean {clean:.1f}", COLUMNS, summary)
    stages = list(summary[0]["stage_seconds"])
    show_rows("seconds by stage", ("precision", "layout", *stages), [row | row["stage_seconds"] for row in summary])
    return {
        "seeds": {"fit": SEEDS["fit"], "perturbation": SEEDS["perturbation"][: args.draws]},
        "settings": {"network": NETWORK, "frames": FRAMES, "test_images": TEST_IMAGES, "kappa": KAPPA}
        | {"fit": vars(FitConfig()), "seed": SEEDS["fit"], "default_bfloat16": objective.HAS_BFLOAT16},
        "clean": clean,
        "rows": rows,
        "summary": summary,
    }


def _fit(task: FitTask, precision: str, layout: str, case: DriftCase) -> Row:
    model: nn.Module = task.model.to(memory_format=LAYOUTS[layout])  # type: ignore[call-overload]
    with patch.object(objective, "HAS_BFLOAT16", precision == "bfloat16"):
        row = fit_once(task._replace(model=model), "shipped", FRAMES, case)
    return {"precision": precision, "layout": layout, "seconds_per_pass": row["seconds"] / row["passes"]} | row


def _summarise(rows: Sequence[Row], precision: str, layout: str) -> Row:
    group = [row for row in rows if (row["precision"], row["layout"]) == (precision, layout)]
    return (
        {"precision": precision, "layout": layout, "restored_worst": min(row["restored"] for row in group)}
        | {key: _mean(row[key] for row in group) for key in MEANS}
        | {"stage_seconds": {s: _mean(row["stage_seconds"][s] for row in group) for s in group[0]["stage_seconds"]}}
    )


def _mean(numbers: Iterable[float]) -> float:
    return float(np.mean(list(numbers)))
