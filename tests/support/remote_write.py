"""Prometheus' remote write 1.0 without its libraries: what a sender tells of metrics, and requests of one's own.

A request is a Protobuf message, `prometheus.WriteRequest`, compressed with Snappy's block format.
"""

from __future__ import annotations

import struct
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

VARINT, DOUBLE, MESSAGE = 0, 1, 2  # wire types of Protobuf
SERIES, METADATA = 1, 3  # fields of WriteRequest
KINDS = ("unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset")
MAX_LITERAL = 60  # bytes that a tag of one byte announces


class MetricMetadata(NamedTuple):
    """What is told of a metric."""

    kind: str
    help: str
    unit: str


class MetadataReceiver:
    """Takes remote write requests of any sender, and keeps the metadata. A context."""

    def __init__(self) -> None:
        self.metadata: dict[str, MetricMetadata] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = decompress(self.rfile.read(int(self.headers["Content-Length"])))
                outer.metadata.update(metadata_in(request))
                self.send_response(204)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/"

    def __enter__(self) -> MetadataReceiver:
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def metadata_in(request: bytes) -> dict[str, MetricMetadata]:
    """Return by name what a WriteRequest tells of metrics."""
    found = {}
    for number, content in fields(request):
        if number == METADATA:
            told = dict(fields(content))
            text = {key: told.get(key, b"").decode() for key in (2, 4, 5)}
            found[text[2]] = MetricMetadata(KINDS[told.get(1, 0)], text[4], text[5])
    return found


def one_sample(labels: Mapping[str, str], value: float, at_ms: int) -> bytes:
    """Return a compressed WriteRequest. labels: with __name__. at_ms: since 1970."""
    pairs = [_message(1, _message(1, name.encode()) + _message(2, labels[name].encode())) for name in sorted(labels)]
    sample = _varint(1 << 3 | DOUBLE) + struct.pack("<d", value) + _varint(2 << 3 | VARINT) + _varint(at_ms)
    return compress(_message(SERIES, b"".join(pairs) + _message(2, sample)))


# ---- Protobuf


def fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """Yield number and content of each field: an int, or bytes."""
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            content, at = _read_varint(message, at)
            yield number, content
        elif wire == DOUBLE:
            yield number, message[at : at + 8]
            at += 8
        else:
            assert wire == MESSAGE, f"wire type {wire}"
            size, at = _read_varint(message, at)
            yield number, message[at : at + size]
            at += size


def _message(number: int, content: bytes) -> bytes:
    return _varint(number << 3 | MESSAGE) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if data[at - 1] < 128:
            return value, at


# ---- Snappy


def compress(data: bytes) -> bytes:
    """Return a block of literals alone."""
    parts = [data[at : at + MAX_LITERAL] for at in range(0, len(data), MAX_LITERAL)]
    return _varint(len(data)) + b"".join(bytes([len(part) - 1 << 2]) + part for part in parts)


def decompress(block: bytes) -> bytes:
    """Return what a block holds. AssertionError if it is damaged."""
    size, at = _read_varint(block, 0)
    out = bytearray()
    while at < len(block):
        tag, at = block[at], at + 1
        if tag & 3 == 0:
            at = _literal(block, tag, at, out)
        else:
            at = _copy(block, tag, at, out)
    assert len(out) == size
    return bytes(out)


def _literal(block: bytes, tag: int, at: int, out: bytearray) -> int:
    length = tag >> 2
    if length >= MAX_LITERAL:
        more = length - MAX_LITERAL + 1
        length, at = int.from_bytes(block[at : at + more], "little"), at + more
    out += block[at : at + length + 1]
    return at + length + 1


def _copy(block: bytes, tag: int, at: int, out: bytearray) -> int:
    """Repeat what came before; byte by byte, since it may overlap with what it writes."""
    if tag & 3 == 1:
        length, offset, at = (tag >> 2 & 7) + 4, (tag >> 5) << 8 | block[at], at + 1
    else:
        width = 2 if tag & 3 == 2 else 4
        length, offset, at = (tag >> 2) + 1, int.from_bytes(block[at : at + width], "little"), at + width
    for _ in range(length):
        out.append(out[-offset])
    return at
