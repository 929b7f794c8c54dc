"""Copies of the pixels between the socket and the model's input, and the time that decode and preprocess take."""

from __future__ import annotations

import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any

import cv2
import numpy as np
import zmq

from bench.intake.readers import IntakeRun, running_intake, take_frame
from bench.intake.sender import SENSOR
from bench.report import percentiles
from daemon.model.preprocess import Preprocessor
from daemon.serving.message import Frame, build_frame, decode, parse_frame
from daemon.serving.pixels import COMPRESSED_ENCODINGS, RAW_LAYOUTS
from deploy.model.card import InputCard, ModelCard, Normalisation

MODEL_SIDE = 224
SIZES = ((1920, 1080), (640, 480))
TIMED_ENCODINGS = ("rgb8", "bgr8", "mono8", "mono16", "32FC3", "jpeg", "png")
# Copies that cannot be avoided, with the reason that the table gives.
NEEDED = dict.fromkeys(COMPRESSED_ENCODINGS, "the decoded picture")
NEEDED |= {name: "clipped before it is averaged" for name in RAW_LAYOUTS if name.startswith("32F")}
NEEDED |= {name: "converted to RGB" for name, layout in RAW_LAYOUTS.items() if layout.conversion}


def measure_copies() -> list[dict[str, Any]]:
    """Count the copies of one 1080p frame of each encoding, from the socket to the input of a model."""
    prepare, (width, height) = _preprocessor(), SIZES[0]
    with tempfile.TemporaryDirectory(prefix="recald-bench-", dir="/tmp") as folder, zmq.Context() as context:
        with running_intake(pattern="pull", bind=[f"ipc://{folder}/frames"]) as run:
            with context.socket(zmq.PUSH) as camera:
                camera.connect(run.intake.endpoints[0])
                return [
                    _copies(e, _message(e, width, height), camera, run, prepare)
                    for e in [*RAW_LAYOUTS, *sorted(COMPRESSED_ENCODINGS)]
                ]


def _copies(
    encoding: str, parts: list[bytes], camera: zmq.Socket[bytes], run: IntakeRun, prepare: Preprocessor
) -> dict[str, Any]:
    width, height = SIZES[0]
    tracemalloc.start()
    try:
        camera.send_multipart(parts, copy=False)
        frame = take_frame(run)
        received = tracemalloc.get_traced_memory()[1]  # the peak until now, of all threads
        buffers = large_buffers(lambda: _to_input(frame, prepare), width * height)
    finally:
        tracemalloc.stop()
    return {
        "encoding": encoding,
        "receiver": int(received >= width * height),
        "pixels": len(buffers),
        "megabytes": sum(buffers) / 1e6,
        "needed": int(encoding in NEEDED),
        "why": NEEDED.get(encoding, ""),
    }


def large_buffers(call: Callable[[], object], min_bytes: int) -> list[int]:
    """Return the bytes of each allocation of at least `min_bytes` that `call` makes in this thread.

    Reads the traced memory whenever a function is entered or left; numpy and OpenCV report their arrays.
    """
    found: list[int] = []
    held = tracemalloc.get_traced_memory()[0]

    def check(frame: FrameType, event: str, argument: object) -> None:
        nonlocal held
        now, peak = tracemalloc.get_traced_memory()
        if peak - held >= min_bytes:
            found.append(peak - held)
        held = now
        tracemalloc.reset_peak()

    tracemalloc.reset_peak()
    sys.setprofile(check)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


def measure_cost(seconds: float) -> list[dict[str, Any]]:
    """Time decode and preprocess of one frame of each encoding, in turns, for `seconds` each."""
    rows = []
    for width, height in SIZES:
        frames = {encoding: _frame(encoding, width, height) for encoding in TIMED_ENCODINGS}
        times = _times(frames, _preprocessor(), seconds * len(frames))
        for encoding, (decoding, preparing) in times.items():
            stages = {"decode": percentiles(decoding), "preprocess": percentiles(preparing)}
            rows.append({"size": f"{width}x{height}", "encoding": encoding, **stages})
    return rows


def _times(
    frames: dict[str, Frame], prepare: Preprocessor, seconds: float
) -> dict[str, tuple[list[float], list[float]]]:
    times: dict[str, tuple[list[float], list[float]]] = {encoding: ([], []) for encoding in frames}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for encoding, frame in frames.items():
            began = time.perf_counter()
            image = decode(frame)
            decoded = time.perf_counter()
            prepare.normalise(prepare.to_input_image(image)[np.newaxis])
            times[encoding][0].append(decoded - began)
            times[encoding][1].append(time.perf_counter() - decoded)
    return times


def _to_input(frame: Frame, prepare: Preprocessor) -> np.ndarray:
    return prepare.normalise(prepare.to_input_image(decode(frame))[np.newaxis])


def _preprocessor() -> Preprocessor:
    return Preprocessor(
        ModelCard(
            v=1,
            name="bench",
            sha256="0" * 64,
            input=InputCard(channels=3, height=MODEL_SIDE, width=MODEL_SIDE),
            normalisation=Normalisation(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
            classes=None,
            exported={},
        )
    )


def _frame(encoding: str, width: int, height: int) -> Frame:
    parts, now_ns = _message(encoding, width, height), time.time_ns()
    return parse_frame(parts, sensors={SENSOR}, now_ns=now_ns, received=time.monotonic(), max_age=1.0)


def _message(encoding: str, width: int, height: int) -> list[bytes]:
    image = _picture(width, height)
    if encoding in RAW_LAYOUTS:
        layout = RAW_LAYOUTS[encoding]
        image = np.vstack([image, image[: layout.rows(height) - height]])  # NV12 has rows of colour below
        image = image[:, :, 0] if layout.channels == 1 else np.dstack([image, image])[:, :, : layout.channels]
        top = {"u1": 255, "u2": 65535}.get(layout.dtype.str[1:], 1)
        image = (image * (top / 255)).astype(layout.dtype)
    return build_frame(SENSOR, image, seq=0, timestamp=time.time_ns(), encoding=encoding)


def _picture(width: int, height: int) -> np.ndarray:
    """Return a smooth picture with grain, which compresses about as well as a photograph."""
    rng = np.random.default_rng(0)
    coarse = rng.uniform(0, 255, (18, 32, 3)).astype(np.float32)
    image = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.clip(image + rng.normal(0, 2, image.shape), 0, 255).astype(np.uint8)
