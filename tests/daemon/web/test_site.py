"""Paths, methods, headers, and names by which the port may be asked; without a socket."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, NamedTuple

import pytest
from prometheus_client import CollectorRegistry, Gauge

from daemon.settings.metrics import MetricsConfig
from daemon.web.site import SECURITY_HEADERS, HostNames, PageRequest, Reply, Site, line


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: str


def echo(request: PageRequest) -> Reply | None:
    return None if request.path.endswith("gone") else line(f"{request.path} {request.query} {request.etag}")


@pytest.fixture
def site() -> Site:
    registry = CollectorRegistry()
    Gauge("level", "A level.", registry=registry).set(7)
    routes = {"/": lambda request: line("the page"), "/folder/": echo, "/file": echo}
    return Site(registry, routes, HostNames(MetricsConfig(names=["device-7.example.com"]), own_name="device-7"))


def ask(site: Site, path: str, method: str = "GET", **environ: str) -> Answer:
    answered: list[Any] = []
    given = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "", "HTTP_HOST": "127.0.0.1:9748"}
    body = b"".join(site(given | environ, lambda status, headers: answered.append((status, headers))))
    ((status, headers),) = answered
    assert len(headers) == len(dict(headers))
    return Answer(int(status.split()[0]), dict(headers), body.decode())


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/", "the page\n"),
        ("/file", "/file  \n"),
        ("/folder/a", "a  \n"),
        ("/folder/a/b.png", "a/b.png  \n"),
    ],
)
def test_a_path_leads_to_its_route(site, path, body):
    assert ask(site, path)[::2] == (200, body)


@pytest.mark.parametrize("path", ["/no", "/file/", "/file/x", "/folder", "/folder/", "/folder/gone", "//", "", "/../"])
def test_any_other_path_is_one_line(site, path):
    assert ask(site, path)[::2] == (404, "no such path\n")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "get", "X"])
@pytest.mark.parametrize("path", ["/", "/metrics", "/no"])
def test_other_methods_are_refused(site, method, path):
    answer = ask(site, path, method)
    assert (answer.status, answer.headers["Allow"]) == (405, "GET, HEAD") and answer.body.count("\n") == 1


@pytest.mark.parametrize("path", ["/", "/metrics", "/no"])
def test_head_has_the_headers_alone(site, path):
    whole, head = ask(site, path), ask(site, path, "HEAD")
    assert head.body == "" and whole.body
    assert (head.status, head.headers) == (whole.status, whole.headers)


@pytest.mark.parametrize("path", ["/", "/metrics", "/no", "/folder/a"])
def test_every_answer_has_the_headers_that_protect_a_browser(site, path):
    headers = ask(site, path).headers
    assert dict(SECURITY_HEADERS).items() <= headers.items()
    policy = headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
    assert headers["X-Content-Type-Options"] == "nosniff" and headers["Cache-Control"] == "no-store"


def test_the_metrics_are_where_they_were(site):
    answer = ask(site, "/metrics")
    assert "level 7.0" in answer.body and answer.headers["Content-Type"].startswith("text/plain; version=")
    assert (
        ask(site, "/metrics", QUERY_STRING="name[]=other").body.strip() == "# EOF"
        or "level" not in ask(site, "/metrics", QUERY_STRING="name[]=other").body
    )


def test_what_has_not_changed_has_no_body(site):
    unchanged = Reply(b"x", status=HTTPStatus.NOT_MODIFIED, etag='"1"')
    site._routes = {"/": lambda request: unchanged}
    answer = ask(site, "/")
    assert (answer.status, answer.body, answer.headers["ETag"]) == (304, "", '"1"')
    assert "Content-Length" not in answer.headers


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9748", "127.0.0.1", "localhost:9748", "LOCALHOST", "[::1]:9748", "192.168.0.7:80"]
    + ["device-7", "device-7.example.com:9748", "Device-7.Example.com.", ""],
)
def test_addresses_and_known_names_are_answered(site, host):
    assert ask(site, "/", HTTP_HOST=host).status == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9748", "127.0.0.1.evil.example", "localhost.evil.example", "device-7.example.org"]
    + ["[evil", "1.2.3", "127.0.0.1@evil", "evil.example\r\nX: y", "<b>", "x" * 5000],
)
@pytest.mark.parametrize("path", ["/", "/metrics", "/folder/a"])
def test_any_other_name_is_refused_with_one_line(site, host, path):
    answer = ask(site, path, HTTP_HOST=host)
    assert answer.status == 403 and "metrics.names" in answer.body
    assert answer.body.count("\n") == 1 and len(answer.body) < 250 and answer.body.isascii()


def test_the_configured_host_is_a_name_of_the_port():
    names = HostNames(MetricsConfig(host="localhost"), own_name="")
    assert names.allow("localhost:1") and not names.allow("device-7")


def test_with_a_certificate_the_browser_compares_the_name():
    config = MetricsConfig.model_validate({"certificate": "/c.pem", "certificate_key": "/k.pem"}, strict=False)
    assert HostNames(config).allow("anything.example.com")
