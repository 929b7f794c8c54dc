"""recald as users run it, for the tests: a real process, a camera, a reader of its results, a scraper."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import yaml
import zmq
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families
from synthetic import images

from daemon.cli import main
from daemon.operator.control import request
from daemon.serving.message import build_frame
from daemon.serving.results import parse_result
from deploy.model.card import card_path

PATIENCE = 120.0  # s for what takes a few on an idle machine
PERIOD = 0.02  # s between frames: 50 a second
UNWATCHED = {"interval": 3600.0}  # a configuration's `drift`: no drift check, and so no worker that takes 3 s to start
RECALD = [sys.executable, "-m", "daemon"]
# `recald`, but its workers take as much processor time as itself. Those of users step back behind everything else, and
# a test run keeps all cores busy: a worker that needs 3 s to start took 40 s. test_child_process.py tests the priority.
LOWERS_PRIORITY = "from daemon.niceness import lower_priority"
AT_FULL_PRIORITY = f"""
import runpy
from daemon import child_process as child
assert "{LOWERS_PRIORITY}" in child.RUN_MODULE
full = "from daemon import niceness; niceness.CHILD_NICENESS = 0; {LOWERS_PRIORITY}"
child.RUN_MODULE = child.RUN_MODULE.replace("{LOWERS_PRIORITY}", full)
runpy.run_module("daemon", run_name="__main__", alter_sys=True)
"""


def eventually(condition: Callable[[], Any], what: str, timeout: float = PATIENCE) -> Any:
    """The first true value of `condition`; AssertionError naming `what` if there is none in time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.05)
    return value


def recald(
    *arguments: str | Path, timeout: float = PATIENCE, within: Sequence[str] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, behind the command `within`."""
    command = [*within, *RECALD, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, **options)


class Done(NamedTuple):
    """What came of a command."""

    returncode: int
    stdout: str
    stderr: str


def recald_here(*arguments: str | Path) -> Done:
    """Run a command to its end in this process, which has torch already: two seconds less than `recald`.

    What `recald` also shows, and this does not: the log on standard error.
    """
    output, errors = StringIO(), StringIO()
    with redirect_stdout(output), redirect_stderr(errors), patch("prometheus_client.REGISTRY", CollectorRegistry()):
        code = main([*map(str, arguments)])
    return Done(code, output.getvalue(), errors.getvalue())


def read_only(folder: Path) -> list[str]:
    """A command that runs another where the disk under `folder` is read-only; skips where users may not mount."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount anything of its own")
    mount = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    return [*unshare, "sh", "-c", mount, str(folder)]


def copied_model(model: Path, folder: Path) -> Path:
    """A copy of the model and its card in the folder: what is commissioned there changes no other test's model."""
    path = folder / "tiny.pt2"
    shutil.copy(model, path)
    shutil.copy(card_path(model), card_path(path))
    return path


def write_config(folder: Path, model_path: Path, /, **sections: dict[str, Any]) -> Path:
    """Write folder/recald.yaml: quick drift checks, small fits, sockets in `folder`; `sections` add and replace."""
    config: dict[str, Any] = {
        "version": 1,
        "model": {"path": str(model_path), "backend": "eager"},
        "sensors": {"front": {}, "rear": {}},
        "input": {"bind": [f"ipc://{folder}/frames"]},
        "output": {"bind": f"ipc://{folder}/results"},
        "metrics": {"port": 0},
        "control": {"endpoint": f"ipc://{folder}/control"},
        "state": {"directory": str(folder / "state")},
        "drift": {"window": 16, "interval": 0.2, "threshold": 2.0, "hold": 0.5},
        "recalibrate": {"every": "1h", "frames": 128, "backoff": "1s", "timeout": "1m"}
        | {"collect": 0, "shadow": 0.2, "probation": 0.5},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section}
    path = folder / "recald.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


class Daemon:
    """`recald run`; leaving the context ends it and its workers in any case."""

    def __init__(self, config: Path, within: Sequence[str] = (), **environment: str):
        self.config, self.log_path = config, config.with_name("recald.log")
        settings = yaml.safe_load(config.read_text())
        self.frames, self.results = settings["input"]["bind"][0], settings["output"]["bind"]
        self.control, self.state = settings["control"]["endpoint"], Path(settings["state"]["directory"])
        with self.log_path.open("wb") as said:
            command = [*within, sys.executable, "-c", AT_FULL_PRIORITY, "run", "--config", str(config)]
            self.process = subprocess.Popen(command, stdout=said, stderr=said, env=os.environ | environment)

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        workers = self.workers()
        self.process.kill()
        self.process.wait()
        for worker in workers:
            if worker.is_running():
                worker.kill()

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_until_serving(self) -> Daemon:
        def serving() -> bool:
            assert self.process.poll() is None, f"recald ended with {self.process.returncode}:\n{self.log}"
            return " serving " in self.log

        eventually(serving, "recald serves")
        return self

    def workers(self) -> list[psutil.Process]:
        """Oldest first."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return sorted(children, key=lambda child: child.create_time())

    def status(self, sensor: str = "front") -> dict[str, Any]:
        return request(self.control, {"command": "status"}, 10)["sensors"][sensor]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of this name and with these labels; 0 if there are none."""
        return sum(value for has, value in self.samples(name) if labels.items() <= has.items())

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        address = self.log.split(" metrics on ")[1].split()[0]
        with urllib.request.urlopen(address, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        own = "\n".join(line for line in lines if line.startswith((f"{name} ", f"{name}{{")))  # all takes 10 ms
        return [(s.labels, s.value) for family in text_string_to_metric_families(own) for s in family.samples]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """Signal it; the exit code and how long it took (s)."""
        began = time.monotonic()
        self.process.send_signal(number)
        return self.process.wait(PATIENCE), time.monotonic() - began


class Camera:
    """Sends frames of any sensor and reads the results; keeps account of both. A context."""

    def __init__(self, daemon: Daemon):
        self._daemon = daemon
        self.sent: dict[str, list[int]] = defaultdict(list)
        self.answers: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._next: dict[str, int] = defaultdict(int)
        self._context = zmq.Context()
        self._out = self._context.socket(zmq.XPUB)
        self._in = self._context.socket(zmq.SUB)
        self._in.subscribe(b"")
        self._out.connect(daemon.frames)
        self._in.connect(daemon.results)

    def __enter__(self) -> Camera:
        self._join()
        return self

    def __exit__(self, *_: object) -> None:
        self._context.destroy(linger=0)

    def send(self, image: np.ndarray, sensor: str = "front", **options: Any) -> int:
        """Send one frame; returns its sequence number."""
        seq = self._next[sensor]
        self._next[sensor] += 1
        self.sent[sensor].append(seq)
        self._out.send_multipart(build_frame(sensor, image, seq=seq, timestamp=time.time_ns(), **options))
        return seq

    def send_parts(self, parts: list[bytes]) -> None:
        self._out.send_multipart(parts, copy=False)

    def receive(self, timeout: float) -> tuple[str, dict[str, Any], np.ndarray] | None:
        if not self._in.poll(round(timeout * 1000)):
            return None
        sensor, header, output = parse_result(self._in.recv_multipart())
        self.answers[sensor].append(header)
        return sensor, header, output

    def ask(self, image: np.ndarray, sensor: str = "front", **options: Any) -> tuple[dict[str, Any], np.ndarray]:
        """Send one frame and return its result."""
        seq = self.send(image, sensor, **options)
        while (result := self.receive(PATIENCE)) is not None:
            if result[0] == sensor and result[1]["seq"] == seq:
                return result[1:]
        raise AssertionError(f"no result for frame {seq} of {sensor}")

    def reach(self) -> None:
        """Send until a frame is answered, as after a lost connection."""
        eventually(lambda: self.send(images(1, 0)[0]) >= 0 and self.receive(0.1), "frames reach the daemon again")

    def stream(
        self,
        pictures: dict[str, np.ndarray],
        until: Callable[[], Any],
        what: str,
        timeout: float = PATIENCE,
        hold: bool = False,
    ) -> None:
        """Send these images of each sensor in turn, at a steady rate, until a condition holds."""
        deadline = time.monotonic() + timeout
        for number in _steadily():
            for sensor, stack in pictures.items():
                self.send(stack[number % len(stack)], sensor, hold=hold)
            while self.receive(0):
                pass
            if number % 10 == 9 and until():  # to ask costs both processes as much as to serve a few frames
                return
            assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"

    def settle(self) -> None:
        """Read results until the newest frame of each sensor has its own."""
        while any(self.answers[name][-1]["seq"] != numbers[-1] for name, numbers in self.sent.items()):
            assert self.receive(PATIENCE), "the newest frame has no result"

    def assert_none_lost(self) -> None:
        """Every frame was answered once, in order, or a newer one came before its turn."""
        self.settle()
        lost = 0
        for sensor, sent in self.sent.items():
            answered = [header["seq"] for header in self.answers[sensor]]
            assert answered == sorted(set(answered))
            lost += len(sent) - len(answered)
        superseded = partial(self._daemon.metric, "recald_frames_dropped_total", reason="superseded")
        eventually(lambda: superseded() == lost, f"{lost} frames without an answer are counted as superseded")
        assert self._daemon.metric("recald_frames_missed_total") == 0

    def _join(self) -> None:
        """A publisher loses what it sends before the other side has subscribed, both ways; then the account opens."""
        assert self._out.poll(round(PATIENCE * 1000)), "the daemon does not subscribe"
        clean = images(1, 0)[0]
        # It waits long for an answer: of three frames without one, the second is superseded, and in no account.
        eventually(lambda: self.send(clean) >= 0 and self.receive(1.0), "frames lead to results")
        self.settle()
        self.sent.clear()
        self.answers.clear()
        self.ask(clean)


@contextmanager
def serving(config: Path, within: Sequence[str] = (), **environment: str) -> Iterator[tuple[Daemon, Camera]]:
    """A daemon that serves, and a camera whose frames it answers."""
    with Daemon(config, within, **environment) as daemon, Camera(daemon.wait_until_serving()) as camera:
        yield daemon, camera


def _steadily() -> Iterator[int]:
    began, number = time.monotonic(), 0
    while True:
        yield number
        number += 1
        time.sleep(max(0.0, began + number * PERIOD - time.monotonic()))
