"""The server that Prometheus scrapes. It bounds what a client can take, since any local user can connect."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

SCRAPE_DEADLINE_S = 5.0  # from the connection to the end of the answer; Prometheus waits for 10 s by default
MAX_SCRAPES = 8  # connections at a time; what comes beyond is closed at once

log = logging.getLogger(__name__)


class MetricsServer:
    """Serves a registry from the moment the port is free: `retry` tries again to bind it, `close` ends the server.

    A port that another process holds must not keep frames from being served.
    """

    def __init__(self, host: str, port: int, registry: CollectorRegistry):
        """port: 0 takes any free one."""
        self._host, self._port = host, port
        self._app = make_wsgi_app(_WithoutCreated(registry))
        self._server: WSGIServer | None = None
        self._thread: threading.Thread | None = None
        self._warned = False
        self.retry()

    @property
    def port(self) -> int | None:
        """The port that is served, None while it cannot be bound."""
        return None if self._server is None else self._server.server_port

    def retry(self) -> None:
        """Bind the port unless that is done; log the first failure and the success."""
        if self._server is not None:
            return
        try:
            self._server = make_server(self._host, self._port, self._app, _ScrapeServer, _ScrapeHandler)
        except OSError as error:
            if not self._warned:
                log.warning(
                    "metrics are not served: %s:%d cannot be bound (%s); it is tried again until it can",
                    self._host,
                    self._port,
                    error.strerror or error,
                )
            self._warned = True
            return
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)
        self._thread.start()
        log.info("metrics on http://%s:%d/metrics", self._host, self._server.server_port)

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _ScrapeServer(ThreadingMixIn, WSGIServer):
    """A thread for each connection, at most MAX_SCRAPES of them."""

    daemon_threads = True
    request_queue_size = 128  # with socketserver's 5, a burst of connections delays a scrape by seconds
    block_on_close = False  # a client that hangs must not keep the daemon from ending

    def __init__(self, *arguments: Any) -> None:
        self._free = threading.BoundedSemaphore(MAX_SCRAPES)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._free.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        deadline = threading.Timer(SCRAPE_DEADLINE_S, _cut, (request,))
        deadline.start()
        try:
            super().process_request_thread(request, client_address)
        finally:
            deadline.cancel()
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scrape by %s broke off", client_address, exc_info=True)


def _cut(request: Any) -> None:
    """End a connection in both directions, which wakes the thread that reads from it."""
    try:
        request.shutdown(2)
    except OSError:
        pass  # it has ended by itself


class _ScrapeHandler(WSGIRequestHandler):
    """Logs nothing: a scrape every few seconds is no news."""

    def log_message(self, format: str, *args: Any) -> None: ...


class _WithoutCreated:
    """A registry without its `_created` series, one for each counter, which nothing here reads.

    Not disable_created_metrics(): it acts on every registry of the process.
    """

    def __init__(self, registry: Collector):
        self._registry = registry

    def collect(self) -> Iterable[Family]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            yield family

    def restricted_registry(self, names: Iterable[str]) -> _WithoutCreated:
        assert isinstance(self._registry, CollectorRegistry)  # a scrape restricts once
        return _WithoutCreated(self._registry.restricted_registry(names))
