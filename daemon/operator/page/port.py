"""The metrics port as the loop sees it: opened once, told once a second how recald is, closed at the end."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from prometheus_client import CollectorRegistry

from daemon.config import Config
from daemon.metrics import Metrics
from daemon.operator.page.health import beat_problem, health, readiness
from daemon.operator.page.snapshot import Snapshots
from daemon.operator.page.view import PageView
from daemon.recalibration.page_frame import PageFrame
from daemon.recalibration.sensor import Sensor
from daemon.web.certificate import open_certificate
from daemon.web.server import MetricsServer
from daemon.web.site import HostNames, PageRequest, Reply, Route, Site, line
from deploy.audit.chain import AuditRecord

STATIC_FILES = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/chart.js": ("chart.js", "text/javascript; charset=utf-8"),
    "/link.js": ("link.js", "text/javascript; charset=utf-8"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
MAX_WATCHED_S = 20.0  # after the last look at the page no frames are prepared for it; a page looks every 2 s
MAX_POINT_DIGITS = 15  # of the number of a point


class MetricsPort:
    """`update` is called by the frame thread; the answers are made in the threads of the connections."""

    def __init__(
        self,
        config: Config,
        registry: CollectorRegistry,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the certificate. Raises CertificateError. clock: monotonic, s."""
        self._config, self._registry, self._clock = config.metrics, registry, clock
        # What was seen before a restart is told from what is seen now.
        self._view = PageView(config.drift.threshold, secrets.token_hex(4))
        self._certificate = open_certificate(self._config, metrics.certificate_expiry_timestamp_seconds.set)
        self._snapshots = Snapshots(config.sensors, config.drift.threshold)
        self._shown: Mapping[str, PageFrame] = {}
        self._looked_at = -MAX_WATCHED_S
        self._server: MetricsServer | None = None

    @property
    def port(self) -> int | None:
        """The port that is served; None before, and while it cannot be bound."""
        return None if self._server is None else self._server.port

    def wants_frames(self) -> bool:
        """Return whether somebody looks at a page that may show frames. Any thread may ask."""
        return self._config.show_frames and self._clock() - self._looked_at < MAX_WATCHED_S

    def open(self) -> None:
        """Serve, or try to at each `update` until the port is free."""
        config = self._config
        site = Site(self._registry, self._routes(), HostNames(config))
        self._server = MetricsServer(config.host, config.port, site, self._certificate, config.page)

    def update(
        self,
        status: Mapping[str, Any],
        decisions: tuple[AuditRecord, ...],
        sensors: Mapping[str, Sensor],
        now: float,
    ) -> None:
        """Show how recald is. status: a new answer to `recald status`. now: monotonic, s."""
        arrived = {name: sensor.stall_detector.newest for name, sensor in sensors.items()}
        self._snapshots.take(status, decisions, arrived, now, time.time())
        if self._config.show_frames:
            self._shown = {name: frame for name, sensor in sensors.items() if (frame := sensor.shown) is not None}
        if self._server is not None:
            self._server.retry()

    def close(self) -> None:
        """Stop serving and free the port."""
        if self._server is not None:
            self._server.close()

    def _routes(self) -> dict[str, Route]:
        routes: dict[str, Route] = {
            "/healthz": lambda request: health(self._snapshots.newest, self._clock()),
            "/readyz": lambda request: readiness(self._snapshots.newest, self._clock()),
        }
        if self._config.page:
            routes |= {path: _static(*file) for path, file in STATIC_FILES.items()}
            routes["/status.json"] = self._status
        if self._config.show_frames:
            routes["/frames/"] = self._frame
        return routes

    def _status(self, request: PageRequest) -> Reply:
        snapshot, now = self._snapshots.newest, self._clock()
        self._looked_at = now
        if snapshot is None:
            return line("recald is starting", HTTPStatus.SERVICE_UNAVAILABLE)
        after, silence = _number_after(request.query), beat_problem(snapshot, now)
        etag = f'"{self._view.start}-{snapshot.number}-{after}{"-silent" if silence else ""}"'
        if request.etag == etag and not silence:
            return Reply(b"", status=HTTPStatus.NOT_MODIFIED, etag=etag)
        body = self._view.document(snapshot, now, silence, after, self._shown)
        return Reply(body, "application/json", etag=etag)

    def _frame(self, request: PageRequest) -> Reply | None:
        name, _, which = request.path.partition("/")
        shown = self._shown.get(name)
        png = None if shown is None else {"received.png": shown.received, "restored.png": shown.restored}.get(which)
        return None if png is None else Reply(png, "image/png")


def _number_after(query: str) -> int:
    """Return the number of the newest point that the client has; -1 for none."""
    given = parse_qs(query).get("after", [""])[0]
    return int(given) if re.fullmatch(rf"\d{{1,{MAX_POINT_DIGITS}}}", given, re.ASCII) else -1


def _static(name: str, kind: str) -> Route:
    reply = Reply((files("daemon.operator.page") / name).read_bytes(), kind)
    return lambda request: reply
