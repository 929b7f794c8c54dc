"""The paths of the port: which there are, who may ask for them, and the headers of every answer."""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, make_wsgi_app
from prometheus_client import Metric as Family
from prometheus_client.registry import Collector

from daemon.settings.metrics import MetricsConfig

METHODS = ("GET", "HEAD")
BASE_UNITS = ("seconds", "bytes", "ratio", "celsius", "watts", "joules")  # names of metrics end in them
MAX_TOLD_CHARS = 100  # of a name that is refused
TEXT = "text/plain; charset=utf-8"
SECURITY_HEADERS = [
    # No inline script or style, nothing from elsewhere: what a camera or a file is named cannot become code.
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
]

StartResponse = Callable[[str, list[tuple[str, str]]], Any]


class PageRequest(NamedTuple):
    """What a route is told. path: below the route's own. etag: what the client has already, or ""."""

    path: str = ""
    query: str = ""
    etag: str = ""


class Reply(NamedTuple):
    """What a route answers. kind: the content type. etag: by which the client asks for news only, or ""."""

    body: bytes
    kind: str = TEXT
    status: HTTPStatus = HTTPStatus.OK
    etag: str = ""


Route = Callable[[PageRequest], Reply | None]  # None: there is no such thing


def line(text: str, status: HTTPStatus = HTTPStatus.OK) -> Reply:
    """Return an answer of one line of text."""
    return Reply(f"{text}\n".encode(), status=status)


class Site:
    """An application of WSGI. A route whose path ends in "/" gets all that lies below it."""

    def __init__(self, registry: CollectorRegistry, routes: Mapping[str, Route], host_names: HostNames) -> None:
        self._metrics = make_wsgi_app(_Exported(registry))
        self._routes = routes
        self._host_names = host_names

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        method, path = environ["REQUEST_METHOD"], environ.get("PATH_INFO", "")
        if method not in METHODS:
            reply = line("only GET and HEAD: orders are given with `recald`", HTTPStatus.METHOD_NOT_ALLOWED)
        elif not self._host_names.allow(environ.get("HTTP_HOST", "")):
            reply = _refuse_name(environ["HTTP_HOST"])
        elif path == "/metrics":
            return self._serve_metrics(environ, start_response)
        else:
            request = PageRequest(path, environ.get("QUERY_STRING", ""), environ.get("HTTP_IF_NONE_MATCH", ""))
            reply = self._find(request) or line("no such path", HTTPStatus.NOT_FOUND)
        return _send(reply, method, start_response)

    def _find(self, request: PageRequest) -> Reply | None:
        path = request.path
        if path in self._routes and (path == "/" or not path.endswith("/")):
            return self._routes[path](request)
        folder, slash, below = path[1:].partition("/")
        below_folder = self._routes.get(f"/{folder}/") if slash and below else None
        return below_folder and below_folder(request._replace(path=below))

    def _serve_metrics(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        def start(status: str, headers: list[tuple[str, str]]) -> Any:
            return start_response(status, headers + SECURITY_HEADERS)

        body: Iterable[bytes] = self._metrics(environ | {"REQUEST_METHOD": "GET"}, start)
        return body if environ["REQUEST_METHOD"] == "GET" else []


def _send(reply: Reply, method: str, start_response: StartResponse) -> Iterable[bytes]:
    unchanged = reply.status is HTTPStatus.NOT_MODIFIED
    described = [] if unchanged else [("Content-Type", reply.kind), ("Content-Length", str(len(reply.body)))]
    headers = [*described, *SECURITY_HEADERS]
    if reply.etag:
        headers.append(("ETag", reply.etag))
    if reply.status is HTTPStatus.METHOD_NOT_ALLOWED:
        headers.append(("Allow", ", ".join(METHODS)))
    start_response(f"{reply.status.value} {reply.status.phrase}", headers)
    return [] if method == "HEAD" or unchanged else [reply.body]


def _refuse_name(host: str) -> Reply:
    told = "".join(c if c.isprintable() and c.isascii() else "?" for c in host[:MAX_TOLD_CHARS])
    return line(f"{told} is no name of this port: ask by its address, or add it to metrics.names", HTTPStatus.FORBIDDEN)


class HostNames:
    """The names by which the port may be asked.

    A web site can let its own name lead to 127.0.0.1 and so make a visitor's browser read this port (DNS rebinding).
    It cannot choose the header Host, which then has that name. An address has no name that could be led elsewhere.
    """

    def __init__(self, config: MetricsConfig, own_name: str | None = None) -> None:
        """own_name: of this machine; by default as the system says."""
        own_name = socket.gethostname() if own_name is None else own_name
        self._names = {name.lower() for name in ("localhost", config.host, own_name, *config.names) if name}
        self._any = config.certificate is not None  # a browser then compares the name with the certificate's

    def allow(self, host: str) -> bool:
        """Return whether a header Host is allowed. One that is missing comes from no browser."""
        name = _without_port(host).lower().removesuffix(".")
        return self._any or not host or name in self._names or _is_address(name)


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Exported:
    """A registry as it is scraped: with the units that the names end in, and without `_created` series.

    Nothing here reads these, one for each counter. Not disable_created_metrics(): it acts on every registry of the
    process.
    """

    def __init__(self, registry: Collector):
        self._registry = registry

    def collect(self) -> Iterable[Family]:
        for family in self._registry.collect():
            family.samples = [sample for sample in family.samples if not sample.name.endswith("_created")]
            family.unit = family.unit or next((unit for unit in BASE_UNITS if family.name.endswith(f"_{unit}")), "")
            yield family

    def restricted_registry(self, names: Iterable[str]) -> _Exported:
        assert isinstance(self._registry, CollectorRegistry)  # a scrape restricts once
        return _Exported(self._registry.restricted_registry(names))
