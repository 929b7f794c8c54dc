"""What else could be done about the drift: recald against its alternatives, on the same network and images."""

from __future__ import annotations

import argparse
import copy
import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from bench.fit import CAMERA, FRAMES, REPORTED_DRAWS, TEST_IMAGES, Drifting, drifts
from bench.material.adaptation import BatchNormAdaptation, ColourMatching, HistogramMatching, Method, Recald, Tent
from bench.material.cifar import LIMITS, Images, lossless, network, normalise
from bench.material.perturbation import KAPPA
from bench.report import show
from calibrate import FitConfig, tap
from calibrate.scoring.scorer import Scorer
from calibrate.source.training import shape_of

BATCH = 200  # of the test stream, as Wang et al. 2021 use on CIFAR-10
PRIOR = 16  # images that the shipped statistics count as, N of Schneider et al. 2020
SINGLE_FRAMES = 256
SOURCE_FRAMES = 1536  # clean train images, none of them among the unlabelled ones
FEW_CLASSES = (0, 1, 2)  # all that the camera saw before the class-sorted stream
WINDOW = 64  # frames a drift score is taken of, as in the daemon
ACCURACIES = ("accuracy", "single", "back_to_clean", "sorted")  # in percent


class Peer(NamedTuple):
    name: str
    needs: str
    make: Callable[[nn.Module, Tensor], Method]  # from the model and clean source frames


PEERS = (
    Peer("nothing", "nothing", lambda model, source: Method(model)),
    Peer("BN-adapt", f"batches of {BATCH}", lambda model, source: BatchNormAdaptation(model)),
    Peer(f"BN-adapt, prior {PRIOR}", f"batches of {BATCH}", lambda model, source: BatchNormAdaptation(model, PRIOR)),
    Peer("TENT", f"batches of {BATCH}, gradients", lambda model, source: Tent(model)),
    Peer("histogram matching", f"a pooled source histogram, {FRAMES} frames", HistogramMatching),
    Peer("colour matching", f"the source's colour covariance, {FRAMES} frames", ColourMatching),
    Peer("recald", f"{FRAMES} frames, gradients", lambda model, source: Recald(model, LIMITS)),
)


class Scene(NamedTuple):
    """What one drift makes of the images: frames (N, 3, H, W), labels (N,)."""

    before: Tensor  # unlabelled, for what adapts before it serves
    few_classes: Tensor  # the same, but all that was in view were FEW_CLASSES
    stream: Tensor
    clean: Tensor  # the stream without the drift
    labels: Tensor


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("RECALD_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default, help="CIFAR-10 and networks (%(default)s)")
    parser.add_argument("--draws", type=int, default=len(REPORTED_DRAWS), help="of the paper's perturbation")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    train, test = lossless(args.data / "cifar10_train_0.npz"), lossless(args.data / "cifar10_test.npz")
    model = network(args.data, "resnet20")
    source = normalise(train.pictures[-SOURCE_FRAMES:])
    shipped = digest(model)
    rows = []
    for name, drift, _ in list(drifts(args.draws))[1:]:  # the first is no drift
        scene = _scene(drift, train, test)
        for peer in PEERS:
            rows.append({"drift": name, "method": peer.name} | _one(peer, model, source, scene))
            assert digest(model) == shipped, f"{peer.name} changed the model it was given"
            print(", ".join(_cell(key, value) for key, value in rows[-1].items()), flush=True)
    groups = {"paper": [r for r in rows if "draw" in r["drift"]], "camera": [r for r in rows if "seed" in r["drift"]]}
    summary = {name: _summary(group) for name, group in groups.items() if group}
    for name, methods in summary.items():
        _accuracies(name, methods)
        _costs(name, methods)
    return {
        "settings": {"frames": FRAMES, "test_images": TEST_IMAGES, "batch": BATCH, "single_frames": SINGLE_FRAMES}
        | {"source_frames": SOURCE_FRAMES, "few_classes": FEW_CLASSES, "kappa": KAPPA, "camera": CAMERA}
        | {"threads": torch.get_num_threads(), "fit": vars(FitConfig()), "seed": 0},
        "model": {"digest": shipped, "values": sum(v.numel() for v in model.state_dict().values())},
        "needs": {peer.name: peer.needs for peer in PEERS},
        "rows": rows,
        "summary": summary,
    }


def _scene(drift: Drifting, train: Images, test: Images) -> Scene:
    few = torch.isin(train.labels, torch.tensor(FEW_CLASSES)).numpy()
    pictures, labels = test.pictures[:TEST_IMAGES], test.labels[:TEST_IMAGES]
    before, few_classes = drift(train.pictures[:FRAMES]), drift(train.pictures[few][:FRAMES])
    return Scene(before, few_classes, drift(pictures), normalise(pictures), labels)


def _one(peer: Peer, model: nn.Module, source: Tensor, scene: Scene) -> dict[str, Any]:
    adapted, seconds = _adapted(peer, model, source, scene.before)
    alone, single_ms = serve(copy.deepcopy(adapted), scene.stream[:SINGLE_FRAMES], batch=1)
    named, ms = serve(adapted, scene.stream)
    changed = {"changed_values": changed_values(model, adapted.model), "digest": digest(adapted.model)}
    clean, _ = serve(adapted, scene.clean)  # nobody tells the method; what adapts online goes on
    order = scene.labels.argsort(stable=True)
    label_shift, _ = _adapted(peer, model, source, scene.few_classes)
    in_order, _ = serve(label_shift, scene.stream[order])
    return {
        "accuracy": percent(named, scene.labels),
        "single": percent(alone, scene.labels[:SINGLE_FRAMES]),
        "back_to_clean": percent(clean, scene.labels),
        "sorted": percent(in_order, scene.labels[order]),
        "drift_ratio": score(model, adapted.restore(scene.clean)) / score(model, scene.clean),
        "seconds": seconds,
        "ms": ms,
        "single_ms": single_ms,
    } | changed


def _adapted(peer: Peer, model: nn.Module, source: Tensor, frames: Tensor) -> tuple[Method, float]:
    """A new method after it has seen the frames, and the seconds it took to learn from them."""
    method = peer.make(model, source)
    began = time.perf_counter()
    method.adapt(frames)
    return method, time.perf_counter() - began


def serve(method: Method, frames: Tensor, batch: int = BATCH) -> tuple[Tensor, float]:
    """The class of each frame (N,), and milliseconds per frame; what adapts online does it on the way."""
    began = time.perf_counter()
    named = torch.cat([method.predict(part).argmax(1) for part in frames.split(batch)])
    return named, 1e3 * (time.perf_counter() - began) / len(frames)


def percent(named: Tensor, labels: Tensor) -> float:
    return 100 * float((named == labels).float().mean())


def score(model: nn.Module, frames: Tensor) -> float:
    """Mean drift score of windows of these frames, as the untouched model sees them."""
    scorer = Scorer.of(tap(model), shape_of(frames), LIMITS)
    return float(np.mean([scorer.measure(window).drift.score for window in frames.split(WINDOW)]))


def digest(model: nn.Module) -> str:
    """SHA-256 of all parameters and buffers with their names."""
    sha = hashlib.sha256()
    for name, value in model.state_dict().items():
        sha.update(name.encode() + value.numpy().tobytes())
    return sha.hexdigest()


def changed_values(before: nn.Module, after: nn.Module) -> int:
    """How many values of parameters and buffers differ."""
    now = after.state_dict()
    return sum(int((value != now[name]).sum()) for name, value in before.state_dict().items())


def _summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """By method: the mean over drifts of every number, and the worst of the accuracies."""
    by_method = {peer.name: [r for r in rows if r["method"] == peer.name] for peer in PEERS}
    numbers = [key for key, value in rows[0].items() if not isinstance(value, str)]
    return {
        name: {f"{key}_mean": float(np.mean([r[key] for r in own])) for key in numbers}
        | {f"{key}_worst": min(r[key] for r in own) for key in ACCURACIES}
        for name, own in by_method.items()
    }


def _cell(key: str, value: object) -> str:
    return f"{key} {value:.2f}" if isinstance(value, float) else str(value)


def _accuracies(group: str, methods: dict[str, dict[str, float]]) -> None:
    columns = ("method", "accuracy", "worst", "single", "back to clean", "sorted", "drift ratio")
    keys = ("accuracy_mean", "accuracy_worst", "single_mean", "back_to_clean_mean", "sorted_mean", "drift_ratio_mean")
    body = [[name, *(numbers[key] for key in keys)] for name, numbers in methods.items()]
    show(f"{group}: accuracy in %, means over drifts", columns, body)


def _costs(group: str, methods: dict[str, dict[str, float]]) -> None:
    columns = ("method", "values changed", "needs", "s to adapt", "ms a frame", "ms, one at a time")
    keys = ("seconds_mean", "ms_mean", "single_ms_mean")
    rows = [(peer, methods[peer.name]) for peer in PEERS]
    body = [[p.name, round(n["changed_values_mean"]), p.needs, *(n[key] for key in keys)] for p, n in rows]
    show(f"{group}: what it changes and takes", columns, body)
