"""What the homogenizer adds to a network the size of ResNet-50 at 224x224: time, multiplications, bytes."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from bench.report import percentiles, show
from calibrate.homogenizer import Homogenizer
from deploy.backends.protocol import load_backend

SHAPE = (3, 224, 224)
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))  # width, blocks, stride: ResNet-50 (He et al. 2016)
CLAIM = 0.05  # of the network's time


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution, and a shortcut."""

    def __init__(self, channels: int, width: int, stride: int):
        super().__init__()
        self.change = nn.Sequential(
            *_layer(channels, width, 1),
            nn.ReLU(),
            *_layer(width, width, 3, stride),
            nn.ReLU(),
            *_layer(width, 4 * width, 1),
        )
        same = channels == 4 * width and stride == 1
        self.shortcut = nn.Identity() if same else nn.Sequential(*_layer(channels, 4 * width, 1, stride))

    def forward(self, frames: Tensor) -> Tensor:
        return torch.relu(self.change(frames) + self.shortcut(frames))


def _layer(channels: int, outputs: int, size: int, stride: int = 1) -> Sequence[nn.Module]:
    return nn.Conv2d(channels, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)


def resnet50() -> nn.Module:
    """Its layers with random weights, which take as long as trained ones."""
    layers = [*_layer(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width, blocks, stride in STAGES:
        for number in range(blocks):
            layers.append(Bottleneck(channels, width, 1 if number else stride))
            channels = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)).eval()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=20.0, help="of each backend (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(0)
    network, homogenizer = resnet50(), some_homogenizer(SHAPE, seed=0)
    rows = [_time(backend, network, homogenizer, args.seconds) for backend in ("onnx", "eager")]
    counted = {name: count(module, SHAPE) for name, module in (("network", network), ("homogenizer", homogenizer))}
    columns = ("backend", "network p50", "homogenizer p50", "both p50", "share")
    cells = [[r["backend"], *(r[k]["p50_ms"] for k in ("network", "homogenizer", "both")), r["share"]] for r in rows]
    show("one frame on one thread, ms", columns, cells)
    for name, count in counted.items():
        print(f"{name}: {count['multiplications'] / 1e6:.0f} million multiplications, {count['parameters']} parameters")
    return {"settings": {"shape": SHAPE, "seconds": args.seconds, "claim": CLAIM}, "rows": rows, "counted": counted}


def some_homogenizer(shape: tuple[int, int, int], seed: int) -> Homogenizer:
    """Near the identity, and like no other seed's."""
    generator = torch.Generator().manual_seed(seed)
    homogenizer = Homogenizer(*shape).eval().requires_grad_(False)
    for parameter in homogenizer.parameters():
        parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
    return homogenizer


def _time(name: str, network: nn.Module, homogenizer: nn.Module, seconds: float) -> dict[str, Any]:
    """The two in turns, frame by frame, so that a slow phase of the machine hits both alike."""
    backend, frame = load_backend(name), torch.randn(1, *SHAPE)
    first, second = (backend.load(backend.compile(m, frame), threads=1) for m in (homogenizer, network))
    batch = frame.numpy()
    alone: dict[str, list[float]] = {"homogenizer": [], "network": [], "both": []}
    calls: dict[str, Callable[[], np.ndarray]] = {
        "homogenizer": lambda: first.run(batch),
        "network": lambda: second.run(batch),
        "both": lambda: second.run(first.run(batch)),
    }
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for what, call in calls.items():
            began = time.perf_counter()
            call()
            alone[what].append(time.perf_counter() - began)
    share = np.median(alone["homogenizer"]) / np.median(alone["network"])
    return {"backend": name, "share": float(share), **{what: percentiles(taken) for what, taken in alone.items()}}


def count(module: nn.Module, shape: tuple[int, int, int]) -> dict[str, int]:
    """As torch counts them, which for the homogenizer includes the zeros that its blocks bring along."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.zeros(1, *shape))
    parameters = sum(p.numel() for p in module.parameters())
    return {"multiplications": counter.get_total_flops() // 2, "parameters": parameters}
