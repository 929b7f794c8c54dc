"""The daemon adds little to the time of the bare model and loses no frame: idle, during a fit and across a swap."""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from bench.material.camera import FPS, ORDER_SEED, Answer
from bench.material.daemon_run import DIGITS_SEED, SIZE, DaemonRun, bare_runner, daemon_run, digits, pictures
from bench.provenance import DAEMON, DEPLOYMENT, MATERIAL, METHOD
from bench.report import percentiles, show, show_rows
from daemon.demo.datasets import Dataset
from daemon.simulation.drifts import parse_drift
from deploy.backends.protocol import Runner
from deploy.store.artefacts import FACTORY

CODE = (*METHOD, *DEPLOYMENT, *DAEMON, *MATERIAL, "bench/latency.py")

FIT_FRAMES = 256
AROUND_SWAP_S = 1.0  # on either side of a swap
SWAP_TIMEOUT_S = 300.0
DRIFT = "fixed-pattern=16,cross-talk=0.25,blur=0.7,exposure=-0.5"
DRIFT_SEED = 0
SIZES = (SIZE, 224)
PHASES = ("bare", "idle", "during_fit", "across_swap")
TIMES = ("count", "p50_ms", "p99_ms", "max_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measured phase (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    material = digits()
    sizes = {f"{size}x{size}": _measure_size(material, size, args.seconds) for size in SIZES}
    _show_tables(sizes)
    return {
        "seeds": {"network": DIGITS_SEED, "order": ORDER_SEED, "drift": DRIFT_SEED},
        "settings": {"fps": FPS, "backend": "onnx", "seconds": args.seconds, "drift": DRIFT},
        "sizes": sizes,
    }


def _measure_size(digits: Dataset, size: int, seconds: float) -> dict[str, Any]:
    """Measure with the digit network at this input size: 224x224 costs 49 times as much as 32x32."""
    with daemon_run(digits, size, FIT_FRAMES) as run, bare_runner(run.folder.model) as runner:
        images, camera = pictures(digits, size), run.camera
        bare = _bare(runner, images, seconds / 2)
        idle = camera.run_for(seconds)
        bare += _bare(runner, images, seconds / 2)  # halves before and after, in case the machine slows down
        camera.drift = parse_drift(DRIFT, DRIFT_SEED)
        camera.run_until(lambda: camera.state == "fitting", SWAP_TIMEOUT_S)
        # On two cores the fit at 224x224 takes longer than is waited here: it is only a load, and no swap follows.
        swaps = size == SIZE
        fitting = camera.run_until(lambda: camera.state != "fitting", SWAP_TIMEOUT_S if swaps else seconds)
        around = _answers_around_swap(run) if swaps else []
        camera.settle()
        return _phases(bare, idle, fitting, around) | _counts(run)


def _bare(runner: Runner, images: np.ndarray, seconds: float) -> list[float]:
    """Call the model in a loop, as fast as it can; return the time of each call, s."""
    batch = np.ascontiguousarray(images[:1].transpose(0, 3, 1, 2).astype(np.float32) / 64 - 2)
    times, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        runner.run(batch)
        times.append(time.perf_counter() - start)
    return times


def _answers_around_swap(run: DaemonRun) -> list[Answer]:
    """Wait for the swap; return the answers to frames sent within AROUND_SWAP_S of the first by the new ρ."""
    camera = run.camera
    answers = camera.run_until(lambda: camera.homogenizer != FACTORY, SWAP_TIMEOUT_S)
    answers += camera.run_for(2 * AROUND_SWAP_S)
    swap_at = next((a.sent for a in answers if a.homogenizer != FACTORY), None)
    return [a for a in answers if swap_at is not None and abs(a.sent - swap_at) <= AROUND_SWAP_S]


def _phases(bare: list[float], idle: list[Answer], fitting: list[Answer], around: list[Answer]) -> dict[str, Any]:
    times = {"bare": percentiles(bare)}
    for phase, answers in (("idle", idle), ("during_fit", fitting), ("across_swap", around)):
        times[phase] = percentiles([a.latency for a in answers])
    idle_p50, bare_p50 = times["idle"]["p50_ms"], times["bare"]["p50_ms"]
    assert idle_p50 is not None and bare_p50 is not None
    return times | {"overhead_p50_ms": idle_p50 - bare_p50}


def _counts(run: DaemonRun) -> dict[str, Any]:
    metrics = run.scrape()
    swaps = metrics.total("recald_swaps_total", result="committed")
    return {
        "frames": run.frame_counts(),
        "swaps": int(swaps),
        "swap_pause_ms": 1e3 * metrics.total("recald_swap_pause_seconds_sum") / swaps if swaps else None,
    }


def _show_tables(sizes: dict[str, dict[str, Any]]) -> None:
    rows = [{"size": size, "phase": phase} | sizes[size][phase] for size in sizes for phase in PHASES]
    show_rows("frame in to result out, ms", ("size", "phase", *TIMES), rows)
    columns = ("size", "overhead p50, ms", *next(iter(sizes.values()))["frames"], "swap pause, ms")
    show(
        "frames",
        columns,
        [
            [size, row["overhead_p50_ms"], *row["frames"].values(), row["swap_pause_ms"] or "-"]
            for size, row in sizes.items()
        ],
    )
