"""Messages between the daemon and a worker process: JSON, and after it the images, if there are any.

Not by multiprocessing.shared_memory: where /dev/shm is full (a container has 64 MiB, 512 frames of 224x224 take 74),
writing to it kills the daemon with SIGBUS (measured), while a socket raises an error.
"""

from __future__ import annotations

import json
from multiprocessing.connection import Connection
from typing import Any

import numpy as np


def send_message(connection: Connection, content: dict[str, Any], images: np.ndarray | None = None) -> None:
    """Send one message. images: (n, h, w, C), of any type of number.

    Raises TypeError for content that is not JSON, OSError when the other side is gone or does not read.
    """
    described = {} if images is None else {"shape": images.shape, "dtype": images.dtype.str}
    connection.send_bytes(json.dumps({"content": content} | described).encode())
    if images is not None:
        connection.send_bytes(np.ascontiguousarray(images).reshape(-1).view(np.uint8).data)


def receive_message(connection: Connection) -> tuple[dict[str, Any], np.ndarray | None]:
    """Receive the content and the images of one message; wait until it is there.

    Raises EOFError when the other side has closed, ValueError for a message that is not whole.
    """
    message = json.loads(connection.recv_bytes())
    images = None
    if "shape" in message:
        images = np.frombuffer(connection.recv_bytes(), np.dtype(message["dtype"])).reshape(message["shape"])
    return message["content"], images
