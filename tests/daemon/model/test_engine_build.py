"""A model that takes minutes to compile: a stand-in serves from the start, then the requested backend takes over."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from places import SIMULATED_GPU
from running import PATIENCE, UNWATCHED, Camera, Daemon, eventually, recald, write_config
from synthetic import dark, images, normalised, trained_network

from daemon.exit_codes import EX_CONFIG, EX_TEMPFAIL
from daemon.operator.control import request
from deploy.backends.protocol import load_backend
from deploy.files import digest_file
from deploy.store.artefacts import FACTORY

CLEAN = images(256, 7)


class Jetson:
    """A machine with a simulated GPU and TensorRT: `daemon()` runs recald on it."""

    def __init__(self, folder: Path, model: Path, **drift: float):
        self.refuse, self.lost = folder / "refuse", folder / "lost"
        self.config = write_config(folder, model, model={"backend": "tensorrt"}, drift=drift)
        self.compiled = folder / "state" / "compiled"

    def environment(self, build_s: float) -> dict[str, str]:
        path = f"{SIMULATED_GPU}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        files = {"RECALD_TEST_REFUSE": str(self.refuse), "RECALD_TEST_LOST": str(self.lost)}
        return {"PYTHONPATH": path, "RECALD_TEST_BUILD_S": str(build_s), **files}

    @contextmanager
    def daemon(self, build_s: float, **environment: str) -> Iterator[Daemon]:
        with Daemon(self.config, **self.environment(build_s), **environment) as daemon:
            yield daemon.wait_until_serving()


@pytest.fixture
def jetson(folder: Path, tiny_model: Path) -> Jetson:
    """Without drift checks."""
    return Jetson(folder, tiny_model, **UNWATCHED)


def builder_of(daemon: Daemon) -> psutil.Process:
    (builder,) = [process for process in daemon.workers() if "daemon.model.engine_build" in process.cmdline()]
    return builder


def backend_of(daemon: Daemon) -> str:
    return request(daemon.control, {"command": "status"}, 10)["backend"]


def expected(image: np.ndarray) -> np.ndarray:
    network: torch.nn.Module = trained_network().requires_grad_(False)
    return network(normalised(image[None])).numpy()


def assert_none_lost(daemon: Daemon) -> None:
    """Every frame was answered, or a newer one came before its turn."""

    def accounted() -> bool:
        received, processed = (daemon.metric(f"recald_frames_{what}_total") for what in ("received", "processed"))
        return received == processed + daemon.metric("recald_frames_dropped_total", reason="superseded")

    eventually(accounted, "every frame is accounted for")  # a frame is counted after its result
    dropped = {labels["reason"]: value for labels, value in daemon.samples("recald_frames_dropped_total")}
    assert not any(value for reason, value in dropped.items() if reason != "superseded")


def right(image: np.ndarray, output: np.ndarray) -> bool:
    return np.allclose(output, expected(image), rtol=1e-4, atol=1e-4)


@pytest.mark.timeout(500)  # 30 s on an idle machine
def test_frames_are_served_and_a_drift_corrected_while_it_compiles_and_the_next_start_has_the_engine(
    tiny_model, folder
):
    jetson = Jetson(folder, tiny_model)
    drift = {"front": dark()}
    with jetson.daemon(build_s=8) as daemon, Camera(daemon) as camera:
        assert backend_of(daemon) == "cuda"
        shown = recald("status", "--config", jetson.config).stdout
        assert "cuda until tensorrt has compiled it" in " ".join(shown.split())
        assert daemon.samples("recald_model_info")[0][0]["backend"] == "cuda"
        assert right(CLEAN[0], camera.ask(CLEAN[0])[1])
        camera.stream({"front": CLEAN}, lambda: daemon.status()["drift_score"], "a drift score")
        camera.stream(drift, lambda: daemon.status()["homogenizer"] != FACTORY, "a homogenizer serves", timeout=300)
        camera.stream(drift, lambda: backend_of(daemon) == "tensorrt", "TensorRT serves")
        served = daemon.status()["homogenizer"]
        camera.settle()
        assert camera.ask(drift["front"][0])[0]["homogenizer"] == served != FACTORY
        assert {labels["backend"] for labels, _ in daemon.samples("recald_model_info")} == {"tensorrt"}
        assert_none_lost(daemon)
        assert daemon.stop()[0] == 0
    assert '"served_by": "tensorrt"' in recald("history", "--config", jetson.config, "--json").stdout
    with jetson.daemon(build_s=600) as daemon, Camera(daemon) as camera:
        assert backend_of(daemon) == "tensorrt"
        assert camera.ask(CLEAN[0])[0]["homogenizer"] == served
        recald("rollback", "--sensor", "front", "--config", jetson.config)
        assert right(CLEAN[0], camera.ask(CLEAN[0])[1])
        assert_it_ends_with_the_gpu(jetson, daemon, camera)


def assert_it_ends_with_the_gpu(jetson: Jetson, daemon: Daemon, camera: Camera) -> None:
    """After a fault on the GPU, CUDA refuses all that follows in the same process: only a new one can go on."""
    jetson.lost.touch()
    camera.send(CLEAN[0])
    assert daemon.process.wait(PATIENCE) == EX_TEMPFAIL
    assert "the GPU failed" in daemon.log.splitlines()[-1]


def test_systemd_shows_the_progress_and_a_stop_while_it_compiles_leaves_nothing_behind(jetson, folder):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(folder / "notify"))
        systemd.settimeout(PATIENCE)
        with jetson.daemon(build_s=600, NOTIFY_SOCKET=str(folder / "notify")) as daemon:
            while not re.match(
                r"STATUS=compiling with tensorrt for \d+ s; front: factory", systemd.recv(4096).decode()
            ):
                pass
            builder = builder_of(daemon)
            code, took = daemon.stop()
            assert code == 0 and took < 5
            assert not builder.is_running()
    assert len(list(jetson.compiled.iterdir())) == 1  # the stand-in's


def test_a_model_that_is_refused_ends_the_daemon_for_good(jetson):
    jetson.refuse.touch()
    with Daemon(jetson.config, **jetson.environment(0)) as daemon:
        assert daemon.process.wait(PATIENCE) == EX_CONFIG
        assert daemon.log.splitlines()[-1] == "recald run: TensorRT cannot build it: no kernel for this layer"


def test_a_builder_that_is_killed_costs_the_engine_alone(jetson):
    with jetson.daemon(build_s=600) as daemon, Camera(daemon) as camera:
        builder_of(daemon).kill()
        said = "cuda goes on serving: compiling the model with tensorrt ended with -9"
        eventually(lambda: said in daemon.log, "the death is noticed")
        assert right(CLEAN[0], camera.ask(CLEAN[0])[1]) and backend_of(daemon) == "cuda"
        assert daemon.stop()[0] == 0
    assert '"event": "not compiled"' in recald("history", "--config", jetson.config, "--json").stdout


def test_the_builder_ends_with_a_daemon_that_is_killed(jetson):
    with jetson.daemon(build_s=600) as daemon:
        builder = builder_of(daemon)
        daemon.process.kill()
        builder.wait(PATIENCE)


def test_a_disk_that_cannot_store_the_engine_does_not_keep_it_from_the_daemon(jetson, tiny_model, gpu):
    """In float16, which is another build than float32."""
    jetson.compiled.parent.mkdir()
    jetson.compiled.write_text("a file where the folder should be")
    arguments = ["--model", tiny_model, "--sha256", digest_file(tiny_model), "--backend", "tensorrt"]
    arguments += ["--precision", "float16", "--state", "state"]
    arguments += ["--daemon", os.getpid()]
    built = subprocess.run(
        [sys.executable, "-m", "daemon.model.engine_build", *map(str, arguments)],
        cwd=jetson.config.parent,
        env=os.environ | jetson.environment(0),
        capture_output=True,
    )
    assert built.returncode == 0 and b"the compiled network cannot be kept" in built.stderr
    output = load_backend("tensorrt").load(built.stdout, threads=1).run(normalised(CLEAN[:1]).numpy())
    assert 1e-6 < np.abs(output - expected(CLEAN[0])).max() < 0.05
