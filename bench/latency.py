"""What the daemon adds to the bare model, idle, during a fit and across a swap, and whether a frame is lost."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from bench.material.camera import FPS, Answer
from bench.material.scene import SIZE, Scene, account, bare_runner, digits, pictures, scene
from bench.report import percentiles, show
from daemon.demo.material import Material
from daemon.simulation.drifts import parse_drift
from deploy.backends.protocol import Runner
from deploy.store.artefacts import FACTORY

FIT_FRAMES = 256
AROUND_SWAP_S = 1.0
SWAP_TIMEOUT_S = 300.0
DRIFT = "fixed-pattern=16,cross-talk=0.25,blur=0.7,exposure=-0.5"
SIZES = (SIZE, 224)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measured phase (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    material = digits()
    sizes = {f"{size}x{size}": _measure_size(material, size, args.seconds) for size in SIZES}
    _table(sizes)
    return {"settings": {"fps": FPS, "backend": "onnx", "seconds": args.seconds, "drift": DRIFT}, "sizes": sizes}


def _measure_size(material: Material, size: int, seconds: float) -> dict[str, Any]:
    """The digit network at this input size: 224x224 costs 49 times as much as 32x32."""
    with scene(material, size, FIT_FRAMES) as here, bare_runner(here.folder.model) as runner:
        return _phases(here, runner, pictures(material, size), seconds, swaps=size == SIZE)


def _phases(here: Scene, runner: Runner, images: np.ndarray, seconds: float, swaps: bool) -> dict[str, Any]:
    camera = here.camera
    bare_before = _bare(runner, images, seconds / 2)
    idle = camera.run_for(seconds)
    bare = bare_before + _bare(runner, images, seconds / 2)
    camera.drift = parse_drift(DRIFT, 0)
    camera.run_until(lambda: camera.state == "fitting", SWAP_TIMEOUT_S)
    fitting = camera.run_until(lambda: camera.state != "fitting", SWAP_TIMEOUT_S if swaps else seconds)
    around: list[Answer] = []
    if swaps:
        rest = camera.run_until(lambda: camera.homogenizer != FACTORY, SWAP_TIMEOUT_S)
        rest += camera.run_for(2 * AROUND_SWAP_S)
        swap_at = next((a.sent for a in rest if a.homogenizer != FACTORY), None)
        around = [a for a in rest if swap_at is not None and abs(a.sent - swap_at) <= AROUND_SWAP_S]
    camera.settle()
    scrape = here.daemon.scrape()
    assert scrape is not None
    swapped = scrape.total("recald_swaps_total", result="committed")
    idle_p50, bare_p50 = percentiles([a.latency for a in idle])["p50_ms"], percentiles(bare)["p50_ms"]
    assert idle_p50 is not None and bare_p50 is not None
    return {
        "bare": percentiles(bare),
        "idle": percentiles([a.latency for a in idle]),
        "during_fit": percentiles([a.latency for a in fitting]),
        "across_swap": percentiles([a.latency for a in around]),
        "overhead_p50_ms": idle_p50 - bare_p50,
        "frames": account(here),
        "swaps": int(swapped),
        "swap_pause_ms": 1e3 * scrape.total("recald_swap_pause_seconds_sum") / swapped if swapped else None,
    }


def _bare(runner: Runner, images: np.ndarray, seconds: float) -> list[float]:
    """Call the model in a loop, as fast as it goes."""
    batch = np.ascontiguousarray(images[:1].transpose(0, 3, 1, 2).astype(np.float32) / 64 - 2)
    taken, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        runner.run(batch)
        taken.append(time.perf_counter() - start)
    return taken


def _table(sizes: dict[str, dict[str, Any]]) -> None:
    rows = [
        [
            size,
            phase,
            *(
                result[phase][k] if result[phase][k] is not None else "-"
                for k in ("count", "p50_ms", "p99_ms", "max_ms")
            ),
        ]
        for size, result in sizes.items()
        for phase in ("bare", "idle", "during_fit", "across_swap")
    ]
    show("frame in to result out, ms", ("size", "phase", "frames", "p50", "p99", "max"), rows)
    for size, result in sizes.items():
        print(
            size,
            "overhead p50",
            f"{result['overhead_p50_ms']:.2f} ms",
            result["frames"],
            "swap pause ms:",
            result["swap_pause_ms"],
        )
