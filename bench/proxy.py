"""The estimated accuracy is right within points, behind drifts that it has not seen and behind the fits to them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from bench.arguments import add_data
from bench.judge.cameras import CHOOSING, DriftedCamera, drifted_cameras, reported_seeds
from bench.judge.candidates import FIT, GOOD, Candidate, Fits, fit_of_another_camera
from bench.judge.situation import Situation
from bench.judge.state import State
from bench.material.subjects import SUBJECTS, Labelled, Subject
from bench.provenance import MATERIAL, METHOD
from bench.report import show_rows
from calibrate import fit, tap
from calibrate.estimate.estimator import COVERAGE, AccuracyEstimator, Estimate
from calibrate.estimate.learning import SeenDrift, learn_estimator
from calibrate.estimate.outputs import OutputCalibration, shares_of
from calibrate.estimate.signs import SIGN_WINDOW, signs_of
from calibrate.homogenizer import Homogenizer
from calibrate.judge import MIN_KAPPA
from calibrate.scoring.agreement import agreement
from calibrate.scoring.scorer import Scorer
from calibrate.source.description import frame_shape
from daemon.images import read_npz
from daemon.operator.commissioning.learn_accuracy import MAX_FRAMES, see_drifts
from daemon.recalibration.accuracy_average import WINDOWS

CODE = (
    *(
        *METHOD,
        *MATERIAL,
        "daemon/operator/commissioning/learn_accuracy.py",
        "daemon/recalibration/accuracy_average.py",
    ),
    *("daemon/simulation/*.py", "bench/judge/*.py", "bench/proxy.py"),
)

# X-rays for the ground truth come from other patients than the scene: clean ones are named right less often (86 and
# 96 %). A user commissions on frames like those that follow, so a part of them is to learn from.
LEARNT_OF_TEST = {"X-rays": 320}
# Whose frames an estimate is for: a drifted camera's alone, those behind the fit that the judge lets serve, behind one
# that it does not, and behind a fit to another drift.
BEFORE, BEHIND, REFUSED, OTHER = "no ρ", "its ρ", "a refused ρ", "another camera's ρ"
ESTIMATE, LEFT_OUT, CONFIDENCE = "estimate", "estimate, its kinds of drift left out", "confidence"
REAL_CAMERA = "blood cells, another laboratory's camera"

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "images and networks")
    add = parser.add_argument
    add("--state", type=Path, help="folder for fits, as of `bench judge`; what is there is not fitted again")
    add("--choosing", action="store_true", help="the seeds for choosing, instead of those that are reported")
    add("--networks", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS), metavar="NAME", help="some of them")
    add("--seeds", nargs="+", type=int, metavar="N", help="some of the seeds")


def measure(args: argparse.Namespace) -> Row:
    rows: list[Row] = []
    for data in args.networks:
        knowledge = learn(data, SUBJECTS[data](args.data))
        seeds = args.seeds or (CHOOSING if args.choosing else reported_seeds(data))
        for camera in drifted_cameras(data, seeds, args.data):
            rows += rows_behind(camera, knowledge, State(args.state))
            print(f"{camera.name}: {camera.text}", flush=True)
        if data == "blood cells":
            rows += rows_of_real_camera(args.data, knowledge, State(args.state))
    summary = summarise(rows)
    columns = ("data", "stage", "method", "frames", "mae", "rmse", "worst", "covered")
    show_rows("errors in points of accuracy", columns, summary)
    return {
        "seeds": {name: sorted({row["seed"] for row in rows if row["data"] == name}) for name in args.networks},
        "settings": {"learnt_frames": MAX_FRAMES, "window": SIGN_WINDOW, "windows": WINDOWS, "coverage": COVERAGE},
        "rows": rows,
        "summary": summary,
    }


class Knowledge(NamedTuple):
    """What was learned of a network at commissioning. test: images and classes for the ground truth."""

    scorer: Scorer
    seen: list[SeenDrift]
    labels: Tensor
    test: Labelled
    first_test: int  # number of the first image of `test` among the test images

    def estimator(self, left_out: str = "") -> AccuracyEstimator:
        """Learn as the daemon does, but for drifts of the kinds in a drift's text."""
        kinds = {part.partition("=")[0] for part in left_out.split(",")}
        return learn_estimator([drift for drift in self.seen if not kinds & drift.kinds], self.labels)


def learn(data: str, subject: Subject) -> Knowledge:
    """Show a network simulated drifts of labelled clean frames."""
    learnt = LEARNT_OF_TEST.get(data, 0)
    if learnt:
        clean, test = subject.test.split(learnt)
    else:
        rows = np.random.default_rng(0).permutation(len(subject.scene.labels))[:MAX_FRAMES]
        clean, test = Labelled(subject.scene.images[rows], subject.scene.labels[torch.from_numpy(rows)]), subject.test
    shape = frame_shape(subject.normalise(clean.images[:1]))
    scorer = Scorer.of(tap(subject.network), shape, subject.limits)
    kept = len(clean.labels) // SIGN_WINDOW * SIGN_WINDOW
    images = clean.images[:kept] if clean.images.ndim == 4 else clean.images[:kept, ..., None]

    def normalise(shown: np.ndarray) -> np.ndarray:
        frames: np.ndarray = subject.normalise(shown.reshape(len(shown), *clean.images.shape[1:])).numpy()
        return frames

    return Knowledge(scorer, list(see_drifts(scorer, normalise, images)), clean.labels[:kept], test, learnt)


def rows_behind(camera: DriftedCamera, knowledge: Knowledge, state: State) -> Iterator[Row]:
    """Yield the true accuracy behind no homogenizer, the camera's own and another's, with every estimate of it."""
    fits, frames = Fits(camera, state), camera.test[knowledge.first_test :]
    own, other, replicate = (
        Watched.of(knowledge.scorer, frames, made)
        for made in (fits.fit(camera.whole), fit_of_another_camera(camera, state), fits.replicate(camera.whole))
    )
    judged = next(
        Situation(camera, camera.whole, fits, state).rows([Candidate(GOOD, FIT, fits.fit(camera.whole))], None)
    )
    watched = {BEFORE: Watched.of(knowledge.scorer, frames, None)}
    watched |= {BEHIND if judged.get("served") else REFUSED: own, OTHER: other}
    named = {"data": camera.data, "seed": camera.seed, "drift": camera.text}
    yield from (named | row for row in _rows(knowledge, watched, own, replicate, knowledge.test.labels, camera.text))


def rows_of_real_camera(data: Path, knowledge: Knowledge, state: State) -> Iterator[Row]:
    """Yield the same of blood cells behind another laboratory's microscope, stain and camera, in other shares."""
    subject, pictures = SUBJECTS["blood cells"](data), Labelled.of(read_npz(data / "wbc_camera_a.npz"))
    order = np.random.default_rng(0).permutation(len(pictures.labels))
    frames = subject.normalise(pictures.images[order])
    homogenizers = [
        state.homogenizer(f"{REAL_CAMERA}, {number}", partial(_fitted, subject, part, number))
        for number, part in enumerate(frames.chunk(2))
    ]
    own, replicate = (Watched.of(knowledge.scorer, frames, made) for made in homogenizers)
    served = agreement(own.logits.argmax(1), replicate.logits.argmax(1)) >= MIN_KAPPA  # what refuses it, if anything
    watched = {BEFORE: Watched.of(knowledge.scorer, frames, None), BEHIND if served else REFUSED: own}
    named = {"data": REAL_CAMERA, "seed": 0, "drift": "real"}
    labels = pictures.labels[torch.from_numpy(order)]
    yield from (named | row for row in _rows(knowledge, watched, own, replicate, labels, ""))


def _fitted(subject: Subject, frames: Tensor, seed: int) -> Homogenizer:
    return fit(subject.network, frames, limits=subject.limits, seed=seed).homogenizer.eval()


def _rows(
    knowledge: Knowledge, watched: dict[str, Watched], own: Watched, replicate: Watched, labels: Tensor, text: str
) -> Iterator[Row]:
    """Yield a row for each stage. own, replicate: behind the two fits. text: of the drift."""
    estimator, left_out = knowledge.estimator(), knowledge.estimator(text)
    behind = estimate(estimator, own)
    for stage, seen in watched.items():
        found = {ESTIMATE: estimate(estimator, seen), LEFT_OUT: estimate(left_out, seen)}
        methods = seen.proxies(estimator.calibration, shares_of(knowledge.labels, seen.logits.shape[1]))
        methods |= {name: estimate.value for name, estimate in found.items()}
        if stage == BEFORE:
            methods["agreement with its ρ, times the estimate behind it"] = behind.value * seen.same(own)
        if stage in (BEHIND, REFUSED):
            methods["agreement of two fits"] = seen.same(replicate)
        yield {
            "stage": stage,
            "accuracy": 100 * float((seen.logits.argmax(1) == labels[: len(seen.logits)]).float().mean()),
            "estimates": {name: 100 * value for name, value in methods.items()},
            "intervals": {name: [100 * estimate.lower, 100 * estimate.upper] for name, estimate in found.items()},
        }


class Watched(NamedTuple):
    """Logits (N, K) of frames behind a homogenizer."""

    logits: Tensor

    @staticmethod
    def of(scorer: Scorer, frames: Tensor, homogenizer: nn.Module | None) -> Watched:
        """Run the network on whole windows of frames (N, C, H, W)."""
        whole = len(frames) // SIGN_WINDOW * SIGN_WINDOW
        return Watched(scorer.outputs(frames[:whole], homogenizer))

    def same(self, other: Watched) -> float:
        """Return the share of frames that get the same class."""
        return float((self.logits.argmax(1) == other.logits.argmax(1)).float().mean())

    def proxies(self, calibration: OutputCalibration, shares: Tensor) -> dict[str, float]:
        """Return the estimates from the outputs alone."""
        found = {CONFIDENCE: float(self.logits.softmax(1).max(1).values.mean())} | calibration.proxies(self.logits)
        return found | {"COT": confidence_of_transport(self.logits / calibration.temperature, shares)}


def estimate(estimator: AccuracyEstimator, watched: Watched) -> Estimate:
    """Return the mean over WINDOWS windows, as the daemon shows it."""
    windows = watched.logits.split(SIGN_WINDOW)[:WINDOWS]
    found = [estimator.estimate(signs_of(logits, estimator.calibration)) for logits in windows]
    return Estimate(*(fmean(numbers) for numbers in zip(*found, strict=True)))


def confidence_of_transport(logits: Tensor, shares: Tensor) -> float:
    """Return 1 less the cost of transporting predictions (N, K) to the classes' shares among clean frames.

    Lu et al. (2023, "Characterizing out-of-distribution error via optimal transport", COT), computed exactly.
    """
    counts = (shares * len(logits)).floor().long()
    for label in (shares * len(logits) - counts).argsort(descending=True)[: len(logits) - int(counts.sum())]:
        counts[label] += 1
    classes = torch.repeat_interleave(torch.arange(len(counts)), counts)
    costs = 1 - logits.softmax(1)[:, classes].numpy()
    return 1 - float(costs[linear_sum_assignment(costs)].mean())


def summarise(rows: Sequence[Row]) -> list[Row]:
    """Return the errors of each method at each stage, for each network and for all; for the estimate its coverage."""
    summary = []
    for data in (*dict.fromkeys(row["data"] for row in rows), "all"):
        for stages in ((BEFORE,), (BEHIND,), (BEFORE, BEHIND), (REFUSED,), (OTHER,)):
            part = [row for row in rows if data in (row["data"], "all") and row["stage"] in stages]
            if part:
                summary += [_summary(part, data, " and ".join(stages), method) for method in _common_methods(part)]
    return summary


def _common_methods(rows: Sequence[Row]) -> list[str]:
    return [name for name in rows[0]["estimates"] if all(name in row["estimates"] for row in rows)]


def _summary(rows: Sequence[Row], data: str, stage: str, method: str) -> Row:
    errors = np.array([row["estimates"][method] - row["accuracy"] for row in rows])
    row = {"data": data, "stage": stage, "method": method, "frames": len(rows)}
    row |= {"mae": float(np.abs(errors).mean()), "rmse": float(np.sqrt(np.square(errors).mean()))}
    row |= {"worst": float(np.abs(errors).max()), "covered": None}
    if all(method in row["intervals"] for row in rows):
        row["covered"] = fmean(
            low <= row["accuracy"] <= high for row in rows for low, high in [row["intervals"][method]]
        )
    return row
