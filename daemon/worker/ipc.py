"""Messages between the daemon and its worker processes: a JSON header and, where there are any, images."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np

LENGTH = struct.Struct("<I")


def pack(header: dict[str, Any], images: np.ndarray | None = None) -> bytes:
    """One message; images (n, h, w, C) uint8."""
    shape = None if images is None else images.shape
    text = json.dumps({"header": header, "shape": shape}).encode()
    payload = b"" if images is None else np.ascontiguousarray(images).reshape(-1).data
    return b"".join((LENGTH.pack(len(text)), text, payload))


def unpack(message: bytes) -> tuple[dict[str, Any], np.ndarray | None]:
    """The header and the images of a message from `pack`; the images share the message's memory."""
    (length,) = LENGTH.unpack_from(message)
    start = LENGTH.size + length
    content = json.loads(message[LENGTH.size : start])
    if content["shape"] is None:
        return content["header"], None
    return content["header"], np.frombuffer(message, np.uint8, offset=start).reshape(content["shape"])
