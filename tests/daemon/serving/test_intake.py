import gc
import itertools
import json
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import numpy as np
import pytest
import zmq
from prometheus_client import CollectorRegistry
from zmtp import part, raw_peer, sent_until_cut

from daemon.config import InputConfig, SensorConfig
from daemon.metrics import Metrics
from daemon.serving.connection_watch import ConnectionWatch
from daemon.serving.intake import Intake
from daemon.serving.message import Frame, build_frame
from daemon.serving.refusals import Refusals
from daemon.serving.slots import NewestFrames

NOW = 1_700_000_000_000_000_000
IMAGE = np.zeros((4, 4, 3), np.uint8)
WAIT = 10.0  # seconds; only a failure takes as long


def frame(sensor: str = "front", seq: int = 0, timestamp: int = NOW, image: np.ndarray = IMAGE) -> list[bytes]:
    return build_frame(sensor, image, seq=seq, timestamp=timestamp)


def eventually(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, "the condition was not met in time"
        time.sleep(0.005)


@pytest.fixture
def registry():
    return CollectorRegistry()


@pytest.fixture
def count(registry):
    def count(name: str, **labels: str) -> float:
        return registry.get_sample_value(f"recald_{name}_total", labels) or 0

    return count


class Receiver(Intake):
    """An intake, and the newest frames that it delivered."""

    def __init__(self, context: zmq.Context, config: InputConfig, metrics: Metrics, monotonic, **sensor: int):
        refusals = Refusals(metrics)
        self._frames: NewestFrames[Frame] = NewestFrames(refusals.superseded)
        sensors = {"front": SensorConfig(**sensor), "rear": SensorConfig()}
        deliver, refuse = self._frames.put, refusals.add
        self.watch = ConnectionWatch()
        with ExitStack() as on_failure:
            on_failure.callback(self.watch.close)
            super().__init__(context, config, sensors, metrics, deliver, refuse, self.watch, lambda: NOW, monotonic)
            on_failure.pop_all()

    def start(self) -> None:
        self.watch.start()
        super().start()

    def close(self) -> None:
        self.watch.close()
        super().close()

    def take(self, timeout: float) -> Frame | None:
        return self._frames.take(timeout)


@pytest.fixture
def receive(context, registry):
    """Start an intake with these settings; the clock stands at NOW."""
    metrics = Metrics(registry)
    started = []

    def receive(*, start: bool = True, max_pixels: int = 10**6, monotonic=lambda: 12.5, **settings: object) -> Receiver:
        config = InputConfig(**{"pattern": "pull", "bind": ["tcp://127.0.0.1:*"], **settings})
        intake = Receiver(context, config, metrics, monotonic, max_pixels=max_pixels)
        started.append(intake)
        if start:
            intake.start()
        return intake

    yield receive
    for intake in started:
        intake.close()


@pytest.fixture
def push(open_peer):
    return lambda intake: open_peer(zmq.PUSH, connect=intake.endpoints[0])


def test_a_frame_arrives_with_its_times(receive, push, count, registry):
    intake = receive()
    push(intake).send_multipart(frame(seq=3, timestamp=NOW - 10**9))
    taken = intake.take(WAIT)
    assert (taken.sensor, taken.seq, taken.timestamp, taken.received) == ("front", 3, NOW - 10**9, 12.5)
    assert count("frames_received", sensor="front") == 1
    last = registry.get_sample_value("recald_last_frame_timestamp_seconds", {"sensor": "front"})
    assert last == pytest.approx(NOW / 1e9 - 1)


def test_take_gives_up_after_its_timeout(receive):
    assert receive().take(0.01) is None


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_publishing_cameras_are_subscribed_to(receive, open_peer, tmp_path, transport):
    intake = receive(pattern="sub", bind=[f"ipc://{tmp_path}/f" if transport == "ipc" else "tcp://127.0.0.1:*"])
    camera = open_peer(zmq.XPUB, connect=intake.endpoints[0])
    assert camera.recv() == b"\x01"  # a subscription to everything
    camera.send_multipart(frame())
    assert intake.take(WAIT).sensor == "front"


def test_imagezmq_senders_are_received(receive, open_peer):
    intake = receive(pattern="sub")
    camera = open_peer(zmq.XPUB, connect=intake.endpoints[0])
    camera.recv()
    header = {"msg": "rear", "dtype": "uint8", "shape": [4, 4, 3]}
    camera.send_multipart([json.dumps(header).encode(), IMAGE.tobytes()])
    assert intake.take(WAIT).sensor == "rear"


def test_it_may_connect_to_cameras_that_bind(receive, open_peer, tmp_path):
    camera = open_peer(zmq.PUSH, bind=f"ipc://{tmp_path}/camera")
    intake = receive(bind=[], connect=[f"ipc://{tmp_path}/camera"])
    camera.send_multipart(frame())
    assert intake.take(WAIT).seq == 0
    assert intake.endpoints == [f"ipc://{tmp_path}/camera"]


def test_the_newest_frame_wins_and_the_others_are_counted(receive, push, count):
    intake = receive()
    camera = push(intake)
    for seq in range(10):
        camera.send_multipart(frame(seq=seq))
    eventually(lambda: count("frames_received", sensor="front") == 10)
    assert intake.take(WAIT).seq == 9
    assert intake.take(0) is None
    assert count("frames_dropped", sensor="front", reason="superseded") == 9
    assert count("frames_missed", sensor="front") == 0


def test_the_slot_filled_first_is_taken_first_and_a_fast_sensor_cannot_overtake(receive, push, count):
    intake = receive()
    camera = push(intake)
    for sensor, seq in [("front", 0), ("rear", 0), ("front", 1), ("front", 2)]:
        camera.send_multipart(frame(sensor, seq))
    eventually(lambda: count("frames_received", sensor="front") == 3)
    assert intake.take(WAIT).seq == 2
    camera.send_multipart(frame("front", 3))
    eventually(lambda: count("frames_received", sensor="front") == 4)
    assert [intake.take(WAIT).sensor for _ in range(2)] == ["rear", "front"]


def test_every_message_is_accounted_for(receive, push, count):
    intake = receive()
    camera = push(intake)
    messages = [
        (frame(), None, None),
        (frame("side"), "unknown", "sensor"),
        ([b"front/", b"no json", b""], "front", "header"),
        ([b"one part"], "unknown", "parts"),
        (frame(timestamp=NOW - 6 * 10**9), "front", "stale"),
        (frame(timestamp=NOW + 2 * 10**9), "front", "future"),
        ([*frame("rear")[:2], b"short"], "rear", "size"),
        (frame(seq=1), None, None),
    ]
    for message, _, _ in messages:
        camera.send_multipart(message)
    eventually(lambda: sum(count("frames_received", sensor=s) for s in ("front", "rear", "unknown")) == 8)
    for _, sensor, reason in messages:
        if sensor is not None:
            assert count("frames_dropped", sensor=sensor, reason=reason) == 1
    assert count("frames_dropped", sensor="front", reason="superseded") == 1
    assert intake.take(WAIT).seq == 1


def missed_after(numbers, receive, push, count) -> float:
    intake = receive()
    camera = push(intake)
    for place, seq in enumerate(numbers):
        camera.send_multipart(frame(seq=seq, timestamp=NOW - 10**9 + 33_000_000 * place))
    eventually(lambda: count("frames_received", sensor="front") == len(numbers))
    return count("frames_missed", sensor="front")


@pytest.mark.parametrize(
    ("numbers", "missed"),
    [
        ([5, 6, 7], 0),  # a daemon that starts late has missed nothing
        ([5, 8], 2),
        ([5, 8, 9, 20], 12),
        ([900, 0, 1, 2], 0),  # the camera has started again
        ([900, 0, 3], 2),
        ([4, 4, 4], 0),  # imagezmq has no numbers
        ([5, 2**63 - 1, 6, 7], 0),  # one damaged number
        ([0, 33_000_000, 66_000_000], 0),  # time stamps as numbers
        ([100, 5000, 101, 5001], 0),  # two senders with one id
    ],
)
def test_skipped_numbers_are_counted_as_missed(numbers, missed, receive, push, count):
    assert missed_after(numbers, receive, push, count) == missed


def test_numbers_that_jump_are_counted_apart_and_told_once(receive, push, count, caplog):
    assert missed_after([100, 5000, 101, 5001], receive, push, count) == 0
    assert count("sequence_jumps", sensor="front") == 3
    assert [r.getMessage() for r in caplog.records if "jumped" in r.getMessage()] == [
        "front: sequence numbers jumped 1 times, the last: number 5000 came 0.033 s after 100: "
        "are these time stamps, or do two send as one?"
    ]


def test_requests_are_answered_whether_their_frames_are_good_or_not(receive, open_peer, count):
    intake = receive(pattern="rep")
    header = {"msg": "rear", "dtype": "uint8", "shape": [4, 4, 3]}
    good, bad = [json.dumps(header).encode(), IMAGE.tobytes()], [b"no header", b""]
    senders = [open_peer(zmq.REQ, connect=intake.endpoints[0]) for _ in range(2)]
    for message in (good, bad, good):
        for sender in senders:
            sender.send_multipart(message)
            assert sender.recv() == b"OK"
    assert intake.take(WAIT).sensor == "rear"
    eventually(lambda: count("frames_received", sensor="rear") == 4)
    assert count("frames_dropped", sensor="unknown", reason="header") == 2


def test_a_request_without_an_envelope_harms_nobody(receive, open_peer, count):
    intake = receive(pattern="rep")
    for _ in range(3):
        open_peer(zmq.DEALER, connect=intake.endpoints[0]).send(b"no envelope")
    camera = open_peer(zmq.REQ, connect=intake.endpoints[0])
    for seq in range(20):
        camera.send_multipart(frame(seq=seq))
        assert camera.recv() == b"OK"
    eventually(lambda: (taken := intake.take(WAIT)) is not None and taken.seq == 19)


def test_a_sender_of_another_kind_is_told_about(receive, open_peer, caplog):
    intake = receive(pattern="sub")
    sender = open_peer(zmq.REQ, connect=intake.endpoints[0])
    sender.send(b"frame")
    eventually(lambda: "imagezmq sends by REQ" in caplog.text and "PUB sockets alone" in caplog.text)


def test_a_stale_frame_is_dropped_but_not_missed(receive, push, count):
    intake = receive()
    camera = push(intake)
    for seq, timestamp in [(1, NOW), (2, NOW - 10**10), (3, NOW)]:
        camera.send_multipart(frame(seq=seq, timestamp=timestamp))
    eventually(lambda: count("frames_received", sensor="front") == 3)
    assert count("frames_dropped", sensor="front", reason="stale") == 1
    assert count("frames_missed", sensor="front") == 0


def test_an_oversize_message_costs_its_sender_the_connection_and_nobody_else(receive, push, count):
    intake = receive(max_frame_bytes=65536)
    offender, camera = push(intake), push(intake)
    offender.send_multipart(frame(image=np.zeros((256, 256, 3), np.uint8)))
    eventually(lambda: count("input_disconnects") == 1)
    camera.send_multipart(frame("rear", seq=1))
    assert intake.take(WAIT).sensor == "rear"
    offender.send_multipart(frame("front", seq=2))  # it is connected again
    assert intake.take(WAIT).seq == 2


def test_a_frame_of_exactly_the_limit_is_received(receive, push, count):
    intake = receive(max_frame_bytes=128 * 128 * 4 + 128 * 128 * 2)
    push(intake).send_multipart(frame(image=np.zeros((128, 256, 3), np.uint8)))
    assert intake.take(WAIT).width == 256


def test_a_frame_larger_than_its_sensor_may_send_is_refused_by_its_header(receive, push, count):
    intake = receive(max_pixels=16)
    camera = push(intake)
    camera.send_multipart(frame("front", image=np.zeros((4, 5, 3), np.uint8)))
    header = {"v": 1, "seq": 1, "timestamp": NOW, "width": 8192, "height": 8192, "encoding": "png"}
    camera.send_multipart([b"front/", json.dumps(header).encode(), b"never looked at"])
    camera.send_multipart(frame("front", seq=2))
    eventually(lambda: count("frames_received", sensor="front") == 3)
    assert count("frames_dropped", sensor="front", reason="size") == 2
    assert intake.take(WAIT).seq == 2


def test_a_message_without_an_end_costs_its_sender_the_connection(receive, push, count):
    intake = receive(max_frame_bytes=65536)
    with raw_peer(intake.endpoints[0], "PUSH") as peer:
        assert sent_until_cut(peer, part(bytes(65536), more=True), 512 << 20, pause=0.002) is not None
    push(intake).send_multipart(frame(seq=2))
    assert intake.take(WAIT).seq == 2


def test_a_message_of_many_parts_costs_its_sender_the_connection(receive, push, count):
    intake = receive()
    with raw_peer(intake.endpoints[0], "PUSH") as peer:
        peer.sendall(part(b"x", more=True) * 1_000 + part(b"x"))
        eventually(lambda: count("frames_dropped", sensor="unknown", reason="parts") == 1)
        assert sent_until_cut(peer, part(b"x"), 1 << 20) is not None
    push(intake).send_multipart(frame(seq=2))
    assert intake.take(WAIT).seq == 2


def test_who_sent_thousands_of_parts_is_not_let_in_again_soon(receive, push, count, monkeypatch, caplog):
    monkeypatch.setattr("daemon.serving.connection_watch.SHUT_OUT_S", 2.0)
    intake = receive()
    sender = push(intake)
    sender.send_multipart([b""] * 10_000)
    eventually(lambda: "127.0.0.1 sent thousands of parts" in caplog.text)
    eventually(lambda: count("input_disconnects") >= 1)
    sender.close()
    before = count("input_disconnects")
    again = push(intake)
    eventually(lambda: count("input_disconnects") > before)  # it has done no harm, but comes from where that came from
    eventually(lambda: again.send_multipart(frame()) or intake.take(0.1))


def test_a_sender_that_begins_during_a_flood_is_heard_soon(receive, push, monkeypatch):
    """Only a poll, or 100 messages, makes ZeroMQ notice whose messages have begun to arrive."""
    intake = receive(start=False, monotonic=itertools.count().__next__)  # it rests, and the flood goes on
    flood, other = push(intake), push(intake)
    refused, sent_after, waited = [], [], []

    def refuse(error):
        refused.append(error)
        if len(refused) % 150 == 0:
            other.send_multipart(frame())
            sent_after.append(len(refused))

    monkeypatch.setattr(intake, "_refuse", refuse)
    monkeypatch.setattr(intake, "_deliver", lambda frame: waited.append(len(refused) - sent_after[-1]))
    assert other.poll(1000 * WAIT, zmq.POLLOUT)
    intake.start()
    while len(waited) < 7:
        flood.send(bytes(65536))
    assert statistics.median(waited) < 20, waited


@pytest.mark.parametrize(
    ("message", "sensor", "reason"), [([b"no frame"], "unknown", "parts"), (frame(), "front", "superseded")]
)
def test_a_message_of_no_use_is_followed_by_a_rest(receive, push, count, message, sensor, reason):
    """A refused one, and one that made another give way."""
    began = time.monotonic()
    intake = receive(monotonic=itertools.count().__next__)  # each message seems to take a second and more
    sender = push(intake)
    for _ in range(201):
        sender.send_multipart(message)
    eventually(lambda: count("frames_dropped", sensor=sensor, reason=reason) >= 200)
    assert 0.2 <= time.monotonic() - began < WAIT


def test_a_killed_camera_is_counted_and_its_successor_received(receive, count, push):
    intake = receive()
    lines = [
        "import sys, time, zmq",
        "socket = zmq.Context().socket(zmq.PUSH)",
        "socket.connect(sys.argv[1])",
        f"socket.send_multipart({frame()!r})",
        "time.sleep(60)",
    ]
    with subprocess.Popen([sys.executable, "-c", "\n".join(lines), intake.endpoints[0]]) as camera:
        assert intake.take(WAIT).seq == 0
        camera.send_signal(signal.SIGKILL)
    eventually(lambda: count("input_disconnects") == 1)
    push(intake).send_multipart(frame(seq=1))
    assert intake.take(WAIT).seq == 1


def alive_messages() -> int:
    return sum(type(thing) is zmq.Frame for thing in gc.get_objects())


def test_one_message_a_sensor_is_kept_alive(receive, push, count):
    intake = receive()
    camera = push(intake)
    gc.collect()
    gc.disable()  # a reference cycle would keep messages until a collection
    try:
        before = alive_messages()
        for seq in range(50):
            camera.send_multipart(frame(seq=seq))
        eventually(lambda: count("frames_received", sensor="front") == 50)
        eventually(lambda: alive_messages() - before <= 1)
        assert alive_messages() - before == 1
        taken = intake.take(WAIT)
        assert bytes(taken.payload) == IMAGE.tobytes()
        del taken
        assert alive_messages() == before
    finally:
        gc.enable()


def test_the_payload_is_not_copied(receive, push):
    intake = receive()
    push(intake).send_multipart(frame(image=np.zeros((200, 200, 3), np.uint8)))
    payload = intake.take(WAIT).payload
    assert isinstance(payload, memoryview) and isinstance(payload.obj, zmq.Frame)


def test_starting_it_keeps_the_memory_of_freed_frames(receive, monkeypatch):
    kept = []
    monkeypatch.setattr("daemon.serving.intake.keep_freed_memory", lambda: kept.append(True))
    receive(start=False)
    assert not kept
    receive()
    assert kept


def test_a_flood_does_not_keep_it_from_closing(receive, push, count):
    intake, stopping = receive(), threading.Event()
    sender = push(intake)

    def flood() -> None:
        while not stopping.is_set():
            with suppress(zmq.Again):
                sender.send(b"noise", zmq.NOBLOCK)

    with ThreadPoolExecutor(1) as executor:
        executor.submit(flood)
        try:
            eventually(lambda: count("frames_dropped", sensor="unknown", reason="parts") > 100)
            intake.close()
        finally:
            stopping.set()


def test_closing_twice_or_without_a_start_is_harmless(receive):
    intake = receive(start=False)
    intake.close()
    intake.close()


def test_a_taken_endpoint_is_an_os_error_and_leaves_no_socket(receive):
    endpoint = receive().endpoints[0]
    with pytest.raises(OSError, match="in use"):
        receive(bind=["tcp://127.0.0.1:*", endpoint])


# ---- the memory of freed frames

FREEING_PROGRAM = """
import resource, sys
from daemon.serving.intake import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for turn in range(4):  # the first two make the heap as large as it stays
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    frames = [bytearray(8 << 20) for _ in range(5)]
    del frames
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
PAGES = 5 * (8 << 20) // 4096


def page_faults(how: str) -> int:
    command = [sys.executable, "-c", FREEING_PROGRAM, how]
    return int(subprocess.run(command, capture_output=True, check=True, text=True, env={}).stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
@pytest.mark.skipif(sys.maxsize < 2**32, reason="glibc keeps less where addresses have 32 bits")
def test_freed_frames_stay_with_the_process():
    assert page_faults("keep") < PAGES / 20 < PAGES / 2 < page_faults("as it starts")
