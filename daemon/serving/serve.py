"""Serve one frame: normalise it, run ρ and Φ on it, publish the result, keep a copy for fits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from daemon.metrics import Metrics
from daemon.model.preprocess import Preprocessor
from daemon.model.served_model import ServedModel
from daemon.recalibration.sensor import Sensor
from daemon.serving.decoders import DecodedFrame, age, measured_stage
from daemon.serving.predicted_labels import PredictedLabels
from daemon.serving.results import Publisher
from deploy.model.card import OutputKind


class FrameServer:
    """Serves decoded frames, one at a time, on the frame thread."""

    def __init__(self, model: ServedModel, publisher: Publisher, metrics: Metrics):
        self._digest = model.digest
        self._classes, self._output_kind = model.classes, model.frozen.output
        self._preprocessor: Preprocessor = model.preprocessor
        self._publisher = publisher
        self._metrics = metrics
        self._predicted = PredictedLabels(metrics, model.frozen.class_count, model.classes)

    def serve(self, frame: DecodedFrame, sensor: Sensor) -> None:
        """Publish the model's output for this frame, and offer the frame to the reservoir.

        Raises InferenceError where a runner fails; nothing is published then, and the frame may be served again.
        """
        output, version = self._infer(frame, sensor)
        header = self._publish(frame, sensor, output, version)
        sensor.frames += 1
        self._predicted.count(sensor.name, header.get("label"))
        if self._output_kind != "none":
            sensor.labelled.answered(frame.seq, header.get("label"), version)
        sensor.stall_detector.arrived(frame.received)
        reason = sensor.reservoir.add(frame.image, frame.received, header.get("label"))
        if reason is not None:
            self._metrics.samples_rejected.labels(sensor.name, reason).inc()

    def _infer(self, frame: DecodedFrame, sensor: Sensor) -> tuple[np.ndarray, str]:
        with measured_stage(self._metrics, sensor.name, "infer"):
            batch = self._preprocessor.normalise(frame.image[np.newaxis])  # (1, C, h, w) float32
            began = time.perf_counter()
            output, version = sensor.path.infer(batch)  # deploy/path.py: ρ, then Φ
            sensor.latency_monitor.observe(time.perf_counter() - began)
        return output, version

    def _publish(self, frame: DecodedFrame, sensor: Sensor, output: np.ndarray, version: str) -> dict[str, Any]:
        with measured_stage(self._metrics, sensor.name, "publish"):
            header = self._header(frame, sensor, output, version)
            self._publisher.send(sensor.name, header, output)
        self._metrics.end_to_end_seconds.labels(sensor.name).observe(age(frame))
        self._metrics.frames_processed.labels(sensor.name).inc()
        return header

    def _header(self, frame: DecodedFrame, sensor: Sensor, output: np.ndarray, version: str) -> dict[str, Any]:
        header = {
            "seq": frame.seq,
            "timestamp": frame.timestamp,
            "homogenizer": version,
            "model": self._digest,
            "state": sensor.state_machine.state.value,
            "drift_score": sensor.drift_score,
            "latency_ms": 1e3 * (time.monotonic() - frame.received),
        }
        return header | classification(output, self._output_kind, self._classes)


def classification(output: np.ndarray, kind: OutputKind, classes: Sequence[str] | None) -> dict[str, Any]:
    """Return label, its class's name and confidence of a classifier's output (1, K).

    Nothing for an output of another kind or shape, and where the largest value is not finite.
    """
    if kind == "none" or output.ndim != 2 or output.shape[1] < 2 or not np.isfinite(output.max()):
        return {}
    values = output[0].astype(np.float64)
    label = int(values.argmax())
    name = {} if classes is None else {"class": classes[label]}  # the model was loaded, so there is one for each label
    confidence = values[label] if kind == "probabilities" else 1 / np.exp(values - values[label]).sum()
    return {"label": label} | name | {"confidence": float(confidence)}
