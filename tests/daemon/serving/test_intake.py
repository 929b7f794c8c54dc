import gc
import json
import platform
import signal
import subprocess
import sys

import numpy as np
import pytest
import zmq
from receiver import IMAGE, NOW, WAIT, eventually, frame


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
