"""No frame waits for the frames that go to a check or a fit: none is 5 ms later than beside another such program."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.material.camera import FPS, ORDER_SEED, SENSOR, Answer
from bench.material.daemon_run import DIGITS_SEED, DaemonRun, daemon_run, light_digits
from bench.material.neighbour import neighbour
from bench.provenance import DAEMON, DEPLOYMENT, MATERIAL
from bench.report import percentiles, show_rows
from daemon.config import load_config
from daemon.demo.datasets import Dataset
from daemon.operator.control import ask
from daemon.states import AT_REST

CODE = (*DEPLOYMENT, *DAEMON, *MATERIAL, "bench/handover.py")

FIT_FRAMES = {224: 512, 640: 128}  # of 640x640 so many as take 157 MB, twice the others
HANDOVERS = 10
AFTER_ORDER_S = 3.0  # a hand-over is over by then
FIT_TIMEOUT_S = 4.0  # a fit is ended then, so that the next one can be ordered
RECALIBRATION_TIMEOUT_S = 60.0
ORDER_TIMEOUT_S = 5.0
UNWATCHED = {"interval": "1h"}
ONLY_ORDERED = {"hold": "1h"}  # no fit that an alarm starts
MAX_LATER_MS = 5.0
PHASES = ("unwatched", "beside", "watched", "handover")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=30.0, help="of each phase but the last (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as folder:
        material = light_digits(Path(folder) / "light.safetensors")
        sizes = {f"{size}x{size}": _measure_size(material, size, args.seconds) for size in FIT_FRAMES}
    rows = [{"size": size, "phase": phase} | sizes[size][phase] for size in sizes for phase in PHASES]
    show_rows("frame in to result out, ms", ("size", "phase", "count", "p50_ms", "p99_ms", "max_ms"), rows)
    show_rows("later than the latest beside another program", ("size", "later_ms", "reservoir_mb"), _differences(sizes))
    return {
        "seeds": {"network": DIGITS_SEED, "order": ORDER_SEED},
        "settings": {
            "fps": FPS,
            "seconds": args.seconds,
            "handovers": HANDOVERS,
            "after_order_s": AFTER_ORDER_S,
            "claim_ms": MAX_LATER_MS,
        },
        "sizes": sizes,
    }


def _measure_size(material: Dataset, size: int, seconds: float) -> dict[str, Any]:
    frames = FIT_FRAMES[size]
    with daemon_run(material, size, frames, drift=UNWATCHED, mode="locked") as run:
        _fill(run, frames)
        unwatched = run.camera.run_for(seconds)
        with neighbour(size):
            run.camera.run_for(AFTER_ORDER_S)
            beside = run.camera.run_for(seconds)
    with daemon_run(material, size, frames, drift=ONLY_ORDERED, timeout=f"{FIT_TIMEOUT_S}s", mode="shadow") as run:
        _fill(run, frames)
        watched = run.camera.run_for(seconds)
        handover = _hand_over(run)
        run.camera.settle()
        scrape = run.scrape()
        counts = {"checks": int(scrape.total("recald_drift_checks_total")), "frames": run.frame_counts()}
        reservoir = scrape.total("recald_reservoir_bytes", sensor=SENSOR) / 1e6
    times = {"unwatched": unwatched, "beside": beside, "watched": watched, "handover": handover}
    return {phase: _latency(answers) for phase, answers in times.items()} | counts | {"reservoir_mb": reservoir}


def _fill(run: DaemonRun, frames: int) -> None:
    """Send what the reservoir holds, so that the worker has started and its first check is over."""
    run.camera.run_for(frames / FPS + AFTER_ORDER_S)


def _hand_over(run: DaemonRun) -> list[Answer]:
    """Order HANDOVERS fits, one after the other; return the answers from each order until its frames have gone."""
    endpoint = load_config(run.folder.config).control.endpoint
    answers: list[Answer] = []
    for _ in range(HANDOVERS):
        ask(endpoint, {"command": "recalibrate", "sensor": SENSOR}, ORDER_TIMEOUT_S)
        answers += run.camera.run_for(AFTER_ORDER_S)
        run.camera.run_until(lambda: run.camera.state in AT_REST, RECALIBRATION_TIMEOUT_S)
    return answers


def _latency(answers: Sequence[Answer]) -> dict[str, Any]:
    return percentiles([answer.latency for answer in answers])


def _differences(sizes: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    rows = []
    for size, measured in sizes.items():
        late = max(measured["watched"]["max_ms"], measured["handover"]["max_ms"]) - measured["beside"]["max_ms"]
        rows.append({"size": size, "later_ms": late, "reservoir_mb": measured["reservoir_mb"]})
    return rows
