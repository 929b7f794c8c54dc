"""recald as the demo runs it: real processes, started by the real commands and read like any other."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from daemon.demo.digits import DemoError

START_TIMEOUT_S = 60.0  # a small device imports torch for longer than it does anything else here
STOP_TIMEOUT_S = 5.0
SCRAPE_TIMEOUT_S = 2.0
POLL_S = 0.2


class Network(NamedTuple):
    """What `recald export` needs: the builder and its weights, the input's normalisation, the classes."""

    builder: str
    weights: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


class Folder(NamedTuple):
    """Where everything of one run of the demo lies."""

    path: Path

    @property
    def model(self) -> Path:
        return self.path / "model.pt2"

    @property
    def config(self) -> Path:
        return self.path / "recald.yaml"

    @property
    def state(self) -> Path:
        return self.path / "state"

    @property
    def log(self) -> Path:
        return self.path / "recald.log"

    def endpoint(self, name: str) -> str:
        return f"ipc://{self.path / name}"


def export(network: Network, output: Path, shape: str = "3x32x32") -> None:
    """Write the frozen model and its card with `recald export`."""
    lists = {"--mean": network.mean, "--std": network.std, "--classes": network.classes}
    options = [part for name, values in lists.items() for part in (name, ",".join(map(str, values)))]
    command = [*recald("export"), "--builder", network.builder, "--weights", str(network.weights)]
    done = subprocess.run([*command, "--input", shape, *options, "-o", str(output)], capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoError(f"recald export failed with {done.returncode}: {last_line(done.stderr)}")


def recald(command: str) -> list[str]:
    return [sys.executable, "-m", "daemon", command]


def last_line(text: str) -> str:
    """What a process that failed said last, which is why."""
    return next(reversed(text.strip().splitlines()), "it said nothing")


def write_config(folder: Folder, sensors: Sequence[str], port: int, frames: int, **recalibrate: Any) -> None:
    """Write the configuration as a user would, but for a quicker alarm and fewer frames to fit to."""
    config = {
        "version": 1,
        "model": {"path": folder.model.name, "backend": "onnx"},
        "sensors": {sensor: {} for sensor in sensors},
        "input": {"pattern": "sub", "bind": [folder.endpoint("frames")]},
        "output": {"bind": folder.endpoint("results")},
        "metrics": {"host": "127.0.0.1", "port": port},
        "control": {"endpoint": folder.endpoint("control")},
        "state": {"directory": str(folder.state)},
        "drift": {"hold": "2s"},
        "recalibrate": {"every": "1h", "frames": frames, "collect": 0, "backoff": "10s"} | recalibrate,
    }
    folder.config.write_text(yaml.safe_dump(config, sort_keys=False))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Metrics:
    """One scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples: list[Sample] = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name with these labels, whatever others they have; 0 if none."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def state(self, sensor: str) -> str:
        """The calibration state that is set for a sensor."""
        name = "recald_calibration_state"
        for sample in self.samples:
            if sample.name == name and sample.labels["sensor"] == sensor and sample.value == 1:
                return sample.labels[name]
        return "unknown"


class Daemon:
    """`recald run`, or what takes its place, as a process of its own; leaving the context ends it in any case."""

    def __init__(self, config: Path, log: Path, port: int, command: Sequence[str] | None = None) -> None:
        self.log, self.url = log, f"http://127.0.0.1:{port}/metrics"
        with log.open("wb") as said:
            arguments = [*(command or recald("run")), "--config", str(config)]
            self.process = subprocess.Popen(arguments, stdout=said, stderr=said)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait_until_serving(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Return when the metrics can be scraped."""
        deadline = monotonic() + START_TIMEOUT_S
        while self.scrape() is None:
            self.check()
            if monotonic() > deadline:
                raise DemoError(f"recald does not serve after {START_TIMEOUT_S:g} s: {self._last_words()}")
            time.sleep(POLL_S)

    def check(self) -> None:
        """Raise if the process has ended."""
        if (code := self.process.poll()) is not None:
            raise DemoError(f"recald ended with {code}: {self._last_words()}")

    def scrape(self) -> Metrics | None:
        """Read the metrics; None when they are not served (yet)."""
        try:
            with urllib.request.urlopen(self.url, timeout=SCRAPE_TIMEOUT_S) as answer:
                return Metrics(answer.read().decode())
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return None

    def stop(self) -> tuple[int | None, float]:
        """Send SIGTERM; return the exit code, None where it took too long, and the seconds it took."""
        start = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        return code, time.monotonic() - start

    def _last_words(self) -> str:
        return last_line(self.log.read_text(errors="replace"))
