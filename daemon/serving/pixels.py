"""Pixels as bytes: unpack a payload into an image, pack an image into a payload.

Raw encodings have the names of ROS (sensor_msgs/image_encodings), old and new.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from daemon.levels import MAX_LEVEL, PixelError

U8, U16, F32 = np.dtype("u1"), np.dtype("<u2"), np.dtype("<f4")


class PixelLayout(NamedTuple):
    """How the pixels of a raw payload follow each other.

    conversion: OpenCV's conversion to RGB, where the payload is not the image itself. colour_rows: half as many rows
    with colours follow the rows with light. even_width, min_side: what this conversion asks for, in pixels.
    """

    dtype: np.dtype
    channels: int
    blue_first: bool = False
    conversion: str = ""
    colour_rows: bool = False
    even_width: bool = False
    min_side: int = 1

    @property
    def pixel_bytes(self) -> int:
        return self.dtype.itemsize * self.channels

    def rows(self, height: int) -> int:
        """Return how many rows of bytes an image of so many rows of pixels has."""
        return height + height // 2 if self.colour_rows else height


YUV_422 = PixelLayout(U8, 2, even_width=True)
YUV_420 = PixelLayout(U8, 1, colour_rows=True, even_width=True)
MOSAIC = PixelLayout(U8, 1, min_side=3)  # OpenCV makes smaller ones black

RAW_LAYOUTS = {  # by encoding
    "rgb8": PixelLayout(U8, 3),
    "bgr8": PixelLayout(U8, 3, blue_first=True),
    "rgba8": PixelLayout(U8, 4, conversion="RGBA2RGB"),
    "bgra8": PixelLayout(U8, 4, conversion="BGRA2RGB"),
    "rgb16": PixelLayout(U16, 3),
    "bgr16": PixelLayout(U16, 3, blue_first=True),
    "rgba16": PixelLayout(U16, 4, conversion="RGBA2RGB"),
    "bgra16": PixelLayout(U16, 4, conversion="BGRA2RGB"),
    "mono8": PixelLayout(U8, 1),
    "8UC1": PixelLayout(U8, 1),
    "mono16": PixelLayout(U16, 1),
    "16UC1": PixelLayout(U16, 1),
    "32FC1": PixelLayout(F32, 1),  # floats are 0..1
    "32FC3": PixelLayout(F32, 3),
    "32FC3-bgr": PixelLayout(F32, 3, blue_first=True),  # OpenCV's float images, from imagezmq
    "yuv422": YUV_422._replace(conversion="YUV2RGB_UYVY"),
    "uyvy": YUV_422._replace(conversion="YUV2RGB_UYVY"),
    "yuv422_yuy2": YUV_422._replace(conversion="YUV2RGB_YUYV"),
    "yuyv": YUV_422._replace(conversion="YUV2RGB_YUYV"),
    "nv12": YUV_420._replace(conversion="YUV2RGB_NV12"),
    "nv21": YUV_420._replace(conversion="YUV2RGB_NV21"),
}
for _first_pixels in ("rggb", "bggr", "gbrg", "grbg"):
    # OpenCV has two names for each mosaic. These name the first two rows, as ROS does; its short ones, such as
    # BayerRG, name the second and third pixel of the second row.
    _mosaic = MOSAIC._replace(conversion=f"Bayer{_first_pixels.upper()}2RGB")
    RAW_LAYOUTS[f"bayer_{_first_pixels}8"] = _mosaic
    RAW_LAYOUTS[f"bayer_{_first_pixels}16"] = _mosaic._replace(dtype=U16)

COMPRESSED_ENCODINGS = frozenset({"jpeg", "png"})


# ---- unpack


def check_raw_size(encoding: str, width: int, height: int, step: int, payload_bytes: int) -> None:
    """Raise PixelError where a raw payload has another size than stated, or the encoding cannot have this size."""
    layout = RAW_LAYOUTS[encoding]
    row = width * layout.pixel_bytes
    if layout.even_width and width % 2:
        raise PixelError("size", f"{encoding} has an even width, not {width}: two pixels share their colour")
    if layout.colour_rows and height % 2:
        raise PixelError("size", f"{encoding} has an even height, not {height}: two rows share their colour")
    if min(width, height) < layout.min_side:
        raise PixelError("size", f"{encoding} has {layout.min_side} x {layout.min_side} pixels at least")
    if step < row:
        raise PixelError("size", f"step {step} is less than the {row} bytes of a row")
    if payload_bytes != (expected := step * layout.rows(height)):
        rows = "height * 3/2" if layout.colour_rows else "height"
        raise PixelError("size", f"{payload_bytes} bytes of payload, step * {rows} is {expected}")


def unpack_raw(
    payload: memoryview, encoding: str, width: int, height: int, step: int, big_endian: bool = False
) -> np.ndarray:
    """Return (H, W, 3) RGB or (H, W) grey of a payload whose size was checked.

    It is a view of the payload where that holds the image itself, in this machine's byte order. Float pixels 0..1 are
    clipped and become 0..255. Raises PixelError for float pixels that are not finite.
    """
    layout = RAW_LAYOUTS[encoding]
    dtype = layout.dtype.newbyteorder(">") if big_endian else layout.dtype
    strides = (step, layout.pixel_bytes, dtype.itemsize)
    image = np.ndarray((layout.rows(height), width, layout.channels), dtype, buffer=payload, strides=strides)
    image = image[:, :, 0] if layout.channels == 1 else image
    if not dtype.isnative or step % dtype.itemsize:
        image = image.astype(dtype.newbyteorder("="))  # OpenCV takes no row that begins in the middle of a number
    if dtype.kind == "f":
        image = _scale_floats(image)
    if layout.conversion:
        return _convert(image, layout.conversion)
    return image[:, :, ::-1] if layout.blue_first else image


def _scale_floats(image: np.ndarray) -> np.ndarray:
    """Return pixels 0..1 as 0..255 in a new array, clipped: resizing must not average what is out of range."""
    if not np.isfinite([image.min(), image.max()]).all():
        raise PixelError("nonfinite", "the image holds NaN or infinity")
    scaled = np.clip(image, 0, 1)
    scaled *= np.float32(MAX_LEVEL)
    return scaled


def _convert(image: np.ndarray, conversion: str) -> np.ndarray:
    import cv2  # late: cameras that send raw pixels through daemon.client need no OpenCV

    converted: np.ndarray = cv2.cvtColor(image, getattr(cv2, f"COLOR_{conversion}"))
    return converted


# ---- pack


def pack(image: np.ndarray, encoding: str) -> tuple[bytes, int]:
    """Return the payload and its step (bytes a row, 0 when compressed) of an image, (H, W, 3) RGB or (H, W) grey.

    Encodings that recald converts take the array that they hold: (H, W) for a mosaic, (H, W, 2) for YUV 4:2:2,
    (H * 3/2, W) for NV12. Raises ValueError where the encoding cannot hold the image.
    """
    if image.size == 0 or image.ndim not in (2, 3):
        raise _unfit(image, encoding)
    if encoding in COMPRESSED_ENCODINGS:
        return _compress(image, encoding), 0
    layout = RAW_LAYOUTS.get(encoding)
    channels = 1 if image.ndim == 2 else image.shape[2]
    if layout is None or layout.dtype != image.dtype or layout.channels != channels:
        raise _unfit(image, encoding)
    payload, step = (image[:, :, ::-1] if layout.blue_first else image).tobytes(), image.shape[1] * layout.pixel_bytes
    try:
        check_raw_size(encoding, image.shape[1], pixel_rows(image, encoding), step, len(payload))
    except PixelError as error:
        raise ValueError(str(error)) from error
    return payload, step


def pixel_rows(image: np.ndarray, encoding: str) -> int:
    """Return the height of the picture that an array for `pack` holds, in pixels."""
    layout = RAW_LAYOUTS.get(encoding)
    return len(image) * 2 // 3 if layout is not None and layout.colour_rows else len(image)


def _compress(image: np.ndarray, encoding: str) -> bytes:
    import cv2

    if (image.ndim == 3 and image.shape[2] != 3) or image.dtype not in ((U8,) if encoding == "jpeg" else (U8, U16)):
        raise _unfit(image, encoding)
    ordered = image if image.ndim == 2 else cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2BGR)
    try:
        done, packed = cv2.imencode(f".{encoding}", ordered)
    except cv2.error as error:  # such as a side that the format cannot have
        raise ValueError(f"{encoding} cannot hold an image of shape {image.shape}: {error.err}") from error
    if not done:
        raise _unfit(image, encoding)
    return packed.tobytes()


def _unfit(image: np.ndarray, encoding: str) -> ValueError:
    return ValueError(f"{encoding} cannot hold an image of shape {image.shape} and type {image.dtype}")
