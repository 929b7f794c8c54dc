"""Which result a frame gets, and which frames are kept for checks and fits."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from daemon.frames.latency_monitor import MIN_LATENCY_FRAMES, LatencyMonitor
from daemon.frames.quality_filter import QualityFilter
from daemon.frames.reservoir import Reservoir
from daemon.frames.stall_detector import MIN_STALL_S, StallDetector
from daemon.levels import PixelValues
from daemon.metrics import Metrics
from daemon.recalibration.labelled import LabelledFrames
from daemon.serving.decoders import DecodedFrame
from daemon.serving.serve import FrameServer, classification
from deploy.path import InferenceError


class Scene:
    """One sensor and a model whose output is the class `label`, or an image where that is None. kind: on its card."""

    def __init__(self, label: int | None, kind: str = "logits") -> None:
        self.registry = CollectorRegistry()
        self.published: list[dict[str, Any]] = []
        self.output = np.zeros((1, 4, 4), np.float32) if label is None else np.eye(4, dtype=np.float32)[[label]]
        self.sensor: Any = SimpleNamespace(
            name="front",
            path=SimpleNamespace(infer=lambda batch: (self.output, "factory")),
            reservoir=Reservoir(20, window=10, quality_filter=QualityFilter()),
            state_machine=SimpleNamespace(state=SimpleNamespace(value="factory")),
            latency_monitor=LatencyMonitor(),
            stall_detector=StallDetector(),
            drift_score=1.0,
            pixel_values=PixelValues(),
            frames=0,
            labelled=LabelledFrames(),
        )
        preprocessor = SimpleNamespace(normalise=lambda images: images)
        model: Any = SimpleNamespace(
            digest="d" * 64,
            preprocessor=preprocessor,
            classes=["a", "b", "c", "d"],
            frozen=SimpleNamespace(output=kind, class_count=None if kind == "none" else 4),
        )
        publisher: Any = SimpleNamespace(send=lambda name, header, output: self.published.append(header))
        self.serving = FrameServer(model, publisher, Metrics(self.registry))

    def serve(self, image: np.ndarray) -> None:
        number = len(self.published)
        self.serving.serve(DecodedFrame("front", number, time.time_ns(), False, float(number), image), self.sensor)

    def rejected(self, reason: str) -> float | None:
        return self.registry.get_sample_value("recald_samples_rejected_total", {"sensor": "front", "reason": reason})


def picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        ([0.0, np.log(3.0)], "logits", {"label": 1, "confidence": 0.75}),
        ([-np.inf, 4.0], "logits", {"label": 1, "confidence": 1.0}),
        ([0.25, 0.75], "probabilities", {"label": 1, "confidence": 0.75}),
        ([0.25, 0.75], "none", {}),  # two measurements
        ([np.nan, 1.0], "logits", {}),
        ([np.nan, np.nan], "probabilities", {}),
        ([0.0, np.inf], "logits", {}),
        ([1.0], "logits", {}),
    ],
)
def test_label_and_confidence_are_those_that_the_output_supports(values, kind, expected):
    assert classification(np.array([values], np.float32), kind, None) == pytest.approx(expected)


@pytest.mark.parametrize(("label", "named"), [(2, {"label": 2, "class": "c"}), (None, {})])
def test_a_result_names_the_class_beside_its_label(label: int | None, named: dict[str, Any]):
    scene = Scene(label)
    scene.serve(picture(0))
    (header,) = scene.published
    assert {key: header[key] for key in ("label", "class") if key in header} == named


@pytest.mark.parametrize("label", [2, None])
def test_a_frame_is_kept_with_its_predicted_class_if_there_is_one(label: int | None, monkeypatch):
    scene, labels = Scene(label), []
    add = scene.sensor.reservoir.add
    monkeypatch.setattr(scene.sensor.reservoir, "add", lambda *given: labels.append(given[2]) or add(*given))
    for seed in range(3):
        scene.serve(picture(seed))
    assert scene.sensor.reservoir.collected == 3
    assert labels == [label] * 3
    assert [header.get("label") for header in scene.published] == [label] * 3


def test_a_frame_that_is_not_kept_is_served_and_counted_by_its_reason():
    scene = Scene(2)
    for image in [picture(0), picture(0), np.zeros((16, 16, 3), np.uint8)]:
        scene.serve(image)
    assert len(scene.published) == scene.sensor.frames == 3
    assert scene.sensor.reservoir.collected == 1
    assert scene.rejected("frozen") == scene.rejected("blank") == 1


def test_the_answer_is_remembered_with_what_was_in_front_of_the_network():
    scene = Scene(2)
    scene.serve(picture(0))
    scene.sensor.path.infer = lambda batch: (scene.output, "another")
    scene.serve(picture(1))
    results = scene.sensor.labelled.count([(0, 2), (1, 2), (2, 2)], "factory")
    assert results == {"right": 1, "wrong": 0, "unknown": 1, "outdated": 1, "repeated": 0}


def test_no_answer_of_a_network_that_is_no_classifier_is_remembered():
    scene = Scene(2, kind="none")
    scene.serve(picture(0))
    assert scene.sensor.labelled.count([(0, 2)], "factory")["unknown"] == 1


def test_the_latency_is_that_of_both_networks():
    scene = Scene(2)
    for seed in range(MIN_LATENCY_FRAMES):
        scene.serve(picture(seed))
    scene.sensor.latency_monitor.swapped(0.0)
    infer = scene.sensor.path.infer
    scene.sensor.path.infer = lambda batch: time.sleep(0.01) or infer(batch)
    for seed in range(MIN_LATENCY_FRAMES):
        assert not scene.sensor.latency_monitor.slower
        scene.serve(picture(seed))
    assert scene.sensor.latency_monitor.slower.startswith("a frame takes 1")


def test_only_a_served_frame_counts_as_arrived():
    scene = Scene(2)
    scene.serve(picture(0))
    assert (
        scene.sensor.stall_detector.silence(MIN_STALL_S) == 0
        and scene.sensor.stall_detector.silence(MIN_STALL_S + 1) == MIN_STALL_S + 1
    )
    scene.sensor.path.infer = lambda batch: (_ for _ in ()).throw(RuntimeError("no"))
    with pytest.raises(RuntimeError):
        scene.serve(picture(1))
    assert scene.sensor.stall_detector.silence(MIN_STALL_S + 1) == MIN_STALL_S + 1


def test_a_frame_is_published_once_whatever_breaks_afterwards():
    scene = Scene(2)
    scene.sensor.reservoir.add = lambda *given: (_ for _ in ()).throw(RuntimeError("a fault"))
    with pytest.raises(RuntimeError) as raised:
        scene.serve(picture(0))
    assert not isinstance(raised.value, InferenceError)  # that one alone is answered by serving the frame again
    assert len(scene.published) == 1


@pytest.mark.parametrize(("label", "kind", "counted"), [(2, "logits", 1.0), (2, "none", None), (None, "logits", 0.0)])
def test_a_served_frame_counts_for_the_class_that_the_model_named(label, kind, counted):
    scene = Scene(label, kind)
    scene.serve(np.zeros((8, 8, 3), np.uint8))
    series = {"sensor": "front", "label": "c"}
    assert scene.registry.get_sample_value("recald_predicted_frames_total", series) == counted
