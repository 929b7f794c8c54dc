"""Result messages: published without waiting for any reader; parsed by readers and tests."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zmq

from calibrate.errors import RecaldError
from daemon.zmq_sockets import bind, open_socket

RESULT_VERSION = 1  # of the header: its key "v"
RESULT_DTYPES = frozenset("bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split())
PUBLISHER_QUEUE_MESSAGES = 64  # for each reader; a reader that is slower loses the newest


class ResultError(RecaldError):
    """A message that is no result of this version."""


class Publisher:
    """Publishes results; `endpoint` is the bound one, with the real port."""

    def __init__(self, context: zmq.Context, endpoint: str):
        """Open the socket; OSError where the endpoint cannot be bound."""
        self._socket = open_socket(context, zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, PUBLISHER_QUEUE_MESSAGES)
        self.endpoint = bind(self._socket, endpoint)

    def send(self, sensor: str, header: Mapping[str, Any], output: np.ndarray) -> None:
        """Send a header of plain values and a tensor. Floats that are not finite become null: JSON has no NaN."""
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in header.items()}
        text = json.dumps({"v": RESULT_VERSION} | finite | {"dtype": output.dtype.name, "shape": output.shape})
        # tobytes copies: the runner may write its next output into the same memory before this one is sent.
        parts = [f"{sensor}/".encode(), text.encode(), output.tobytes()]
        self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)

    def close(self) -> None:
        self._socket.close()


def parse_result(parts: Sequence[bytes]) -> tuple[str, dict[str, Any], np.ndarray]:
    """Return sensor, header and output of a received message. Raises ResultError and nothing else."""
    try:
        topic, text, payload = parts
        header = json.loads(text)
        if header["v"] != RESULT_VERSION or header["dtype"] not in RESULT_DTYPES:
            raise ValueError(f"v is {header['v']!r}, dtype is {header['dtype']!r}")
        output = np.frombuffer(payload, header["dtype"]).reshape(header["shape"])
        return topic.decode("ascii").removesuffix("/"), header, output
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ResultError(f"not a result of version {RESULT_VERSION}: {error}") from error
