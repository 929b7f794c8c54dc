import logging
import os
import resource
import socket

import pytest

from daemon.systemd_notify import Notifier


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def systemd(tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        yield receiver


@pytest.fixture
def open_notifier():
    """Makes notifiers, and closes them when the test ends."""
    opened = []

    def open_notifier(*arguments) -> Notifier:
        opened.append(Notifier(*arguments))
        return opened[-1]

    yield open_notifier
    for notifier in opened:
        notifier.close()


def received(receiver: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(receiver.recv(4096).decode())
        except BlockingIOError:
            return messages


def environment(receiver: socket.socket, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": receiver.getsockname(), **more}


def test_the_life_of_a_service(systemd, open_notifier):
    notifier = open_notifier(environment(systemd))
    notifier.extend_timeout(90)
    notifier.ready()
    notifier.status("serving 2 sensors\nREADY=0")
    notifier.stopping()
    assert received(systemd) == [
        "EXTEND_TIMEOUT_USEC=90000000",
        "READY=1",
        "STATUS=serving 2 sensors READY=0",  # one line: no second assignment can be smuggled in
        "STOPPING=1",
    ]


def test_watchdog_is_sent_twice_a_period(systemd, open_notifier):
    clock = Clock()
    notifier = open_notifier(environment(systemd, WATCHDOG_USEC="10000000"), clock)
    for second in range(21):
        clock.now = 100.0 + second
        notifier.watchdog()
    assert received(systemd) == ["WATCHDOG=1"] * 5  # at 0, 5, 10, 15 and 20 s


@pytest.mark.parametrize(
    "watchdog",
    [{}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}, {"WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}],
)
def test_no_watchdog_is_sent_where_none_is_asked_of_us(systemd, watchdog, open_notifier):
    open_notifier(environment(systemd, **watchdog)).watchdog()
    assert received(systemd) == []


def test_a_watchdog_meant_for_this_process_is_sent(systemd, open_notifier):
    open_notifier(environment(systemd, WATCHDOG_USEC="1000", WATCHDOG_PID=str(os.getpid()))).watchdog()
    assert received(systemd) == ["WATCHDOG=1"]


def test_an_abstract_socket_is_reached(open_notifier):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind("\0recald-test-notify-" + str(os.getpid()))
        receiver.setblocking(False)
        name = receiver.getsockname()[1:].decode()
        open_notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert received(receiver) == ["READY=1"]


def test_without_systemd_it_is_silent(caplog, open_notifier):
    notifier = open_notifier({"WATCHDOG_USEC": "1000"})
    notifier.ready()
    notifier.watchdog()
    assert caplog.records == []


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative"])
def test_an_address_of_another_kind_is_logged_once(caplog, address, open_notifier):
    notifier = open_notifier({"NOTIFY_SOCKET": address})
    notifier.ready()
    notifier.ready()
    (record,) = caplog.records
    assert address in record.getMessage()


def test_a_dead_socket_costs_a_log_line_and_not_one_a_frame(tmp_path, caplog, open_notifier):
    clock = Clock()
    environ = {"NOTIFY_SOCKET": str(tmp_path / "gone"), "WATCHDOG_USEC": "10000000"}
    notifier = open_notifier(environ, clock)
    for _ in range(100):
        notifier.watchdog()
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_full_queue_does_not_block(systemd, open_notifier):
    systemd.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    notifier = open_notifier(environment(systemd))
    for _ in range(1000):
        notifier.ready()
    assert 0 < len(received(systemd)) < 1000


def test_a_lost_watchdog_is_sent_again_before_the_period_ends(tmp_path, open_notifier):
    clock = Clock()
    notifier = open_notifier({"NOTIFY_SOCKET": str(tmp_path / "late"), "WATCHDOG_USEC": "10000000"}, clock)
    notifier.watchdog()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "late"))
        receiver.setblocking(False)
        clock.now += 2
        notifier.watchdog()
        assert received(receiver) == ["WATCHDOG=1"]


def test_it_is_sent_though_the_process_has_no_descriptor_left(systemd, open_notifier):
    notifier = open_notifier(environment(systemd, WATCHDOG_USEC="1000"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        notifier.watchdog()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert received(systemd) == ["WATCHDOG=1"]
