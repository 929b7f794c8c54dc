"""Pixels as bytes: unpack a payload into an image, pack an image into a payload."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from calibrate.errors import RecaldError

# Of a compressed image. 64 Mi pixels are 192 MiB as RGB: above every common machine-vision sensor, below what would
# push a 4 GB device into its swap. A PNG of a few kilobytes can claim far more.
MAX_PIXELS = 1 << 26
# A JPEG of several scans is decoded once for each, and an empty scan has some ten bytes: 4,000 of them took 21 s.
# 2 ** 28 allows the usual 10 scans of 26 megapixels, and 129 of 1080p.
MAX_SCANNED_PIXELS = 1 << 28
MIN_JPEG_SCANS = 4  # allowed at any size: a preview inside the file counts as one
MAX_JPEG_SEGMENTS = 4096  # in front of the size; cameras write some ten, a large colour profile some hundred
MAX_PADDING_BYTES = 4096  # after a compressed image: cameras fill a JPEG up to their transfer size with 0 or 0xFF


class PixelError(RecaldError):
    """A payload that is not the image it should be; `reason` is decode, size or nonfinite."""

    def __init__(self, reason: str, message: str):
        super().__init__(message)
        self.reason = reason


class PixelLayout(NamedTuple):
    """How the pixels of a raw payload follow each other."""

    dtype: np.dtype
    channels: int
    blue_first: bool = False

    @property
    def pixel_bytes(self) -> int:
        return self.dtype.itemsize * self.channels


RAW_LAYOUTS = {  # by encoding
    "rgb8": PixelLayout(np.dtype("u1"), 3),
    "bgr8": PixelLayout(np.dtype("u1"), 3, blue_first=True),
    "mono8": PixelLayout(np.dtype("u1"), 1),
    "mono16": PixelLayout(np.dtype("<u2"), 1),
    "32FC1": PixelLayout(np.dtype("<f4"), 1),  # floats are 0..1
    "32FC3": PixelLayout(np.dtype("<f4"), 3),
    "32FC3-bgr": PixelLayout(np.dtype("<f4"), 3, blue_first=True),  # OpenCV's float images, from imagezmq
}
COMPRESSED_ENCODINGS = frozenset({"jpeg", "png"})

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_PNG_END = b"IEND\xae\x42\x60\x82"
_JPEG_START = b"\xff\xd8\xff"
_JPEG_END = b"\xff\xd9"
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn; the three others are DHT, JPG and DAC
_JPEG_SCAN = b"\xff\xda"  # SOS; coded pixels never hold these bytes
_JPEG_NO_LENGTH = frozenset(range(0xD0, 0xD8)) | {0x01}  # RSTn and TEM


# ---- unpack


def unpack_raw(payload: memoryview, encoding: str, width: int, height: int, step: int) -> np.ndarray:
    """Return (H, W, 3) RGB or (H, W) grey: a view of the payload, or a copy of float pixels, clipped to 0..255.

    The payload has step * height bytes. Raises PixelError for float pixels that are not finite.
    """
    layout = RAW_LAYOUTS[encoding]
    strides = (step, layout.pixel_bytes, layout.dtype.itemsize)
    image = np.ndarray((height, width, layout.channels), layout.dtype, buffer=payload, strides=strides)
    image = image[:, :, 0] if layout.channels == 1 else image
    if layout.dtype.kind == "f":
        image = _scale_floats(image)
    elif step % layout.dtype.itemsize:
        image = image.copy()  # OpenCV takes no row that begins in the middle of a number
    return image[:, :, ::-1] if layout.blue_first else image


def _scale_floats(image: np.ndarray) -> np.ndarray:
    """Return pixels 0..1 as 0..255 in a new array, clipped: resizing must not average what is out of range."""
    if not np.isfinite([image.min(), image.max()]).all():
        raise PixelError("nonfinite", "the image holds NaN or infinity")
    scaled = np.clip(image, 0, 1)
    scaled *= np.float32(255)
    return scaled


def unpack_compressed(payload: memoryview, width: int, height: int) -> np.ndarray:
    """Decode a JPEG or PNG into (H, W, 3) RGB or (H, W) grey, uint8 or (16-bit PNG) uint16.

    Raises PixelError where it cannot be decoded, is cut short, too large, or not of the announced size.
    """
    stated = image_size(payload)
    if stated != (width, height):
        raise PixelError("size", f"{width} x {height} was announced, the image is {stated[0]} x {stated[1]}")
    if width * height > MAX_PIXELS:  # checked before decoding, which allocates what the image states
        raise PixelError("size", f"{width} x {height} pixels are over the limit of {MAX_PIXELS}")
    if payload[:3] == _JPEG_START:
        _check_scans(payload, width * height)
    end = bytes(payload[-MAX_PADDING_BYTES:]).rstrip(b"\x00\xff")
    if not end.endswith(_PNG_END if payload[:16] == _PNG_START else _JPEG_END):
        raise PixelError("decode", "the image is cut short")  # OpenCV 4 would return it with a grey rest
    image = _decode(payload)
    if image.shape[:2] != (height, width):
        raise PixelError("size", f"{width} x {height} was announced, the image has shape {image.shape}")
    return image if image.ndim == 2 else image[:, :, ::-1]


def image_size(data: memoryview) -> tuple[int, int]:
    """Return (width, height) as a JPEG or PNG states them, without decoding it. Raises PixelError where it does not.

    Not the library imagesize: it copies the message, reads one that is no image byte by byte (16 MiB: 1.8 s, here
    0.02 ms), and accepts formats, SVG among them, that no frame may have.
    """
    if data[:16] == _PNG_START and len(data) >= 24:
        return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if data[:3] == _JPEG_START:
        return _jpeg_size(data)
    raise PixelError("decode", "the payload is neither JPEG nor PNG")


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Follow the segments of a JPEG up to the one that states the size."""
    at = 2
    for _ in range(MAX_JPEG_SEGMENTS):  # a fill byte counts as one, too: a message of them would take seconds
        if at + 9 > len(data) or data[at] != 0xFF:
            break
        marker = data[at + 1]
        if marker in _JPEG_SIZES:
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _JPEG_NO_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise PixelError("decode", "the JPEG does not state its size")


def _check_scans(data: memoryview, pixels: int) -> None:
    """Refuse a JPEG that would take seconds to decode. Raises PixelError."""
    scans, most = bytes(data).count(_JPEG_SCAN), max(MIN_JPEG_SCANS, MAX_SCANNED_PIXELS // max(1, pixels))
    if scans > most:
        raise PixelError("size", f"the JPEG has {scans} scans of {pixels} pixels, at most {most} are decoded")


def _decode(data: memoryview) -> np.ndarray:
    """Return the image in its stored depth, number of channels (colour: blue first) and orientation."""
    import cv2  # late: cameras that send raw pixels through daemon.client need no OpenCV

    as_stored = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), as_stored)
    except cv2.error as error:
        raise PixelError("decode", f"OpenCV cannot decode the image: {error.err}") from error
    if image is None:
        raise PixelError("decode", "OpenCV cannot decode the image")
    return image


# ---- pack


def pack(image: np.ndarray, encoding: str) -> tuple[bytes, int]:
    """Return the payload and its step (bytes a row, 0 when compressed) of an image, (H, W, 3) RGB or (H, W) grey.

    Raises ValueError where the encoding cannot hold the image.
    """
    if encoding in COMPRESSED_ENCODINGS:
        return _compress(image, encoding), 0
    layout = RAW_LAYOUTS.get(encoding)
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
