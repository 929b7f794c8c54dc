"""The readers that are compared: bare pyzmq loops, recald's Intake and imagezmq's hub."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import zmq
from prometheus_client import CollectorRegistry

from bench.intake.sender import READER_TIMEOUT_S, SENSOR
from daemon.config import InputConfig, SensorConfig
from daemon.metrics import Metrics
from daemon.serving.connection_watch import ConnectionWatch
from daemon.serving.intake import RECEIVE_QUEUE_FRAMES, Intake, keep_freed_memory
from daemon.serving.message import Frame, FrameError
from daemon.serving.slots import NewestFrames

TIMEOUT_MS = int(1e3 * READER_TIMEOUT_S)

Take = Callable[[], Any]  # waits for a frame, drops its pixels and returns what holds its number and time


class Stamp(NamedTuple):
    """The number and time that a sender wrote on a frame."""

    seq: int
    published: int  # ns since the epoch, just before the send call


class Reader(NamedTuple):
    """One way to receive frames."""

    sender: str  # the kind of sender that it understands
    open: Callable[[str], AbstractContextManager[Take]]
    stamp: Callable[[Any], Stamp]  # reads what `take` returned; called after the measurement


class IntakeRun(NamedTuple):
    """The daemon's receiver, and the newest frame that it delivered."""

    intake: Intake
    frames: NewestFrames[Frame]


@contextmanager
def _bare(endpoint: str) -> Iterator[Take]:
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.setsockopt(zmq.RCVHWM, RECEIVE_QUEUE_FRAMES)
        socket.setsockopt(zmq.RCVTIMEO, TIMEOUT_MS)
        socket.setsockopt(zmq.SUBSCRIBE, b"")
        socket.bind(endpoint)
        yield lambda: socket.recv_multipart(copy=False)[1].bytes


@contextmanager
def _bare_with_memory_kept(endpoint: str) -> Iterator[Take]:
    keep_freed_memory()
    with _bare(endpoint) as take:
        yield take


def _header_stamp(header: bytes) -> Stamp:
    fields = json.loads(header)
    return Stamp(fields["seq"], fields["timestamp"])


@contextmanager
def running_intake(**settings: Any) -> Iterator[IntakeRun]:
    """Run the daemon's receiver; `settings` are keys of the configuration's section `input`."""
    with zmq.Context() as context:
        frames: NewestFrames[Frame] = NewestFrames(superseded=lambda sensor: None)
        sensors, metrics = {SENSOR: SensorConfig()}, Metrics(CollectorRegistry())
        watch = ConnectionWatch()
        intake = Intake(context, InputConfig(**settings), sensors, metrics, frames.put, _refuse, watch)
        watch.start()
        intake.start()
        try:
            yield IntakeRun(intake, frames)
        finally:
            watch.close()
            intake.close()


def _refuse(error: FrameError) -> None:
    raise AssertionError(f"the sender's frame was refused: {error}")


def take_frame(run: IntakeRun) -> Frame:
    """Return the next frame. Raises TimeoutError where none comes."""
    frame = run.frames.take(READER_TIMEOUT_S)
    if frame is None:
        raise TimeoutError(f"no frame came within {READER_TIMEOUT_S:g} s")
    return frame


@contextmanager
def _recald(endpoint: str) -> Iterator[Take]:
    with running_intake(bind=[endpoint]) as run:

        def take() -> Stamp:
            frame = take_frame(run)
            return Stamp(frame.seq, frame.timestamp)

        yield take


@contextmanager
def _imagezmq(endpoint: str, req_rep: bool = True) -> Iterator[Take]:
    with importlib.import_module("imagezmq").ImageHub(endpoint, REQ_REP=req_rep) as hub:
        hub.zmq_socket.rcvtimeo, hub.zmq_socket.linger = TIMEOUT_MS, 0

        def take() -> str:
            text: str = hub.recv_image()[0]
            if req_rep:
                hub.send_reply(b"OK")
            return text

        yield take


@contextmanager
def _imagezmq_sub(endpoint: str) -> Iterator[Take]:
    with _imagezmq(endpoint, req_rep=False) as take:
        yield take


def _text_stamp(text: str) -> Stamp:
    seq, published = text.split()
    return Stamp(int(seq), int(published))


BARE, BARE_KEPT, RECALD = "bare pyzmq", "bare pyzmq, memory kept", "recald"
READERS = {
    BARE: Reader("recald", _bare, _header_stamp),
    BARE_KEPT: Reader("recald", _bare_with_memory_kept, _header_stamp),  # the highest rate that can be reached
    RECALD: Reader("recald", _recald, lambda stamp: stamp),
    "imagezmq REQ/REP": Reader("imagezmq", _imagezmq, _text_stamp),
    "imagezmq PUB/SUB": Reader("imagezmq-pub", _imagezmq_sub, _text_stamp),
}


def is_installed(reader: str) -> bool:
    """Tell whether the library of this reader is there."""
    return not reader.startswith("imagezmq") or importlib.util.find_spec("imagezmq") is not None
