"""Senders that mean harm, or are broken: they cost themselves the connection, and nobody else a frame."""

from __future__ import annotations

import itertools
import statistics
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import zmq
from receiver import WAIT, eventually, frame
from zmtp import part, raw_peer, sent_until_cut


def test_a_request_without_an_envelope_harms_nobody(receive, open_peer, count):
    intake = receive(pattern="rep")
    for _ in range(3):
        open_peer(zmq.DEALER, connect=intake.endpoints[0]).send(b"no envelope")
    camera = open_peer(zmq.REQ, connect=intake.endpoints[0])
    for seq in range(20):
        camera.send_multipart(frame(seq=seq))
        assert camera.recv() == b"OK"
    eventually(lambda: (taken := intake.take(WAIT)) is not None and taken.seq == 19)


def test_an_oversize_message_costs_its_sender_the_connection_and_nobody_else(receive, push, count):
    intake = receive(max_frame_bytes=65536)
    offender, camera = push(intake), push(intake)
    offender.send_multipart(frame(image=np.zeros((256, 256, 3), np.uint8)))
    eventually(lambda: count("input_disconnects") == 1)
    camera.send_multipart(frame("rear", seq=1))
    assert intake.take(WAIT).sensor == "rear"
    offender.send_multipart(frame("front", seq=2))  # it is connected again
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
