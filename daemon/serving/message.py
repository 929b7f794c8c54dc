"""Frame messages: parsed and checked on arrival, decoded into an image before use, built by cameras and tests."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from calibrate.errors import RecaldError
from daemon import UNKNOWN_SENSOR
from daemon.compressed import image_size, unpack_compressed
from daemon.levels import WHOLE_WORDS, WORD_BITS, PixelError, PixelValues
from daemon.serving.clocks import explain
from daemon.serving.pixels import (
    COMPRESSED_ENCODINGS,
    RAW_LAYOUTS,
    U16,
    check_raw_size,
    pack,
    pixel_rows,
    unpack_raw,
)

FRAME_VERSION = 1  # of the header: its key "v"
MAX_TOPIC_BYTES = 256  # that are looked at; a sensor id has at most 64
MAX_HEADER_BYTES = 4 * 1024  # recald's own has 150 bytes; the longer, the longer its JSON keeps Python's lock
MAX_FRAME_SIDE = 16384  # pixels
MIN_BITS = 8  # of a 16-bit word that are significant
MAX_HEADER_INTEGER = 2**63 - 1  # of seq, timestamp and step: they fit a signed 64-bit integer
MAX_FUTURE_NS = 1_000_000_000  # more than the clocks of two synchronised machines differ

IMAGEZMQ_ENCODINGS = {  # by dtype and number of channels
    ("uint8", 3): "bgr8",
    ("uint8", 4): "bgra8",
    ("uint8", 1): "mono8",
    ("uint16", 3): "bgr16",
    ("uint16", 1): "mono16",
    ("float32", 1): "32FC1",
    ("float32", 3): "32FC3-bgr",
}

Buffer = bytes | bytearray | memoryview


class FrameError(RecaldError):
    """A frame that is refused.

    `reason` is one word, a label value of recald_frames_dropped_total. `sensor` is the id of a configured sensor, or
    "unknown". `frame` is the refused one, where its header could be read: such a frame arrived, it was not missed.
    `field` is the field of the header that is wrong, if it is one.
    """

    def __init__(
        self, reason: str, message: str, sensor: str = UNKNOWN_SENSOR, frame: Frame | None = None, field: str = ""
    ):
        super().__init__(message)
        self.field = field
        self.reason = reason
        self.sensor = sensor
        self.frame = frame

    @classmethod
    def of(cls, frame: Frame, reason: str, message: str, field: str = "") -> FrameError:
        """Return the refusal of a frame whose header could be read."""
        return cls(reason, message, frame.sensor, frame, field)


@dataclass(frozen=True, slots=True)
class Frame:
    """A message that passed all checks but is not yet decoded; the payload may be a view of the transport's memory."""

    sensor: str
    seq: int
    timestamp: int  # acquisition, ns since the epoch
    width: int
    height: int
    encoding: str
    step: int  # bytes a row; 0 when compressed
    hold: bool  # the sender asks for no swap now
    payload: Buffer
    received: float  # monotonic clock, s
    big_endian: bool = False  # of words and floats in a raw payload
    bits: int | None = None  # significant bits of a 16-bit word; None where the sensor's settings say it


# ---- parse


def parse_frame(
    parts: Sequence[Buffer], *, sensors: Container[str], now_ns: int, received: float, max_age: float
) -> Frame:
    """Check a message, recald's with three parts or imagezmq's with two, and return its frame.

    sensors: ids of the configured sensors. now_ns: ns since the epoch. received: monotonic clock, s. max_age: s.
    Raises FrameError and nothing else.
    """
    sensor, imagezmq_header = _read_sensor(parts, sensors)
    payload = memoryview(parts[-1]).cast("B")
    try:
        if imagezmq_header is None:
            header = _read_header(parts[1])
        else:
            header = _from_imagezmq(imagezmq_header, payload, now_ns)
        frame = _read_frame(sensor, header, payload, received)
    except FrameError as error:
        error.sensor = sensor
        raise
    _check_size(frame)
    _check_age(frame, now_ns, max_age)
    return frame


def _read_sensor(parts: Sequence[Buffer], sensors: Container[str]) -> tuple[str, dict[str, Any] | None]:
    """Return the sensor, and the header where it had to be read to find the sensor (imagezmq)."""
    header: dict[str, Any] | None = None
    name: object = None
    if len(parts) == 3:  # the topic names the sensor: a frame of a foreign one is refused before its header is read
        topic = bytes(parts[0][:MAX_TOPIC_BYTES])
        name = topic[:-1].decode("ascii", "replace") if topic.endswith(b"/") else None
    elif len(parts) == 2:
        header = _read_header(parts[0])
        name = header.get("msg")
    else:
        more = " or more" if len(parts) > 3 else ""
        raise FrameError("parts", f"a frame has 3 parts (imagezmq: 2), this message has {len(parts)}{more}")
    if isinstance(name, str) and name in sensors:
        return name, header
    raise FrameError("sensor", f"no sensor {reprlib.repr(name)} is configured")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(keys := dict(pairs)) != len(pairs):
        raise ValueError("a key is given twice")
    return keys


def _refuse_constant(literal: str) -> None:
    raise ValueError(f"{literal} is not JSON")


_strict_json = json.JSONDecoder(object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)


def _read_header(data: Buffer) -> dict[str, Any]:
    if len(data) > MAX_HEADER_BYTES:
        raise FrameError("header", f"the header has {len(data)} bytes, at most {MAX_HEADER_BYTES} are read")
    try:
        header = _strict_json.decode(str(data, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise FrameError("header", f"the header is not JSON in UTF-8: {error}") from error
    if not isinstance(header, dict):
        raise FrameError("header", "the header is not a JSON object")
    return header


def _from_imagezmq(header: dict[str, Any], payload: memoryview, now_ns: int) -> dict[str, Any]:
    """Convert an imagezmq header into recald's. It has no number and no time: `seq` is 0, `timestamp` is now."""
    converted = {"v": FRAME_VERSION, "seq": 0, "timestamp": now_ns}
    if "dtype" not in header and "shape" not in header:
        try:
            width, height = image_size(payload)
        except PixelError as error:
            raise FrameError(error.reason, str(error)) from error
        return converted | {"width": width, "height": height, "encoding": "jpeg"}
    dtype, shape = header.get("dtype"), header.get("shape")
    if not isinstance(shape, list) or len(shape) not in (2, 3) or any(type(n) is not int for n in shape):
        raise FrameError("header", f"shape must be [height, width, channels], got {reprlib.repr(shape)}", field="shape")
    height, width, channels = shape if len(shape) == 3 else (*shape, 1)
    encoding = IMAGEZMQ_ENCODINGS.get((str(dtype), channels))
    if encoding is None:
        raise FrameError("encoding", f"no image has {channels} channels of {reprlib.repr(dtype)}", field="dtype")
    step = width * RAW_LAYOUTS[encoding].pixel_bytes
    return converted | {"width": width, "height": height, "encoding": encoding, "step": step}


def _read_frame(sensor: str, header: dict[str, Any], payload: memoryview, received: float) -> Frame:
    version = header.get("v")
    if type(version) is not int or version != FRAME_VERSION:
        raise FrameError("version", f"v must be {FRAME_VERSION}, got {reprlib.repr(version)}", field="v")
    encoding = _encoding(header)
    return Frame(
        sensor=sensor,
        seq=_integer(header, "seq", 0, MAX_HEADER_INTEGER),
        timestamp=_integer(header, "timestamp", 0, MAX_HEADER_INTEGER),
        width=_integer(header, "width", 1, MAX_FRAME_SIDE),
        height=_integer(header, "height", 1, MAX_FRAME_SIDE),
        encoding=encoding,
        step=0 if encoding in COMPRESSED_ENCODINGS else _integer(header, "step", 1, MAX_HEADER_INTEGER),
        hold=_hold(header),
        payload=payload,
        received=received,
        big_endian=_big_endian(header),
        bits=_bits(header, encoding),
    )


def _integer(header: dict[str, Any], key: str, low: int, high: int) -> int:
    value = header.get(key)
    if type(value) is not int or not low <= value <= high:  # isinstance would let true pass as 1
        raise FrameError("header", f"{key} must be an integer, {low} to {high}, got {reprlib.repr(value)}", field=key)
    return value


def _encoding(header: dict[str, Any]) -> str:
    value = header.get("encoding")
    if isinstance(value, str) and (value in RAW_LAYOUTS or value in COMPRESSED_ENCODINGS):
        return value
    known = ", ".join([*(name for name in RAW_LAYOUTS if not name.startswith("bayer")), "bayer_*", "jpeg", "png"])
    raise FrameError("encoding", f"encoding {reprlib.repr(value)} is not known; known are {known}", field="encoding")


def _hold(header: dict[str, Any]) -> bool:
    value = header.get("hold", False)
    if not isinstance(value, bool):
        raise FrameError("header", f"hold must be true or false, got {reprlib.repr(value)}", field="hold")
    return value


def _big_endian(header: dict[str, Any]) -> bool:
    value = header.get("is_bigendian", False)
    if type(value) not in (bool, int) or value not in (0, 1):  # ROS has 0 and 1
        raise FrameError(
            "header", f"is_bigendian must be 0, 1, true or false, got {reprlib.repr(value)}", field="is_bigendian"
        )
    return bool(value)


def _bits(header: dict[str, Any], encoding: str) -> int | None:
    """Return `bits`, where the encoding can have words of 16 bits and the header says how many of them count."""
    has_words = encoding == "png" or (encoding in RAW_LAYOUTS and RAW_LAYOUTS[encoding].dtype == U16)
    return _integer(header, "bits", MIN_BITS, WORD_BITS) if has_words and "bits" in header else None


def _check_size(frame: Frame) -> None:
    """Raise FrameError where the payload of a raw frame has another size than its header states."""
    if frame.encoding in COMPRESSED_ENCODINGS:
        return
    try:
        check_raw_size(frame.encoding, frame.width, frame.height, frame.step, len(frame.payload))
    except PixelError as error:
        raise FrameError.of(frame, error.reason, str(error)) from error


def _check_age(frame: Frame, now_ns: int, max_age: float) -> None:
    age_ns = now_ns - frame.timestamp
    if age_ns > max_age * 1e9:
        text = f"timestamp {frame.timestamp} is {age_ns / 1e9:.3f} s old, max_age is {max_age:g} s"
        raise FrameError.of(frame, "stale", f"{text}: {explain(frame.timestamp, now_ns)}", "timestamp")
    if age_ns < -MAX_FUTURE_NS:
        text = f"timestamp {frame.timestamp} is {-age_ns / 1e9:.3f} s in the future"
        raise FrameError.of(frame, "future", f"{text}: {explain(frame.timestamp, now_ns)}", "timestamp")


def check_pixels(frame: Frame, most: int) -> None:
    """Raise FrameError where a frame has more pixels than its sensor is configured to send."""
    if (pixels := frame.width * frame.height) > most:
        limit = f"sensors.{frame.sensor}.max_pixels is {most}"
        raise FrameError.of(frame, "size", f"{frame.width} x {frame.height} is {pixels} pixels, {limit}", "width")


# ---- decode


def decode(frame: Frame, values: PixelValues = WHOLE_WORDS) -> np.ndarray:
    """Return the image, (H, W, 3) RGB or (H, W) grey, in its own depth: uint8, uint16, or float32 in 0..255.

    values: what the sensor's pixel values mean; `bits` of the frame comes first. The image fills the range of its type.
    It may be a read-only view of the payload. Where the payload stores blue first, the channels of the view run
    backwards in memory. Raises FrameError with reason decode, size, bits or nonfinite.
    """
    try:
        return values._replace(bits=frame.bits or values.bits).to_full_range(_unpack(frame))
    except PixelError as error:
        raise FrameError.of(frame, error.reason, str(error)) from error


def _unpack(frame: Frame) -> np.ndarray:
    payload = memoryview(frame.payload)
    if frame.encoding in COMPRESSED_ENCODINGS:
        return unpack_compressed(payload, frame.width, frame.height)
    return unpack_raw(payload, frame.encoding, frame.width, frame.height, frame.step, frame.big_endian)


# ---- build


def topic_of(sensor: str) -> bytes:
    """Return the topic of a sensor's frames and results. The slash keeps a subscription to cam1 from reading cam10."""
    return f"{sensor}/".encode()


def build_frame(
    sensor: str,
    image: np.ndarray,
    *,
    seq: int,
    timestamp: int,
    encoding: str = "rgb8",
    hold: bool = False,
    bits: int | None = None,
) -> list[bytes]:
    """Return the three parts of the message for an image, (H, W, 3) RGB or (H, W), of the type that `encoding` has.

    timestamp: when the image was taken, ns since the epoch. hold: ask the daemon for no swap now. bits: significant
    bits of 16-bit words, 8 to 16. Raises ValueError where the encoding cannot hold the image.
    """
    payload, step = pack(image, encoding)
    height, width = pixel_rows(image, encoding), image.shape[1]
    header = {"v": FRAME_VERSION, "seq": seq, "timestamp": timestamp, "width": width, "height": height}
    header |= {"encoding": encoding, "hold": hold}
    header |= ({"step": step} if step else {}) | ({} if bits is None else {"bits": bits})
    return [topic_of(sensor), json.dumps(header).encode(), payload]
