"""What Prometheus scrapes is served whatever other clients do, over TLS too, and a taken port is waited for."""

from __future__ import annotations

import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path

import pytest
from certificates import Authority, Issued
from prometheus_client import CollectorRegistry, Gauge

from daemon.settings.metrics import MetricsConfig
from daemon.web import server as web_server
from daemon.web.admission import MAX_CONNECTIONS, MAX_PAGE_ANSWERS
from daemon.web.certificate import Certificate
from daemon.web.server import MetricsServer
from daemon.web.site import HostNames, Site


@pytest.fixture
def site() -> Site:
    registry = CollectorRegistry()
    Gauge("level", "A level.", registry=registry).set(7)
    return Site(registry, {}, HostNames(MetricsConfig()))


@pytest.fixture
def server(site) -> Iterator[MetricsServer]:
    server = MetricsServer("127.0.0.1", 0, site)
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


def test_connections_for_which_no_thread_can_be_started_keep_no_place(server, monkeypatch):
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        for _ in range(MAX_CONNECTIONS + 1):
            with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
                assert ended(connection)
    assert "level 7.0" in scrape(server.port)


def test_closing_frees_the_port(site):
    first = MetricsServer("127.0.0.1", 0, site)
    port = first.port
    first.close()
    second = MetricsServer("127.0.0.1", port, site)
    second.close()
    assert second.port == port


def test_a_taken_port_is_one_warning_and_served_once_it_is_free(site, caplog):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = MetricsServer("127.0.0.1", port, site)
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
    monkeypatch.setattr(web_server, "SCRAPE_DEADLINE_S", 0.5)
    before = threading.active_count()
    connections = [half_open(server.port) for _ in range(4 * MAX_CONNECTIONS)]
    try:
        time.sleep(0.2)
        assert threading.active_count() - before <= 2 * MAX_CONNECTIONS  # each has a thread and its deadline
        assert all(ended(connection) for connection in connections)
        assert "level 7.0" in scrape(server.port)
    finally:
        for connection in connections:
            connection.close()


def test_a_request_that_trickles_in_is_ended_too(server, monkeypatch):
    monkeypatch.setattr(web_server, "SCRAPE_DEADLINE_S", 0.5)
    with half_open(server.port) as connection:
        deadline = time.monotonic() + 30
        with pytest.raises(ConnectionError):
            while time.monotonic() < deadline:
                connection.sendall(b"a")
                time.sleep(0.05)
    assert "level 7.0" in scrape(server.port)


def test_it_closes_at_once_though_a_client_hangs(site):
    server = MetricsServer("127.0.0.1", 0, site)
    with half_open(server.port):
        began = time.monotonic()
        server.close()
        assert time.monotonic() - began < web_server.SCRAPE_DEADLINE_S - 1


def test_it_tells_no_version_of_its_programs(server):
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=5) as answer:
        assert answer.headers["Server"] == "recald"


def test_a_fault_while_answering_is_500_and_the_next_is_answered(caplog):
    def app(environ, start_response):
        raise RuntimeError("a fault")

    server = MetricsServer("127.0.0.1", 0, app)
    try:
        for _ in range(2 * MAX_CONNECTIONS):
            with pytest.raises(urllib.error.HTTPError, match="500"):
                scrape(server.port)
    finally:
        server.close()
    assert "an answer broke off" in caplog.text


def test_a_client_that_reads_nothing_is_ended(monkeypatch):
    monkeypatch.setattr(web_server, "SCRAPE_DEADLINE_S", 0.5)

    def app(environ, start_response):
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"x" * (64 << 20)]  # more than the kernel keeps for a connection

    server = MetricsServer("127.0.0.1", 0, app)
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
            assert connection.recv(1)  # it has begun
            eventually_free(server)
    finally:
        server.close()


def eventually_free(server: MetricsServer) -> None:
    """Wait until no connection has a place any more."""
    deadline = time.monotonic() + 30
    while server._server.admission.count:
        assert time.monotonic() < deadline, "a connection is not ended"
        time.sleep(0.02)


# ---- clients that wait keep nobody out


@contextmanager
def connected(port: int, count: int, *said: bytes) -> Iterator[list[socket.socket]]:
    """Connections that say this in turn, and then nothing."""
    with ExitStack() as stack:
        connections = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=5)) for _ in range(count)
        ]
        for connection, text in zip(connections, cycle(said or (b"",)), strict=False):
            connection.sendall(text)
        yield connections


def large_page(environ, start_response):
    """An application whose page is larger than what the kernel keeps for a connection."""
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"level 7.0\n" if environ["PATH_INFO"] == "/metrics" else b"x" * (64 << 20)]


@pytest.fixture
def large() -> Iterator[MetricsServer]:
    server = MetricsServer("127.0.0.1", 0, large_page)
    yield server
    server.close()


PAGE_REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def test_idle_and_slow_clients_keep_no_scrape_and_no_page_out(server):
    begun = (b"", b"GET /metrics HTTP/1.1\r\nHost: ", b"G")  # asleep, slow, slower
    with connected(server.port, 4 * MAX_CONNECTIONS, *begun):
        began = time.monotonic()
        for _ in range(3):
            assert "level 7.0" in scrape(server.port)
        assert time.monotonic() - began < web_server.SCRAPE_DEADLINE_S / 2, "it waits for their deadline"


def test_slow_clients_that_keep_coming_keep_no_scrape_out(server):
    stop = threading.Event()

    def keep_coming() -> None:
        while not stop.is_set():
            with connected(server.port, MAX_CONNECTIONS, b"GET /"):
                stop.wait(0.05)

    threads = [threading.Thread(target=keep_coming) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert "level 7.0" in scrape(server.port)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_pages_that_nobody_reads_leave_their_share_to_scrapes(large):
    with connected(large.port, MAX_CONNECTIONS, PAGE_REQUEST) as pages:
        assert all(page.recv(1) for page in pages[:MAX_PAGE_ANSWERS])  # each is being answered
        for _ in range(3):
            assert "level 7.0" in scrape(large.port)


def test_a_page_takes_the_place_of_one_that_nobody_reads(large):
    with connected(large.port, 2 * MAX_CONNECTIONS, PAGE_REQUEST):
        time.sleep(0.2)
        began = time.monotonic()
        with urllib.request.urlopen(f"http://127.0.0.1:{large.port}/", timeout=5) as answer:
            assert len(answer.read()) == 64 << 20
        assert time.monotonic() - began < web_server.SCRAPE_DEADLINE_S


# ---- TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def open_secured(site, authority) -> Iterator[Callable[..., MetricsServer]]:
    opened: list[MetricsServer] = []

    def open_secured(**more: Path) -> MetricsServer:
        issued = authority.issue("device")
        config = MetricsConfig.model_validate({"certificate": issued.certificate, "certificate_key": issued.key} | more)
        opened.append(MetricsServer("127.0.0.1", 0, site, Certificate(config)))
        return opened[-1]

    yield open_secured
    for server in opened:
        server.close()


def scrape_secured(port: int, authority: Authority, client: Issued | None = None, **versions: ssl.TLSVersion) -> str:
    context = ssl.create_default_context(cafile=authority.file)
    for name, version in versions.items():
        setattr(context, name, version)
    if client is not None:
        context.load_cert_chain(client.certificate, client.key)
    with urllib.request.urlopen(f"https://127.0.0.1:{port}/metrics", timeout=5, context=context) as answer:
        return answer.read().decode()


def test_a_certificate_is_shown_and_verified(open_secured, authority, tmp_path):
    server = open_secured()
    assert "level 7.0" in scrape_secured(server.port, authority)
    (folder := tmp_path / "other").mkdir()
    with pytest.raises(urllib.error.URLError, match="CERTIFICATE_VERIFY_FAILED"):
        scrape_secured(server.port, Authority(folder, "other"))


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_is_1_2_at_least(open_secured, authority):
    server = open_secured()
    old = {"minimum_version": ssl.TLSVersion.TLSv1, "maximum_version": ssl.TLSVersion.TLSv1_1}
    with pytest.raises((urllib.error.URLError, OSError)):
        scrape_secured(server.port, authority, **old)
    assert "level" in scrape_secured(server.port, authority, maximum_version=ssl.TLSVersion.TLSv1_2)
    assert server._server.certificate.context.minimum_version == ssl.TLSVersion.TLSv1_2


def test_clients_must_show_a_certificate_where_they_are_asked_for_one(open_secured, authority, tmp_path):
    server = open_secured(client_ca=authority.file)
    assert "level 7.0" in scrape_secured(server.port, authority, authority.issue("prometheus"))
    (folder := tmp_path / "other").mkdir()
    for stranger in (None, Authority(folder, "other").issue("stranger")):
        with pytest.raises(OSError):
            scrape_secured(server.port, authority, stranger)
    eventually_free(server)


def test_plain_http_gets_no_answer_from_a_secured_port(open_secured):
    with pytest.raises(OSError):
        scrape(open_secured().port)


def test_clients_without_a_handshake_cost_nothing(open_secured, authority, monkeypatch):
    monkeypatch.setattr(web_server, "SCRAPE_DEADLINE_S", 0.5)
    server = open_secured()
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=5) for _ in range(4 * MAX_CONNECTIONS)]
    connections[0].sendall(b"\x16\x03\x01\x02")  # the begin of a handshake
    try:
        assert all(ended(connection) for connection in connections)
        assert "level 7.0" in scrape_secured(server.port, authority)
    finally:
        for connection in connections:
            connection.close()
    eventually_free(server)


def test_others_are_answered_while_a_handshake_hangs(open_secured, authority):
    server = open_secured()
    with socket.create_connection(("127.0.0.1", server.port), timeout=5):
        began = time.monotonic()
        assert "level 7.0" in scrape_secured(server.port, authority)
        assert time.monotonic() - began < web_server.SCRAPE_DEADLINE_S - 1
