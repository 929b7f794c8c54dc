"""Messages between the daemon and a worker process: JSON, and after it the images, if there are any.

Not by multiprocessing.shared_memory: where /dev/shm is full (a container has 64 MiB, 512 frames of 224x224 take 74),
writing to it kills the daemon with SIGBUS (measured), while a socket raises an error.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from multiprocessing import BufferTooShort
from multiprocessing.connection import Connection
from typing import Any

import numpy as np


def send_message(
    connection: Connection, content: dict[str, Any], images: Sequence[np.ndarray] | np.ndarray | None = None
) -> None:
    """Send one message. images: (h, w, C) each, all of one shape and type of number.

    The images follow one by one as they are, so that no other thread waits while hundreds of them are copied into one
    block. Raises TypeError for content that is not JSON, OSError when the other side is gone or does not read.
    """
    described = {} if images is None else _describe(images)
    connection.send_bytes(json.dumps({"content": content} | described).encode())
    for image in () if images is None else images:
        if image.size:
            connection.send_bytes(np.ascontiguousarray(image).reshape(-1).view(np.uint8).data)


def _describe(images: Sequence[np.ndarray] | np.ndarray) -> dict[str, Any]:
    if isinstance(images, np.ndarray):
        return {"shape": images.shape, "dtype": images.dtype.str}
    if not images:
        return {"shape": (0, 0, 0, 0), "dtype": "|u1"}
    return {"shape": (len(images), *images[0].shape), "dtype": images[0].dtype.str}


def receive_message(connection: Connection) -> tuple[dict[str, Any], np.ndarray | None]:
    """Receive the content and the images (n, h, w, C) of one message; wait until it is there.

    Raises EOFError when the other side has closed, ValueError for a message that is not whole.
    """
    message = json.loads(connection.recv_bytes())
    if "shape" not in message:
        return message["content"], None
    images = np.empty(message["shape"], np.dtype(message["dtype"]))
    for image in images if images.size else ():
        _receive_into(connection, image)
    return message["content"], images


def _receive_into(connection: Connection, image: np.ndarray) -> None:
    try:
        received = connection.recv_bytes_into(image.reshape(-1).view(np.uint8).data)
    except BufferTooShort as error:
        raise ValueError(f"an image has {len(error.args[0])} bytes, {image.nbytes} were announced") from None
    if received != image.nbytes:
        raise ValueError(f"an image has {received} bytes, {image.nbytes} were announced")
