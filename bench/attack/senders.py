"""Senders that mean harm, each a process of its own: `python -m bench.attack.senders NAME FRAMES_PORT RESULTS_PORT`.

Each sends until it is killed, in the name of the sensor `evil`, which the daemon knows.
"""

from __future__ import annotations

import itertools
import json
import socket
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress

import cv2
import numpy as np
import zmq

ATTACKER = "evil"
TOPIC = f"{ATTACKER}/".encode()
SIDE = 2048  # pixels of the JPEG with empty scans
SCANS = 4000
HOST = "127.0.0.1"
PART = bytes(1 << 20)
FILL_BYTES = 60 << 20
PAUSE_S = 0.05  # between messages that are large or cost much


def spin(frames_port: int, results_port: int) -> None:
    """Send nothing, but use a whole core, as any other program on the device may."""
    tell_start()
    while True:
        pass


def sink(frames_port: int, results_port: int) -> None:
    """Receive and forget: the program that an attack is sent to where the daemon is only a neighbour."""
    reader: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.SUB)
    reader.setsockopt(zmq.RCVHWM, 4)
    reader.setsockopt(zmq.SUBSCRIBE, b"")
    reader.bind(f"tcp://{HOST}:{frames_port}")
    tell_start()
    while True:
        reader.recv(copy=False)


def scans(frames_port: int, results_port: int) -> None:
    """Send a small progressive JPEG whose thousands of scans say that nothing changes."""
    payload = jpeg_of_empty_scans(SIDE, SCANS)
    send_each(frames_port, lambda n: [TOPIC, header(n, SIDE, "jpeg"), payload], PAUSE_S)


def fill(frames_port: int, results_port: int) -> None:
    """Send a JPEG of fill bytes, which never states its size."""
    payload = b"\xff\xd8" + b"\xff" * FILL_BYTES
    send_each(frames_port, lambda n: [TOPIC, header(n, 32, "jpeg"), payload], PAUSE_S)


def pixels(frames_port: int, results_port: int) -> None:
    """Send PNG files of 64 megapixels of one colour."""
    done, payload = cv2.imencode(".png", np.zeros((8192, 8192, 3), np.uint8), [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done
    send_each(frames_port, lambda n: [TOPIC, header(n, 8192, "png"), payload.tobytes()], PAUSE_S)


def headers(frames_port: int, results_port: int) -> None:
    """Send headers of 64 kB that are well-formed JSON, as fast as they go."""
    long = b'{"v":1,"x":[' + b"1," * 32_000 + b"1]}"
    send_each(frames_port, lambda n: [TOPIC, long, b"x"])


def stale(frames_port: int, results_port: int) -> None:
    """Send frames of an old time, as fast as they go."""
    old = json.dumps({**json.loads(header(0, 32, "rgb8")), "timestamp": 1}).encode()
    send_each(frames_port, lambda n: [TOPIC, old, bytes(3 * 32 * 32)])


def unknown(frames_port: int, results_port: int) -> None:
    """Send frames of a sensor that is not configured, as fast as they go."""
    send_each(frames_port, lambda n: [b"nosuch/", b"{}", b"x"])


def valid(frames_port: int, results_port: int) -> None:
    """Send valid frames, as fast as they go."""
    send_each(frames_port, lambda n: [TOPIC, header(n, 32, "rgb8"), bytes(3 * 32 * 32)])


def endless(frames_port: int, results_port: int) -> None:
    """Send one message of parts of 1 MiB that never ends; connect again when cut off."""
    frame = b"\x03" + struct.pack(">Q", len(PART)) + PART
    tell_start()
    while True:
        with suppress(OSError), zmtp_connection(frames_port, b"PUB") as peer:
            while True:
                peer.sendall(frame)
        time.sleep(PAUSE_S)


def parts(frames_port: int, results_port: int) -> None:
    """Send messages of a million empty parts."""
    send_each(frames_port, lambda n: [b""] * 1_000_000)


def subscriptions(frames_port: int, results_port: int) -> None:
    """Subscribe to results by topics of 100 MiB; connect again when cut off."""
    topic = b"\x01" + bytes(100 << 20)
    tell_start()
    while True:
        with suppress(OSError), zmtp_connection(results_port, b"SUB") as peer:
            peer.sendall(b"\x02" + struct.pack(">Q", len(topic)) + topic)
            peer.recv(1 << 16)
        time.sleep(PAUSE_S)


PROGRAMS: dict[str, Callable[[int, int], None]] = {
    program.__name__: program
    for program in (spin, sink, scans, fill, pixels, headers, stale, unknown, valid, endless, parts, subscriptions)
}
ATTACKS = [name for name in PROGRAMS if name not in ("spin", "sink")]
ENDLESS = ["endless", "parts", "subscriptions"]  # these would take all the memory of a program that has no guard


def tell_start() -> None:
    """Print a line: from now on this process is at work."""
    print("begins", flush=True)


def header(seq: int, side: int, encoding: str) -> bytes:
    """Return the header of a square frame."""
    step = 3 * side if encoding == "rgb8" else 0
    keys = {"seq": seq, "timestamp": time.time_ns(), "width": side, "height": side, "encoding": encoding, "step": step}
    return json.dumps({"v": 1, **keys}).encode()


def send_each(port: int, message: Callable[[int], list[bytes]], pause: float = 0.0) -> None:
    """Send the messages 0, 1, 2, ..., until the process is killed."""
    peer: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PUB)
    peer.setsockopt(zmq.SNDHWM, 4)
    peer.connect(f"tcp://{HOST}:{port}")
    time.sleep(0.5)  # a PUB socket drops what it sends before the connection is up
    tell_start()
    for number in itertools.count():
        peer.send_multipart(message(number))
        time.sleep(pause)


def zmtp_connection(port: int, kind: bytes) -> socket.socket:
    """Return a connection on which ZMTP 3.0's greeting and handshake are done (rfc.zeromq.org/spec/23)."""
    peer = socket.create_connection((HOST, port), timeout=10)
    peer.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32))
    peer.recv(64, socket.MSG_WAITALL)
    ready = b"\x05READY" + b"\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    peer.sendall(b"\x04" + bytes([len(ready)]) + ready)
    time.sleep(0.2)
    return peer


def jpeg_of_empty_scans(side: int, scans: int) -> bytes:
    """Return a grey progressive JPEG of which each scan but the first is a run of blocks without a change.

    ITU-T T.81, G.1.2: a scan of AC coefficients may end bands of up to 32,767 blocks at once.
    """
    blocks = (side // 8) ** 2
    tables = _segment(0xDB, bytes([0] + [1] * 64)) + _segment(0xC4, bytes([0x00, 1] + [0] * 15 + [0]))
    tables += _segment(0xC4, bytes([0x10, 1] + [0] * 15 + [0xE0]))  # code 0: end of band for 2^14 blocks and more
    size = _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\x01\x11\x00")
    first = _segment(0xDA, b"\x01\x01\x00\x00\x00\x00") + _filled("0" * blocks)
    runs, rest = divmod(blocks, 1 << 14)
    assert rest == 0, "a side of 1024 pixels, or a multiple of it, is whole runs"
    empty = _segment(0xDA, b"\x01\x01\x00\x01\x3f\x00") + _filled(("0" + "0" * 14) * runs)
    return b"\xff\xd8" + tables + size + first + empty * scans + b"\xff\xd9"


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def _filled(bits: str) -> bytes:
    padded = bits + "1" * (-len(bits) % 8)
    return int(padded, 2).to_bytes(len(padded) // 8, "big").replace(b"\xff", b"\xff\x00")


if __name__ == "__main__":
    PROGRAMS[sys.argv[1]](int(sys.argv[2]), int(sys.argv[3]))
