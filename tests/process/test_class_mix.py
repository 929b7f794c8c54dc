"""A stated mix of classes in a running daemon: what one camera is told to show is a drift for another."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from running import copied_model, recald, recald_here, serving, write_config
from synthetic import CLASSES, labelled

from daemon.exit_codes import EX_CONFIG
from daemon.worker.client import WorkerClient, WorkerError
from deploy.files import digest_file

CLEAN_FRAMES = 400
SHOWN = 2  # the only class in view
WINDOW, FIT_FRAMES = 64, 128


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return copied_model(tiny_model, tmp_path)


@pytest.mark.process
def test_a_worker_says_why_it_cannot_expect_a_mix(model, tmp_path):
    """The clean frames were removed since the daemon started."""
    mixes = {"front": {SHOWN: 1.0}}
    worker = WorkerClient(model, digest_file(model), "eager", tmp_path / "state", 1, class_mixes=mixes)
    with pytest.raises(WorkerError, match="a mix of classes is stated, and no clean frames were measured"):
        worker.start()


def test_a_camera_that_shows_what_it_is_said_to_show_has_not_drifted(model, tmp_path):
    mix = {CLASSES[SHOWN]: 1.0}
    config = write_config(
        tmp_path,
        model,
        sensors={"front": {"class_mix": mix}},
        drift={"window": WINDOW},
        recalibrate={"mode": "shadow", "frames": FIT_FRAMES},
    )
    done = recald("run", "--config", config)
    said = "sensors.front.class_mix: the classes of this model's clean frames were not measured: measure more"
    assert done.returncode == EX_CONFIG and said in done.stderr and "Traceback" not in done.stderr
    done = recald_here("check-config", "--config", config)
    assert done.returncode == EX_CONFIG and said in done.stderr

    pictures, labels = labelled(CLEAN_FRAMES, seed=3)
    np.savez(tmp_path / "clean.npz", images=pictures, labels=labels)
    done = recald_here("commission", "--model", model, "--frames", tmp_path / "clean.npz")
    assert done.returncode == 0, done.stderr
    pictures, labels = labelled(CLEAN_FRAMES, seed=5)
    shown = pictures[labels == SHOWN]
    with serving(config) as (daemon, camera):

        def score(sensor: str) -> float:
            return daemon.metric("recald_drift_score", sensor=sensor, frames="raw") or math.nan

        shows = {"front": shown, "rear": shown}
        camera.stream(shows, lambda: daemon.status("front")["collected"] == FIT_FRAMES, "all frames for a fit are kept")
        assert daemon.status("rear")["collected"] < FIT_FRAMES, "one class of many gets a share of the memory there"
        said = "the score of the camera for which the mix is stated is the lower one"
        camera.stream(shows, lambda: score("front") < 0.6 * score("rear"), said)
