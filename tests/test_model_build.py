"""A model that takes its time to compile: something serves from the start, and what was asked for takes over."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from running import Camera, Daemon, eventually, recald, write_config
from synthetic import drifted, images, normalised, trained_network

from daemon.cli import EX_CONFIG, EX_TEMPFAIL
from daemon.control import request
from deploy.store import FACTORY

SIMULATED = Path(__file__).parent / "simulated_gpu"
CLEAN = images(64, 7)


class Jetson:
    """A machine with a simulated GPU and TensorRT: `daemon()` runs recald on it."""

    def __init__(self, folder: Path, model: Path, precision: str = "float32"):
        self.refuse, self.lost = folder / "refuse", folder / "lost"
        self.config = write_config(folder, model, model={"backend": "tensorrt", "precision": precision})
        self.compiled = folder / "state" / "compiled"

    def environment(self, build_s: float) -> dict[str, str]:
        path = f"{SIMULATED}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
        files = {"RECALD_TEST_REFUSE": str(self.refuse), "RECALD_TEST_LOST": str(self.lost)}
        return {"PYTHONPATH": path, "RECALD_TEST_BUILD_S": str(build_s), **files}

    @contextmanager
    def daemon(self, build_s: float) -> Iterator[Daemon]:
        with Daemon(self.config, **self.environment(build_s)) as daemon:
            yield daemon.wait_until_serving()


@pytest.fixture
def jetson(folder: Path, tiny_model: Path) -> Jetson:
    return Jetson(folder, tiny_model)


def backend_of(daemon: Daemon) -> str:
    return request(daemon.control, {"command": "status"}, 10)["backend"]


def expected(image: np.ndarray) -> np.ndarray:
    network: torch.nn.Module = trained_network().requires_grad_(False)
    return network(normalised(image[None])).numpy()


def assert_none_lost(daemon: Daemon) -> None:
    """Every frame was answered, or a newer one came before its turn."""
    received, processed = (daemon.metric(f"recald_frames_{what}_total") for what in ("received", "processed"))
    dropped = {labels["reason"]: value for labels, value in daemon.samples("recald_frames_dropped_total")}
    assert received == processed + dropped.get("superseded", 0)
    assert not any(value for reason, value in dropped.items() if reason != "superseded")


def right(image: np.ndarray, output: np.ndarray) -> bool:
    return np.allclose(output, expected(image), rtol=1e-4, atol=1e-4)


def test_frames_are_answered_while_it_is_compiled_and_after_and_the_next_start_has_it(jetson):
    with jetson.daemon(build_s=4) as daemon, Camera(daemon) as camera:
        assert backend_of(daemon) == "cuda until tensorrt has compiled it"
        assert daemon.samples("recald_model_info")[0][0]["backend"] == "cuda"
        assert right(CLEAN[0], camera.ask(CLEAN[0])[1])
        camera.stream({"front": CLEAN}, lambda: backend_of(daemon) == "tensorrt", "TensorRT serves")
        camera.settle()
        assert right(CLEAN[1], camera.ask(CLEAN[1])[1])
        assert {labels["backend"] for labels, _ in daemon.samples("recald_model_info")} == {"tensorrt"}
        assert_none_lost(daemon)
        assert daemon.stop()[0] == 0
    history = recald("history", "--config", jetson.config).stdout
    assert "compiled" in history and "served by tensorrt" in history.replace("_", " ")
    with jetson.daemon(build_s=600) as daemon, Camera(daemon) as camera:
        assert backend_of(daemon) == "tensorrt"
        assert right(CLEAN[0], camera.ask(CLEAN[0])[1])


def test_a_drift_is_recalibrated_while_the_stand_in_serves_and_the_swap_lasts(jetson):
    dark = drifted(CLEAN)
    with jetson.daemon(build_s=12) as daemon, Camera(daemon) as camera:
        camera.stream({"front": CLEAN}, lambda: daemon.status()["drift_score"], "a drift score")
        camera.stream({"front": dark}, lambda: daemon.status()["homogenizer"] != FACTORY, "a homogenizer serves")
        camera.stream({"front": dark}, lambda: backend_of(daemon) == "tensorrt", "TensorRT serves")
        served = daemon.status()["homogenizer"]
        camera.settle()
        assert camera.ask(dark[0])[0]["homogenizer"] == served != FACTORY
        assert_none_lost(daemon)


def test_a_daemon_that_is_stopped_while_it_compiles_leaves_nothing_behind(jetson):
    with jetson.daemon(build_s=600) as daemon:
        builders = [process for process in daemon.workers() if "daemon.model_build" in process.cmdline()]
        assert len(builders) == 1
        code, took = daemon.stop()
        assert code == 0 and took < 5
        assert not builders[0].is_running()
    assert len(list(jetson.compiled.iterdir())) == 1  # the stand-in's


def test_a_model_that_is_refused_ends_the_daemon_for_good(jetson):
    jetson.refuse.touch()
    with Daemon(jetson.config, **jetson.environment(0)) as daemon:
        assert daemon.process.wait(60) == EX_CONFIG
        assert daemon.log.splitlines()[-1] == "recald run: TensorRT cannot build it: no kernel for this layer"


def test_a_builder_that_is_killed_costs_a_restart_that_tries_again(jetson):
    with jetson.daemon(build_s=600) as daemon:
        (builder,) = [process for process in daemon.workers() if "daemon.model_build" in process.cmdline()]
        builder.kill()
        assert daemon.process.wait(60) == EX_TEMPFAIL
        assert "compiles the model with tensorrt ended with -9" in daemon.log.splitlines()[-1]
    with jetson.daemon(build_s=0) as daemon:
        eventually(lambda: backend_of(daemon) == "tensorrt", "TensorRT serves")


def test_a_disk_that_cannot_keep_it_costs_the_next_start_its_time(jetson):
    jetson.compiled.parent.mkdir()
    jetson.compiled.write_text("a file where the folder should be")
    with jetson.daemon(build_s=0) as daemon, Camera(daemon) as camera:
        eventually(lambda: backend_of(daemon) == "tensorrt", "TensorRT serves")
        assert right(CLEAN[0], camera.ask(CLEAN[0])[1])
        assert "what was compiled cannot be kept" in daemon.log


def test_another_precision_is_compiled_anew(jetson, folder, tiny_model):
    with jetson.daemon(build_s=0) as daemon:
        eventually(lambda: backend_of(daemon) == "tensorrt", "TensorRT serves")
        daemon.stop(signal.SIGTERM)
    lower = Jetson(folder, tiny_model, "float16")
    with lower.daemon(build_s=0) as daemon, Camera(daemon) as camera:
        eventually(lambda: backend_of(daemon) == "tensorrt", "TensorRT serves")
        output = camera.ask(CLEAN[0])[1]
        assert 1e-6 < np.abs(output - expected(CLEAN[0])).max() < 0.05


def test_a_gpu_that_is_lost_ends_the_process_for_a_new_one(jetson):
    """After a fault on the GPU, CUDA refuses all that follows in the same process."""
    with jetson.daemon(build_s=0) as daemon, Camera(daemon) as camera:
        eventually(lambda: backend_of(daemon) == "tensorrt", "TensorRT serves")
        camera.ask(CLEAN[0])
        jetson.lost.touch()
        deadline = time.monotonic() + 30
        while daemon.process.poll() is None and time.monotonic() < deadline:
            camera.send(CLEAN[0])
            time.sleep(0.05)
        assert daemon.process.wait(30) == EX_TEMPFAIL
        assert "the GPU failed" in daemon.log.splitlines()[-1]
