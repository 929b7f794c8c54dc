"""The scenario of the demo: all is well, one camera drifts, the daemon notices, refits and recovers."""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import zmq
from rich.console import Console

from daemon.config import load_config
from daemon.demo.bookkeeping import Bookkeeping, ObservedSwap, SensorStats
from daemon.demo.cameras import Cameras
from daemon.demo.datasets import Dataset, cifar_dataset, digits_dataset
from daemon.demo.digits import DemoError
from daemon.demo.display import CURVE_POINTS, Display, SensorView, short_version
from daemon.demo.picture import comparison_rows, draw_picture
from daemon.demo.processes import DaemonProcess, RunFolder, Scrape, export, free_port, write_config
from daemon.demo.summary import Summary
from daemon.simulation.drifts import Drift, parse_drift
from deploy.files import digest_file
from deploy.store.artefacts import FACTORY

DRIFTING, STEADY = "front", "rear"
SENSORS = (DRIFTING, STEADY)
FPS = 30.0  # of each camera
FIT_FRAMES = 256  # 9 s of one camera
CONNECT_TIMEOUT_S = 20.0  # from the first frame to the first answer
HEALTHY_S, RECOVERED_S = 12.0, 15.0  # duration of the phases before the drift and after the swap
RECOVERY_TIMEOUT_S = 240.0
AROUND_SWAP_S = 1.0  # frames shown this long before and after the swap must have an answer
UPDATE_INTERVAL_S = 0.25
CURVE_INTERVAL_S = 2.0  # between two points of the accuracy curve

STATE_TEXTS = {  # of the states that the demo shows as events
    "collecting": "collecting frames to fit to",
    "fitting": "fitting a homogenizer, in a process of its own",
    "judging": "judging it on frames it has not seen",
    "compiling": "compiling it",
    "shadow": "the fitted homogenizer runs beside, on new frames",
    "probation": "the fitted homogenizer serves, on probation",
    "active": "the probation is over",
    "failed": "the recalibration failed",
}


def perform(args: argparse.Namespace, console: Console) -> Summary:
    """Prepare, run the scenario, and write the output files. Raises DemoError when the demo cannot run."""
    started = time.monotonic()
    drift = parse_drift(args.drift, args.seed)
    dataset = cifar_dataset(args.data) if args.data else digits_dataset(args.seed, console)
    args.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="recald-demo-") as name:
        folder = RunFolder(Path(name))
        console.print(f"recald export: freezing the network for {dataset.title}")
        export(dataset.network, folder.model)
        write_config(folder, SENSORS, free_port(), FIT_FRAMES)
        folder.log.touch()
        try:
            summary = run_daemon(folder, dataset, drift, console, started, args.keep)
        finally:
            shutil.copyfile(folder.log, args.output / "recald.log")
        rows = comparison_rows(folder.model, folder.state, DRIFTING, dataset, drift, summary.accuracies())
    (args.output / "frames.png").write_bytes(draw_picture(rows))
    (args.output / "summary.json").write_text(json.dumps(summary.document(), indent=2) + "\n")
    return summary


def run_daemon(
    folder: RunFolder, dataset: Dataset, drift: Drift, console: Console, started: float, keep: bool = False
) -> Summary:
    """Start the daemon and the cameras, run the scenario, stop both, and sum it up. keep: stop at Ctrl-C only."""
    config, digest = load_config(folder.config), digest_file(folder.model)
    console.print("recald run: starting")
    with DaemonProcess(folder.config, folder.log, config.metrics.port) as daemon, zmq.Context() as context:
        daemon.wait_until_serving()
        books = Bookkeeping(SENSORS)
        cameras = Cameras(
            context,
            books,
            dataset.images,
            dataset.labels,
            sensors=SENSORS,
            frames=config.input.bind[0],
            results=config.output.bind,
            fps=FPS,
            seed=drift.seed,
        )
        with closing(cameras), Display(f"recald: {dataset.title}", console) as display:
            observer = Observer(SENSORS, daemon, cameras, books, display, config.drift.threshold)
            drift_start = run_scenario(observer, drift, keep)
            display.event("SIGTERM to recald")
            exit_code, stop_seconds = daemon.stop()
    now = time.monotonic()
    stats = {sensor: books.stats(sensor, now) for sensor in SENSORS}
    swap = first_swap(stats[DRIFTING], drift_start)
    return Summary(
        drifting=DRIFTING,
        drift=str(drift),
        seed=drift.seed,
        stats=stats,
        superseded={sensor: observer.superseded(sensor) for sensor in SENSORS},
        seconds_to_recover=swap.at - drift_start if swap else None,
        swap_pause_seconds=observer.swap_pause(DRIFTING),
        missing_around_swap=books.unanswered_around(DRIFTING, swap.at, AROUND_SWAP_S) if swap else 0,
        digest_before=digest,
        digest_after=digest_file(folder.model),
        exit_code=exit_code,
        stop_seconds=stop_seconds,
        total_seconds=now - started,
    )


def run_scenario(observer: Observer, drift: Drift, keep: bool = False) -> float:
    """Start both cameras, let one drift, wait until the daemon has recovered; returns the time the drift began.

    keep: go on until Ctrl-C.
    """
    observer.cameras.start()
    if not observer.follow(CONNECT_TIMEOUT_S, until=lambda: all(observer.stats(s).answered for s in SENSORS)):
        raise DemoError(f"recald answered nothing for {CONNECT_TIMEOUT_S:g} s")
    observer.display.event(f"both cameras are well; the page is on {observer.daemon.page}")
    observer.follow(HEALTHY_S)
    drift_start = observer.monotonic()
    observer.cameras.drift(DRIFTING, drift)
    observer.display.event(f"{DRIFTING}: the camera drifts by {drift}")
    if observer.follow(RECOVERY_TIMEOUT_S, until=lambda: first_swap(observer.stats(DRIFTING), drift_start) is not None):
        observer.follow(RECOVERED_S)
    if keep:
        keep_running(observer)
    observer.cameras.stop()
    observer.update()
    return drift_start


def keep_running(observer: Observer) -> None:
    """Follow the daemon and the cameras until Ctrl-C, which ends the demo as planned."""
    observer.display.event(f"Ctrl-C ends the demo; the page is on {observer.daemon.page}")
    try:
        while True:
            observer.follow(UPDATE_INTERVAL_S)
    except KeyboardInterrupt:
        observer.display.event("Ctrl-C")


def first_swap(stats: SensorStats, since: float) -> ObservedSwap | None:
    return next((swap for swap in stats.swaps if swap.at >= since), None)


class Observer:
    """Follows the daemon and the cameras, and shows what they do. Raises the error that ends one of them early."""

    def __init__(
        self,
        sensors: Sequence[str],
        daemon: DaemonProcess,
        cameras: Cameras,
        books: Bookkeeping,
        display: Display,
        threshold: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.sensors, self.daemon, self.cameras, self.books = sensors, daemon, cameras, books
        self.display, self.threshold, self.monotonic = display, threshold, monotonic
        self.scrape = Scrape("")  # the newest
        self._last_values: dict[tuple[str, str], object] = {}
        self._history: dict[str, deque[float]] = {sensor: deque(maxlen=CURVE_POINTS) for sensor in sensors}
        self._next_point = monotonic()

    def follow(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Update the display for so long, or until the condition is true; return whether it became true."""
        deadline = self.monotonic() + seconds
        while not until():
            if self.monotonic() > deadline:
                return False
            self.update()
            time.sleep(UPDATE_INTERVAL_S)
        return True

    def update(self) -> None:
        """Read the metrics and the books once, and show them."""
        self.daemon.check()
        self.cameras.check()
        self.scrape = self.daemon.scrape() or self.scrape
        stats = {sensor: self.stats(sensor) for sensor in self.sensors}
        for sensor in self.sensors:
            self._show_events(sensor, stats[sensor])
        self._extend_curves(stats)
        self.display.update([self._view(sensor, stats[sensor]) for sensor in self.sensors])

    def stats(self, sensor: str) -> SensorStats:
        return self.books.stats(sensor, self.monotonic())

    def superseded(self, sensor: str) -> int:
        """Return the number of frames that the daemon dropped for a newer one."""
        return int(self.scrape.total("recald_frames_dropped_total", sensor=sensor, reason="superseded"))

    def swap_pause(self, sensor: str) -> float | None:
        """Return how long a swap kept frames waiting, s on average."""
        name = "recald_swap_pause_seconds"
        swaps = self.scrape.total(f"{name}_count", sensor=sensor)
        return self.scrape.total(f"{name}_sum", sensor=sensor) / swaps if swaps else None

    def _show_events(self, sensor: str, stats: SensorStats) -> None:
        alarm = self.scrape.total("recald_drift_alarm", sensor=sensor) > 0
        if self._changed(sensor, "alarm", alarm, initial=False):
            self.display.event(f"{sensor}: drift alarm" if alarm else f"{sensor}: the drift alarm is over")
        state = self.scrape.state(sensor)
        if self._changed(sensor, "state", state, initial=FACTORY) and state in STATE_TEXTS:
            self.display.event(f"{sensor}: {STATE_TEXTS[state]}")
        if self._changed(sensor, "version", stats.version, initial=FACTORY):
            lost, version = stats.swaps[-1].lost, short_version(stats.version)
            self.display.event(f"{sensor}: answers by homogenizer {version}, {lost} frames lost")

    def _changed(self, sensor: str, name: str, value: object, initial: object) -> bool:
        before = self._last_values.get((sensor, name), initial)
        self._last_values[sensor, name] = value
        return value != before

    def _extend_curves(self, stats: dict[str, SensorStats]) -> None:
        if self.monotonic() < self._next_point:
            return
        self._next_point += CURVE_INTERVAL_S
        for sensor in self.sensors:
            accuracy = stats[sensor].recent_accuracy
            if accuracy is not None:
                self._history[sensor].append(accuracy)

    def _view(self, sensor: str, stats: SensorStats) -> SensorView:
        return SensorView(
            sensor=sensor,
            drifted=sensor in self.cameras.drifts,
            rate=stats.rate,
            accuracy=stats.recent_accuracy,
            history=tuple(self._history[sensor]),
            drift_score=stats.header.get("drift_score"),
            threshold=self.threshold,
            state=self.scrape.state(sensor),
            progress=self.scrape.total("recald_calibration_progress_ratio", sensor=sensor),
            homogenizer=stats.version,
            swaps=len(stats.swaps),
        )
