"""Run a daemon with the demo's digit network, at any input size, and a camera in front of it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import zmq
from rich.console import Console
from safetensors.torch import save_file

from bench.material.camera import SENSOR, Camera
from bench.material.light_network import light_network
from daemon.demo.datasets import Dataset, digits_dataset
from daemon.demo.processes import QUICK_ALARM, DaemonProcess, RunFolder, Scrape, export, free_port, write_config
from deploy.backends.protocol import Runner, load_backend
from deploy.model.frozen import load_frozen

PICTURES = 300  # held out of training
SIZE = 32  # pixels a side at which the network was trained; its layers take any size
DIGITS_SEED = 0


def digits() -> Dataset:
    """Return the demo's digits and their network, trained once."""
    return digits_dataset(DIGITS_SEED, Console(stderr=True))


def light_digits(weights: Path) -> Dataset:
    """Return the demo's digits with the light network, whose weights go into this file."""
    save_file(light_network().state_dict(), weights)
    material = digits()
    builder = f"{light_network.__module__}:{light_network.__name__}"
    return material._replace(network=material.network._replace(builder=builder, weights=weights))


def pictures(digits: Dataset, size: int) -> np.ndarray:
    """Return the first PICTURES digits enlarged to (PICTURES, size, size, 3) uint8."""
    shown = digits.images[:PICTURES]
    return np.stack([cv2.resize(i, (size, size), interpolation=cv2.INTER_CUBIC) for i in shown])


@dataclass(frozen=True)
class DaemonRun:
    """A daemon that serves one sensor, and its camera."""

    folder: RunFolder
    daemon: DaemonProcess
    camera: Camera

    def scrape(self) -> Scrape:
        """Read the daemon's metrics."""
        metrics = self.daemon.scrape()
        assert metrics is not None, "the daemon answered before"
        return metrics

    def frame_counts(self) -> dict[str, int]:
        """Count all frames by what became of them, as the daemon counts.

        `lost` frames were neither answered nor replaced by a newer one.
        """
        metrics, sent = self.scrape(), self.camera.sent
        processed = int(metrics.total("recald_frames_processed_total", sensor=SENSOR))
        superseded = int(metrics.total("recald_frames_dropped_total", sensor=SENSOR, reason="superseded"))
        return {
            "sent": sent,
            "processed": processed,
            "superseded": superseded,
            "lost": sent - processed - superseded,
            "unanswered": self.camera.unanswered,
        }


@contextmanager
def daemon_run(
    digits: Dataset,
    size: int,
    fit_frames: int,
    command: Sequence[str] | None = None,
    drift: Mapping[str, Any] = QUICK_ALARM,
    **recalibrate: Any,
) -> Iterator[DaemonRun]:
    """Export the network for this input size and serve it by `recald run`, or by `command`.

    `drift` and `recalibrate` hold further keys of these sections of the configuration.
    """
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as name, zmq.Context() as context:
        folder = RunFolder(Path(name))
        export(digits.network, folder.model, shape=f"3x{size}x{size}")
        port = free_port()
        write_config(folder, (SENSOR,), port, fit_frames, drift, **recalibrate)
        with DaemonProcess(folder.config, folder.log, port, command) as daemon:
            daemon.wait_until_serving()
            camera = Camera(context, folder, pictures(digits, size))
            try:
                yield DaemonRun(folder, daemon, camera)
            finally:
                camera.close()
                daemon.stop()


@contextmanager
def bare_runner(model: Path) -> Iterator[Runner]:
    """Open the same compiled model with the same threads, to be called without a daemon."""
    frozen = load_frozen(model)
    backend = load_backend("onnx")
    example = torch.zeros(1, *frozen.card.input.shape)
    runner = backend.load(backend.compile(frozen.module, example), threads=1)
    yield runner
    runner.close()
