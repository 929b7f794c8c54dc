"""Φ in float16 or bfloat16 stays accurate: outputs, labels and accuracy against float32, clean and restored."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.arguments import add_data
from bench.material.cifar import LIMITS, WEIGHTS, lossless, network, normalise
from bench.material.perturbation import KAPPA, Perturbation
from bench.provenance import DEPLOYMENT, MATERIAL, METHOD
from bench.report import show
from calibrate import fit
from deploy.backends.protocol import load_backend
from deploy.model.precision import PRECISIONS, to_precision
from deploy.model.program import export_program, load_program, relative_error, save_program

CODE = (*METHOD, *DEPLOYMENT, *MATERIAL, "bench/precision.py")

FITTED, FRAMES, DRAW, SHAPE = "resnet20", 512, 10, (3, 32, 32)
NOISE_SEEDS = range(10)
BACKENDS = {"float32": "eager", "float16": "onnx", "bfloat16": "eager"}  # float16 takes PyTorch minutes on a CPU
COLUMNS = ("network", "precision", "by", "noise", "frames", "labels_changed", "clean", "restored")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument("--images", type=int, default=2048, help="test images (%(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    test = lossless(args.data / "cifar10_test.npz")
    labels, clean = test.labels[: args.images], normalise(test.pictures[: args.images])
    restored = _restored(args.data, clean)
    rows: list[dict[str, Any]] = []
    for name in WEIGHTS:
        rows += _rows(name, _traced(network(args.data, name)), clean, restored, labels)
    cells = [[_scientific(row[column]) for column in COLUMNS] for row in rows]
    show("relative error against float32, and accuracy in %", COLUMNS, cells)
    tolerances = {name: precision.tolerance for name, precision in PRECISIONS.items()}
    return {
        "seeds": {"fit": 0, "perturbation": DRAW, "noise": list(NOISE_SEEDS)},
        "settings": {"images": args.images, "fitted": FITTED, "frames": FRAMES, "draw": DRAW, "kappa": KAPPA}
        | {"noise_seeds": list(NOISE_SEEDS), "tolerances": tolerances},
        "rows": rows,
    }


def _restored(data: Path, clean: Tensor) -> Tensor:
    """Return the frames of a drifted camera behind a homogenizer that was fitted without labels, in float32."""
    drift = Perturbation(DRAW)
    unlabelled = normalise(lossless(data / "cifar10_train_0.npz").pictures[:FRAMES])
    fitted = fit(network(data, FITTED), drift(unlabelled), limits=LIMITS)
    with torch.no_grad():
        restored: Tensor = fitted.homogenizer(drift(clean))
    return restored


def _traced(module: nn.Module) -> nn.Module:
    """Export the module and load it again, as recald does with a model file."""
    return load_program(save_program(export_program(module, torch.zeros(2, *SHAPE))))


def _rows(name: str, whole: nn.Module, clean: Tensor, restored: Tensor, labels: Tensor) -> Iterator[dict[str, Any]]:
    noise = [torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed)) for seed in NOISE_SEEDS]
    for precision in PRECISIONS:
        lower = _compiled(whole, precision)
        outputs, expected = lower(clean), _outputs(whole, clean)
        yield {
            "network": name,
            "precision": precision,
            "by": BACKENDS[precision],
            "noise": max(relative_error(lower(n), _outputs(whole, n)) for n in noise),
            "frames": relative_error(outputs, expected),
            "labels_changed": int((outputs.argmax(1) != expected.argmax(1)).sum()),
            "clean": _accuracy(outputs, labels),
            "restored": _accuracy(lower(restored), labels),
        }


def _compiled(whole: nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    backend = load_backend(BACKENDS[precision])
    runner = backend.load(backend.compile(to_precision(whole, precision), torch.zeros(1, *SHAPE)), threads=1)
    return lambda frames: torch.cat([torch.tensor(runner.run(chunk.numpy())) for chunk in frames.split(256)])


def _outputs(module: nn.Module, frames: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([module(chunk) for chunk in frames.split(256)])


def _accuracy(outputs: Tensor, labels: Tensor) -> float:
    return 100 * float((outputs.argmax(1) == labels).float().mean())


def _scientific(value: object) -> object:
    return f"{value:.1e}" if isinstance(value, float) and value < 1 else value
