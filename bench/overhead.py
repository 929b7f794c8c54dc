"""The homogenizer adds at most 5 % to the time of a network the size of ResNet-50 at 224x224, on one CPU thread."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.material.large_network import MAX_ADDED_SHARE, count_work, random_homogenizer, resnet50
from bench.provenance import DEPLOYMENT
from bench.report import percentiles, show
from deploy.backends.protocol import load_backend

CODE = ("calibrate/homogenizer.py", *DEPLOYMENT, "bench/material/large_network.py", "bench/overhead.py")

SHAPE = (3, 224, 224)
SEED = 0
BACKENDS = ("onnx", "eager")
PARTS = ("network", "homogenizer", "both")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=20.0, help="for each backend (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    torch.manual_seed(SEED)
    network, homogenizer = resnet50(), random_homogenizer(SHAPE, SEED)
    rows = [_time(backend, network, homogenizer, args.seconds) for backend in BACKENDS]
    counted = {"network": count_work(network, SHAPE), "homogenizer": count_work(homogenizer, SHAPE)}
    cells = [[row["backend"], *(row[part]["p50_ms"] for part in PARTS), row["share"]] for row in rows]
    show("one frame on one thread, ms", ("backend", *(f"{part} p50" for part in PARTS), "share"), cells)
    for name, work in counted.items():
        print(f"{name}: {work['multiplications'] / 1e6:.0f} million multiplications, {work['parameters']} parameters")
    settings = {"shape": SHAPE, "seconds": args.seconds, "claim": MAX_ADDED_SHARE}
    return {"seeds": {"weights": SEED}, "settings": settings, "rows": rows, "counted": counted}


def _time(name: str, network: nn.Module, homogenizer: nn.Module, seconds: float) -> dict[str, Any]:
    """Time both in turns, frame by frame, so that a slow phase of the machine affects both alike."""
    backend, frame = load_backend(name), torch.randn(1, *SHAPE)
    first, second = (backend.load(backend.compile(module, frame), threads=1) for module in (homogenizer, network))
    batch = frame.numpy()
    calls: dict[str, Callable[[], np.ndarray]] = {
        "homogenizer": lambda: first.run(batch),
        "network": lambda: second.run(batch),
        "both": lambda: second.run(first.run(batch)),
    }
    times: dict[str, list[float]] = {part: [] for part in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for part, call in calls.items():
            began = time.perf_counter()
            call()
            times[part].append(time.perf_counter() - began)
    share = np.median(times["homogenizer"]) / np.median(times["network"])
    return {"backend": name, "share": float(share)} | {part: percentiles(taken) for part, taken in times.items()}
