"""A hostile sender harms no other sensor: its p99 is at most 1.2 times that while another program is attacked."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from bench.attack.senders import ATTACKER, ATTACKS, ENDLESS, HOST
from bench.material.camera import FPS, ORDER_SEED, SENSOR, Camera
from bench.material.daemon_run import DIGITS_SEED, DaemonRun, light_digits, pictures
from bench.provenance import DAEMON, DEPLOYMENT, MATERIAL
from bench.report import p99_ratio, percentiles, print_row, resident_mib, show_rows
from daemon import UNKNOWN_SENSOR
from daemon.demo.datasets import Dataset
from daemon.demo.processes import QUICK_ALARM, DaemonProcess, RunFolder, export, free_port, write_config

CODE = (*DEPLOYMENT, *DAEMON, *MATERIAL, "bench/attack/*.py")

SIZE = 224  # pixels a side
MAX_RATIO = 1.2
REST_S = 3.0  # for what it left behind, before the next
LOCKED = {"mode": "locked"}
TIMES = ("count", "p50_ms", "p99_ms", "max_ms", "beside_p99_ms", "ratio")
COLUMNS = ("attack", *TIMES, "superseded", "received", "resident_mib")
QUIET = "none"


class TcpFolder(RunFolder):
    """The files of a daemon whose frames and results go over tcp."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.ports = {"frames": free_port(), "results": free_port()}

    def endpoint(self, name: str) -> str:
        return f"tcp://{HOST}:{self.ports[name]}" if name in self.ports else super().endpoint(name)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=10.0, help="of each attack (%(default)g)")
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=ATTACKS, help="(default: all)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as folder:
        material = light_digits(Path(folder) / "light.safetensors")
        rows = [_measure_attack(material, name, args.seconds) for name in (QUIET, *args.attacks)]
    show_rows("one sensor, while another one's name is used for an attack, ms", COLUMNS, rows)
    return {
        "seeds": {"network": DIGITS_SEED, "order": ORDER_SEED},
        "settings": {"fps": FPS, "seconds": args.seconds, "claim": MAX_RATIO},
        "rows": rows,
    }


def _measure_attack(material: Dataset, attack: str, seconds: float) -> dict[str, Any]:
    """Measure the camera of the other sensor, while the attack goes to another program and then to a new daemon."""
    beside = [] if attack == QUIET else _beside(material, attack, seconds)
    with _daemon(material) as (run, ports):
        answers = _answers_during(run, [] if attack == QUIET else [attack], ports, seconds)
        resident = resident_mib(run.daemon.process.pid)
        run.camera.run_for(REST_S)
        run.camera.settle()
        received = sum(
            run.scrape().total("recald_frames_received_total", sensor=sensor) for sensor in (ATTACKER, UNKNOWN_SENSOR)
        )
        counts = run.frame_counts()
    row = {"attack": attack} | percentiles(answers) | counts
    row |= {"received": int(received), "resident_mib": round(resident)}
    if beside:
        row |= {"beside_p99_ms": percentiles(beside)["p99_ms"], "ratio": p99_ratio(np.array(answers), np.array(beside))}
    print_row(row)
    return row


def _beside(material: Dataset, attack: str, seconds: float) -> list[float]:
    """Measure while another program is attacked: what the attack takes of the machine is not the daemon's fault."""
    programs = ["spin"] if attack in ENDLESS else ["sink", attack]
    with _daemon(material) as (run, _):
        return _answers_during(run, programs, (free_port(), free_port()), seconds)


def _answers_during(run: DaemonRun, programs: Sequence[str], ports: tuple[int, int], seconds: float) -> list[float]:
    """Start the programs, and return the latencies (s) from when they are at work."""
    run.camera.run_for(REST_S)
    with ExitStack() as stack:
        for name in programs:
            run.camera.run_during(stack.enter_context(_program(name, ports)))
        return [answer.latency for answer in run.camera.run_for(seconds)]


@contextmanager
def _daemon(material: Dataset) -> Iterator[tuple[DaemonRun, tuple[int, int]]]:
    """Serve two sensors over tcp; yield the run of the first one, and the ports of frames and results."""
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as name, zmq.Context() as context:
        folder, metrics_port = TcpFolder(Path(name)), free_port()
        export(material.network, folder.model, shape=f"3x{SIZE}x{SIZE}")
        write_config(folder, (SENSOR, ATTACKER), metrics_port, 64, QUICK_ALARM, **LOCKED)
        with DaemonProcess(folder.config, folder.log, metrics_port) as daemon:
            daemon.wait_until_serving()
            camera = Camera(context, folder, pictures(material, SIZE))
            try:
                yield DaemonRun(folder, daemon, camera), (folder.ports["frames"], folder.ports["results"])
            finally:
                camera.close()
                daemon.stop()


@contextmanager
def _program(name: str, ports: tuple[int, int]) -> Iterator[Callable[[], None]]:
    """Start a program of senders.py; yield a function that waits until it is at work."""
    command = [sys.executable, "-m", "bench.attack.senders", name, *map(str, ports)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        yield lambda: _wait_for_line(process)
    finally:
        process.kill()
        process.communicate()


def _wait_for_line(process: subprocess.Popen[bytes]) -> None:
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError("the attacker ended before it began")
