"""A fit on the GPU: its time by stage, launches and kernels, and its accuracy beside that of the processor's fit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from bench.gpu.attempt import Budget, attempt, log_progress
from bench.material.cifar import LIMITS, accuracy, lossless, network, normalise
from bench.material.perturbation import Perturbation
from calibrate import FitResult, fit

NETWORKS = ("resnet20", "resnet56")
DRAWS = (10, 11)  # of the paper's perturbation, as in `bench fit`
FRAMES, TEST_IMAGES = 512, 1024  # of the test set: the frames of a fit follow the images that measure it
FIT_S, PROCESSOR_FIT_S = 15.0, 45.0  # what a row takes at most
REPEATS = 3
LAUNCHES = ("cudaLaunchKernel", "cudaLaunchKernelExC", "cuLaunchKernel", "cuLaunchKernelEx", "cudaGraphLaunch")
COPIES = ("cudaMemcpyAsync", "cudaMemsetAsync")
MILLISECOND_NS = 1e6


class DriftedImages(NamedTuple):
    """Φ, drifted frames for a fit, and drifted images with labels that measure it."""

    model: nn.Module
    frames: Tensor
    images: Tensor
    labels: Tensor

    def accuracy(self, homogenizer: nn.Module) -> float:
        with torch.no_grad():
            return accuracy(self.model, homogenizer(self.images), self.labels)


def drifted_images(data: Path, name: str, draw: int) -> DriftedImages:
    """Read the images and the network `name` from the folder `data`, and perturb the images."""
    test, drift = lossless(data / "cifar10_test.npz"), Perturbation(draw)
    pictures = drift(normalise(test.pictures[: TEST_IMAGES + FRAMES]))
    return DriftedImages(network(data, name), pictures[TEST_IMAGES:], pictures[:TEST_IMAGES], test.labels[:TEST_IMAGES])


def measure_fits(data: Path, budget: Budget) -> Iterator[dict[str, Any]]:
    """Yield a row for each network and draw on the GPU, then for each network one on the processor."""
    for name in NETWORKS:
        for draw in DRAWS:
            yield _row(data, name, draw, "cuda", budget)
    for name in NETWORKS:
        yield _row(data, name, DRAWS[0], "cpu", budget)


def _row(data: Path, name: str, draw: int, device: str, budget: Budget) -> dict[str, Any]:
    row: dict[str, Any] = {"network": name, "draw": draw, "device": device, "frames": FRAMES}
    log_progress(f"fit, {name}, draw {draw}, {device}")
    with attempt(f"fit, {name}, draw {draw}, {device}", row):
        budget.require(FIT_S if device == "cuda" else PROCESSOR_FIT_S)
        drifted = drifted_images(data, name, draw)
        row["distorted"] = drifted.accuracy(nn.Identity())
        row |= _on_gpu(drifted) if device == "cuda" else _described(drifted, _fit(drifted, "cpu"))
    return row


def _on_gpu(drifted: DriftedImages) -> dict[str, Any]:
    run = partial(_fit, drifted._replace(model=drifted.model.cuda()), "cuda")
    first = run()  # of this network in this process: kernels are loaded and chosen
    results = [run() for _ in range(REPEATS)]
    weights = [torch.cat([value.flatten() for value in r.homogenizer.state_dict().values()]) for r in results]
    same = all(torch.equal(weights[0], other) for other in weights[1:])
    counted = _profiled(run)
    drifted.model.cpu()
    fastest = min(results, key=lambda result: result.seconds)
    return _described(drifted, fastest) | {"first_seconds": first.seconds, "same_bits": same} | counted


def _fit(drifted: DriftedImages, device: str) -> FitResult:
    frames = drifted.frames.to(device)
    return fit(drifted.model, frames, limits=LIMITS, clock=time.perf_counter)


def _described(drifted: DriftedImages, result: FitResult) -> dict[str, Any]:
    return {
        "restored": drifted.accuracy(result.homogenizer.cpu()),
        "seconds": result.seconds,
        "stage_seconds": result.stage_seconds,
        "start": result.start,
        "evaluations": result.steps,
        "loss": result.history[-1],
        "threads": torch.get_num_threads(),
    }


def _profiled(run: partial[FitResult]) -> dict[str, Any]:
    """Count the launches of a fit, and sum up the time of its kernels."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        run()
        torch.cuda.synchronize()
    counts: Counter[str] = Counter()
    kernels_ns = 0
    assert profiler.profiler is not None and profiler.profiler.kineto_results is not None
    for event in profiler.profiler.kineto_results.events():  # `key_averages` takes minutes for the events of a fit
        counts[event.name()] += 1
        if event.device_type() == DeviceType.CUDA and not event.name().startswith(("Memcpy", "Memset", "Optimizer")):
            kernels_ns += event.duration_ns()
    return {
        "launches": sum(counts[name] for name in LAUNCHES),
        "graph_launches": counts["cudaGraphLaunch"],
        "copies": sum(counts[name] for name in COPIES),
        "kernels_ms": kernels_ns / MILLISECOND_NS,
    }
