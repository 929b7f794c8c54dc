"""What other programs use of recald: send frames, read results, ask for the status, give orders, tell true classes.

with Camera("tcp://127.0.0.1:5550", "front") as camera:
    camera.publish(image)  # (H, W, 3) RGB uint8

Imports neither torch nor OpenCV, so that a camera's program starts at once; `build_frame` imports OpenCV for the
encodings jpeg and png. No object of this module may be used by two threads at a time.
"""

from __future__ import annotations

import reprlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from operator import index
from typing import Any, Literal, TypeVar

import numpy as np
import zmq

from calibrate.errors import RecaldError
from daemon.exit_codes import TemporaryError
from daemon.operator.control import ControlError, ask
from daemon.operator.label import send_labels
from daemon.serving.message import MAX_HEADER_INTEGER, build_frame, topic_of
from daemon.serving.results import ResultError, parse_result
from daemon.zmq_sockets import SUBSCRIBED, UNSUBSCRIBED, connect, open_socket
from daemon.zmq_sockets import bind as bind_socket

__all__ = [
    "Camera",
    "ControlError",
    "EndpointError",
    "FrameResult",
    "ResultError",
    "Results",
    "build_frame",
    "label",
    "order",
    "read_result",
    "status",
]

CAMERA_QUEUE_FRAMES = 4  # for each reader; a longer queue would only show the reader older pictures
CAMERA_LINGER_MS = 1000  # the last frames of a finite run still go out
READER_WAIT_S = 2.0  # a daemon that runs has connected by then

Pattern = Literal["pub", "push"]
Self = TypeVar("Self", bound="_Connection")


class EndpointError(TemporaryError):
    """An endpoint that cannot be bound or connected; the message names it and the reason."""


# ---- sockets


def open_camera(
    context: zmq.Context, endpoint: str, *, pattern: Pattern = "pub", binds: bool = False
) -> zmq.Socket[bytes]:
    """Open the socket that sends frames. For "pub" it is an XPUB: a PUB that can tell whether anybody subscribes.

    Raises EndpointError.
    """
    socket = open_socket(context, zmq.XPUB if pattern == "pub" else zmq.PUSH)
    socket.setsockopt(zmq.SNDHWM, CAMERA_QUEUE_FRAMES)
    socket.setsockopt(zmq.LINGER, CAMERA_LINGER_MS)
    socket.setsockopt(zmq.IMMEDIATE, 1)  # no queue towards a daemon that is not there
    _attach(socket, endpoint, bind_socket if binds else connect)
    return socket


def send(socket: zmq.Socket[bytes], parts: list[bytes]) -> bool:
    """Send without waiting, as a camera must; return False when nobody took the frame."""
    try:
        socket.send_multipart(parts, zmq.NOBLOCK)
    except zmq.Again:
        return False
    return True


def _open_reader(context: zmq.Context, endpoint: str, sensor: str | None) -> zmq.Socket[bytes]:
    socket = open_socket(context, zmq.SUB)
    socket.setsockopt(zmq.SUBSCRIBE, b"" if sensor is None else topic_of(sensor))
    _attach(socket, endpoint, connect)
    return socket


def _attach(socket: zmq.Socket[bytes], endpoint: str, attach: Callable[[zmq.Socket[bytes], str], str]) -> None:
    try:
        attach(socket, endpoint)
    except OSError as error:
        raise EndpointError(error.strerror) from error


class _Connection:
    """A socket in a ZeroMQ context of its own; both are closed when the `with` block ends."""

    def __init__(self, open_in: Callable[[zmq.Context], zmq.Socket[bytes]]) -> None:
        self._context = zmq.Context()
        try:
            self._socket = open_in(self._context)
        except RecaldError:
            self._context.term()
            raise

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the socket. Waits until the last frames are out, 1 s at most."""
        self._socket.close()
        self._context.term()


# ---- frames


class Readers:
    """Knows whether anybody reads a sensor's frames from a socket of `open_camera`."""

    def __init__(self, socket: zmq.Socket[bytes], sensor: str) -> None:
        self._socket = socket
        self._topic = topic_of(sensor)
        self._publishes = socket.getsockopt(zmq.TYPE) == zmq.XPUB
        self._subscribed: set[bytes] = set()
        self.event = zmq.POLLIN if self._publishes else zmq.POLLOUT  # what to poll for while there is none

    def present(self) -> bool:
        """Return whether somebody reads now; does not wait."""
        if not self._publishes:
            return bool(self._socket.poll(0, zmq.POLLOUT))
        self._read_subscriptions()
        return any(self._topic.startswith(prefix) for prefix in self._subscribed)

    def _read_subscriptions(self) -> None:
        """Note who subscribed and who left; libzmq tells it once for each topic, of all readers together."""
        with suppress(zmq.Again):
            while True:
                message = self._socket.recv(zmq.NOBLOCK)
                if message.startswith(SUBSCRIBED):
                    self._subscribed.add(message[1:])
                elif message.startswith(UNSUBSCRIBED):
                    self._subscribed.discard(message[1:])


class Camera(_Connection):
    """Publishes the frames of one sensor. A context: entering it waits for a reader, leaving it closes the socket.

    `sent` counts the frames that had a reader, `dropped` those that nobody took. A reader that is too slow loses frames
    without a trace here; recald counts them in recald_frames_missed_total.
    """

    def __init__(
        self,
        endpoint: str,
        sensor: str,
        *,
        pattern: Pattern = "pub",
        bind: bool = False,
        reader_wait_s: float = READER_WAIT_S,
    ) -> None:
        """Open the socket; raises EndpointError.

        endpoint: `ipc://PATH` or `tcp://HOST:PORT`, as in recald's configuration under `input`.
        pattern: "pub" where `input.pattern` is sub, "push" where it is pull.
        bind: open the endpoint instead of connecting to it, for a recald that connects to its cameras.
        reader_wait_s: how long entering the context waits for a reader; no error where none comes.
        """
        super().__init__(lambda context: open_camera(context, endpoint, pattern=pattern, binds=bind))
        self.sensor = sensor
        self.sent = self.dropped = 0
        self._readers = Readers(self._socket, sensor)
        self._reader_wait_s = reader_wait_s

    def __enter__(self) -> Camera:
        self.wait_for_reader(self._reader_wait_s)
        return self

    def wait_for_reader(self, seconds: float) -> bool:
        """Wait at most so many seconds until somebody reads this sensor; return whether somebody does."""
        deadline = time.monotonic() + seconds
        event = self._readers.event
        while not self.has_reader():
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not self._socket.poll(int(left_s * 1000), event):
                return self.has_reader()
        return True

    def has_reader(self) -> bool:
        """Return whether somebody reads this sensor now; does not wait."""
        return self._readers.present()

    def publish(
        self,
        image: np.ndarray,
        *,
        seq: int | None = None,
        timestamp: int | None = None,
        encoding: str = "rgb8",
        hold: bool = False,
        bits: int | None = None,
    ) -> bool:
        """Send one frame without waiting; return False, and count it in `dropped`, where nobody took it.

        image: (H, W, 3) RGB uint8, or (H, W) uint8 for mono8, uint16 for mono16, and so on for the other encodings;
        ValueError where `encoding` differs.
        seq: by default 0, 1, 2, ... for each frame of this camera, sent or not.
        timestamp: when the picture was taken, ns since the epoch; by default now.
        hold: ask recald to let no new homogenizer serve now.
        bits: how many bits of 16 are significant, such as 12; by default as recald's configuration says.
        """
        seq = self.sent + self.dropped if seq is None else seq
        timestamp = time.time_ns() if timestamp is None else timestamp
        parts = build_frame(self.sensor, image, seq=seq, timestamp=timestamp, encoding=encoding, hold=hold, bits=bits)
        taken = self.has_reader() and send(self._socket, parts)
        self.sent, self.dropped = self.sent + taken, self.dropped + (not taken)
        return taken


# ---- results


@dataclass(frozen=True, slots=True)
class FrameResult:
    """What recald published about one frame."""

    sensor: str
    seq: int  # of the frame, as the camera numbered it
    timestamp: int  # when the picture was taken, ns since the epoch, as the camera stated it
    label: int | None  # index of the most probable class; None where the model is no classifier
    class_name: str | None  # its name; None where the model card names no classes
    confidence: float | None  # its probability, 0..1
    homogenizer: str  # version that made this output: a SHA-256, or "factory" for none
    model_digest: str  # SHA-256 of the model file
    state: str  # of the sensor's recalibration, a value of daemon.states.State
    drift_score: float | None  # about 1 on clean frames; None where none is known
    latency_ms: float  # from the frame's arrival to this result
    output: np.ndarray  # the model's output, such as (1, K) logits of K classes; read-only


def read_result(parts: Sequence[bytes]) -> FrameResult:
    """Return the FrameResult in the parts of a received message; raises ResultError and nothing else."""
    sensor, header, output = parse_result(parts)
    return FrameResult(
        sensor=sensor,
        seq=_integer(header, "seq"),
        timestamp=_integer(header, "timestamp"),
        label=None if header.get("label") is None else _integer(header, "label"),
        class_name=None if header.get("class") is None else _text(header, "class"),
        confidence=_number_or_none(header, "confidence"),
        homogenizer=_text(header, "homogenizer"),
        model_digest=_text(header, "model"),
        state=_text(header, "state"),
        drift_score=_number_or_none(header, "drift_score"),
        latency_ms=_number(header, "latency_ms"),
        output=output,
    )


def _integer(header: dict[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not 0 <= value <= MAX_HEADER_INTEGER:  # isinstance would let true pass as 1
        raise _unfit(key, value, f"an integer, 0 to {MAX_HEADER_INTEGER}")
    return value


def _number(header: dict[str, Any], key: str) -> float:
    value: Any = header.get(key)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= sys.float_info.max:  # false for NaN, too
        raise _unfit(key, value, "a finite number")
    return float(value)


def _number_or_none(header: dict[str, Any], key: str) -> float | None:
    return None if header.get(key) is None else _number(header, key)


def _text(header: dict[str, Any], key: str) -> str:
    value = header.get(key)
    if not isinstance(value, str):
        raise _unfit(key, value, "text")
    return value


def _unfit(key: str, value: object, expected: str) -> ResultError:
    return ResultError(f"not a result of recald: {key} must be {expected}, got {reprlib.repr(value)}")


class Results(_Connection):
    """Reads the results that recald publishes: an iterator, and a context that closes the socket when it is left.

    with Results("tcp://127.0.0.1:5551", timeout=10) as results:
        for result in results:
            print(result.seq, result.label, result.class_name)
    """

    def __init__(self, endpoint: str, *, sensor: str | None = None, timeout: float | None = None) -> None:
        """Connect; raises EndpointError.

        endpoint: `output.bind` of recald's configuration. A recald that is started later is found, too.
        sensor: read this sensor alone; by default all.
        timeout: seconds without a result after which the iteration ends; by default it waits for ever.
        """
        super().__init__(lambda context: _open_reader(context, endpoint, sensor))
        self.timeout = timeout

    def receive(self, timeout: float | None = None) -> FrameResult | None:
        """Wait for the next result, at most `timeout` seconds (None: for ever); return None where none came.

        Raises ResultError for a message that is no result, as from a wrong endpoint; the next call reads on behind it.
        """
        if not self._socket.poll(None if timeout is None else int(timeout * 1000)):
            return None
        return read_result(self._socket.recv_multipart())

    def __iter__(self) -> Iterator[FrameResult]:
        return self

    def __next__(self) -> FrameResult:
        """Return the next result; ends the iteration after `timeout` seconds without one. Raises as `receive` does."""
        result = self.receive(self.timeout)
        if result is None:
            raise StopIteration
        return result


# ---- the control socket


def status(endpoint: str, timeout: float = 5.0) -> dict[str, Any]:
    """Return what `recald status --json` prints: version, model digest, backend, and each sensor under "sensors".

    endpoint: `control.endpoint` of recald's configuration. timeout: in seconds.
    Raises ControlError where nobody answers in time.
    """
    return ask(endpoint, {"command": "status"}, timeout)


def order(
    endpoint: str, name: str, sensor: str | None, *, by: str, version: str | None = None, timeout: float = 5.0
) -> dict[str, Any]:
    """Give one order to a running recald; return its answer, whose "said" tells what happens next.

    name: recalibrate, approve, reject, rollback, restore, hold or release. sensor: None for restore is the one that the
    homogenizer was fitted for. by: a name, which the audit log notes beside the user of this process.
    version: for approve and reject: this candidate and no newer one; for restore: the stored one; 8 digits or more.
    timeout: in seconds.
    Raises ControlError where recald refuses the order, with its reason, or where nobody answers.
    """
    return ask(endpoint, {"command": name, "sensor": sensor, "by": by, "version": version}, timeout)


def label(
    endpoint: str, sensor: str, labels: Iterable[tuple[int, int | str]], *, by: str, timeout: float = 5.0
) -> dict[str, Any]:
    """Tell recald the true classes of frames that it has served; return how many it was right about.

    labels: sequence number of each frame, and the name or the number of its class. by: as of `order`. timeout: of each
    request, in seconds; a request holds at most 2000 labels.
    The answer counts right, wrong, unknown, outdated and repeated frames; its "labelled" has right, wrong, accuracy,
    lower and upper (0 to 1) since the last swap, or is None where none were counted since then; "said" says it.
    Raises ControlError for the first label that is refused, with its place in `entry`, or where nobody answers. The
    labels before it may be counted by then; a frame counts once, so that all can be sent again.
    """
    plain = [(index(seq), name if isinstance(name, str) else index(name)) for seq, name in labels]
    return send_labels(endpoint, sensor, plain, by, timeout)
