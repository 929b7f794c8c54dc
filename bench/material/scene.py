"""What benches of a running daemon share: the demo's digit network at any input size, and a camera before it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import zmq
from rich.console import Console

from bench.material.camera import SENSOR, Camera
from daemon.demo import material
from daemon.demo.service import Daemon, Folder, export, free_port, write_config
from deploy.backends.protocol import Runner, load_backend
from deploy.model.frozen import load_frozen

PICTURES = 300  # held out of training
SIZE = 32  # that the network was trained at; its layers take any


def digits() -> material.Material:
    return material.digits(0, Console(stderr=True))


def pictures(digits: material.Material, size: int) -> np.ndarray:
    """(PICTURES, size, size, 3) uint8."""
    shown = digits.images[:PICTURES]
    return np.stack([cv2.resize(i, (size, size), interpolation=cv2.INTER_CUBIC) for i in shown])


@dataclass(frozen=True)
class Scene:
    """A daemon that serves one sensor, and its camera."""

    folder: Folder
    daemon: Daemon
    camera: Camera


@contextmanager
def scene(
    digits: material.Material, size: int, fit_frames: int, command: Sequence[str] | None = None, **recalibrate: Any
) -> Iterator[Scene]:
    """Export the network for this input size and serve it, by `recald run` or `command`."""
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as name, zmq.Context() as context:
        folder = Folder(Path(name))
        export(digits.network, folder.model, shape=f"3x{size}x{size}")
        port = free_port()
        write_config(folder, (SENSOR,), port, fit_frames, **recalibrate)
        with Daemon(folder.config, folder.log, port, command) as daemon:
            daemon.wait_until_serving()
            camera = Camera(context, folder, pictures(digits, size))
            try:
                yield Scene(folder, daemon, camera)
            finally:
                camera.close()
                daemon.stop()


@contextmanager
def bare_runner(model: Path) -> Iterator[Runner]:
    """The same compiled model with the same threads, called without a daemon."""
    frozen = load_frozen(model)
    backend = load_backend("onnx")
    example = torch.zeros(1, *frozen.card.input.shape)
    runner = backend.load(backend.compile(frozen.module, example), threads=1)
    yield runner
    runner.close()


def account(scene: Scene) -> dict[str, int]:
    """Where all frames went, by the daemon's own count: `lost` were neither answered nor followed by a newer one."""
    scrape, sent = scene.daemon.scrape(), scene.camera.sent
    assert scrape is not None
    processed = int(scrape.total("recald_frames_processed_total", sensor=SENSOR))
    superseded = int(scrape.total("recald_frames_dropped_total", sensor=SENSOR, reason="superseded"))
    return {
        "sent": sent,
        "processed": processed,
        "superseded": superseded,
        "lost": sent - processed - superseded,
        "unanswered": scene.camera.unanswered,
    }
