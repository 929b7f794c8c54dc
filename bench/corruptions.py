"""Behind the corruptions of CIFAR-10-C that a camera can undo, recald recovers more, in the mean, than peers do.

Measured on ResNet-20 so far; `--networks` also takes a depthwise network. Peers adapt the model to the frames.

A camera can undo a linear map, a tone curve and single wrong pixels. Noise, glass, snow, and what moves or merges
pixels are lost for any ρ; there the judge has to keep fits away that harm.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.arguments import add_data, add_state
from bench.drifts import CODE as DRIFTS_CODE
from bench.drifts import UNLABELLED, drifted_frames, measure_one
from bench.material.adaptation import BatchNormAdaptation, Method, Tent
from bench.material.cifar import accuracy
from bench.material.corruptions import CORRUPTIONS, FROST, Corruption, frost
from bench.material.subjects import SUBJECTS, TEST_IMAGES, Subject
from bench.report import print_row, show_rows
from bench.state_file import append_line, read_lines
from calibrate import FitConfig
from calibrate.defects import replace_defects
from calibrate.search.defects import DEFECT_STEPS

CODE = (*DRIFTS_CODE, "bench/corruptions.py")

NETWORKS = ("CIFAR-10", "CIFAR-10, light")
OF_A_CAMERA = ("impulse noise", "defocus blur", "motion blur", "zoom blur", FROST, "fog", "brightness", "contrast")
SEED = 13  # of the corruptions and the fits; seeds 0 to 9 are for choosing
BATCH = 200  # frames of the test stream for methods that need batches, as Wang et al. 2021 use on CIFAR-10
ORACLE_KERNEL = 9  # side in pixels; 7 and 15 differ by less than a point
ORACLE_PATCHES = 120_000
ORACLE_RIDGE = 1e-3  # relative to the mean power of a patch
COLUMNS = ("nothing", "batch statistics", "TENT", "oracle", "fitted", "verdict", "served")

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    add_state(parser)
    add = parser.add_argument
    add("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="default: all")
    add("--frost", type=Path, help="folder with photographs of frost, as in the package imagecorruptions; else none")
    add("--only", nargs="+", choices=tuple(CORRUPTIONS), metavar="NAME", help=f"of {', '.join(CORRUPTIONS)}")
    add("--seed", type=int, default=SEED, help="of the corruptions and the fits (%(default)d)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    finished = {(row["data"], row["corruption"], row["seed"]): row for row in read_lines(args.state)}
    rows = []
    for data in args.networks:
        subject = SUBJECTS[data](args.data)
        for corruption in corruptions(args.only or tuple(CORRUPTIONS), args.frost, args.seed):
            row = finished.get((data, corruption.name, args.seed))
            if row is None:
                row = {"data": data, "corruption": corruption.name, "seed": args.seed} | measure_all(
                    subject, corruption
                )
                append_line(args.state, row)
            print_row(row)
            rows.append(row)
    summary = {data: summarise([row for row in rows if row["data"] == data]) for data in args.networks}
    for data in args.networks:
        part = [row for row in rows if row["data"] == data]
        show_rows(f"{data}: accuracy in %", ("corruption", *COLUMNS), [*part, *_mean_rows(summary[data])])
    return {
        "seeds": {"corruption": args.seed, "fit": args.seed},
        "settings": {"frames": UNLABELLED, "test_images": TEST_IMAGES, "batch": BATCH, "seed": args.seed}
        | {"of_a_camera": OF_A_CAMERA, "fit": vars(FitConfig())},
        "rows": rows,
        "summary": summary,
    }


def corruptions(names: Sequence[str], photographs: Path | None, seed: int) -> Iterator[Corruption]:
    """Yield the corruptions of these names; frost only with photographs."""
    for name in names:
        corrupt = CORRUPTIONS[name] or (frost(photographs) if photographs else None)
        if corrupt is not None:
            yield Corruption(name, corrupt, seed)


def measure_all(subject: Subject, corruption: Corruption) -> Row:
    """Recalibrate as the daemon does, and measure the accuracy of everything on the same test images, in percent."""
    row = measure_one(subject, corruption)
    frames, labels = drifted_frames(subject, corruption, subject.test.images, UNLABELLED), subject.test.labels
    peers = {"batch statistics": BatchNormAdaptation(subject.network), "TENT": Tent(subject.network)}
    measured = {name: _served_in_batches(method, frames, labels) for name, method in peers.items()}
    measured["oracle"] = _oracle(subject, corruption, frames)
    own = {"clean": row["clean"], "nothing": row["drifted"], "fitted": row.get("candidate"), "served": row["served"]}
    return own | measured | {key: row[key] for key in ("verdict", "reason", "score", "seconds", "start") if key in row}


def _served_in_batches(method: Method, frames: Tensor, labels: Tensor) -> float:
    named = torch.cat([method.predict(part).argmax(1) for part in frames.split(BATCH)])
    return 100 * float((named == labels).float().mean())


def _oracle(subject: Subject, corruption: Corruption, test: Tensor) -> float:
    """Return the accuracy behind the linear map that knows the clean images, with and without replaced pixels."""
    clean = subject.scene.images[:UNLABELLED]
    wanted, seen = subject.normalise(clean), drifted_frames(subject, corruption, clean, 0)
    steps = [None, *(share * (subject.limits.white - subject.limits.black) for share in DEFECT_STEPS)]
    found = []
    for step in steps:
        before, after = (x if step is None else replace_defects(x, step) for x in (seen, test))
        kernel, bias = _least_squares(before, wanted)
        found.append(accuracy(subject.network, _convolved(after, kernel, bias), subject.test.labels))
    return max(found)


def _least_squares(seen: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Return the kernel (C, C, k, k) and bias (C,) that map frames seen (N, C, H, W) nearest to those wanted."""
    channels, margin = seen.shape[1], ORACLE_KERNEL // 2
    patches = F.unfold(F.pad(seen, (margin,) * 4, mode="reflect"), ORACLE_KERNEL)  # (N, C k k, H W)
    places = patches.shape[0] * patches.shape[2]
    rows = torch.randperm(places, generator=torch.Generator().manual_seed(0))[:ORACLE_PATCHES]
    frame, place = rows // patches.shape[2], rows % patches.shape[2]
    given = patches[frame, :, place].double()
    target = wanted.flatten(2)[frame, :, place].double()
    centre, goal = given.mean(0), target.mean(0)
    covariance = (given - centre).T @ (given - centre) / len(rows)
    ridge = ORACLE_RIDGE * covariance.diagonal().mean() * torch.eye(len(covariance), dtype=torch.float64)
    weights = torch.linalg.solve(covariance + ridge, (given - centre).T @ (target - goal) / len(rows))
    kernel = weights.T.reshape(channels, channels, ORACLE_KERNEL, ORACLE_KERNEL)
    return kernel.float(), (goal - centre @ weights).float()


def _convolved(frames: Tensor, kernel: Tensor, bias: Tensor) -> Tensor:
    padded = F.pad(frames, (ORACLE_KERNEL // 2,) * 4, mode="reflect")
    return nn.functional.conv2d(padded, kernel, bias)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Return means in percent over all corruptions and over those of a camera, and the worst of what is served."""
    accuracies = [name for name in COLUMNS if name not in ("verdict", "fitted")]
    groups = {"all": rows, "of a camera": [row for row in rows if row["corruption"] in OF_A_CAMERA]}
    means = {
        group: {name: float(np.mean([row[name] for row in part])) for name in accuracies}
        | {"fitted": float(np.mean([row["nothing"] if row["fitted"] is None else row["fitted"] for row in part]))}
        for group, part in groups.items()
        if part
    }
    worst = min(rows, key=lambda row: row["served"] - row["nothing"])
    gain = worst["served"] - worst["nothing"]
    return {"means": means, "worst_gain": gain, "worst_gain_at": worst["corruption"], "rows": len(rows)}


def _mean_rows(summary: dict[str, Any]) -> list[Row]:
    return [{"corruption": f"mean, {group}"} | means for group, means in summary["means"].items()]
