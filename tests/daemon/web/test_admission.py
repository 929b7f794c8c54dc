"""Who is connected gives its place away where it waits for its client, the longest first; who is answered keeps it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from threading import Thread

import pytest

from daemon.web.admission import MAX_CONNECTIONS, MAX_PAGE_ANSWERS, MIN_ANSWER_S, Admission, Connection


class Door:
    """An admission with a clock of its own."""

    def __init__(self) -> None:
        self.now, self.sockets = 100.0, []
        self.admission = Admission(lambda: self.now)

    def enter(self) -> Connection | None:
        """A client connects, a moment after the one before."""
        self.now += 0.001
        self.sockets += (ends := socket.socketpair())
        ends[1].settimeout(1)
        return self.admission.enter(ends[0])

    def fill(self, for_page: bool | None) -> list[Connection]:
        """All places are taken. for_page: None where no request has come, else that the answers have begun."""
        connections = [self.enter() for _ in range(MAX_CONNECTIONS)]
        if for_page is not None:
            assert all(self.admission.begin_answer(one, for_page) for one in connections)
        return connections

    def is_cut(self, connection: Connection) -> bool:
        connection.socket.setblocking(False)
        try:
            return connection.socket.recv(1) == b""
        except BlockingIOError:
            return False


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    yield door
    for each in door.sockets:
        each.close()


def test_the_oldest_without_a_request_makes_room(door):
    connections = door.fill(None)
    door.admission.begin_answer(connections[0], False)
    assert door.enter() and door.admission.count == MAX_CONNECTIONS
    assert [one for one in connections if door.is_cut(one)] == [connections[1]]


def test_one_that_is_being_answered_keeps_its_place(door):
    connections = door.fill(False)
    assert door.enter() is None and not any(map(door.is_cut, connections))


def test_one_that_does_not_read_its_answer_makes_room_after_a_while(door):
    connections = door.fill(False)
    door.now += MIN_ANSWER_S
    assert door.enter() and door.is_cut(connections[0]) and not door.is_cut(connections[1])


def test_a_page_waits_for_its_share_and_then_takes_that_of_one_that_does_not_read(door, monkeypatch):
    monkeypatch.setattr("daemon.web.admission.MAX_PAGE_WAIT_S", 0.05)
    pages = [door.enter() for _ in range(MAX_PAGE_ANSWERS + 2)]
    assert [door.admission.begin_answer(page, True) for page in pages] == [True] * MAX_PAGE_ANSWERS + [False] * 2
    assert door.admission.begin_answer(door.enter(), False), "a scrape needs no share"
    door.now += MIN_ANSWER_S
    assert door.admission.begin_answer(door.enter(), True) and door.is_cut(pages[0])


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A page waits for its share for longer than a test takes."""
    monkeypatch.setattr("daemon.web.admission.MAX_PAGE_WAIT_S", 60.0)


@contextmanager
def page_that_waits(door: Door) -> Iterator[Connection]:
    """A page that waits for its share, which others have, until the body ends. The other places are given away."""
    pages = [door.enter() for _ in range(MAX_PAGE_ANSWERS)]
    assert all(door.admission.begin_answer(page, True) for page in pages)
    waits = door.enter()
    asking = Thread(target=door.admission.begin_answer, args=(waits, True))
    asking.start()
    while not waits.asked:
        time.sleep(0.001)
    yield waits
    door.admission.leave(pages[0])
    asking.join()


def test_a_page_that_waits_for_its_share_is_cut_after_those_without_a_request(door, patient):
    with page_that_waits(door) as page:
        idle = [door.enter() for _ in range(MAX_CONNECTIONS - door.admission.count)]
        asking = [door.enter() for _ in idle]
        assert all(map(door.is_cut, idle)) and not door.is_cut(page)
        assert all(door.admission.begin_answer(one, False) for one in asking)
        assert door.enter() and door.is_cut(page), "all others are being answered"


def test_a_page_that_waits_for_its_share_is_cut_after_one_that_does_not_read(door, patient):
    with page_that_waits(door) as page:
        others = [door.enter() for _ in range(MAX_CONNECTIONS - door.admission.count)]
        assert all(door.admission.begin_answer(one, False) for one in others)
        door.now += MIN_ANSWER_S
        assert door.enter() and not door.is_cut(page)


def test_a_place_is_given_back_once(door):
    first, *_ = door.fill(None)
    assert door.enter()  # instead of the first
    door.admission.leave(first)
    assert door.admission.count == MAX_CONNECTIONS


def test_a_client_that_is_gone_can_be_cut(door):
    connection = door.enter()
    with closing(connection.socket):
        connection.cut()
    connection.cut()
