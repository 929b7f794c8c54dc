"""The demo's cameras in front of a fake daemon: real sockets, known answers."""

import threading
import time
from contextlib import closing

import numpy as np
import pytest
import zmq
from demo_answers import FITTED, answer

from daemon.demo.bookkeeping import BEFORE, DRIFTED, RECOVERED, Bookkeeping
from daemon.demo.cameras import Cameras
from daemon.serving.connection_watch import ConnectionWatch
from daemon.serving.message import decode, parse_frame
from daemon.serving.results import Publisher
from daemon.simulation.drifts import parse_drift
from deploy.store.artefacts import FACTORY


class FakeDaemon(threading.Thread):
    """Names each picture by its grey level, which is even in drifted ones; learns from 20 of these to undo it."""

    def __init__(self, context, frames, results):
        super().__init__(daemon=True)
        self.watch = ConnectionWatch()
        self.publisher = Publisher(context, results, ["front", "rear"], self.watch)
        self.frames = context.socket(zmq.SUB)
        self.frames.subscribe(b"")
        self.frames.bind(frames)
        self.seen = {"front": [], "rear": []}  # (seq, grey level)
        self.swallow = ""  # the sensor that gets no answer to its next picture
        self.drifted = 0
        self.stopping = threading.Event()

    def run(self):
        while not self.stopping.is_set():
            if self.frames.poll(20):
                self.answer(self.frames.recv_multipart())
        self.frames.close(linger=0)
        self.watch.close()
        self.publisher.close()

    def answer(self, parts):
        frame = parse_frame(parts, sensors=self.seen, now_ns=time.time_ns(), received=0.0, max_age=5)
        level = int(decode(frame)[0, 0, 0])
        self.seen[frame.sensor].append((frame.seq, level))
        if frame.sensor == self.swallow:
            self.swallow = ""
            return
        fitted = frame.sensor == "front" and self.drifted >= 20
        self.drifted += level % 2 == 0
        version, label = (FITTED, 2 * level - 1) if fitted else (FACTORY, level)
        self.publisher.send(frame.sensor, answer(frame.seq, label, version), np.zeros((1, 10), np.float32))


@pytest.fixture
def filmed(context, tmp_path):
    """Two cameras in front of a fake daemon; front drifts to half its light, one picture of rear is swallowed."""
    frames, results = f"ipc://{tmp_path}/frames", f"ipc://{tmp_path}/results"
    fake = FakeDaemon(context, frames, results)
    fake.start()
    books = Bookkeeping(["front", "rear"])
    labels = np.arange(31, 231, 20)
    images = np.broadcast_to(labels.astype(np.uint8)[:, None, None, None], (10, 4, 4, 3))
    options = {"sensors": ["front", "rear"], "frames": frames, "results": results, "fps": 100, "seed": 0}
    with closing(Cameras(context, books, images, labels, **options)) as cameras:
        cameras.start()
        wait_until(lambda: min(books.stats(sensor, 0).answered for sensor in ("front", "rear")) >= 5)
        cameras.drift("front", parse_drift("exposure=-1"))
        fake.swallow = "rear"
        wait_until(lambda: books.stats("front", 0).phases[RECOVERED].answers >= 30)
        cameras.check()
        cameras.stop()
        yield fake, books
    fake.stopping.set()
    fake.join()


def wait_until(reached, seconds=20):
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_cameras_know_what_they_showed_and_what_became_of_it(filmed):
    fake, books = filmed
    later = time.monotonic() + 10
    front, rear = books.stats("front", later), books.stats("rear", later)
    assert {phase: tally.accuracy for phase, tally in front.phases.items()} == {BEFORE: 1, DRIFTED: 0, RECOVERED: 1}
    assert [(swap.version, swap.lost) for swap in front.swaps] == [(FITTED, 0)]
    assert front.unanswered == 0 and front.sent == front.answered
    assert rear.unanswered == 1 and rear.sent == rear.answered + 1
    assert rear.phases[BEFORE].accuracy == 1 and rear.swaps == () and rear.version == FACTORY
    assert len({level for _, level in fake.seen["rear"]}) >= 8  # the pictures take turns, at random
    assert [seq for seq, _ in fake.seen["rear"]] == sorted(seq for seq, _ in fake.seen["rear"])


def test_what_ends_the_cameras_is_raised(context, tmp_path):
    bad = np.zeros((1, 4, 4, 3), np.float32)  # no encoding holds it
    options = {"sensors": ["front"], "frames": f"ipc://{tmp_path}/f", "results": f"ipc://{tmp_path}/r"}
    with closing(Cameras(context, Bookkeeping(["front"]), bad, np.zeros(1), fps=100, seed=0, **options)) as cameras:
        cameras.start()
        with pytest.raises(ValueError, match="rgb8"):
            wait_until(lambda: cameras.check())
