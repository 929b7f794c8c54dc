"""What the daemon adds to the bare model, idle, during a fit and across a swap, and whether a frame is lost."""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
import zmq
from rich.console import Console

from bench.report import percentiles, show
from daemon.config import load_config
from daemon.demo import material
from daemon.demo.service import Daemon, Folder, Network, export, free_port, write_config
from daemon.distort import Drift, parse_drift
from daemon.frame import build_frame
from daemon.results import parse_result
from daemon.simulate import open_camera, paced, wait_for_reader
from daemon.sockets import connect, open_socket
from deploy.backend import Runner, load_backend
from deploy.frozen import load_frozen

FPS = 30.0
SENSOR = "front"
FIT_FRAMES = 256
AROUND_SWAP_S = 1.0
SWAP_TIMEOUT_S = 300.0
DRIFT = "fixed-pattern=16,cross-talk=0.25,blur=0.7,exposure=-0.5"
SIZES = (32, 224)


class Answer(NamedTuple):
    sent: float  # s, perf_counter
    latency: float  # s, from the send call to the result being read
    homogenizer: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measured phase (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    digits = material.digits(0, Console(stderr=True))
    sizes = {f"{size}x{size}": _measure_size(digits, size, args.seconds) for size in SIZES}
    _table(sizes)
    return {"settings": {"fps": FPS, "backend": "onnx", "seconds": args.seconds, "drift": DRIFT}, "sizes": sizes}


def _measure_size(digits: material.Material, size: int, seconds: float) -> dict[str, Any]:
    """The digit network at this input size: its layers take any, and 224x224 costs 49 times as much."""
    images = np.stack([cv2.resize(i, (size, size), interpolation=cv2.INTER_CUBIC) for i in digits.images[:300]])
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as name, zmq.Context() as context:
        folder = Folder(Path(name))
        export_at(digits.network, folder.model, size)
        write_config(folder, (SENSOR,), free_port(), FIT_FRAMES)
        port = load_config(folder.config).metrics.port
        with bare_runner(folder.model) as runner, Daemon(folder.config, folder.log, port) as daemon:
            daemon.wait_until_serving()
            camera = Camera(context, folder, images)
            try:
                return _phases(camera, daemon, runner, images, folder, seconds, swaps=size == min(SIZES))
            finally:
                camera.close()
                daemon.stop()


def export_at(network: Network, output: Path, size: int) -> None:
    export(network, output, shape=f"3x{size}x{size}")


@contextmanager
def bare_runner(model: Path) -> Iterator[Runner]:
    """The same compiled model with the same threads, called without a daemon."""
    frozen = load_frozen(model)
    backend = load_backend("onnx")
    card = frozen.card.input
    example = torch.zeros(1, card.channels, card.height, card.width)
    runner = backend.load(backend.compile(frozen.module, example), threads=1)
    yield runner
    runner.close()


def _phases(
    camera: Camera, daemon: Daemon, runner: Runner, images: np.ndarray, folder: Folder, seconds: float, swaps: bool
) -> dict[str, Any]:
    bare_before = _bare(runner, images, seconds / 2)
    idle = camera.run_for(seconds)
    bare = bare_before + _bare(runner, images, seconds / 2)
    camera.drift = parse_drift(DRIFT, 0)
    camera.run_until(lambda: _state(daemon) == "fitting", SWAP_TIMEOUT_S)
    fitting = camera.run_until(lambda: _state(daemon) != "fitting", SWAP_TIMEOUT_S if swaps else seconds)
    around: list[Answer] = []
    if swaps:
        rest = camera.run_until(lambda: camera.homogenizer != "factory", SWAP_TIMEOUT_S)
        rest += camera.run_for(2 * AROUND_SWAP_S)
        swap_at = next((a.sent for a in rest if a.homogenizer != "factory"), None)
        around = [a for a in rest if swap_at is not None and abs(a.sent - swap_at) <= AROUND_SWAP_S]
    time.sleep(1.0)
    camera.listen(0.5)
    scrape = daemon.scrape()
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
        "frames": {
            "sent": camera.sent,
            "processed": int(scrape.total("recald_frames_processed_total", sensor=SENSOR)),
            "superseded": int(scrape.total("recald_frames_dropped_total", sensor=SENSOR, reason="superseded")),
            "lost": camera.sent
            - int(scrape.total("recald_frames_processed_total", sensor=SENSOR))
            - int(scrape.total("recald_frames_dropped_total", sensor=SENSOR)),
            "unanswered": camera.unanswered,
        },
        "swaps": int(swapped),
        "swap_pause_ms": 1e3 * scrape.total("recald_swap_pause_seconds_sum") / swapped if swapped else None,
    }


def _state(daemon: Daemon) -> str:
    scrape = daemon.scrape()
    return scrape.state(SENSOR) if scrape else "unknown"


def _bare(runner: Runner, images: np.ndarray, seconds: float) -> list[float]:
    """Call the model in a loop, as fast as it goes."""
    batch = np.ascontiguousarray(images[:1].transpose(0, 3, 1, 2).astype(np.float32) / 64 - 2)
    taken, end = [], time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        runner.run(batch)
        taken.append(time.perf_counter() - start)
    return taken


class Camera:
    """Sends raw frames at FPS from its own thread's schedule and times each until its result is read."""

    def __init__(self, context: zmq.Context, folder: Folder, images: np.ndarray):
        config = load_config(folder.config)
        self._results = open_socket(context, zmq.SUB)
        self._results.setsockopt(zmq.RCVHWM, 1000)
        self._results.setsockopt(zmq.SUBSCRIBE, b"")
        connect(self._results, config.output.bind)
        self._frames = open_camera(context, config.input.bind[0])
        wait_for_reader(self._frames, 5.0)
        self._images = images
        self._rng = np.random.default_rng(0)
        self._under_way: dict[int, float] = {}
        self.drift: Drift | None = None
        self.sent = 0
        self.homogenizer = "factory"
        self._answers: list[Answer] = []

    @property
    def unanswered(self) -> int:
        return len(self._under_way)

    def run_for(self, seconds: float) -> list[Answer]:
        return self.run_until(lambda: False, seconds)

    def run_until(self, done: Callable[[], bool], timeout: float) -> list[Answer]:
        """Send until `done` (asked twice a second, on a thread of its own) or the timeout; returns the answers."""
        self._answers = []
        stop = threading.Event()

        def watch() -> None:
            end = time.monotonic() + timeout
            while time.monotonic() < end and not done():
                time.sleep(min(0.5, max(0.0, end - time.monotonic())))
            stop.set()

        watcher = threading.Thread(target=watch)
        watcher.start()

        def wait(left: float) -> bool:
            self.listen(left)
            return stop.is_set()

        for _ in paced(FPS, wait):
            self._send()
        watcher.join()
        return self._answers

    def _send(self) -> None:
        image = self._images[int(self._rng.integers(len(self._images)))]
        if self.drift is not None:
            image = self.drift(image, self.sent)
        parts = build_frame(SENSOR, image, seq=self.sent, timestamp=time.time_ns())
        self._under_way[self.sent] = time.perf_counter()
        self._frames.send_multipart(parts, zmq.NOBLOCK)
        self.sent += 1

    def listen(self, seconds: float) -> None:
        """Read results until the time is over."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if self._results.poll(max(1, int(left * 1000))):
                now = time.perf_counter()
                _, header, _ = parse_result(self._results.recv_multipart())
                sent = self._under_way.pop(header["seq"])
                self.homogenizer = header["homogenizer"]
                self._answers.append(Answer(sent, now - sent, self.homogenizer))

    def close(self) -> None:
        self._frames.close()
        self._results.close()


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
