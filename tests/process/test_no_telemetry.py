"""No process of recald tries to reach another machine: not by name, not by address."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from places import SUPPORT
from running import PATIENCE, recald, serving, write_config
from synthetic import BUILDER, MEAN, STD, images

# ONNX Runtime's first look-up comes within a second of its import, further ones every few seconds.
WATCHED_S = 8.0


@pytest.fixture(scope="module")
def watch(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process whose look-ups and connections to other machines are recorded and refused."""
    if shutil.which("gcc") is None:
        pytest.skip("there is no gcc to build the library that records attempts")
    folder = tmp_path_factory.mktemp("attempts")
    library = folder / "network_attempts.so"
    source = SUPPORT / "network_attempts.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", str(library), str(source), "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "RECALD_TEST_ATTEMPTS": str(folder / "attempts.log")}


def attempts(watch: dict[str, str]) -> list[str]:
    """What was recorded since the last call."""
    path = Path(watch["RECALD_TEST_ATTEMPTS"])
    lines = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return lines


def test_attempts_are_recorded_by_name_and_by_address(watch):
    code = "import socket\nfor host in ('vendor.example', '192.0.2.1'):\n"
    code += "    try: socket.create_connection((host, 80), 1)\n    except OSError: pass\n"
    subprocess.run([sys.executable, "-c", code], env=os.environ | watch, check=True)
    assert attempts(watch) == ["getaddrinfo vendor.example", "getaddrinfo 192.0.2.1"]


def test_the_daemon_and_its_workers_reach_nobody(watch, folder, tiny_model, monkeypatch):
    for name, value in watch.items():
        monkeypatch.setenv(name, value)
    config = write_config(folder, tiny_model, model={"backend": "onnx"})
    with serving(config) as (daemon, camera):
        began = time.monotonic()

        def watched_and_checked() -> bool:
            score = daemon.metric("recald_drift_score", sensor="front", frames="raw")
            return score > 0 and time.monotonic() - began > WATCHED_S

        camera.stream({"front": images(64, 1)}, watched_and_checked, "a drift check by a worker")
    assert attempts(watch) == []


def test_export_and_doctor_reach_nobody(watch, tmp_path):
    environment = os.environ | watch
    normalisation = ["--mean", ",".join(map(str, MEAN)), "--std", ",".join(map(str, STD))]
    command = ["export", "--builder", BUILDER, "--input", "3x16x16", *normalisation, "-o", tmp_path / "model.pt2"]
    done = recald(*command, cwd=SUPPORT, env=environment)
    assert done.returncode == 0, done.stderr
    recald("doctor", "--json", env=environment)
    assert attempts(watch) == []


def test_the_demo_reaches_nobody_while_it_starts(watch, tmp_path):
    command = [sys.executable, "-m", "daemon", "demo", "--output", str(tmp_path)]
    with subprocess.Popen(
        command, env=os.environ | watch, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as demo:
        time.sleep(WATCHED_S)
        demo.terminate()
        demo.wait(PATIENCE)
    assert attempts(watch) == []
