"""recald as the demo runs it: real processes, started by the real commands, and a real scrape of the metrics."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from daemon.demo.digits import DemoError

DAEMON_START_TIMEOUT_S = 60.0  # a small device takes that long to import torch
DAEMON_STOP_TIMEOUT_S = 5.0
SCRAPE_TIMEOUT_S = 2.0
SCRAPE_RETRY_S = 0.2
RECALD = [sys.executable, "-m", "daemon"]
QUICK_ALARM = {"hold": "2s"}


class Network(NamedTuple):
    """What `recald export` needs to know about a network."""

    builder: str  # module:function
    weights: Path
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


class RunFolder:
    """The files of one run of the demo."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.model = path / "model.pt2"
        self.config = path / "recald.yaml"
        self.state = path / "state"
        self.log = path / "recald.log"

    def endpoint(self, name: str) -> str:
        return f"ipc://{self.path / name}"


def export(network: Network, output: Path, shape: str = "3x32x32") -> None:
    """Write the frozen model and its card with `recald export`. Raises DemoError when that fails."""
    lists = {"--mean": network.mean, "--std": network.std, "--classes": network.classes}
    options = [part for name, values in lists.items() for part in (name, ",".join(map(str, values)))]
    command = [*RECALD, "export", "--builder", network.builder, "--weights", str(network.weights)]
    done = subprocess.run([*command, "--input", shape, *options, "-o", str(output)], capture_output=True, text=True)
    if done.returncode != 0:
        raise DemoError(f"recald export failed with {done.returncode}: {last_line(done.stderr)}")


def last_line(text: str) -> str:
    """Return the last line that a process printed: it says why the process failed."""
    return next(reversed(text.strip().splitlines()), "it printed nothing")


def write_config(
    folder: RunFolder,
    sensors: Sequence[str],
    port: int,
    frames: int,
    drift: Mapping[str, Any] = QUICK_ALARM,
    **recalibrate: Any,
) -> None:
    """Write a user's configuration, but with a quicker alarm and fewer frames for a fit."""
    config = {
        "version": 1,
        "model": {"path": folder.model.name, "backend": "onnx"},
        "sensors": {sensor: {} for sensor in sensors},
        "input": {"pattern": "sub", "bind": [folder.endpoint("frames")]},
        "output": {"bind": folder.endpoint("results")},
        "metrics": {"host": "127.0.0.1", "port": port, "show_frames": True},  # they show no person
        "control": {"endpoint": folder.endpoint("control")},
        "state": {"directory": str(folder.state)},
        "drift": dict(drift),
        "recalibrate": {"every": "1h", "frames": frames, "collect": 0, "backoff": "10s"} | recalibrate,
    }
    folder.config.write_text(yaml.safe_dump(config, sort_keys=False))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Scrape:
    """The metrics of one scrape."""

    def __init__(self, text: str) -> None:
        families = text_string_to_metric_families(text)
        self.samples: list[Sample] = [sample for family in families for sample in family.samples]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of all samples with this name and these labels; 0 when there are none."""
        return sum(s.value for s in self.samples if s.name == name and labels.items() <= s.labels.items())

    def state(self, sensor: str) -> str:
        """Return the calibration state of a sensor."""
        for sample in self.samples:
            is_state = sample.name == "recald_calibration_state" and sample.value == 1
            if is_state and sample.labels["sensor"] == sensor:
                return sample.labels["state"]
        return "unknown"


class DaemonProcess:
    """`recald run` as a process of its own. Leaving the context ends it in any case."""

    def __init__(self, config: Path, log: Path, port: int, command: Sequence[str] | None = None) -> None:
        """command: what to run instead of `recald run`."""
        self.log, self.page = log, f"http://127.0.0.1:{port}/"
        self.url = f"{self.page}metrics"
        with log.open("wb") as output:
            arguments = [*(command or [*RECALD, "run"]), "--config", str(config)]
            # In a session of its own: Ctrl-C is for the demo, which then ends the daemon.
            self.process = subprocess.Popen(arguments, stdout=output, stderr=output, start_new_session=True)

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def wait_until_serving(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Wait until the metrics can be scraped. Raises DemoError when the process ends, or takes too long."""
        deadline = monotonic() + DAEMON_START_TIMEOUT_S
        while self.scrape() is None:
            self.check()
            if monotonic() > deadline:
                raise DemoError(f"recald does not serve after {DAEMON_START_TIMEOUT_S:g} s: {self._last_log_line()}")
            time.sleep(SCRAPE_RETRY_S)

    def check(self) -> None:
        """Raise DemoError when the process has ended."""
        if (code := self.process.poll()) is not None:
            raise DemoError(f"recald ended with {code}: {self._last_log_line()}")

    def scrape(self) -> Scrape | None:
        """Read the metrics; None when they are not served yet."""
        try:
            with urllib.request.urlopen(self.url, timeout=SCRAPE_TIMEOUT_S) as response:
                return Scrape(response.read().decode())
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return None

    def stop(self) -> tuple[int | None, float]:
        """Send SIGTERM; returns the exit code, None when the process did not end in time, and the time (s)."""
        started = time.monotonic()
        self.process.terminate()
        try:
            code = self.process.wait(DAEMON_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        return code, time.monotonic() - started

    def _last_log_line(self) -> str:
        return last_line(self.log.read_text(errors="replace"))
