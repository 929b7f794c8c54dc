"""The way of one frame: decoded, made the model's input, through ρ and Φ, published."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from daemon.metrics import Metrics
from daemon.model.served_model import ServedModel
from daemon.recalibration.sensor import Sensor
from daemon.serving.message import Frame, decode
from daemon.serving.results import Publisher


class FrameServer:
    """Answers frames, one at a time, on the frame thread."""

    def __init__(self, model: ServedModel, publisher: Publisher, metrics: Metrics):
        self._digest = model.digest
        self._preprocessor = model.preprocessor
        self._publisher = publisher
        self._metrics = metrics

    def serve(self, frame: Frame, sensor: Sensor) -> None:
        """Publish what Φ says, and offer the frame to the reservoir.

        Raises FrameError for what is no image, RuntimeError when a runner fails.
        """
        metrics, name = self._metrics, sensor.name
        metrics.frame_age_seconds.labels(name).observe(_age(frame))
        with self._stage(name, "decode"):
            image = decode(frame)
        with self._stage(name, "preprocess"):
            image = self._preprocessor.to_input_image(image)
            batch = self._preprocessor.normalise(image[np.newaxis])
        with self._stage(name, "infer"):
            began = time.perf_counter()
            output, version = sensor.path.infer(batch)
            sensor.latency_monitor.served(time.perf_counter() - began)
        with self._stage(name, "publish"):
            header = self._header(frame, sensor, output, version)
            self._publisher.send(name, header, output)
        metrics.end_to_end_seconds.labels(name).observe(_age(frame))
        metrics.frames_processed.labels(name).inc()
        sensor.frames += 1
        sensor.stall_detector.arrived(frame.received)
        if reason := sensor.reservoir.add(image, frame.received, header.get("label")):
            metrics.samples_rejected.labels(name, reason).inc()

    @contextmanager
    def _stage(self, sensor: str, stage: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self._metrics.stage_duration_seconds.labels(sensor, stage).observe(time.perf_counter() - began)

    def _header(self, frame: Frame, sensor: Sensor, output: np.ndarray, version: str) -> dict[str, Any]:
        header = {
            "seq": frame.seq,
            "timestamp": frame.timestamp,
            "homogenizer": version,
            "model": self._digest,
            "state": sensor.state_machine.state.value,
            "drift_score": sensor.drift_score,
            "latency_ms": 1e3 * (time.monotonic() - frame.received),
        }
        return header | _classification(output)


def _age(frame: Frame) -> float:
    return max(0.0, time.time() - frame.timestamp / 1e9)


def _classification(output: np.ndarray) -> dict[str, Any]:
    """label and confidence where the output is a classifier's, (1, K)."""
    if output.ndim != 2 or output.shape[1] < 2:
        return {}
    logits = output[0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    label = int(probabilities.argmax())
    return {"label": label, "confidence": float(probabilities[label] / probabilities.sum())}
