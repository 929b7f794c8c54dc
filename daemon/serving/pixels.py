"""Pixels as bytes: unpack a payload into an image, pack an image into a payload."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from calibrate.errors import RecaldError

# 64 Mi pixels are 192 MiB as RGB: above every common machine-vision sensor, below what would push a
# 4 GB device into its swap. A PNG of a few kilobytes can claim far more.
MAX_PIXELS = 1 << 26
PADDING = 4096  # cameras round a JPEG up to their transfer size with zero or 0xFF bytes


class PixelError(RecaldError):
    """A payload that is no image; `reason` is decode, size or nonfinite."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class Layout(NamedTuple):
    """How the pixels of an uncompressed payload follow each other."""

    dtype: np.dtype
    channels: int
    blue_first: bool = False

    @property
    def pixel_bytes(self) -> int:
        return self.dtype.itemsize * self.channels


RAW = {
    "rgb8": Layout(np.dtype("u1"), 3),
    "bgr8": Layout(np.dtype("u1"), 3, blue_first=True),
    "mono8": Layout(np.dtype("u1"), 1),
    "mono16": Layout(np.dtype("<u2"), 1),
    "32FC1": Layout(np.dtype("<f4"), 1),  # floats are 0..1
    "32FC3": Layout(np.dtype("<f4"), 3),
    "32FC3-bgr": Layout(np.dtype("<f4"), 3, blue_first=True),  # OpenCV's float images, from imagezmq
}
COMPRESSED = frozenset({"jpeg", "png"})

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_PNG_END = b"IEND\xae\x42\x60\x82"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn; the three others are DHT, JPG and DAC
_JPEG_BARE = frozenset(range(0xD0, 0xD8)) | {0x01}  # RSTn and TEM carry no length


def unpack_raw(payload: memoryview, encoding: str, width: int, height: int, step: int) -> np.ndarray:
    """Return (H, W, 3) RGB or (H, W) grey as a view of the payload, but a copy of floats, clipped to 0..255."""
    layout = RAW[encoding]
    strides = (step, layout.pixel_bytes, layout.dtype.itemsize)
    image = np.ndarray((height, width, layout.channels), layout.dtype, buffer=payload, strides=strides)
    image = image[:, :, 0] if layout.channels == 1 else image
    if layout.dtype.kind == "f":
        image = _scaled_floats(image)
    elif step % layout.dtype.itemsize:
        image = image.copy()  # OpenCV takes no rows that begin within a number
    return image[:, :, ::-1] if layout.blue_first else image


def unpack_compressed(payload: memoryview, width: int, height: int) -> np.ndarray:
    """Return (H, W, 3) RGB or (H, W) grey, uint8 or (16-bit PNG) uint16."""
    stated = image_size(payload)
    if stated != (width, height):
        raise PixelError("size", f"{width} x {height} was announced, the image is {stated[0]} x {stated[1]}")
    if width * height > MAX_PIXELS:  # checked before decoding, which allocates what the image states
        raise PixelError("size", f"{width} x {height} pixels are over the limit of {MAX_PIXELS}")
    if not _is_whole(payload):
        raise PixelError("decode", "the image is cut short")  # OpenCV 4 returns it with a grey rest
    image = _decode(payload)
    if image.shape[:2] != (height, width):
        raise PixelError("size", f"{width} x {height} was announced, the image has shape {image.shape}")
    return image if image.ndim == 2 else image[:, :, ::-1]


def image_size(data: memoryview) -> tuple[int, int]:
    """Return (width, height) as a JPEG or PNG states them, without decoding it."""
    if data[:16] == _PNG_START and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:3] == _JPEG_START:
        return _jpeg_size(data)
    raise PixelError("decode", "the payload is neither JPEG nor PNG")


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker in _JPEG_SIZES:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _JPEG_BARE:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise PixelError("decode", "the JPEG does not state its size")


def _is_whole(data: memoryview) -> bool:
    tail = bytes(data[-PADDING:]).rstrip(b"\x00\xff")
    return tail.endswith(_PNG_END if data[:16] == _PNG_START else _JPEG_END)


def _decode(data: memoryview) -> np.ndarray:
    import cv2  # late: cameras that send raw pixels through daemon.client need no OpenCV

    as_stored = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), as_stored)
    except cv2.error as error:
        raise PixelError("decode", f"OpenCV cannot decode the image: {error.err}") from error
    if image is None:
        raise PixelError("decode", "OpenCV cannot decode the image")
    return image


def _scaled_floats(image: np.ndarray) -> np.ndarray:
    """Return 0..1 as 0..255 in a buffer of its own: what is out of range must not enter an average."""
    if not np.isfinite([image.min(), image.max()]).all():
        raise PixelError("nonfinite", "the image holds NaN or infinity")
    scaled = np.clip(image, 0, 1)
    scaled *= np.float32(255)
    return scaled


def pack(image: np.ndarray, encoding: str) -> tuple[bytes, int]:
    """Return (payload, bytes a row or 0 when compressed) for an image in RGB or grey; ValueError if unfit."""
    if encoding in COMPRESSED:
        return _compress(image, encoding), 0
    layout = RAW.get(encoding)
    channels = 1 if image.ndim == 2 else image.shape[2]
    if layout is None or layout.dtype != image.dtype or layout.channels != channels:
        raise ValueError(f"{encoding} cannot hold an image of shape {image.shape} and type {image.dtype}")
    ordered = image[:, :, ::-1] if layout.blue_first else image
    return ordered.tobytes(), image.shape[1] * layout.pixel_bytes


def _compress(image: np.ndarray, encoding: str) -> bytes:
    import cv2

    ordered = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, packed = cv2.imencode(f".{encoding}", ordered)
    if not done:
        raise ValueError(f"{encoding} cannot hold an image of shape {image.shape} and type {image.dtype}")
    return packed.tobytes()
