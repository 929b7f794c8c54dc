"""What Prometheus scrapes is served whatever other clients do, and a taken port is waited for."""

from __future__ import annotations

import socket
import threading
import time
import urllib.request
from collections.abc import Iterator

import pytest
from daemon.metrics_server import MAX_SCRAPES, MetricsServer
from prometheus_client import CollectorRegistry, Gauge

from daemon import metrics_server


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("level", "A level.", registry=registry).set(7)
    return registry


@pytest.fixture
def server(registry) -> Iterator[MetricsServer]:
    server = MetricsServer("127.0.0.1", 0, registry)
    yield server
    server.close()


def scrape(port: int, timeout: float = 5) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=timeout) as answer:
        return answer.read().decode()


def half_open(port: int) -> socket.socket:
    """A request that never ends."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=5)
    connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: ")
    return connection


def ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


def test_it_listens_on_the_given_host_only(server):
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", server.port), timeout=5)


def test_closing_frees_the_port(registry):
    first = MetricsServer("127.0.0.1", 0, registry)
    port = first.port
    first.close()
    second = MetricsServer("127.0.0.1", port, registry)
    second.close()
    assert second.port == port


def test_a_taken_port_is_one_warning_and_served_once_it_is_free(registry, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = MetricsServer("127.0.0.1", port, registry)
        for _ in range(3):
            server.retry()
        assert server.port is None
        (record,) = caplog.records
        assert f"127.0.0.1:{port} cannot be bound" in record.getMessage() and record.levelname == "WARNING"
    server.retry()
    try:
        assert server.port == port and "level 7.0" in scrape(port)
    finally:
        server.close()


def test_half_open_requests_are_bounded_and_end_by_themselves(server, monkeypatch):
    monkeypatch.setattr(metrics_server, "SCRAPE_DEADLINE_S", 0.5)
    before = threading.active_count()
    connections = [half_open(server.port) for _ in range(4 * MAX_SCRAPES)]
    try:
        time.sleep(0.2)
        assert threading.active_count() - before <= 2 * MAX_SCRAPES  # each has a thread and its deadline
        assert all(ended(connection) for connection in connections)
        assert "level 7.0" in scrape(server.port)
    finally:
        for connection in connections:
            connection.close()


def test_a_request_that_trickles_in_is_ended_too(server, monkeypatch):
    monkeypatch.setattr(metrics_server, "SCRAPE_DEADLINE_S", 0.5)
    with half_open(server.port) as connection:
        deadline = time.monotonic() + 5
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                connection.sendall(b"a")
                time.sleep(0.05)
    assert "level 7.0" in scrape(server.port)


def test_it_closes_at_once_though_a_client_hangs(registry):
    server = MetricsServer("127.0.0.1", 0, registry)
    with half_open(server.port):
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < 2
