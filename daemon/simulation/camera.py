"""A simulated camera: it sends pictures of a file over ZeroMQ at a steady rate, drifted from some time on."""

from __future__ import annotations

import argparse
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import zmq
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from daemon.client import READER_WAIT_S, Readers, build_frame, open_camera, send
from daemon.images import load_images
from daemon.levels import to_depth
from daemon.simulation.drifts import DRIFT_KINDS, Drift, parse_drift

SIMULATED_ENCODINGS = ("rgb8", "bgr8", "mono8", "mono16", "jpeg", "png")

Wait = Callable[[float], bool]  # sleeps for so many seconds, or returns True to stop, like threading.Event.wait


def wait_for_reader(socket: zmq.Socket[bytes], seconds: float) -> bool:
    """Wait for a reader, so that the first frame is not lost; return whether there is one."""
    event = zmq.POLLIN if socket.getsockopt(zmq.TYPE) == zmq.XPUB else zmq.POLLOUT
    return bool(socket.poll(int(seconds * 1000), event))


def paced(
    rate: float, wait: Wait, *, frames: int | None = None, monotonic: Callable[[], float] = time.monotonic
) -> Iterator[int]:
    """Yield 0, 1, 2, ... at `rate` times a second, until `wait` says stop or `frames` were yielded.

    The times are on a fixed schedule, so delays do not add up. Missed periods are skipped; no burst follows them.
    """
    start, slot, number = monotonic(), 0, 0
    while frames is None or number < frames:
        slot = max(slot, math.floor((monotonic() - start) * rate))
        if wait(max(0.0, start + slot / rate - monotonic())):
            return
        yield number
        number, slot = number + 1, slot + 1


def picture(image: np.ndarray, encoding: str) -> np.ndarray:
    """Convert an RGB picture (H, W, 3), uint8 or uint16, to the channels and the depth that an encoding holds."""
    if encoding == "png":  # holds both depths
        return image
    deep = to_depth(image, np.dtype(np.uint16 if encoding == "mono16" else np.uint8))
    return cv2.cvtColor(deep, cv2.COLOR_RGB2GRAY) if encoding.startswith("mono") else deep


def publish(
    socket: zmq.Socket[bytes],
    sensor: str,
    images: np.ndarray,
    *,
    fps: float,
    wait: Wait,
    drift: Drift | None = None,
    after: float = 0.0,
    frames: int | None = None,
    encoding: str = "rgb8",
    on_frame: Callable[[bool], None] = lambda sent: None,
    monotonic: Callable[[], float] = time.monotonic,
    wall_ns: Callable[[], int] = time.time_ns,
) -> int:
    """Send the images in a loop, drifted from `after` s on; return how many had a reader.

    images: (N, H, W, 3) RGB, uint8 or uint16.
    frames: how many to send; None for no end. on_frame: called after each frame with whether it had a reader.
    """
    start, sent, readers = monotonic(), 0, Readers(socket, sensor)
    for seq in paced(fps, wait, frames=frames, monotonic=monotonic):
        image = images[seq % len(images)]
        if drift is not None and monotonic() - start >= after:
            image = drift(image, seq)
        parts = build_frame(sensor, picture(image, encoding), seq=seq, timestamp=wall_ns(), encoding=encoding)
        taken = readers.present() and send(socket, parts)
        sent += taken
        on_frame(taken)
    return sent


def at_least(low: float, kind: type[int] | type[float] = float) -> Callable[[str], float]:
    """Return an argparse type for a finite number that is not below `low`."""

    def parse(text: str) -> float:
        with suppress(ValueError):
            if low <= (value := kind(text)) < math.inf:
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {'an integer' if kind is int else 'a number'} >= {low:g}")

    return parse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `recald simulate`."""
    drifts = "; ".join(f"{name} in {kind.unit}" for name, kind in DRIFT_KINDS.items())
    add = parser.add_argument
    add("--images", type=Path, required=True, help="folder of png, jpg or tif files, or .npz with key images")
    add("--endpoint", default="tcp://127.0.0.1:5550", help="endpoint that the frames are sent to (%(default)s)")
    add("--pattern", choices=("pub", "push"), default="pub", help="kind of socket (%(default)s)")
    add("--bind", action="store_true", help="bind the endpoint instead of connecting to it")
    add("--sensor", default="front", help="sensor id (%(default)s)")
    add("--fps", type=at_least(0.01), default=30.0, help="frames a second (%(default)g)")
    add("--frames", type=at_least(1, int), help="stop after so many frames (default: no limit)")
    add("--drift", default="", help=f"kinds and strengths, such as fixed-pattern=12,blur=0.7; kinds: {drifts}")
    add("--after", type=at_least(0), default=0.0, help="seconds until the drift begins (%(default)g)")
    add("--encoding", choices=SIMULATED_ENCODINGS, default="rgb8", help="encoding of the frames (%(default)s)")
    add("--seed", type=at_least(0, int), default=0, help="seed of the random drifts (%(default)s)")


def run(args: argparse.Namespace) -> int:
    """Run `recald simulate` until all frames are sent or a signal arrives; return the exit code."""
    drift = parse_drift(args.drift, args.seed)
    images, _ = load_images(args.images)
    stop = threading.Event()
    with zmq.Context() as context, stopped_by_signals(stop):
        socket = open_camera(context, args.endpoint, pattern=args.pattern, binds=args.bind)
        with socket, _progress(args.frames) as on_frame:
            if not wait_for_reader(socket, READER_WAIT_S):
                print(f"recald simulate: no recald reads from {args.endpoint} yet", file=sys.stderr)
            sent = publish(
                socket,
                args.sensor,
                images,
                fps=args.fps,
                wait=stop.wait,
                drift=drift,
                after=args.after,
                frames=args.frames,
                encoding=args.encoding,
                on_frame=on_frame,
            )
    print(f"{sent} frames sent")
    return 0


@contextmanager
def stopped_by_signals(stop: threading.Event) -> Iterator[None]:
    """Set the event on SIGINT and SIGTERM while the `with` block runs. Only for the main thread."""
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda *_: stop.set()) for number in signals]
    try:
        yield
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def _progress(frames: int | None) -> Iterator[Callable[[bool], Any]]:
    """Show progress on a terminal; yield what to call after each frame."""
    console = Console(stderr=True, markup=False, emoji=False)
    columns = (TextColumn("{task.completed:.0f} frames"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=frames)
        yield lambda sent: progress.advance(task, sent)
