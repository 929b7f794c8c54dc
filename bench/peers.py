"""recald recovers more accuracy than test-time adaptation or colour matching, and changes no value of the model."""

from __future__ import annotations

import argparse
import copy
import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.arguments import add_data, add_draws
from bench.fit import CAMERA, FRAMES, REPORTED_DRAWS, SEEDS, TEST_IMAGES, ApplyDrift, drift_cases
from bench.fit import CODE as FIT_CODE
from bench.material.adaptation import BatchNormAdaptation, ColourMatching, HistogramMatching, Method, Recald, Tent
from bench.material.cifar import LIMITS, Images, lossless, network, normalise
from bench.material.perturbation import KAPPA
from bench.report import print_row, show
from calibrate import FitConfig, tap
from calibrate.scoring.scorer import Scorer
from calibrate.source.description import frame_shape

CODE = (*FIT_CODE, "bench/peers.py")

BATCH = 200  # frames of the test stream, as Wang et al. 2021 use on CIFAR-10
PRIOR = 16  # images that the shipped statistics count as, N of Schneider et al. 2020
SINGLE_FRAMES = 256  # frames that are served one at a time
SOURCE_FRAMES = 1536  # clean training images, none of them among the unlabelled ones
FEW_CLASSES = (0, 1, 2)  # the only classes in view before the stream that is sorted by class
SCORE_WINDOW = 64  # frames of one drift score, as in the daemon
ACCURACIES = ("accuracy", "single", "back_to_clean", "sorted")  # in percent


class Peer(NamedTuple):
    """A method, what it needs, and how it is made from the model and clean source frames."""

    name: str
    needs: str
    make: Callable[[nn.Module, Tensor], Method]


PEERS = (
    Peer("nothing", "nothing", lambda model, source: Method(model)),
    Peer("BN-adapt", f"batches of {BATCH}", lambda model, source: BatchNormAdaptation(model)),
    Peer(f"BN-adapt, prior {PRIOR}", f"batches of {BATCH}", lambda model, source: BatchNormAdaptation(model, PRIOR)),
    Peer("TENT", f"batches of {BATCH}, gradients", lambda model, source: Tent(model)),
    Peer("histogram matching", f"a pooled source histogram, {FRAMES} frames", HistogramMatching),
    Peer("colour matching", f"the source's colour covariance, {FRAMES} frames", ColourMatching),
    Peer("recald", f"{FRAMES} frames, gradients", lambda model, source: Recald(model, LIMITS)),
)


class DriftedFrames(NamedTuple):
    """The images behind one drift: frames (N, 3, H, W), labels (N,)."""

    before: Tensor  # unlabelled, for methods that adapt before they serve
    few_classes: Tensor  # the same, but with FEW_CLASSES alone in view
    stream: Tensor
    clean: Tensor  # the stream without the drift
    labels: Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    add_draws(parser, len(REPORTED_DRAWS))


def measure(args: argparse.Namespace) -> dict[str, Any]:
    train, test = lossless(args.data / "cifar10_train_0.npz"), lossless(args.data / "cifar10_test.npz")
    model = network(args.data, "resnet20")
    source = normalise(train.pictures[-SOURCE_FRAMES:])
    shipped = digest(model)
    rows = []
    for case in list(drift_cases(args.draws))[1:]:  # the first is no drift
        frames = _drifted_frames(case.apply, train, test)
        for peer in PEERS:
            rows.append({"drift": case.name, "method": peer.name} | _measure_one(peer, model, source, frames))
            assert digest(model) == shipped, f"{peer.name} changed the model it was given"
            print_row(rows[-1])
    groups = {"paper": [r for r in rows if "draw" in r["drift"]], "camera": [r for r in rows if "seed" in r["drift"]]}
    summary = {name: _summary(group) for name, group in groups.items() if group}
    for name, methods in summary.items():
        _show_accuracies(name, methods)
        _show_costs(name, methods)
    return {
        "seeds": SEEDS | {"perturbation": SEEDS["perturbation"][: args.draws]},
        "settings": {"frames": FRAMES, "test_images": TEST_IMAGES, "batch": BATCH, "single_frames": SINGLE_FRAMES}
        | {"source_frames": SOURCE_FRAMES, "few_classes": FEW_CLASSES, "kappa": KAPPA, "camera": CAMERA}
        | {"threads": torch.get_num_threads(), "fit": vars(FitConfig()), "seed": SEEDS["fit"]},
        "model": {"digest": shipped, "values": sum(v.numel() for v in model.state_dict().values())},
        "needs": {peer.name: peer.needs for peer in PEERS},
        "rows": rows,
        "summary": summary,
    }


def _drifted_frames(drift: ApplyDrift, train: Images, test: Images) -> DriftedFrames:
    few = torch.isin(train.labels, torch.tensor(FEW_CLASSES)).numpy()
    pictures, labels = test.pictures[:TEST_IMAGES], test.labels[:TEST_IMAGES]
    before, few_classes = drift(train.pictures[:FRAMES]), drift(train.pictures[few][:FRAMES])
    return DriftedFrames(before, few_classes, drift(pictures), normalise(pictures), labels)


def _measure_one(peer: Peer, model: nn.Module, source: Tensor, frames: DriftedFrames) -> dict[str, Any]:
    adapted, seconds = _adapt(peer, model, source, frames.before)
    single, single_ms = serve(copy.deepcopy(adapted), frames.stream[:SINGLE_FRAMES], batch=1)
    named, ms = serve(adapted, frames.stream)
    changed = {"changed_values": changed_values(model, adapted.model), "digest": digest(adapted.model)}
    clean, _ = serve(adapted, frames.clean)  # the method is not told that the drift is over; it may go on adapting
    order = frames.labels.argsort(stable=True)
    adapted_to_few, _ = _adapt(peer, model, source, frames.few_classes)
    in_order, _ = serve(adapted_to_few, frames.stream[order])
    return {
        "accuracy": percent(named, frames.labels),
        "single": percent(single, frames.labels[:SINGLE_FRAMES]),
        "back_to_clean": percent(clean, frames.labels),
        "sorted": percent(in_order, frames.labels[order]),
        "drift_ratio": _drift_score(model, adapted.restore(frames.clean)) / _drift_score(model, frames.clean),
        "seconds": seconds,
        "ms": ms,
        "single_ms": single_ms,
    } | changed


def _adapt(peer: Peer, model: nn.Module, source: Tensor, frames: Tensor) -> tuple[Method, float]:
    """Return a new method that has adapted to the frames, and the seconds this took."""
    method = peer.make(model, source)
    began = time.perf_counter()
    method.adapt(frames)
    return method, time.perf_counter() - began


def serve(method: Method, frames: Tensor, batch: int = BATCH) -> tuple[Tensor, float]:
    """Return the class of each frame (N,) and the milliseconds per frame; online methods adapt meanwhile."""
    began = time.perf_counter()
    named = torch.cat([method.predict(part).argmax(1) for part in frames.split(batch)])
    return named, 1e3 * (time.perf_counter() - began) / len(frames)


def percent(named: Tensor, labels: Tensor) -> float:
    """Return the accuracy of the named classes (N,), in percent."""
    return 100 * float((named == labels).float().mean())


def _drift_score(model: nn.Module, frames: Tensor) -> float:
    """Return the mean drift score of windows of these frames in front of the untouched model."""
    scorer = Scorer.of(tap(model), frame_shape(frames), LIMITS)
    return float(np.mean([scorer.measure(window).drift.score for window in frames.split(SCORE_WINDOW)]))


def digest(model: nn.Module) -> str:
    """Return the SHA-256 of all parameters and buffers with their names."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        sha.update(name.encode() + value.numpy().tobytes())
    return sha.hexdigest()


def changed_values(before: nn.Module, after: nn.Module) -> int:
    """Count the values of parameters and buffers that differ."""
    now = after.state_dict()
    return sum(int((value != now[name]).sum()) for name, value in before.state_dict().items())


def _summary(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return by method the mean over drifts of every number, and the worst of the accuracies."""
    numbers = [key for key, value in rows[0].items() if not isinstance(value, str)]
    summary = {}
    for peer in PEERS:
        own = [row for row in rows if row["method"] == peer.name]
        summary[peer.name] = {f"{key}_mean": float(np.mean([row[key] for row in own])) for key in numbers}
        summary[peer.name] |= {f"{key}_worst": min(row[key] for row in own) for key in ACCURACIES}
    return summary


def _show_accuracies(group: str, methods: Mapping[str, dict[str, float]]) -> None:
    columns = ("method", "accuracy", "worst", "single", "back to clean", "sorted", "drift ratio")
    keys = ("accuracy_mean", "accuracy_worst", "single_mean", "back_to_clean_mean", "sorted_mean", "drift_ratio_mean")
    cells = [[name, *(numbers[key] for key in keys)] for name, numbers in methods.items()]
    show(f"{group}: accuracy in %, means over drifts", columns, cells)


def _show_costs(group: str, methods: Mapping[str, dict[str, float]]) -> None:
    columns = ("method", "values changed", "needs", "s to adapt", "ms a frame", "ms, one at a time")
    keys = ("seconds_mean", "ms_mean", "single_ms_mean")
    cells = []
    for peer in PEERS:
        numbers = methods[peer.name]
        cells.append([peer.name, round(numbers["changed_values_mean"]), peer.needs, *(numbers[key] for key in keys)])
    show(f"{group}: what it changes and takes", columns, cells)
