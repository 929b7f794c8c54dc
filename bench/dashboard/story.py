"""A drift and its repair in front of a live daemon, with a Prometheus that watches: what the picture shows."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import zmq

from bench.dashboard.prometheus import Prometheus, find_program
from bench.material.daemon_run import digits
from daemon.config import load_config
from daemon.demo.bookkeeping import Bookkeeping
from daemon.demo.cameras import Cameras
from daemon.demo.datasets import Dataset
from daemon.demo.processes import DaemonProcess, RunFolder, export, free_port, write_config
from daemon.demo.run import DEFAULT_DRIFT
from daemon.operator.commissioning.commission import commission
from daemon.simulation.drifts import parse_drift

RULES = Path(__file__).resolve().parents[2] / "deploy" / "monitoring" / "prometheus"
DRIFTING, STEADY, SILENT = "front", "rear", "side"  # the last one sends nothing
FPS = 15.0  # of each camera
FIT_FRAMES = 256
COMMISSIONED_FRAMES = 512
CLEAN_S, REPAIRED_S = 45.0, 60.0  # after the first drift check, and after the new homogenizer has proved itself
PATIENCE_S = 400.0  # for what takes seconds on an idle machine
ALARM_HOLD = "10s"
PROBATION = "15s"


class Story(NamedTuple):
    """What Prometheus has seen. Times are s since 1970."""

    prometheus: Prometheus
    began: float
    repaired: float  # the new homogenizer has passed its probation
    ended: float


@contextmanager
def told(seed: int = 0) -> Iterator[Story]:
    """Run the story, and keep its Prometheus while the body asks. Raises SystemExit without a Prometheus."""
    program = find_program("prometheus")
    if program is None:
        raise SystemExit("bench.dashboard: Prometheus is not installed: make system-packages")
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as name:
        folder, material = RunFolder(Path(name)), digits()
        port = prepared(folder, material)
        with Prometheus(program, Path(name), port, sorted(RULES.glob("recald.*.yaml"))) as prometheus:
            yield Story(prometheus, time.time(), *drift_and_repair(folder, port, material, seed))


def prepared(folder: RunFolder, material: Dataset) -> int:
    """Export the network, commission it on labelled digits, write a configuration; return the port of the metrics."""
    export(material.network, folder.model)
    clean = folder.path / "clean.npz"
    np.savez(clean, images=material.images[:COMMISSIONED_FRAMES], labels=material.labels[:COMMISSIONED_FRAMES])
    commission(folder.model, clean, COMMISSIONED_FRAMES, labels=clean)
    port = free_port()
    write_config(folder, (DRIFTING, STEADY, SILENT), port, FIT_FRAMES, {"hold": ALARM_HOLD}, probation=PROBATION)
    return port


def drift_and_repair(folder: RunFolder, port: int, material: Dataset, seed: int) -> tuple[float, float]:
    """Let one camera drift until a homogenizer has passed its probation; return when it had, and the end."""
    config = load_config(folder.config)
    with DaemonProcess(folder.config, folder.log, port) as daemon, zmq.Context() as context:
        daemon.wait_until_serving()
        cameras = Cameras(
            context,
            Bookkeeping((DRIFTING, STEADY)),
            material.images[COMMISSIONED_FRAMES:],
            material.labels[COMMISSIONED_FRAMES:],
            sensors=(DRIFTING, STEADY),
            frames=config.input.bind[0],
            results=config.output.bind,
            fps=FPS,
            seed=seed,
        )
        with closing(cameras):
            cameras.start()
            _wait_until(lambda: _checks(daemon) > 0, "drift check ends")
            time.sleep(CLEAN_S)
            cameras.drift(DRIFTING, parse_drift(DEFAULT_DRIFT, seed))
            _wait_until(lambda: _state(daemon) == "active", "homogenizer serves")
            repaired = time.time()
            time.sleep(REPAIRED_S)
            return repaired, time.time()


def _state(daemon: DaemonProcess) -> str:
    scrape = daemon.scrape()
    return "" if scrape is None else scrape.state(DRIFTING)


def _checks(daemon: DaemonProcess) -> float:
    scrape = daemon.scrape()
    return 0.0 if scrape is None else scrape.total("recald_drift_checks_total", sensor=DRIFTING, result="done")


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit(f"bench.dashboard: no {what} within {PATIENCE_S:g} s")
        time.sleep(1)
