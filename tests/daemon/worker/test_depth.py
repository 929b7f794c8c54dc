"""A detector of more than 8 bits: none of its values is lost on the way to ρ, in front of the model and in a fit."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from prometheus_client import CollectorRegistry
from synthetic import images, normalised

from calibrate.search.best_start import CORRECTIONS
from daemon.frames.latency_monitor import LatencyMonitor
from daemon.frames.quality_filter import QualityFilter
from daemon.frames.reservoir import Reservoir
from daemon.frames.stall_detector import StallDetector
from daemon.levels import PixelValues
from daemon.metrics import Metrics
from daemon.model.preprocess import Preprocessor
from daemon.serving.decoders import FramePreparer
from daemon.serving.message import build_frame, parse_frame
from daemon.serving.serve import FrameServer
from daemon.worker.context import WorkerContext
from daemon.worker.fit_job import FitJob
from deploy.model.card import InputCard, ModelCard, Normalisation
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import FACTORY, ArtefactStore

ALL_OF_12_BITS = np.random.default_rng(0).permutation(4096).astype(np.uint16).reshape(64, 64)
FRAMES, WINDOW = 128, 64
JOB = {"job": "recalibrate", "sensor": "front", "active": FACTORY, "withdrawn": [], "trigger": "drift", "recall": False}
JOB |= {"band": 1.6, "until": 0.0, "seed": 0, "refused": {}, "keep": {"frames": 0, "mib": 1}}
JOB |= {"corrections": CORRECTIONS}


def card(channels: int, side: int) -> ModelCard:
    normalisation = Normalisation(mean=[0.5] * channels, std=[0.25] * channels)
    shape = InputCard(channels=channels, height=side, width=side)
    parts: dict[str, Any] = {"input": shape, "normalisation": normalisation, "classes": None, "exported": {}}
    return ModelCard(v=1, name="test", sha256="0" * 64, **parts)


class Served:
    """The way of a frame, with a network that only notes what reaches ρ."""

    def __init__(self, card: ModelCard, values: PixelValues):
        self.batches: list[np.ndarray] = []
        preprocessor, metrics = Preprocessor(card), Metrics(CollectorRegistry())
        frozen = SimpleNamespace(output="none", class_count=None)
        model: Any = SimpleNamespace(digest="d" * 64, classes=None, preprocessor=preprocessor, frozen=frozen)
        self.sensor: Any = SimpleNamespace(
            name="front",
            path=SimpleNamespace(infer=self._infer),
            reservoir=Reservoir(FRAMES + WINDOW, window=WINDOW, quality_filter=QualityFilter()),
            state_machine=SimpleNamespace(state=SimpleNamespace(value="factory")),
            latency_monitor=LatencyMonitor(),
            stall_detector=StallDetector(),
            drift_score=1.0,
            frames=0,
        )
        publisher: Any = SimpleNamespace(send=lambda *_: None)
        self._prepare = FramePreparer(preprocessor, {"front": values}, metrics)
        self._server = FrameServer(model, publisher, metrics)

    def _infer(self, batch: np.ndarray) -> tuple[np.ndarray, str]:
        self.batches.append(batch)
        return np.zeros((1, 3, 3)), "factory"

    def serve(self, image: np.ndarray, encoding: str) -> np.ndarray:
        """Return what reached ρ."""
        number, now = len(self.batches), time.time_ns()
        parts = build_frame("front", image, seq=number, timestamp=now, encoding=encoding)
        frame = parse_frame(parts, sensors={"front"}, now_ns=now, received=float(number), max_age=5.0)
        self._server.serve(self._prepare(frame), self.sensor)
        return self.batches[-1]


@pytest.mark.parametrize("values", [PixelValues(), PixelValues(bits=12), PixelValues(bits=12, inverted=True)])
def test_every_value_of_a_detector_reaches_the_homogenizer_and_the_reservoir(values: PixelValues):
    served = Served(card(1, 64), values)
    batch = served.serve(ALL_OF_12_BITS, "mono16")
    assert len(np.unique(batch)) == 4096
    for (stored,) in (served.sensor.reservoir.latest(1), served.sensor.reservoir.sample(1)):
        assert stored.dtype == np.uint16 and len(np.unique(stored)) == 4096
    black, white = np.sort([batch.min(), batch.max()])
    assert black == -2 and white == pytest.approx(2 if values.bits == 12 else -2 + 4 * 4095 / 65535, abs=1e-4)
    assert (batch.flat[ALL_OF_12_BITS.argmax()] == black) is np.bool_(values.inverted)


def test_floats_reach_the_homogenizer_as_they_are():
    served = Served(card(1, 64), PixelValues())
    image = np.random.default_rng(0).random((64, 64)).astype(np.float32)
    batch = served.serve(image, "32FC1")
    np.testing.assert_allclose(batch[0, 0], (image - 0.5) / 0.25, atol=1e-6)
    assert served.sensor.reservoir.latest(1)[0].dtype == np.float32


def detector(pictures: np.ndarray, seed: int) -> np.ndarray:
    """The scenes of pictures (n, h, w, 3) uint8 as a detector of 12 bits sees them: 0..4095 in words of 16 bits."""
    finer = np.random.default_rng(seed).integers(0, 16, pictures.shape, np.uint16)
    return pictures.astype(np.uint16) * 16 + finer


def test_a_fit_that_must_multiply_by_16_sees_every_value_and_does(tiny_model: Path, tmp_path: Path):
    """12 bits in words of 16, and nobody said so: all pictures have one sixteenth of their light."""
    served = Served(card(3, 16), PixelValues())
    for image in detector(images(FRAMES + WINDOW, 5), 0):
        served.serve(image, "rgb16")
    worker = WorkerContext(load_frozen(tiny_model), "eager", ArtefactStore(tmp_path / "state"))
    collected = np.stack(served.sensor.reservoir.sample(FRAMES))  # as the worker receives them
    assert len(collected) == FRAMES
    assert len(np.unique(worker.frames(collected))) > 3000  # 17 where frames are rounded to 8 bits
    answer = FitJob(worker, JOB, collected, lambda message: None).run()
    assert answer["result"] == "accepted", answer
    homogenizer = worker.homogenizer(answer["version"])
    assert homogenizer is not None
    scenes = images(256, 9)
    with torch.no_grad():
        restored, clean = homogenizer(worker.frames(detector(scenes, 1))), normalised(scenes)
    gain = float(((restored - restored.mean()) * (clean - clean.mean())).mean() / clean.var())
    assert 0.9 < gain < 1.1
    assert float((restored - clean).abs().mean()) < 0.2  # in deviations of the pixels
