"""A stated mix of classes in a running daemon: what one camera is told to show is a drift for another."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from running import recald, recald_here, serving, write_config
from synthetic import CLASSES, labelled

from daemon.exit_codes import EX_CONFIG
from deploy.model.card import card_path

CLEAN_FRAMES = 400
SHOWN = 2  # the only class in view
WINDOW = 64  # frames


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.pt2"
    shutil.copy(tiny_model, path)
    shutil.copy(card_path(tiny_model), card_path(path))
    return path


def test_a_camera_that_shows_what_it_is_said_to_show_has_not_drifted(model, tmp_path):
    mix = {CLASSES[SHOWN]: 1.0}
    config = write_config(
        tmp_path, model, sensors={"front": {"class_mix": mix}}, drift={"window": WINDOW}, recalibrate={"mode": "shadow"}
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

        said = "the score of the camera for which the mix is stated is the lower one"
        camera.stream({"front": shown, "rear": shown}, lambda: score("front") < 0.6 * score("rear"), said)
