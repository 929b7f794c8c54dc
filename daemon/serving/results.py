"""Result messages: published without ever waiting for who reads them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import zmq

from calibrate.errors import RecaldError
from daemon.zmq_sockets import bind, open_socket

VERSION = 1
DTYPES = frozenset("bool int8 int16 int32 int64 uint8 uint16 uint32 uint64 float16 float32 float64".split())
SEND_QUEUE = 64  # messages a subscriber; a slower one loses the newest


class ResultError(RecaldError):
    """A message that is no result of this version."""


class Publisher:
    """Publishes results; `endpoint` is where, with the port chosen for `*`."""

    def __init__(self, context: zmq.Context, endpoint: str):
        self._socket = open_socket(context, zmq.PUB)
        self._socket.setsockopt(zmq.SNDHWM, SEND_QUEUE)
        self.endpoint = bind(self._socket, endpoint)

    def send(self, sensor: str, header: Mapping[str, Any], output: np.ndarray) -> None:
        """Send plain values and a tensor; numbers that are not finite become null, as JSON has none."""
        values = {key: _finite_or_none(value) for key, value in header.items()}
        text = json.dumps({"v": VERSION} | values | {"dtype": output.dtype.name, "shape": output.shape})
        # tobytes copies: the runner may write its next output to the same memory while this is on its way.
        parts = [f"{sensor}/".encode(), text.encode(), output.tobytes()]
        self._socket.send_multipart(parts, zmq.NOBLOCK, copy=False)

    def close(self) -> None:
        self._socket.close()


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def parse_result(parts: Sequence[bytes]) -> tuple[str, dict[str, Any], np.ndarray]:
    """Return sensor, header and output of a received message; ResultError if it is none."""
    try:
        topic, text, payload = parts
        header = json.loads(text)
        if header["v"] != VERSION or header["dtype"] not in DTYPES:
            raise ValueError(f"v is {header['v']!r}, dtype is {header['dtype']!r}")
        output = np.frombuffer(payload, header["dtype"]).reshape(header["shape"])
        return topic.decode("ascii").removesuffix("/"), header, output
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise ResultError(f"not a result of version {VERSION}: {error}") from error
