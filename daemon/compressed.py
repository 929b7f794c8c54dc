"""Compressed pictures: JPEG and PNG in messages and files, TIFF in files. One decoder for all of recald."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from daemon.levels import PixelError

# Of a compressed image. 64 Mi pixels are 192 MiB as RGB: above every common machine-vision sensor, below what would
# push a 4 GB device into its swap. A PNG of a few kilobytes can claim far more.
MAX_PIXELS = 1 << 26
# A JPEG of several scans is decoded once for each, and an empty scan has some ten bytes: 4,000 of them took 21 s.
# 2 ** 28 allows the usual 10 scans of 26 megapixels, and 129 of 1080p.
MAX_SCANNED_PIXELS = 1 << 28
MIN_JPEG_SCANS = 4  # allowed at any size
MAX_JPEG_SEGMENTS = 4096  # in front of the size; cameras write some ten, a large colour profile some hundred
SEGMENTS_PER_SCAN = 4  # a scan brings its header, and tables of its own
FIRST_BLOCK_BYTES, MAX_BLOCK_BYTES = 256, 1 << 20  # of coded pixels, searched at a time for their end
MAX_PNG_CHUNKS = 1 << 16  # encoders write 8 KiB of pixels or more into each

_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\x0dIHDR"
_JPEG_START = b"\xff\xd8\xff"
_TIFF_STARTS = (b"II*\x00", b"MM\x00*")
_JPEG_SIZES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOFn; the three others are DHT, JPG and DAC
_JPEG_SOI, _JPEG_EOI, _JPEG_SOS = 0xD8, 0xD9, 0xDA
_JPEG_NO_LENGTH = frozenset(range(0xD0, 0xDA)) | {0x01}  # RSTn, SOI, EOI and TEM


def unpack_compressed(payload: memoryview, width: int, height: int) -> np.ndarray:
    """Decode a JPEG or PNG into (H, W, 3) RGB or (H, W) grey, uint8 or (16-bit PNG) uint16. What follows it is ignored.

    Raises PixelError where it cannot be decoded, is cut short, too large, or not of the announced size.
    """
    stated = image_size(payload)
    if stated != (width, height):
        raise PixelError("size", f"{width} x {height} was announced, the image is {stated[0]} x {stated[1]}")
    image = _decode_checked(payload, width, height)
    if image.shape[:2] != (height, width):
        raise PixelError("size", f"{width} x {height} was announced, the image has shape {image.shape}")
    return image


def decode_file(data: bytes) -> np.ndarray:
    """Decode the bytes of a JPEG, PNG or TIFF file, exactly as a frame would be: see `unpack_compressed`.

    Raises PixelError.
    """
    payload = memoryview(data)
    if data.startswith(_TIFF_STARTS):
        return _decode(payload)
    return _decode_checked(payload, *image_size(payload))


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


def _decode_checked(data: memoryview, width: int, height: int) -> np.ndarray:
    """Decode a JPEG or PNG of the stated size after checking that this is cheap, and that the image is whole.

    OpenCV 4 would return an image that is cut short, with a grey rest.
    """
    if width * height > MAX_PIXELS:  # checked before decoding, which allocates what the image states
        raise PixelError("size", f"{width} x {height} pixels are over the limit of {MAX_PIXELS}")
    end = _png_end(data) if data[:16] == _PNG_START else _jpeg_end(data, width * height)
    return _decode(data[:end])


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Follow the segments of a JPEG up to the one that states the size."""
    for marker, at in _jpeg_segments(data, MAX_JPEG_SEGMENTS):
        if marker in _JPEG_SIZES and at + 9 <= len(data):
            return int.from_bytes(data[at + 7 : at + 9], "big"), int.from_bytes(data[at + 5 : at + 7], "big")
    raise PixelError("decode", "the JPEG does not state its size")


def _jpeg_end(data: memoryview, pixels: int) -> int:
    """Return where the JPEG ends; cameras and containers write more behind it. Raises PixelError where it has no end.

    Also refuses a JPEG of so many scans that it would take seconds to decode.
    """
    scans, most = 0, max(MIN_JPEG_SCANS, MAX_SCANNED_PIXELS // max(1, pixels))
    for marker, at in _jpeg_segments(data, MAX_JPEG_SEGMENTS + SEGMENTS_PER_SCAN * most):
        if marker == _JPEG_EOI:
            return at + 2
        if marker == _JPEG_SOI:  # the next picture of a stream, where this one has not ended
            break
        scans += marker == _JPEG_SOS
        if scans > most:
            raise PixelError("size", f"the JPEG has over {most} scans of {pixels} pixels")
    raise PixelError("decode", "the image is cut short")


def _jpeg_segments(data: memoryview, at_most: int) -> Iterator[tuple[int, int]]:
    """Yield marker and place of each segment of a JPEG, and step over coded pixels, while it is well formed."""
    at = 2
    for _ in range(at_most):  # a fill byte counts as one, too: a message of them would take seconds
        if at + 2 > len(data) or data[at] != 0xFF:
            return
        marker = data[at + 1]
        yield marker, at
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker in _JPEG_NO_LENGTH:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        if marker == _JPEG_SOS:
            at = _after_coded_pixels(np.frombuffer(data, np.uint8), at)


def _after_coded_pixels(data: np.ndarray, at: int) -> int:
    """Return where the coded pixels that begin at `at` end: no 0xFF of a pixel, no RSTn, no fill byte.

    Not by a regular expression: it keeps Python's lock, half a second for 64 MiB of pixels, and all sensors wait.
    """
    size = FIRST_BLOCK_BYTES
    while at < len(data) - 1:
        block = data[at : at + size + 1]  # the two bytes may lie across the end
        marker = block[1:]
        ends = (block[:-1] == 0xFF) & (marker != 0) & (marker != 0xFF) & ((marker & 0xF8) != 0xD0)
        if ends.any():
            return at + int(ends.argmax())
        at, size = at + size, min(2 * size, MAX_BLOCK_BYTES)
    return len(data)


def _png_end(data: memoryview) -> int:
    """Follow the chunks of a PNG to its end. Raises PixelError where it has none."""
    at = 8
    for _ in range(MAX_PNG_CHUNKS):
        kind, end = data[at + 4 : at + 8], at + 12 + int.from_bytes(data[at : at + 4], "big")
        if end > len(data):
            break
        if kind == b"IEND":
            return end
        at = end
    raise PixelError("decode", "the image is cut short")


def _decode(data: memoryview) -> np.ndarray:
    """Return the image in its stored depth, orientation and number of channels; colour is a view in the order RGB."""
    import cv2  # late: cameras that send raw pixels through daemon.client need no OpenCV

    as_stored = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), as_stored)
    except cv2.error as error:
        raise PixelError("decode", f"OpenCV cannot decode the image: {error.err}") from error
    if image is None:
        raise PixelError("decode", "OpenCV cannot decode the image")
    return image if image.ndim == 2 else image[:, :, ::-1]
