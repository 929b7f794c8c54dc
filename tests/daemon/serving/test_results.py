import json
import os
import struct
import time

import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmtp import part, raw_peer, sent_until_cut

from daemon.serving.connection_watch import ConnectionWatch
from daemon.serving.receiver_memory import resident_bytes
from daemon.serving.results import (
    MAX_FOREIGN_TOPICS,
    PUBLISHER_QUEUE_MESSAGES,
    RESULT_DTYPES,
    Publisher,
    ResultError,
    parse_result,
)

OUTPUT = np.linspace(-1, 1, 10, dtype=np.float32).reshape(1, 10)


@pytest.fixture
def watch():
    watch = ConnectionWatch()
    yield watch
    watch.close()


@pytest.fixture
def publisher(context, watch):
    publisher = Publisher(context, "tcp://127.0.0.1:*", ["front", "rear"], watch)
    yield publisher
    publisher.close()


@pytest.fixture
def subscribe(publisher, open_peer):
    def subscribe(topic: bytes = b"", **options) -> zmq.Socket:
        subscriber = open_peer(zmq.SUB, connect=publisher.endpoint, subscribe=topic, **options)
        while not subscriber.poll(10):  # the subscription is on its way
            publisher.send(topic.decode().rstrip("/"), {"probe": True}, OUTPUT)
        while subscriber.poll(50):
            subscriber.recv_multipart()
        return subscriber

    return subscribe


def test_a_result_arrives_as_it_was_sent(publisher, subscribe):
    subscriber = subscribe()
    publisher.send("front", {"seq": 4, "homogenizer": "factory", "label": "cat"}, OUTPUT)
    sensor, header, output = parse_result(subscriber.recv_multipart())
    assert sensor == "front"
    assert header == {
        "v": 1,
        "seq": 4,
        "homogenizer": "factory",
        "label": "cat",
        "dtype": "float32",
        "shape": [1, 10],
    }
    np.testing.assert_array_equal(output, OUTPUT)


@pytest.mark.parametrize("dtype", sorted(RESULT_DTYPES))
def test_every_type_and_layout_arrives(publisher, subscribe, dtype):
    subscriber = subscribe()
    output = np.arange(24).reshape(2, 3, 4).astype(dtype).transpose(2, 0, 1)
    publisher.send("front", {}, output)
    _, _, arrived = parse_result(subscriber.recv_multipart())
    np.testing.assert_array_equal(arrived, output)
    assert arrived.dtype == output.dtype


def test_one_sensor_can_be_subscribed_to(publisher, subscribe):
    subscriber = subscribe(b"cam1/")
    for sensor in ("cam10", "cam1"):
        publisher.send(sensor, {}, OUTPUT)
    assert parse_result(subscriber.recv_multipart())[0] == "cam1"


def test_the_runner_may_overwrite_its_output_after_sending(publisher, subscribe):
    subscriber = subscribe()
    output = np.zeros(1_000_000, np.float32)
    publisher.send("front", {}, output)
    output[:] = 1
    assert not parse_result(subscriber.recv_multipart())[2].any()


def test_numbers_that_are_not_finite_become_null(publisher, subscribe):
    subscriber = subscribe()
    publisher.send("front", {"drift_score": float("nan"), "confidence": float("inf")}, OUTPUT)
    header = json.loads(subscriber.recv_multipart()[1], parse_constant=pytest.fail)
    assert header["drift_score"] is None and header["confidence"] is None


def test_a_reader_that_stops_reading_delays_nobody_and_its_queue_is_short(publisher, subscribe):
    subscriber = subscribe(rcvhwm=1, rcvbuf=4096)
    big = np.zeros(100_000, np.float32)
    started = time.monotonic()
    for seq in range(2000):
        publisher.send("front", {"seq": seq}, big)
    assert time.monotonic() - started < 60  # it would wait for ever, not a little longer
    arrived = 0
    while subscriber.poll(200):
        subscriber.recv_multipart()
        arrived += 1
    assert 0 < arrived < 2000 and arrived < 10 * PUBLISHER_QUEUE_MESSAGES


def test_a_reader_that_falls_behind_is_counted_and_the_others_lose_nothing(publisher, subscribe):
    overruns = []
    publisher._on_overrun = lambda: overruns.append(1)
    slow, quick = subscribe(b"rear/", rcvhwm=1, rcvbuf=4096), subscribe(b"front/", rcvhwm=0)
    both = subscribe(rcvhwm=0)
    big = np.zeros(100_000, np.float32)
    for _ in range(500):
        publisher.send("rear", {}, big)
        both.recv_multipart()
    assert len(overruns) == 1  # it is left out from then on
    publisher.send("front", {"seq": 1}, OUTPUT)
    assert parse_result(quick.recv_multipart())[1]["seq"] == parse_result(both.recv_multipart())[1]["seq"] == 1
    while slow.poll(200):
        slow.recv_multipart()
    assert len(overruns) == 1
    for _ in range(500):
        publisher.send("rear", {}, big)
        both.recv_multipart()
    assert len(overruns) == 2


def is_cut(peer, publisher) -> bool:
    """Whether the publisher ends the connection, while it publishes."""
    peer.settimeout(0.02)
    for _ in range(100):
        publisher.send("front", {}, OUTPUT)
        try:
            if not peer.recv(65536):
                return True
        except TimeoutError:
            pass
        except OSError:
            return True
    return False


def test_a_huge_subscription_costs_its_reader_the_connection_and_no_memory(publisher, subscribe):
    reader, before = subscribe(b"front/"), resident_bytes()
    with raw_peer(publisher.endpoint, "SUB") as peer:
        header = b"\x02" + struct.pack(">Q", 100 << 20) + b"\x01"
        assert sent_until_cut(peer, header + bytes(1 << 20), 100 << 20) is not None
    assert resident_bytes() - before < 16 << 20
    publisher.send("front", {}, OUTPUT)
    assert reader.poll(5000)


def test_subscriptions_without_end_cost_their_reader_the_connection(publisher, subscribe):
    reader = subscribe(b"fr")
    with raw_peer(publisher.endpoint, "SUB") as peer:
        for _ in range(MAX_FOREIGN_TOPICS + 1):
            peer.sendall(part(b"\x01" + os.urandom(16)))
        assert is_cut(peer, publisher)
    publisher.send("front", {}, OUTPUT)
    assert reader.poll(5000)
    assert len(publisher._foreign) <= MAX_FOREIGN_TOPICS


def test_a_reader_that_left_leaves_room_for_others(publisher):
    for _ in range(3):
        with raw_peer(publisher.endpoint, "SUB") as peer:
            peer.sendall(b"".join(part(b"\x01" + os.urandom(16)) for _ in range(MAX_FOREIGN_TOPICS)))
            assert not is_cut(peer, publisher)
        for _ in range(200):  # ZeroMQ notices that it has left
            publisher.send("front", {}, OUTPUT)
            if not publisher._foreign:
                break
            time.sleep(0.01)


def test_a_reader_of_every_known_topic_and_prefix_is_not_cut_off(publisher):
    known = [b"front/"[:n] for n in range(7)] + [b"rear/"[:n] for n in range(6)]
    with raw_peer(publisher.endpoint, "SUB") as peer:
        peer.sendall(b"".join(part(b"\x01" + topic) for topic in known * 50))
        assert not is_cut(peer, publisher)
    assert not publisher._foreign


def test_a_reader_that_waits_in_vain_is_told_once(publisher, subscribe, caplog):
    with raw_peer(publisher.endpoint, "SUB") as peer:
        peer.sendall(part(b"\x01side/") + part(b"\x01roof/"))
        assert not is_cut(peer, publisher)
    assert [r.getMessage() for r in caplog.records] == [
        "a reader of results waits for b'side/', and no sensor is of this name"
    ]


def test_nobody_listening_is_no_error(publisher):
    publisher.send("front", {}, OUTPUT)


def test_a_taken_endpoint_is_an_os_error(context, publisher, watch):
    with pytest.raises(OSError, match="in use"):
        Publisher(context, publisher.endpoint, ["front"], watch)


GOOD = {"v": 1, "dtype": "float32", "shape": [2]}


@pytest.mark.parametrize(
    "parts",
    [
        [],
        [b"front/", json.dumps(GOOD).encode()],
        [b"front/", b"{}", b"\0" * 8],
        [b"front/", b"[]", b"\0" * 8],
        [b"front/", b"\xff", b"\0" * 8],
        [b"front/", json.dumps(GOOD | {"v": 2}).encode(), b"\0" * 8],
        [b"front/", json.dumps(GOOD | {"dtype": "O"}).encode(), b"\0" * 8],
        [b"front/", json.dumps(GOOD | {"dtype": "f4,f4", "shape": [1]}).encode(), b"\0" * 8],
        [b"front/", json.dumps(GOOD | {"dtype": ["f4"]}).encode(), b"\0" * 8],
        [b"front/", json.dumps(GOOD | {"shape": [3]}).encode(), b"\0" * 8],
        [b"front/", json.dumps(GOOD | {"shape": [10**30]}).encode(), b"\0" * 8],
        [b"front/", json.dumps(GOOD).encode(), b"\0" * 7],
        [b"\xff/", json.dumps(GOOD).encode(), b"\0" * 8],
        [b"front/", b"[" * 100_000, b""],
    ],
)
def test_what_is_no_result_is_refused(parts):
    with pytest.raises(ResultError):
        parse_result(parts)


@settings(deadline=None)
@given(st.lists(st.binary() | st.just(json.dumps(GOOD).encode()), max_size=4))
def test_any_bytes_parse_or_are_refused(parts):
    try:
        parse_result(parts)
    except ResultError:
        pass
