"""The judge lets fits serve that help and hardly any that harm: 16 kinds of drift, three strengths, three data sets."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache, partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from bench.arguments import add_data, add_state
from bench.material.cifar import accuracy
from bench.material.judging import judge_fit
from bench.material.subjects import SUBJECTS, TEST_IMAGES, Subject
from bench.provenance import MATERIAL, METHOD
from bench.report import show_rows
from bench.state_file import append_line, read_lines
from calibrate import FitConfig, FitError, fit, tap
from calibrate.judge import collect_champions, needs_no_fit
from calibrate.scoring.extent import Extent
from calibrate.scoring.scorer import Scorer
from calibrate.source.description import frame_shape
from daemon.config import DriftConfig
from daemon.simulation.drifts import parse_drift

CODE = (*METHOD, *MATERIAL, "bench/drifts.py")

STRENGTHS = ("mild", "medium", "strong")
DRIFTS = {  # in the order in which light and signal meet them, for 32x32 pixels
    "haze": ("haze=0.15", "haze=0.3", "haze=0.5"),
    "motion blur": ("motion-blur=2", "motion-blur=3", "motion-blur=5"),
    "defocus": ("blur=0.5", "blur=0.8", "blur=1.2"),
    "vignetting": ("vignetting=0.3", "vignetting=0.5", "vignetting=0.8"),
    "underexposure": ("exposure=-0.5", "exposure=-1", "exposure=-2"),
    "overexposure": ("exposure=0.3", "exposure=0.6", "exposure=1"),  # clipped values cannot come back
    "cross-talk": ("cross-talk=0.1", "cross-talk=0.25", "cross-talk=0.4"),
    "fixed pattern": ("fixed-pattern=6", "fixed-pattern=12", "fixed-pattern=24"),
    "temporal noise": ("temporal-noise=5", "temporal-noise=10", "temporal-noise=20"),
    "dead pixels": ("dead-pixels=0.005", "dead-pixels=0.02", "dead-pixels=0.05"),
    "row banding": ("row-banding=5", "row-banding=10", "row-banding=20"),
    "column banding": ("column-banding=5", "column-banding=10", "column-banding=20"),
    "black level": ("black-level=8", "black-level=16", "black-level=32"),
    "white balance": ("gain=1.15:1:0.9", "gain=1.3:1:0.75", "gain=1.6:1:0.5"),
    "gamma": ("gamma=1.2", "gamma=1.5", "gamma=2.2"),
    "jpeg": ("jpeg=50", "jpeg=25", "jpeg=10"),
}
NONE = "none"  # a camera without drift: nothing may change
COLOUR_DRIFTS = ("cross-talk", "white balance")  # that a grey camera cannot have
DATA = ("CIFAR-10", "GTSRB", "X-rays")
FIT_FRAMES, REPLICATE_FRAMES, JUDGE_FRAMES = 256, 128, 128  # of 512 together, as shipped
UNLABELLED = FIT_FRAMES + REPLICATE_FRAMES + JUDGE_FRAMES
SEED = 13  # seeds 0 to 9 are for choosing methods and settings; 10 to 12 showed what these lacked
BAND = DriftConfig().threshold  # drift score up to which frames count as clean
KEY = ("data", "drift", "strength", "text", "seed")  # identifies a row

Row = dict[str, Any]


class CameraDrift(Protocol):
    """What a camera does to an image (H, W, 3) uint8, with the random numbers of a frame."""

    @property
    def seed(self) -> int: ...

    def __call__(self, image: np.ndarray, frame: int) -> np.ndarray: ...


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "CIFAR-10, GTSRB and networks")
    add_state(parser)
    add = parser.add_argument
    add("--seed", type=int, default=SEED, help="of the drifts and the fits (%(default)d)")
    names = (*DATA, *DRIFTS, NONE, *STRENGTHS)
    add("--only", nargs="+", choices=names, metavar="NAME", help=f"rows with all of these names: {', '.join(names)}")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    finished = {_key(row): row for row in read_lines(args.state)}
    subject = lru_cache(maxsize=1)(lambda name: SUBJECTS[name](args.data))
    rows = []
    for name, drift, strength, text in cases(args.only or ()):
        key = {"data": name, "drift": drift, "strength": strength, "text": text, "seed": args.seed}
        row = finished.get(_key(key))
        if row is None:
            row = key | measure_one(subject(name), parse_drift(text, args.seed))
            append_line(args.state, row)
        print(f"{name}, {_title(row)}: {row['drifted']:.2f} to {row['served']:.2f}, {row['verdict']}", flush=True)
        rows.append(row)
    summary = {name: summarise(part) for name in DATA if (part := [r for r in rows if r["data"] == name])}
    _show_tables(rows, summary)
    return {
        "seeds": {"drift": args.seed, "fit": args.seed},
        "settings": {"fit_frames": FIT_FRAMES, "replicate_frames": REPLICATE_FRAMES, "judge_frames": JUDGE_FRAMES}
        | {"test_images": TEST_IMAGES, "band": BAND, "seed": args.seed, "fit": vars(FitConfig())},
        "rows": rows,
        "summary": summary,
    }


def cases(only: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield data, drift, strength and the drift's text of the rows that have all of these names."""
    for data in DATA:
        possible = {kind: texts for kind, texts in DRIFTS.items() if data != "X-rays" or kind not in COLOUR_DRIFTS}
        for drift, texts in ((NONE, ("",)), *possible.items()):
            for strength, text in zip(STRENGTHS if drift != NONE else (NONE,), texts, strict=True):
                if {data, drift, strength} >= set(only):
                    yield data, drift, strength, text


def measure_one(subject: Subject, drift: CameraDrift) -> Row:
    """Let a camera drift, recalibrate as the daemon does, and measure the accuracy before and after.

    With two classes the area under the ROC curve, too, which a shifted threshold does not change.
    """
    test, model = subject.test, subject.network
    drifted = drifted_frames(subject, drift, test.images, UNLABELLED)

    def measures(name: str, frames: Tensor) -> Row:
        measured = {name: accuracy(model, frames, test.labels)}
        if int(test.labels.max()) == 1:
            measured[f"{name}_auc"] = area_under_curve(model, frames, test.labels)
        return measured

    row = measures("clean", subject.normalise(test.images)) | measures("drifted", drifted)
    row |= _recalibrate(subject, drift, lambda homogenizer: measures("candidate", _apply(homogenizer, drifted)))
    serving = "candidate" if row["verdict"] == "accepted" else "drifted"
    return row | {name.replace(serving, "served"): row[name] for name in row.keys() & {serving, f"{serving}_auc"}}


def drifted_frames(subject: Subject, drift: CameraDrift, images: np.ndarray, first: int) -> Tensor:
    """Return the drifted frames, normalised; `first` is the number of the first one, which selects its noise.

    A grey camera is one of the colours of a colour camera.
    """
    grey = images.ndim == 3
    seen = [drift(np.repeat(i[..., None], 3, 2) if grey else i, first + n) for n, i in enumerate(images)]
    return subject.normalise(np.stack(seen)[..., 0] if grey else np.stack(seen))


def area_under_curve(model: nn.Module, frames: Tensor, labels: Tensor) -> float:
    """Return the area under the ROC curve of a network of two classes, in percent (Mann & Whitney 1947)."""
    with torch.no_grad():
        margins = torch.cat([model(chunk) @ torch.tensor([-1.0, 1.0]) for chunk in frames.split(256)])
    positive, negative = margins[labels == 1], margins[labels == 0]
    above = (positive[:, None] > negative).double() + 0.5 * (positive[:, None] == negative)
    return 100 * float(above.mean())


def _recalibrate(subject: Subject, drift: CameraDrift, measure: Callable[[nn.Module], Row]) -> Row:
    """Do what the daemon's worker does with its frames, and measure the candidate."""
    frames = drifted_frames(subject, drift, subject.scene.images[:UNLABELLED], 0)
    to_fit, to_replicate, held_out = frames.split((FIT_FRAMES, REPLICATE_FRAMES, JUDGE_FRAMES))
    scorer = Scorer.of(tap(subject.network), frame_shape(frames), subject.limits)
    against = collect_champions(scorer, None, held_out)
    row: Row = {"score": against["factory"].score, "candidate": None, "candidate_score": None, "seconds": 0.0}
    if needs_no_fit(against, BAND):
        return row | {"verdict": "unneeded", "reason": ""}
    clocked = partial(fit, subject.network, limits=subject.limits, clock=time.perf_counter)
    try:
        fitted, second = clocked(to_fit, seed=drift.seed), clocked(to_replicate, seed=drift.seed + 1)
    except FitError as error:
        return row | {"verdict": "failed", "reason": str(error)}
    candidate, replicate = (result.homogenizer.eval() for result in (fitted, second))
    verdict = judge_fit(scorer, candidate, replicate, against["factory"], frames, held_out, BAND)
    return row | {
        "candidate_score": verdict.as_dict()["evidence"]["candidate"]["score"],
        "verdict": "accepted" if verdict.accepted else "rejected",
        "reason": verdict.reason,
        "seconds": fitted.seconds + second.seconds,
        "start": fitted.start,
        "extent": asdict(Extent.of(fitted.homogenizer)),
        **measure(fitted.homogenizer),
    }


def _apply(homogenizer: nn.Module, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([homogenizer(chunk) for chunk in frames.split(256)])


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Summarise the rows of one data set; gains are in percent of the test images."""
    clean, drifted, served = (np.array([row[key] for row in rows]) for key in ("clean", "drifted", "served"))
    worst = rows[int(np.argmin(served - drifted))]
    verdicts = [row["verdict"] for row in rows]
    return {
        "rows": len(rows),
        "clean": float(clean.mean()),
        "drifted_mean": float(drifted.mean()),
        "served_mean": float(served.mean()),
        "worst_gain": float((served - drifted).min()),
        "worst_gain_at": _title(worst),
        "verdicts": {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))},
        "rejected_gains": [r["candidate"] - r["drifted"] for r in rows if r["verdict"] == "rejected"],
        "seconds_mean": float(np.mean([row["seconds"] for row in rows if row["seconds"]] or [0.0])),
    }


def _title(row: Row) -> str:
    return NONE if row["drift"] == NONE else f"{row['drift']}, {row['strength']}"


def _show_tables(rows: Sequence[Row], summary: dict[str, dict[str, Any]]) -> None:
    for name, part in summary.items():
        keys = ["clean", "drifted", "candidate", "verdict", "served", "score", "candidate_score", "seconds"]
        if name == "X-rays":
            keys += ["clean_auc", "drifted_auc", "candidate_auc"]
        title = (
            f"{name}: accuracy in %; mean drifted {part['drifted_mean']:.1f}, served {part['served_mean']:.1f}; "
            f"at worst {part['worst_gain']:+.2f} ({part['worst_gain_at']})"
        )
        show_rows(title, ("drift", *keys), [r | {"drift": _title(r)} for r in rows if r["data"] == name])


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)
