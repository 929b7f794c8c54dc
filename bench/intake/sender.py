"""A process that sends 1080p frames until it is killed: `python -m bench.intake.sender KIND ENDPOINT RATE SECONDS`."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import zmq

from daemon.serving.message import build_frame
from daemon.simulation.camera import open_camera, paced, wait_for_reader

SENSOR = "front"
HEIGHT, WIDTH = 1080, 1920
DISTINCT_FRAMES = 4  # sent in turn, 25 MB together: no cache holds the frame that was just sent
READER_TIMEOUT_S = 10.0  # for a reader that does not connect, or is gone

Send = Callable[[int, np.ndarray], object]


@contextmanager
def sending(kind: str, endpoint: str, rate: float, seconds: float) -> Iterator[None]:
    """Run a sender process while the context lasts; it ends by itself after `seconds`.

    rate: frames/s; 0 is as fast as the sender can.
    """
    command = [sys.executable, "-m", "bench.intake.sender", kind, endpoint, str(rate), str(seconds)]
    with subprocess.Popen(command) as process:
        try:
            yield
        finally:
            process.kill()


@contextmanager
def _recald(endpoint: str) -> Iterator[Send]:
    """Publish frames in recald's format; wait where a publisher would drop them."""
    with zmq.Context() as context, open_camera(context, endpoint) as socket:
        socket.setsockopt(zmq.XPUB_NODROP, 1)
        socket.setsockopt(zmq.SNDTIMEO, int(1e3 * READER_TIMEOUT_S))
        wait_for_reader(socket, READER_TIMEOUT_S)
        topic, header, _ = build_frame(SENSOR, np.zeros((HEIGHT, WIDTH, 3), np.uint8), seq=0, timestamp=0)
        fields = json.loads(header)

        def send(seq: int, image: np.ndarray) -> None:
            changes = {"seq": seq, "timestamp": time.time_ns()}
            socket.send_multipart([topic, json.dumps(fields | changes).encode(), image.data], copy=False)

        yield send


@contextmanager
def _imagezmq(endpoint: str, req_rep: bool = True) -> Iterator[Send]:
    with importlib.import_module("imagezmq").ImageSender(endpoint, REQ_REP=req_rep) as sender:
        sender.zmq_socket.rcvtimeo = int(1e3 * READER_TIMEOUT_S)
        yield lambda seq, image: sender.send_image(f"{seq} {time.time_ns()}", image)


@contextmanager
def _imagezmq_pub(endpoint: str) -> Iterator[Send]:
    with _imagezmq(endpoint, req_rep=False) as send:
        yield send


KINDS = {"recald": _recald, "imagezmq": _imagezmq, "imagezmq-pub": _imagezmq_pub}


def main(kind: str, endpoint: str, rate: float, seconds: float) -> None:
    images = np.random.default_rng(0).integers(0, 256, (DISTINCT_FRAMES, HEIGHT, WIDTH, 3), dtype=np.uint8)
    end = time.monotonic() + seconds

    def wait(left: float) -> bool:
        time.sleep(left)
        return time.monotonic() > end

    with KINDS[kind](endpoint) as send:
        for seq in paced(rate, wait) if rate else _numbers_until(end):
            send(seq, images[seq % DISTINCT_FRAMES])


def _numbers_until(end: float) -> Iterator[int]:
    seq = 0
    while time.monotonic() < end:
        yield seq
        seq += 1


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))
