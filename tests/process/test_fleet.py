"""The fleet form of the monitoring, with its own files: the agent of a device sends all to a central Prometheus.

What Debian's Prometheus 2.42 can do is remote write 1.0: series, exemplars, and beside them metadata, which its own
receiver drops. Remote write 2.0, with metadata beside each series, came with 2.54.
"""

from __future__ import annotations

import json
import re
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml
from certificates import Authority
from prometheus_client.parser import text_string_to_metric_families
from prometheus_tools import MONITORING, RULES, run_tool, started, tool
from remote_write import MetadataReceiver, one_sample
from running import Camera, eventually, serving, write_config
from synthetic import images

from daemon.demo.processes import free_port

USER, PASSWORD = "device-0001", "secret"
HASH = "$2b$04$1uzX9UoqrlfasbiHuz9aLObin3MN1L034oEs9dO7S3/qP5nCcPEHO"  # of PASSWORD
DEVICE = "device-0001"
CLEAN = images(128, 1)
MINUTE_MS = 60_000
BUSY_S = 120.0


@dataclass
class Central:
    """The central Prometheus. context: trusts its certificate. user: who asks."""

    address: str
    context: ssl.SSLContext
    user: str = USER

    def ask(self, path: str, password: str = PASSWORD, body: bytes | None = None, **parameters: str) -> Any:
        """Return the answer's data; None if it has none. urllib.error.HTTPError if it refuses."""
        url = f"{self.address}{path}" + (f"?{urllib.parse.urlencode(parameters)}" if parameters else "")
        login = b64encode(f"{self.user}:{password}".encode()).decode()
        request = urllib.request.Request(url, body, {"Authorization": f"Basic {login}"})
        for name, value in (("Content-Encoding", "snappy"), ("Content-Type", "application/x-protobuf")):
            request.add_header(name, value)
        with urllib.request.urlopen(request, timeout=10, context=self.context) as answer:
            text = answer.read()
        return json.loads(text)["data"] if text.startswith(b"{") else None

    def series(self, query: str) -> list[dict[str, str]]:
        return [one["metric"] for one in self.ask("/api/v1/query", query=query)["result"]]

    def send(self, device: str, at_ms: int) -> None:
        labels = {"__name__": "recald_drift_score", "instance": device, "job": "recald"}
        self.ask("/api/v1/write", body=one_sample(labels, 1.0, at_ms))


@dataclass
class Fleet:
    """A device and the central Prometheus, and what a receiver of metadata was sent."""

    central: Central
    receiver: MetadataReceiver
    page: str  # of recald, while it served


def prometheus(folder: Path, name: str, port: int, *options: str) -> AbstractContextManager[None]:
    """A Prometheus with the configuration folder/NAME.yaml."""
    config, listen = f"--config.file={folder / name}.yaml", f"--web.listen-address=127.0.0.1:{port}"
    return started("prometheus", folder / f"{name}.log", config, listen, *options)


def adapt(folder: Path, name: str, texts: Mapping[str, Any], change: Callable[[Any], object]) -> None:
    """Copy a configuration of recald's with these texts replaced, and then changed as a document."""
    text = (RULES / f"{name}.yaml").read_text()
    for before, after in texts.items():
        assert before in text, before
        text = text.replace(before, str(after))
    content = yaml.safe_load(text)
    change(content)
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))


@contextmanager
def central(folder: Path, keep_old: bool = True) -> Iterator[Central]:
    """keep_old: as the configuration says, samples that are older than the newest are taken."""
    authority, port = Authority(folder, "central-ca"), free_port()
    issued = authority.issue("central")
    for path in RULES.glob("recald.*.yaml"):
        shutil.copy(path, folder)

    def forget(content: Any) -> None:
        if not keep_old:
            del content["storage"]

    adapt(folder, "central", {}, forget)
    texts = {"/etc/prometheus/central.pem": issued.certificate, "/etc/prometheus/central.key": issued.key}
    adapt(folder, "central-web", texts, know_the_passwords)
    run_tool("promtool", "check", "web-config", folder / "central-web.yaml")
    found = Central(f"https://127.0.0.1:{port}", ssl.create_default_context(cafile=authority.file))
    options = re.findall(r"--[\w.-]+(?:=[\w-]+)?", commands(RULES / "central.yaml"))
    own = {"--config.file=central", "--web.config.file=central-web"}  # in the test's folder
    kept = [option for option in options if option not in own]
    web = f"--web.config.file={folder / 'central-web.yaml'}"
    with prometheus(folder, "central", port, *kept, web, f"--storage.tsdb.path={folder / 'tsdb'}"):
        eventually(lambda: ready(found), "the central Prometheus is ready", BUSY_S)
        yield found


def know_the_passwords(content: Any) -> None:
    content["basic_auth_users"] = dict.fromkeys(content["basic_auth_users"], HASH)


def commands(path: Path) -> str:
    """The comment in front of a configuration: how to start Prometheus with it."""
    return "\n".join(line for line in path.read_text().splitlines() if line.startswith("#"))


def ready(asked: Central) -> bool:
    try:
        return asked.series("vector(1)") == [{}]
    except OSError:
        return False


def agent(folder: Path, scraped: int, asked: Central, receiver: MetadataReceiver) -> Any:
    """The agent of agent.yaml. It scrapes each second, and tells metadata each second, too."""
    (folder / "password").write_text(PASSWORD)

    def change(content: Any) -> None:
        content["global"]["scrape_interval"] = "1s"
        content["remote_write"].append({"url": receiver.url, "metadata_config": {"send_interval": "1s"}})

    texts = {
        "127.0.0.1:9748": f"127.0.0.1:{scraped}",
        "https://prometheus.example.com": asked.address,
        "/etc/prometheus/central-ca.pem": folder / "central-ca.pem",
        "/etc/prometheus/remote-write-password": folder / "password",
    }
    adapt(folder, "agent", texts, change)
    (features,) = re.findall(r"--enable-feature=\S+", commands(RULES / "agent.yaml"))
    return prometheus(folder, "agent", free_port(), features, f"--storage.agent.path={folder / 'agent'}")


@pytest.fixture(scope="module")
def fleet(tiny_model: Path) -> Iterator[Fleet]:
    tool("prometheus")
    with TemporaryDirectory(prefix="recald-", dir="/tmp") as name, ExitStack() as stack:
        folder, port = Path(name), free_port()
        asked, receiver = stack.enter_context(central(folder)), stack.enter_context(MetadataReceiver())
        _, camera = stack.enter_context(serving(write_config(folder, tiny_model, metrics={"port": port})))
        stack.enter_context(agent(folder, port, asked, receiver))
        stream_until_seen(camera, asked)
        eventually(lambda: "recald_drift_score" in receiver.metadata, "metadata is sent", BUSY_S)
        yield Fleet(asked, receiver, scraped(port))


def stream_until_seen(camera: Camera, asked: Central) -> None:
    query = 'recald_drift_score{frames="raw", sensor="front"} > 0'
    camera.stream({"front": CLEAN}, lambda: asked.series(query), "a drift score arrives", BUSY_S)


def scraped(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_every_series_of_recald_arrives_with_the_name_of_the_device(fleet):
    families = text_string_to_metric_families(fleet.page)
    exported = {(s.name, s.labels.get("sensor", "")) for family in families for s in family.samples}
    own = f'{{job="recald", instance="{DEVICE}"}}'

    def arrived() -> set[tuple[str, str]]:
        return {(s["__name__"], s.get("sensor", "")) for s in fleet.central.series(own)}

    assert len(exported) > 60
    eventually(lambda: exported <= arrived(), "every series arrives, also of what began after the first scrape", 60)
    assert ("up", "") in arrived(), "RecaldDown needs it"


def test_the_rules_run_where_the_series_arrive(fleet):
    eventually(lambda: {rule["health"] for rule in evaluated(fleet.central)} == {"ok"}, "every rule has run", 60)
    assert {rule["name"] for rule in evaluated(fleet.central)} == {r.get("record") or r["alert"] for r in rules()}


def rules() -> list[dict[str, Any]]:
    files = [yaml.safe_load(path.read_text()) for path in sorted(RULES.glob("recald.*.yaml"))]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def evaluated(asked: Central) -> list[dict[str, Any]]:
    return [rule for group in asked.ask("/api/v1/rules")["groups"] for rule in group["rules"]]


def test_type_help_and_unit_of_every_metric_are_sent(fleet):
    families = {family.name: family for family in text_string_to_metric_families(fleet.page)}
    told = fleet.receiver.metadata
    eventually(lambda: families.keys() <= told.keys(), "all metadata", 30)
    assert (told["recald_end_to_end_seconds"].kind, told["recald_end_to_end_seconds"].unit) == ("histogram", "seconds")
    assert (told["recald_reservoir_bytes"].kind, told["recald_reservoir_bytes"].unit) == ("gauge", "bytes")
    assert (told["recald_frames_received"].kind, told["recald_frames_received"].unit) == ("counter", "")
    own = [name for name in families if name.startswith("recald_")]
    assert [name for name in own if told[name].help != families[name].documentation] == []


def test_prometheus_drops_metadata_that_it_receives_by_remote_write_1(fleet):
    """What docs/monitoring.md says. If this fails with a later Prometheus, say there what it can."""
    assert fleet.central.ask("/api/v1/metadata") == {}


def test_who_has_no_password_can_neither_send_nor_ask(fleet):
    for path in ("/api/v1/write", "/api/v1/query"):
        with pytest.raises(urllib.error.HTTPError, match="401"):
            fleet.central.ask(path, password="other", query="up")


def test_grafana_may_ask_with_address_authority_user_and_password_of_its_source(tmp_path):
    with central(tmp_path) as asked:
        (tmp_path / "password").write_text(PASSWORD)
        source = central_source(asked.address, tmp_path)
        assert source["basicAuth"] and source["jsonData"]["tlsAuthWithCACert"]
        secrets = {name: read_by_grafana(value) for name, value in source["secureJsonData"].items()}
        context = ssl.create_default_context(cadata=secrets["tlsCACert"])
        grafana = Central(source["url"], context, source["basicAuthUser"])
        answer = grafana.ask("/api/v1/query", secrets["basicAuthPassword"], query="vector(1)")
        assert len(answer["result"]) == 1


def central_source(address: str, folder: Path) -> dict[str, Any]:
    text = (MONITORING / "grafana" / "central-source.yaml").read_text()
    texts = {"https://prometheus.example.com": address, "/etc/grafana/central-password": f"{folder / 'password'}"}
    for before, after in (texts | {"/etc/grafana/central-ca.pem": f"{folder / 'central-ca.pem'}"}).items():
        assert before in text, before
        text = text.replace(before, after)
    (source,) = yaml.safe_load(text)["datasources"]
    return source


def read_by_grafana(value: str) -> str:
    """What Grafana puts in the place of $__file{PATH}."""
    (path,) = re.fullmatch(r"\$__file\{(.+)\}", value).groups()  # type: ignore[union-attr]
    return Path(path).read_text().strip()


def test_what_a_device_kept_while_its_network_was_away_is_taken(tmp_path):
    now = round(1000 * time.time())
    with central(tmp_path) as asked:
        asked.send("one", now)
        asked.send("two", now - 110 * MINUTE_MS)
        assert asked.ask("/api/v1/series", **{"match[]": 'recald_drift_score{instance="two"}', "start": "0"})


def test_without_the_window_it_would_be_refused(tmp_path):
    now = round(1000 * time.time())
    with central(tmp_path, keep_old=False) as asked:
        asked.send("one", now)
        with pytest.raises(urllib.error.HTTPError, match="400"):
            asked.send("two", now - 110 * MINUTE_MS)


def test_the_files_of_the_fleet_are_where_the_page_says(fleet):
    text = (MONITORING.parents[1] / "docs" / "monitoring.md").read_text()
    for name in ("agent.yaml", "central.yaml", "central-web.yaml"):
        assert f"../deploy/monitoring/prometheus/{name}" in text
    assert "../deploy/monitoring/grafana/central-source.yaml" in text
