"""The server of the metrics port. It bounds what a client can take, since any local user can connect."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Callable
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import ServerHandler, WSGIRequestHandler, WSGIServer, make_server

from daemon.web.admission import Admission, Connection
from daemon.web.certificate import Certificate

SCRAPE_DEADLINE_S = 5.0  # from the connection to the end of the answer; Prometheus waits for 10 s by default
POLL_S = 0.1  # the longest that close() waits for the thread that accepts
MACHINE_PATHS = ("/metrics", "/healthz", "/readyz")  # asked for by programs; the rest belongs to the page

log = logging.getLogger(__name__)


class MetricsServer:
    """Serves an application from the moment the port is free: `retry` tries again to bind it, `close` ends the server.

    A port that another process holds must not keep frames from being served.
    """

    def __init__(
        self, host: str, port: int, app: Callable[..., Any], certificate: Certificate | None = None, page: bool = False
    ):
        """port: 0 takes any free one. app: of WSGI. certificate: None for plain HTTP. page: to be named in the log."""
        self._host, self._port = host, port
        self._app, self._certificate, self._page = app, certificate, page
        self._server: _ScrapeServer | None = None
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
            self._warn(error)
            return
        self._server.certificate = self._certificate
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,), name="metrics", daemon=True)
        self._thread.start()
        scheme = "http" if self._certificate is None else "https"
        address = f"{scheme}://{self._host}:{self._server.server_port}"
        log.info("metrics on %s/metrics%s", address, f" and a page on {address}/" if self._page else "")

    def _warn(self, error: OSError) -> None:
        if not self._warned:
            text = "metrics are not served: %s:%d cannot be bound (%s); it is tried again until it can"
            log.warning(text, self._host, self._port, error.strerror or error)
        self._warned = True

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()


class _ScrapeServer(ThreadingMixIn, WSGIServer):
    """A thread for each connection that is admitted, for SCRAPE_DEADLINE_S at most."""

    daemon_threads = True
    request_queue_size = 128  # with socketserver's 5, a burst of connections delays a scrape by seconds
    block_on_close = False  # a client that hangs must not keep the daemon from ending
    certificate: Certificate | None = None

    def __init__(self, *arguments: Any) -> None:
        self.admission = Admission()
        self._of_thread = threading.local()
        super().__init__(*arguments)

    def server_bind(self) -> None:
        """Bind without asking the network for the name of the host, as HTTPServer does."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def service_actions(self) -> None:
        """Look for a renewed certificate; called once in POLL_S, and by each connection."""
        if self.certificate is not None:
            self.certificate.refresh()

    def process_request(self, request: Any, client_address: Any) -> None:
        connection: Any = self.admission.enter(request)
        if connection is None:
            self.shutdown_request(request)
            return
        try:
            super().process_request(connection, client_address)
        except RuntimeError:  # no thread can be started
            self.admission.leave(connection)
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer one connection. request: a Connection."""
        connection: Connection = request
        self._of_thread.connection = connection
        try:
            connection.socket = self._secured(connection.socket)
            deadline = threading.Timer(SCRAPE_DEADLINE_S, connection.cut)
            deadline.start()
            try:
                super().process_request_thread(connection.socket, client_address)
            finally:
                deadline.cancel()
        except OSError:  # it was closed before anything was said
            self.shutdown_request(connection.socket)
        finally:
            self.admission.leave(connection)

    def begin_answer(self, path: str) -> bool:
        """Return whether the connection of this thread may be answered. path: that it asks for."""
        for_page = path.partition("?")[0] not in MACHINE_PATHS
        return self.admission.begin_answer(self._of_thread.connection, for_page)

    def _secured(self, request: socket.socket) -> socket.socket:
        if self.certificate is None:
            return request
        return self.certificate.context.wrap_socket(request, server_side=True, do_handshake_on_connect=False)

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Answer; over TLS the handshake comes first, in this thread and under its deadline."""
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
        super().finish_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("a scrape by %s broke off", client_address, exc_info=True)


class _Answer(ServerHandler):
    """Tells no version, and logs a client that went away as what it is."""

    server_software = "recald"

    def log_exception(self, exc_info: Any) -> None:
        expected = issubclass(exc_info[0], OSError)  # such as a client that closes while it is answered over TLS
        log.log(logging.DEBUG if expected else logging.ERROR, "an answer broke off", exc_info=exc_info)


class _ScrapeHandler(WSGIRequestHandler):
    """Logs nothing: a scrape every few seconds is no news."""

    server_version, sys_version = "recald", ""

    def handle(self) -> None:
        """Answer one request, as WSGIRequestHandler does, by `_Answer`."""
        self.raw_requestline = self.rfile.readline(65537)
        if len(self.raw_requestline) > 65536:
            self.requestline, self.request_version, self.command = "", "", ""
            self.send_error(414)
            return
        if not self.parse_request():
            return
        server: Any = self.server
        if not server.begin_answer(self.path):
            self.send_error(503, "too many open pages")
            return
        reads: Any = self.rfile
        writes: Any = self.wfile
        answer: Any = _Answer(reads, writes, self.get_stderr(), self.get_environ(), multithread=True)
        answer.request_handler = self  # as WSGIRequestHandler sets it
        answer.run(server.get_app())

    def log_message(self, format: str, *args: Any) -> None: ...
