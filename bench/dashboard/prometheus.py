"""A real Prometheus that scrapes a daemon each second, and its answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from daemon.demo.processes import free_port

ROOT = Path(__file__).resolve().parents[2]
UNPACKED = ROOT / ".prometheus" / "usr" / "bin"  # by `make system-packages`
JOB, INSTANCE = "recald", "device-0001"  # the labels of what it scrapes
INTERVAL_S = 1
START_TIMEOUT_S = 30.0
QUERY_TIMEOUT_S = 30.0


class QueryError(RuntimeError):
    """Prometheus does not understand a query. The message has the query and the reason."""


class Curve(NamedTuple):
    """One series of an answer: its labels, and (time in s since 1970, value) of each sample."""

    labels: dict[str, str]
    samples: list[tuple[float, float]]


def find_program(name: str) -> str | None:
    """Return the path of `prometheus`, `alertmanager`, `promtool` or `amtool`; None where it is not installed."""
    path = f"{UNPACKED}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which(name, path=path) or shutil.which(f"prometheus-{name}", path=path)  # as Debian names some


class Prometheus:
    """Scrapes this port of this machine and evaluates these rules. Leaving the context ends it."""

    def __init__(self, program: str, folder: Path, scraped_port: int, rule_files: Sequence[Path] = ()):
        """folder: for its configuration, its log and its data."""
        self._program, self._folder = program, folder
        self.address = f"127.0.0.1:{free_port()}"
        scraped = {"targets": [f"127.0.0.1:{scraped_port}"], "labels": {"instance": INSTANCE}}
        content = {
            "global": {"scrape_interval": f"{INTERVAL_S}s", "evaluation_interval": f"{INTERVAL_S}s"},
            "rule_files": [str(path) for path in rule_files],
            "scrape_configs": [{"job_name": JOB, "static_configs": [scraped]}],
        }
        self._config = folder / "prometheus.yaml"
        self._config.write_text(json.dumps(content))  # which is YAML, too

    def __enter__(self) -> Prometheus:
        command = [self._program, f"--config.file={self._config}", f"--web.listen-address={self.address}"]
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [*command, "--enable-feature=exemplar-storage", f"--storage.tsdb.path={self._folder / 'tsdb'}"],
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise RuntimeError((self._folder / "prometheus.log").read_text())
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.address}/-/ready", timeout=1):
                return True
        except OSError:
            return False

    def ask(self, expression: str, start: float, end: float, step: float = INTERVAL_S) -> list[Curve]:
        """Return what an expression is from `start` to `end`, s since 1970. Raises QueryError."""
        result = self._get("query_range", query=expression, start=start, end=end, step=step)["result"]
        return [Curve(one["metric"], [(at, float(value)) for at, value in one["values"]]) for one in result]

    def exemplars(self, expression: str, start: float, end: float) -> list[dict[str, str]]:
        """Return the labels of the exemplars of all series that an expression names. Raises QueryError."""
        found = self._get("query_exemplars", query=expression, start=start, end=end)
        return [exemplar["labels"] for series in found for exemplar in series["exemplars"]]

    def _get(self, kind: str, **parameters: Any) -> Any:
        url = f"http://{self.address}/api/v1/{kind}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=QUERY_TIMEOUT_S) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise QueryError(f"{parameters['query']}: {json.load(error)['error']}") from None
