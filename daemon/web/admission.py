"""Who may be connected to the port: a client that sends or reads nothing gives its place to the next one."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

MAX_CONNECTIONS = 16  # at a time, each with a thread
MAX_PAGE_ANSWERS = 12  # of these; the rest is left to Prometheus and to health checks
MIN_ANSWER_S = 1.0  # an answer takes milliseconds: what takes longer waits for its client to read
MAX_PAGE_WAIT_S = 1.5  # of a page for its share; longer than MIN_ANSWER_S, so that it outlasts clients that do not read


@dataclass(eq=False)
class Connection:
    """A client. socket: replaced by the one that speaks TLS. began: it, and later its answer; monotonic, s."""

    socket: socket.socket
    began: float
    asked: bool = False  # its request has been read
    answered: bool = False  # an answer has begun
    for_page: bool = False

    def cut(self) -> None:
        """End it in both directions, which wakes the thread that reads from it or writes to it."""
        try:
            socket.socket.shutdown(self.socket, socket.SHUT_RDWR)  # not SSLSocket's: its thread still reads with it
        except OSError:
            pass  # it has ended by itself


class Admission:
    """Holds the connections that are open. Any thread may call it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """clock: monotonic, s."""
        self._clock = clock
        self._changed = threading.Condition()
        self._open: list[Connection] = []  # the oldest first

    @property
    def count(self) -> int:
        """Return how many connections are open."""
        with self._changed:
            return len(self._open)

    def enter(self, client: socket.socket) -> Connection | None:
        """Take a new connection, in the place of one that waits for its client if need be. None: it must be closed."""
        with self._changed:
            if len(self._open) >= MAX_CONNECTIONS and not self._make_room():
                return None
            self._open.append(connection := Connection(client, self._clock()))
            return connection

    def begin_answer(self, connection: Connection, for_page: bool) -> bool:
        """Note that its request has been read. False: refuse it, since other pages have the share of the page."""
        with self._changed:
            connection.asked = True  # before it waits for others
            admitted = not for_page or self._changed.wait_for(self._page_has_room, MAX_PAGE_WAIT_S)
            connection.answered, connection.began = True, self._clock()
            connection.for_page = for_page and admitted
            return admitted

    def leave(self, connection: Connection) -> None:
        """Give its place back."""
        with self._changed:
            self._remove(connection)

    def _page_has_room(self) -> bool:
        pages = [one for one in self._open if one.for_page]
        return len(pages) < MAX_PAGE_ANSWERS or self._cut_first(self._slow(pages))

    def _make_room(self) -> bool:
        """Cut the oldest without a request, else the oldest that does not read its answer, else a page that waits."""
        idle = [one for one in self._open if not one.asked]
        waiting = [one for one in self._open if one.asked and not one.answered]  # for its share
        return self._cut_first([*idle, *self._slow(self._open), *waiting])

    def _slow(self, connections: list[Connection]) -> list[Connection]:
        before = self._clock() - MIN_ANSWER_S
        return [one for one in connections if one.answered and one.began < before]

    def _cut_first(self, connections: list[Connection]) -> bool:
        for connection in connections[:1]:
            connection.cut()
            self._remove(connection)
        return bool(connections)

    def _remove(self, connection: Connection) -> None:
        if connection in self._open:  # it has not been cut before
            self._open.remove(connection)
            self._changed.notify_all()
