"""Decoding away from the frame thread: a thread for each sensor, so that a slow frame delays its own sensor alone.

A message decides how long its frame takes to decode, and any sender can choose one that takes a second. OpenCV and
NumPy release Python's lock while they work, so the frame thread serves the other sensors meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from daemon.levels import PixelValues
from daemon.metrics import Metrics
from daemon.model.preprocess import Preprocessor
from daemon.serving.message import Frame, FrameError, decode
from daemon.serving.slots import NewestFrames

# Of one frame, decoded and resized. A JPEG of 25 megapixels takes 0.2 s on a PC; at 1 s a frame is of little use.
MAX_DECODE_S = 1.0
REST_RATIO = 3.0  # rest to decoding after a frame over the limit: such frames take a quarter of one core, at most
DECODER_POLL_S = 0.1  # the longest time that close() waits for an idle thread
CLOSE_TIMEOUT_S = 1.0  # for a thread amid a frame: it is left behind, as it cannot be stopped


@dataclass(frozen=True, slots=True)
class DecodedFrame:
    """A frame that can be served: what the result repeats of its header, and its image."""

    sensor: str
    seq: int
    timestamp: int  # acquisition, ns since the epoch
    hold: bool  # the sender asks for no swap now
    received: float  # monotonic clock, s
    image: np.ndarray  # (h, w, C) of the network's input size, in the camera's depth


Prepare = Callable[[Frame], DecodedFrame]


class Decoders:
    """Takes checked frames on one side and gives decoded ones on the other; in between, only the newest wait."""

    def __init__(
        self,
        sensors: Iterable[str],
        prepare: Prepare,
        refuse: Callable[[FrameError], None],
        superseded: Callable[[str], None],
    ):
        """prepare: decodes one frame; it raises FrameError. refuse: called with the error of each refused frame."""
        self._decoded: NewestFrames[DecodedFrame] = NewestFrames(superseded)
        deliver = self._decoded.put
        self._decoders = {sensor: Decoder(sensor, prepare, deliver, refuse, superseded) for sensor in sensors}

    def start(self) -> None:
        """Start the threads."""
        for decoder in self._decoders.values():
            decoder.start()

    def put(self, frame: Frame) -> bool:
        """Hand over a checked frame, at once; return whether an older one that waited gave way."""
        return self._decoders[frame.sensor].put(frame)

    def take(self, timeout: float) -> DecodedFrame | None:
        """Return the decoded frame that has waited longest; None where none is ready within `timeout` s."""
        return self._decoded.take(timeout)

    def close(self) -> None:
        """Stop the threads."""
        for decoder in self._decoders.values():
            decoder.stop()
        for decoder in self._decoders.values():
            decoder.join()


class Decoder:
    """Decodes the frames of one sensor on a thread of its own."""

    def __init__(
        self,
        sensor: str,
        prepare: Prepare,
        deliver: Callable[[DecodedFrame], bool],
        refuse: Callable[[FrameError], None],
        superseded: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ):
        """deliver: called with each decoded frame, on the thread. clock: monotonic, s."""
        self._sensor = sensor
        self._prepare = prepare
        self._deliver = deliver
        self._refuse = refuse
        self._clock = clock
        self._waiting: NewestFrames[Frame] = NewestFrames(superseded)
        self.put = self._waiting.put
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"decode-{sensor}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let the thread end after the frame that it decodes."""
        self._stopping.set()

    def join(self) -> None:
        if self._thread.is_alive():
            self._thread.join(CLOSE_TIMEOUT_S)

    def _run(self) -> None:
        while not self._stopping.is_set():
            frame = self._waiting.take(DECODER_POLL_S)
            if frame is not None:
                self.decode(frame)

    def decode(self, frame: Frame) -> None:
        """Decode one frame and deliver it; refuse it where that cannot be done, or took too long."""
        began = self._clock()
        try:
            decoded = self._prepare(frame)
            _check_time(frame, self._clock() - began)
            self._deliver(decoded)
        except FrameError as error:
            self._refuse(error)
        took = self._clock() - began
        if took > MAX_DECODE_S:
            self._stopping.wait(REST_RATIO * took)


def _check_time(frame: Frame, took: float) -> None:
    if took > MAX_DECODE_S:
        message = f"{frame.width} x {frame.height} pixels took {took:.1f} s to decode, at most {MAX_DECODE_S:g} s"
        raise FrameError.of(frame, "slow", message)


class FramePreparer:
    """Decodes and resizes frames. Any thread may call it."""

    def __init__(self, preprocessor: Preprocessor, values: Mapping[str, PixelValues], metrics: Metrics):
        """values: what the pixel values of each sensor mean."""
        self._preprocessor = preprocessor
        self._values = values
        self._metrics = metrics

    def __call__(self, frame: Frame) -> DecodedFrame:
        """Return the decoded frame. Raises FrameError where the payload is no image."""
        self._metrics.frame_age_seconds.labels(frame.sensor).observe(age(frame))
        with measured_stage(self._metrics, frame.sensor, "decode"):
            image = decode(frame, self._values[frame.sensor])
        with measured_stage(self._metrics, frame.sensor, "preprocess"):
            image = self._preprocessor.to_input_image(image)
        return DecodedFrame(frame.sensor, frame.seq, frame.timestamp, frame.hold, frame.received, image)


@contextmanager
def measured_stage(metrics: Metrics, sensor: str, stage: str) -> Iterator[None]:
    """Measure the duration of one stage; a stage that raises is not counted."""
    began = time.perf_counter()
    yield
    metrics.stage_duration_seconds.labels(sensor, stage).observe(time.perf_counter() - began)


def age(frame: Frame | DecodedFrame) -> float:
    """Return the time since acquisition, s; 0 where the camera's clock is ahead."""
    return max(0.0, time.time() - frame.timestamp / 1e9)
