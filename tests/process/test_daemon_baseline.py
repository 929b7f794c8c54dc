"""A running daemon learns what its healthy camera looks like, and shows content and camera apart after that."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from running import Daemon, serving, write_config
from synthetic import drifted, images, labelled

CLEAN = images(1024, 1)
SHOWN, LABELS = labelled(2048, 3)
ONE_CLASS = SHOWN[LABELS == 2][:200]
DRIFT = {"window": 64, "interval": 0.1, "learn": "5s", "hold": "1h"}  # so that the drift score raises no alarm


def learned(daemon: Daemon) -> float:
    return daemon.metric("recald_baseline_progress_ratio", sensor="front")


def content(daemon: Daemon) -> float:
    return daemon.metric("recald_content_shift_score", sensor="front", frames="raw")


def test_a_daemon_learns_its_camera_and_shows_a_scene_and_a_drift_apart(tiny_model: Path):
    with TemporaryDirectory(prefix="recald-", dir="/tmp") as folder:
        config = write_config(Path(folder), tiny_model, drift=DRIFT, recalibrate={"mode": "locked"})
        with serving(config) as (daemon, camera):
            camera.stream({"front": CLEAN}, lambda: learned(daemon) == 1, "a baseline is learned")
            camera.stream({"front": ONE_CLASS}, lambda: content(daemon) > 1, "a shift of content")
            camera.stream({"front": CLEAN}, lambda: content(daemon) < 1, "the usual content")
            camera.stream({"front": CLEAN}, lambda: not daemon.status()["drift_alarm"], "no alarm")
            camera.stream({"front": drifted(CLEAN)}, lambda: daemon.status()["drift_alarm"], "an alarm")
            assert daemon.metric("recald_sensor_drift_deviations", sensor="front", frames="homogenized") > 3
            assert daemon.metric("recald_drift_evidence_ratio", sensor="front") == 1
            assert daemon.metric("recald_worker_starts_total", worker="checks") == 1
            assert daemon.metric("recald_worker_starts_total", worker="fits") == 0
            assert daemon.metric("recald_worker_resident_bytes", worker="checks") > 20e6
            assert daemon.stop()[0] == 0, daemon.log
        assert "learned a baseline" in daemon.log
        assert list((daemon.state / "sensors" / "front").glob("baseline-*")), "a restart finds it"
