"""The monitoring on one machine, set up by the commands of docs/monitoring.md: an alert reaches the one who is told."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from places import ROOT
from prometheus_tools import MONITORING, run_tool, started, tool
from running import eventually

from daemon.demo.processes import free_port

PAGE = ROOT / "docs" / "monitoring.md"
MAX_COMMANDS = 5


def commands() -> list[list[str]]:
    """The commands of the page for packages, without `sudo`."""
    section = PAGE.read_text().split("### On one machine")[1].split("### ")[0]
    (block,) = re.findall(r"```\n(sudo apt-get.*?)```", section, re.DOTALL)
    return [shlex.split(line)[1:] for line in block.replace("\\\n", "").splitlines()]


@pytest.fixture
def etc(tmp_path: Path) -> Path:
    """What the commands copy, below a folder in the place of /etc."""
    for folder in ("prometheus", "grafana/provisioning/dashboards"):  # the packages have made them
        (tmp_path / folder).mkdir(parents=True)
    for command in commands():
        if command[0] == "cp":
            line = (
                shlex.join(command).replace(" /etc/", f" {tmp_path}/").replace("'", "")
            )  # a shell completes the names
            subprocess.run(["sh", "-c", line], cwd=ROOT, check=True)
    return tmp_path


def test_the_commands_are_few_and_put_all_files_where_they_are_looked_for(etc):
    assert [command[0] for command in commands()] == ["apt-get", "cp", "cp", "systemctl", "systemctl"]
    assert len(commands()) <= MAX_COMMANDS
    said = run_tool("promtool", "check", "config", etc / "prometheus" / "prometheus.yml")
    for file in (etc / "prometheus").glob("recald.*.yaml"):
        rules = [rule for group in yaml.safe_load(file.read_text())["groups"] for rule in group["rules"]]
        assert rules and f"SUCCESS: {len(rules)} rules found" in said
    assert "SUCCESS" in run_tool("amtool", "check-config", etc / "prometheus" / "alertmanager.yml")
    assert (etc / "grafana/dashboards/recald.json").is_file()
    for kind in ("dashboards", "datasources"):
        assert (etc / f"grafana/provisioning/{kind}/recald.yaml").is_file()


class Told:
    """Receives what Alertmanager sends. A context."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []  # path, content
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.messages.append((self.path, content))
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port

    def __enter__(self) -> Told:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def told(etc: Path) -> Iterator[Told]:
    """Prometheus and Alertmanager as the commands set them up, on other ports and without waiting."""
    tool("prometheus"), tool("alertmanager")
    with ExitStack() as stack:
        receiver = stack.enter_context(Told())
        folder, own, alerts = etc / "prometheus", free_port(), free_port()
        for name in ("prometheus.yml", "alertmanager.yml", "recald.alerts.yaml"):
            text = (folder / name).read_text().replace(":9093", f":{alerts}").replace(":8080", f":{receiver.port}")
            text = re.sub(r"(for|group_wait|(?:scrape|evaluation)_interval): \d+[ms]", r"\1: 1s", text)
            (folder / name).write_text(text.replace(":9748", f":{free_port()}"))  # nobody answers there
        config, listen = f"--config.file={folder}/", "--web.listen-address=127.0.0.1:"
        options = [f"{config}alertmanager.yml", f"{listen}{alerts}", "--cluster.listen-address="]
        stack.enter_context(started("alertmanager", etc / "a.log", *options, f"--storage.path={etc / 'alerts'}"))
        options = [f"{config}prometheus.yml", f"{listen}{own}", f"--storage.tsdb.path={etc / 'tsdb'}"]
        stack.enter_context(started("prometheus", etc / "p.log", *options))
        yield receiver


def test_a_device_that_does_not_answer_is_told_to_the_one_who_looks_now(told):
    def down() -> tuple[str, dict[str, Any]] | None:
        return next((one for one in told.messages if one[1]["alerts"][0]["labels"]["alertname"] == "RecaldDown"), None)

    path, message = eventually(down, "RecaldDown is told", 30)
    alert = message["alerts"][0]
    assert path == "/page" and alert["labels"]["severity"] == "critical"
    assert alert["annotations"]["summary"] and alert["annotations"]["runbook_url"].endswith("down.md")


# ---- containers


def test_the_containers_are_given_all_that_they_name():
    services = yaml.safe_load((MONITORING / "compose.yaml").read_text())["services"]
    assert {*services} == {"prometheus", "alertmanager", "grafana"}
    for name in ("prometheus", "alertmanager"):
        (config,) = (part.split("=")[1] for part in services[name]["command"] if part.startswith("--config.file="))
        (volume,) = (part.split(":") for part in services[name]["volumes"] if part.startswith("./"))
        assert (MONITORING / volume[0] / Path(config).relative_to(volume[1])).is_file()
        assert any(part.startswith("--web.listen-address=127.0.0.1:") for part in services[name]["command"])
