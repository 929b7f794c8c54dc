"""Serve one frame: decode it, preprocess it, run ρ and Φ on it, publish the result, keep a copy for fits."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from daemon.metrics import Metrics
from daemon.model.preprocess import Preprocessor
from daemon.model.served_model import ServedModel
from daemon.recalibration.sensor import Sensor
from daemon.serving.message import Frame, decode
from daemon.serving.results import Publisher


class FrameServer:
    """Serves frames, one at a time, on the frame thread."""

    def __init__(self, model: ServedModel, publisher: Publisher, metrics: Metrics):
        self._digest = model.digest
        self._classes = model.classes
        self._preprocessor: Preprocessor = model.preprocessor
        self._publisher = publisher
        self._metrics = metrics

    def serve(self, frame: Frame, sensor: Sensor) -> None:
        """Publish the model's output for this frame, and offer the frame to the reservoir.

        Raises FrameError where the payload is no image, RuntimeError where a runner fails.
        """
        metrics, name = self._metrics, sensor.name
        metrics.frame_age_seconds.labels(name).observe(_age(frame))
        with self._stage(name, "decode"):
            image = decode(frame, sensor.pixel_values)
        with self._stage(name, "preprocess"):
            image = self._preprocessor.to_input_image(image)  # (h, w, C), in its own depth
            batch = self._preprocessor.normalise(image[np.newaxis])  # (1, C, h, w) float32
        with self._stage(name, "infer"):
            began = time.perf_counter()
            output, version = sensor.path.infer(batch)  # deploy/path.py: ρ, then Φ
            sensor.latency_monitor.observe(time.perf_counter() - began)
        with self._stage(name, "publish"):
            header = self._header(frame, sensor, output, version)
            self._publisher.send(name, header, output)
        metrics.end_to_end_seconds.labels(name).observe(_age(frame))
        metrics.frames_processed.labels(name).inc()
        sensor.frames += 1
        sensor.stall_detector.arrived(frame.received)
        reason = sensor.reservoir.add(image, frame.received, header.get("label"))
        if reason is not None:
            metrics.samples_rejected.labels(name, reason).inc()

    @contextmanager
    def _stage(self, sensor: str, stage: str) -> Iterator[None]:
        """Measure the duration of one stage; a stage that raises is not counted."""
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
        return header | _classification(output, self._classes)


def _classification(output: np.ndarray, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return label, its class's name and confidence of a classifier's output, logits (1, K); else nothing."""
    if output.ndim != 2 or output.shape[1] < 2:
        return {}
    logits = output[0].astype(np.float64)
    probabilities = np.exp(logits - logits.max())
    label = int(probabilities.argmax())
    name = {} if classes is None else {"class": classes[label]}  # the model was loaded, so there is one for each label
    return {"label": label} | name | {"confidence": float(probabilities[label] / probabilities.sum())}


def _age(frame: Frame) -> float:
    """Return the time since acquisition, s; 0 where the camera's clock is ahead."""
    return max(0.0, time.time() - frame.timestamp / 1e9)
