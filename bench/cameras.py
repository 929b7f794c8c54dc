"""Behind another laboratory's camera recald brings accuracy back, most where the mix of classes is stated."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.arguments import add_data
from bench.fit import CODE as FIT_CODE
from bench.material.adaptation import BatchNormAdaptation, ColourMatching, HistogramMatching, Method, Tent
from bench.material.judging import judge_fit
from bench.material.subjects import SUBJECTS, Labelled, Subject
from bench.report import print_row, show
from calibrate import CleanData, fit, measure_clean, tap
from calibrate.judge import Evidence, split_frames
from calibrate.scoring.scorer import Scorer
from calibrate.source.class_mix import Shares
from calibrate.source.description import frame_shape
from daemon.config import DriftConfig
from daemon.demo.picture import PictureRow, draw_picture
from daemon.images import read_npz

CODE = (*FIT_CODE, "bench/cameras.py", "calibrate/judge.py", "calibrate/scoring/*.py")

CELLS = ("neutrophil", "eosinophil", "lymphocyte", "monocyte", "basophil")
# The usual differential count of blood: what anybody knows who operates the microscope.
USUAL_MIX: Shares = {0: 0.60, 1: 0.03, 2: 0.30, 3: 0.06, 4: 0.01}
REPORTED_SEEDS = tuple(range(10, 15))  # of the order of the frames, and of the fits
MIN_CLASS_IMAGES = 5  # a class with fewer does not count in the balanced accuracy
RESAMPLES = 2000  # of the images, for the 95 % intervals
PICTURES_OF_A_CLASS = 2
BATCH = 100  # frames of the stream of methods that adapt to batches

Answer = Callable[[Tensor], Tensor]  # frames (N, C, H, W) to the classes that are named, (N,)


class OtherCamera(NamedTuple):
    """The network with its own camera's clean frames, and frames of another camera with their labels (N,)."""

    subject: Subject
    clean: Labelled
    images: np.ndarray
    frames: Tensor
    labels: Tensor

    @staticmethod
    def of(data: Path) -> OtherCamera:
        """Load the blood cells."""
        subject, other = SUBJECTS["blood cells"](data), Labelled.of(read_npz(data / "wbc_camera_a.npz"))
        clean = Labelled.of(read_npz(data / "wbc_camera_source.npz"), "clean_")
        return OtherCamera(subject, clean, other.images, subject.normalise(other.images), other.labels)

    @property
    def true_mix(self) -> Shares:
        """The shares of the classes, as somebody knows who has counted them."""
        counts = self.labels.bincount(minlength=len(CELLS)).double()
        return dict(enumerate((counts / counts.sum()).tolist()))

    def named(self, homogenizer: nn.Module | None) -> Tensor:
        """Return the classes (N,) that the untouched network names behind a homogenizer."""
        with torch.no_grad():
            parts = self.frames.split(BATCH)
            network = self.subject.network
            return torch.cat([network(homogenizer(p) if homogenizer else p).argmax(1) for p in parts])


class Fitted(NamedTuple):
    """A fit, what the judge said of it, and the classes (N,) that the network names behind it."""

    homogenizer: nn.Module
    accepted: bool
    reason: str
    named: Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "blood cells and their network")
    parser.add_argument("--runs", type=int, default=len(REPORTED_SEEDS), help="orders of the frames (%(default)s)")
    parser.add_argument("--png", type=Path, metavar="FILE", help="file for frames before and after")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    camera, seeds = OtherCamera.of(args.data), REPORTED_SEEDS[: args.runs]
    rows = [_row(camera, name, [named] * len(seeds)) for name, named in _others(camera).items()]
    fits: dict[str, list[Fitted]] = {}
    for name, clean in _references(camera).items():
        fits[name] = [_fit_and_judge(camera, clean, seed) for seed in seeds]
        rows.append(_row(camera, name, [f.named for f in fits[name]]) | _judged(camera, fits[name]))
        print_row(rows[-1])
    _show(rows)
    if args.png:
        args.png.write_bytes(draw_picture(_picture(camera, next(f for f in fits[_STATED] if f.accepted))))
    return {
        "seeds": {"order": list(seeds), "fit": list(seeds)},
        "settings": {"frames": len(camera.frames), "clean_frames": len(camera.clean.labels), "batch": BATCH}
        | {"usual_mix": USUAL_MIX, "true_mix": camera.true_mix, "band": DriftConfig().threshold},
        "clean": _accuracies(_answers_at_home(camera), camera.subject.test.labels),
        "rows": rows,
    }


_SHIPPED, _COMMISSIONED = "recald", "recald, commissioned"
_USUAL, _STATED = "recald, commissioned, usual mix stated", "recald, commissioned, true mix stated"


def _references(camera: OtherCamera) -> dict[str, CleanData | None]:
    """Return what the fits aim at; None for the statistics shipped in the network."""
    frames = camera.subject.normalise(camera.clean.images)
    clean = measure_clean(tap(camera.subject.network), frames, camera.clean.labels)
    stated = {_USUAL: clean.in_mix(USUAL_MIX), _STATED: clean.in_mix(camera.true_mix)}
    return {_SHIPPED: None, _COMMISSIONED: clean} | stated


def _others(camera: OtherCamera) -> dict[str, Tensor]:
    """Return the classes (N,) that other methods name, of all frames."""
    network, source = camera.subject.network, camera.subject.normalise(camera.clean.images)
    methods = {
        "nothing": Method(network),
        "histogram matching": HistogramMatching(network, source),
        "colour matching": ColourMatching(network, source),
        "BN-adapt": BatchNormAdaptation(network),
        "TENT": Tent(network),
    }
    named = {}
    for name, method in methods.items():
        method.adapt(camera.frames)
        batch = len(camera.frames) if name == "BN-adapt" else BATCH  # all at once is the best that it can have
        named[name] = torch.cat([method.predict(part).argmax(1) for part in camera.frames.split(batch)])
    return named


def _fit_and_judge(camera: OtherCamera, clean: CleanData | None, seed: int) -> Fitted:
    """Fit to half of the frames and judge by the others, as a recalibration in the daemon does."""
    subject = camera.subject
    frames = camera.frames[torch.randperm(len(camera.frames), generator=torch.Generator().manual_seed(seed))]
    parts = split_frames(len(frames))
    scorer = Scorer.of(tap(subject.network), frame_shape(frames), subject.limits, clean)
    candidate, second = (
        fit(
            subject.network,
            frames[part],
            clean and clean.statistics,
            source=clean and clean.source,
            limits=subject.limits,
            seed=number,
        ).homogenizer
        for part, number in ((parts.fitted, seed), (parts.replicated, seed + 1))
    )
    held_out = frames[parts.held_out]
    factory = Evidence.of(scorer.measure(held_out))
    verdict = judge_fit(scorer, candidate, second, factory, frames, held_out, DriftConfig().threshold)
    return Fitted(candidate, verdict.accepted, verdict.reason, camera.named(candidate))


def _row(camera: OtherCamera, method: str, named: list[Tensor]) -> dict[str, Any]:
    """Return accuracies over all runs of a method, with the 95 % interval of the balanced one over the images."""
    measured = [_accuracies(answers, camera.labels) for answers in named]
    low, high = _interval(named, camera.labels)
    return {
        "method": method,
        "accuracy": float(np.mean([m["accuracy"] for m in measured])),
        "balanced": float(np.mean([m["balanced"] for m in measured])),
        "balanced_low": low,
        "balanced_high": high,
        "balanced_worst": min(m["balanced"] for m in measured),
    }


def _judged(camera: OtherCamera, fits: list[Fitted]) -> dict[str, Any]:
    """Return how often the judge let a fit serve, and the mean accuracies of what then serves."""
    raw = camera.named(None)
    served = [_accuracies(f.named if f.accepted else raw, camera.labels) for f in fits]
    means = {f"served_{key}": float(np.mean([s[key] for s in served])) for key in ("accuracy", "balanced")}
    return (
        {"accepted": sum(f.accepted for f in fits), "runs": len(fits)} | means | {"reasons": [f.reason for f in fits]}
    )


def _accuracies(named: Tensor, labels: Tensor) -> dict[str, float]:
    """Return accuracy and balanced accuracy in percent."""
    counted = [label for label in labels.unique() if (labels == label).sum() >= MIN_CLASS_IMAGES]
    recalls = [float((named[labels == label] == label).double().mean()) for label in counted]
    return {"accuracy": 100 * float((named == labels).double().mean()), "balanced": 100 * float(np.mean(recalls))}


def _interval(named: list[Tensor], labels: Tensor) -> tuple[float, float]:
    """Return the 95 % interval of the mean balanced accuracy, from resampled images of each class (Efron 1979)."""
    random = np.random.default_rng(0)
    right = np.mean([(answers == labels).double().numpy() for answers in named], axis=0)
    groups = [right[(labels == label).numpy()] for label in labels.unique()]
    recalls = [
        random.choice(group, (RESAMPLES, len(group))).mean(1) for group in groups if len(group) >= MIN_CLASS_IMAGES
    ]
    low, high = np.percentile(np.mean(recalls, axis=0), [2.5, 97.5])
    return 100 * float(low), 100 * float(high)


def _answers_at_home(camera: OtherCamera) -> Tensor:
    with torch.no_grad():
        test = camera.subject.normalise(camera.subject.test.images)
        named: Tensor = camera.subject.network(test).argmax(1)
    return named


def _picture(camera: OtherCamera, fitted: Fitted) -> list[PictureRow]:
    """Return rows of cells: of the own camera, of the other one, and those restored."""
    test = camera.subject.test
    own, other = (_chosen(labels) for labels in (test.labels, camera.labels))
    with torch.no_grad():
        restored = fitted.homogenizer(camera.frames[other])
        at_home = camera.subject.network(camera.subject.normalise(test.images[own])).argmax(1)
    limits = camera.subject.limits
    black, white = (part.view(-1, 1, 1) for part in (limits.black, limits.white))
    pixels = ((restored - black) / (white - black)).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    rows = (
        ("own camera", "", test.images[own], at_home, test.labels[own]),
        ("other camera", "", camera.images[other], camera.named(None)[other], camera.labels[other]),
        ("restored", "", pixels, fitted.named[other], camera.labels[other]),
    )
    return [
        PictureRow(title, note, images, [CELLS[n] for n in named.tolist()], (named == labels).tolist())
        for title, note, images, named, labels in rows
    ]


def _chosen(labels: Tensor) -> Tensor:
    """Return the first images of each class that has enough of them."""
    of_class = [(labels == label).nonzero().flatten() for label in range(len(CELLS) - 1)]
    return torch.cat([rows[:PICTURES_OF_A_CLASS] for rows in of_class])


def _show(rows: list[Mapping[str, Any]] | list[dict[str, Any]]) -> None:
    columns = ("method", "accuracy", "balanced", "95 %", "worst", "served", "accepted")
    cells = [
        [
            row["method"],
            row["accuracy"],
            row["balanced"],
            f"{row['balanced_low']:.1f} to {row['balanced_high']:.1f}",
            row["balanced_worst"],
            row.get("served_balanced", "-"),
            f"{row['accepted']} of {row['runs']}" if "runs" in row else "-",
        ]
        for row in rows
    ]
    show("blood cells behind another camera, in %", columns, cells)
