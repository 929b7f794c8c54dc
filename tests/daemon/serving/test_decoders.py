"""A frame that is slow to decode costs its own sensor, and no other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from daemon.levels import WHOLE_WORDS
from daemon.metrics import Metrics
from daemon.serving.decoders import MAX_DECODE_S, REST_RATIO, DecodedFrame, Decoder, Decoders, FramePreparer
from daemon.serving.message import Frame, FrameError, build_frame, parse_frame
from daemon.serving.refusals import Refusals

WAIT = 10.0  # seconds; only a failure takes as long
IMAGE = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)


def checked(sensor: str = "front", seq: int = 0, image: np.ndarray = IMAGE, encoding: str = "rgb8") -> Frame:
    now = time.time_ns()
    parts = build_frame(sensor, image, seq=seq, timestamp=now, encoding=encoding)
    return parse_frame(parts, sensors={"front", "rear"}, now_ns=now, received=1.5, max_age=5.0)


class Scene:
    """Decoders of two sensors; the frames of "front" wait for `gate` where one is set."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        metrics = Metrics(self.registry)
        preprocessor: Any = SimpleNamespace(to_input_image=lambda image: image)
        self._prepare = FramePreparer(preprocessor, {"front": WHOLE_WORDS, "rear": WHOLE_WORDS}, metrics)
        self.refusals = Refusals(metrics)
        self.gate: threading.Event | None = None
        self.entered = threading.Event()
        self.decoders = Decoders(("front", "rear"), self.prepare, self.refusals.add, self.refusals.superseded)

    def prepare(self, frame: Frame) -> DecodedFrame:
        self.entered.set()
        if self.gate is not None and frame.sensor == "front":
            assert self.gate.wait(WAIT)
        return self._prepare(frame)

    def dropped(self, sensor: str, reason: str) -> float:
        labels = {"sensor": sensor, "reason": reason}
        return self.registry.get_sample_value("recald_frames_dropped_total", labels) or 0


@pytest.fixture
def scene() -> Iterator[Scene]:
    scene = Scene()
    scene.decoders.start()
    yield scene
    if scene.gate is not None:
        scene.gate.set()
    scene.decoders.close()


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)


@pytest.mark.parametrize("encoding", ["rgb8", "png"])
def test_a_frame_comes_out_decoded_with_what_its_result_repeats(scene: Scene, encoding: str):
    scene.decoders.put(checked("rear", 7, encoding=encoding))
    decoded = scene.decoders.take(WAIT)
    assert decoded is not None
    assert (decoded.sensor, decoded.seq, decoded.hold, decoded.received) == ("rear", 7, False, 1.5)
    np.testing.assert_array_equal(decoded.image, IMAGE)


def test_a_sensor_whose_frame_takes_long_delays_no_other(scene: Scene):
    scene.gate = threading.Event()
    scene.decoders.put(checked("front", 0))
    for seq in range(3):
        scene.decoders.put(checked("rear", seq))
        decoded = scene.decoders.take(WAIT)
        assert decoded is not None and (decoded.sensor, decoded.seq) == ("rear", seq)
    scene.gate.set()
    decoded = scene.decoders.take(WAIT)
    assert decoded is not None and decoded.sensor == "front"


def test_of_the_frames_that_wait_for_a_slow_one_the_newest_is_decoded(scene: Scene):
    scene.gate = threading.Event()
    scene.decoders.put(checked("front", 0))
    assert scene.entered.wait(WAIT)
    eventually(lambda: scene.decoders._decoders["front"]._waiting.take(0) is None)
    gave_way = [scene.decoders.put(checked("front", seq)) for seq in range(1, 6)]
    assert gave_way == [False, True, True, True, True]
    assert scene.dropped("front", "superseded") == 4
    scene.gate.set()
    eventually(lambda: (decoded := scene.decoders.take(WAIT)) is not None and decoded.seq == 5)


def test_what_is_no_image_is_refused_and_the_next_frame_decoded(scene: Scene):
    whole = checked("front", 0, encoding="png")
    broken = Frame(**{name: getattr(whole, name) for name in Frame.__slots__} | {"payload": b"no image"})
    scene.decoders.put(broken)
    eventually(lambda: scene.dropped("front", "decode") == 1)
    scene.decoders.put(checked("front", 1))
    decoded = scene.decoders.take(WAIT)
    assert decoded is not None and decoded.seq == 1


def decode_taking(took: float, error: FrameError | None = None) -> tuple[list[int], list[str], float]:
    """Decode a frame that takes so long; return the frames delivered, the reasons refused, and the rest after it."""
    times = iter([0.0, took, took])
    delivered: list[int] = []
    refused: list[str] = []

    def prepare(frame: Frame) -> Any:
        if error is not None:
            next(times)
            raise error
        return frame

    decoder = Decoder(
        "front",
        prepare,
        lambda frame: delivered.append(frame.seq),
        lambda error: refused.append(error.reason),
        lambda sensor: None,
        lambda: next(times),
    )
    rests: list[float] = []
    decoder._stopping.wait = lambda timeout=None: rests.append(timeout) or False  # type: ignore[method-assign]
    decoder.decode(checked(seq=3))
    return delivered, refused, sum(rests)


def test_a_frame_that_took_too_long_is_dropped_and_its_sensor_rests():
    assert decode_taking(0.9 * MAX_DECODE_S) == ([3], [], 0.0)
    assert decode_taking(2 * MAX_DECODE_S) == ([], ["slow"], 2 * MAX_DECODE_S * REST_RATIO)


def test_a_bad_frame_that_took_long_is_refused_once_and_its_sensor_rests():
    error = FrameError("decode", "no image", "front")
    assert decode_taking(2 * MAX_DECODE_S, error) == ([], ["decode"], 2 * MAX_DECODE_S * REST_RATIO)


def largest_gap_during(work: Callable[[], object]) -> float:
    """Return the longest time (s) that another thread of Python had to wait while `work` ran."""
    stop, gaps = threading.Event(), [0.0]

    def tick() -> None:
        last = time.perf_counter()
        while not stop.is_set():
            time.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    thread = threading.Thread(target=tick)
    thread.start()
    work()
    stop.set()
    thread.join()
    return max(gaps)


def test_decoding_lets_other_threads_run():
    """A JPEG of 60 MiB of coded pixels kept Python's lock for 0.4 s while its end was looked for."""
    jpeg = cv2.imencode(".jpeg", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    padded = jpeg[:-2] + bytes(60 << 20) + jpeg[-2:]
    now = time.time_ns()
    header = build_frame("front", np.zeros((8, 8, 3), np.uint8), seq=0, timestamp=now, encoding="jpeg")[1]
    frame = parse_frame([b"front/", header, padded], sensors={"front"}, now_ns=now, received=0.0, max_age=5.0)
    scene = Scene()
    took = []

    def work() -> None:
        began = time.perf_counter()
        try:
            scene.prepare(frame)
        except FrameError:
            pass
        took.append(time.perf_counter() - began)

    gaps = []
    while not gaps or (gaps[-1] >= 0.5 * took[-1] and len(gaps) < 20):  # other processes cause gaps, too
        gaps.append(largest_gap_during(work))
    assert gaps[-1] < 0.5 * took[-1], (gaps, took)
