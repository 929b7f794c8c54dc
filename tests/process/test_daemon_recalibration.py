"""Recalibration as it happens to a running daemon: a camera drifts and holds, restarts, kills, a full way back."""

from __future__ import annotations

import json
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from running import UNWATCHED, Camera, Daemon, eventually, read_only, recald, recald_here, serving, write_config
from synthetic import dark, images

from deploy.audit.log import AuditLog, audit_path
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.dossier_archive import DossierArchive
from deploy.store.verify import store_problems

CLEAN, OTHER = images(256, 1), images(256, 2)
ONNX = {"backend": "onnx"}


def state(daemon: Daemon) -> str:
    return daemon.status()["state"]


def versions(camera: Camera, sensor: str = "front") -> list[str]:
    """The homogenizers that answered, one after the other."""
    served = [header["homogenizer"] for header in camera.answers[sensor]]
    return [version for i, version in enumerate(served) if i == 0 or served[i - 1] != version]


# ---- a camera drifts, and the daemon follows


@dataclass(frozen=True)
class Story:
    """What was seen of a daemon whose sensor "front" drifted and recovered while "rear" stayed clean."""

    camera: Camera
    held: dict[str, Any]  # `recald status` of "front" half a second after its homogenizer had stood the shadow
    held_until: int  # the number of the last frame whose sender held swaps
    status: dict[str, Any]  # `recald status --json`, at the end
    homogenizers: list[dict[str, str]]  # labels of recald_homogenizer_info
    totals: dict[str, float]
    scores: dict[str, float]  # recald_drift_score of "front", by frames
    state: Path

    @property
    def version(self) -> str:
        return self.status["sensors"]["front"]["homogenizer"]


@pytest.fixture(scope="module")
def story(tiny_model: Path) -> Iterator[Story]:
    with TemporaryDirectory(prefix="recald-", dir="/tmp") as folder:
        config = write_config(Path(folder), tiny_model, model=ONNX)
        with serving(config) as (daemon, camera):
            clean = {"front": CLEAN, "rear": OTHER}
            camera.stream(clean, lambda: daemon.status()["drift_score"] is not None, "a first drift check")
            drift = {"front": dark(), "rear": OTHER}
            held = _while_the_camera_holds(daemon, camera, drift)
            until = camera.sent["front"][-1]
            camera.stream(drift, lambda: state(daemon) == "active", "a homogenizer serves")
            camera.stream(drift, lambda: looks_clean(daemon), "a drift check finds the frames clean")
            camera.assert_none_lost()  # across the swap
            seen = _observe(daemon, camera, held, until)
            assert daemon.stop()[0] == 0, daemon.log
        yield seen


def _while_the_camera_holds(daemon: Daemon, camera: Camera, drift: dict[str, np.ndarray]) -> dict[str, Any]:
    """Send held frames until a homogenizer has stood the shadow, and half a second longer; returns the status then."""
    waits = "the camera's side holds swaps"
    camera.stream(drift, lambda: waits in daemon.status()["reason"], "a homogenizer has stood the shadow", hold=True)
    last = len(camera.sent["front"]) + 25
    camera.stream(drift, lambda: len(camera.sent["front"]) > last, "half a second passes", hold=True)
    return daemon.status()


def looks_clean(daemon: Daemon) -> bool:
    """The newest drift check says so. One of so few frames may by chance say something else."""
    score = daemon.status()["drift_score"]
    return score is not None and score < 2


def _observe(daemon: Daemon, camera: Camera, held: dict[str, Any], held_until: int) -> Story:
    status, scores = eventually(lambda: _status_and_scores(daemon), "status and metrics of the same drift check")
    return Story(
        camera,
        held,
        held_until,
        status,
        [labels for labels, _ in daemon.samples("recald_homogenizer_info")],
        {name: daemon.metric(f"recald_{name}_total") for name in ("fits", "swaps", "rollbacks")},
        scores,
        daemon.state,
    )


def _status_and_scores(daemon: Daemon) -> tuple[dict[str, Any], dict[str, float]] | None:
    """Return `recald status --json` and the scores of "front" by stage; None if a check ended between the two.

    It takes far less than the 5 s after which a camera that sends nothing counts as silent, and has no scores.
    """
    before = daemon.metric("recald_drift_checks_total", sensor="front")
    samples = daemon.samples("recald_drift_score")
    status = json.loads(recald_here("status", "--json", "--config", daemon.config).stdout)
    scores = {labels["frames"]: value for labels, value in samples if labels["sensor"] == "front"}
    shown = round(scores["homogenized"], 3) == round(status["sensors"]["front"]["drift_score"] or 0, 3)
    checked = daemon.metric("recald_drift_checks_total", sensor="front") != before  # counted before the scores are set
    return None if checked or not shown else (status, scores)


def test_no_frame_is_answered_twice_or_out_of_order_across_a_swap(story: Story):
    for sensor in ("front", "rear"):
        answered = [header["seq"] for header in story.camera.answers[sensor]]
        assert answered == sorted(set(answered)) and answered[-1] == story.camera.sent[sensor][-1]


def test_a_hold_of_the_camera_keeps_a_proven_homogenizer_waiting(story: Story):
    assert story.held["hold"] and story.held["state"] == "shadow" and story.held["homogenizer"] == "factory"
    swapped = next(header["seq"] for header in story.camera.answers["front"] if header["homogenizer"] != "factory")
    assert story.held_until < swapped <= story.held_until + 250  # at once, but a busy machine takes its time


def test_a_drift_leads_to_one_swap_of_that_sensor_alone(story: Story):
    assert versions(story.camera, "front") == ["factory", story.version]
    assert versions(story.camera, "rear") == ["factory"]
    assert story.totals["fits"] == story.totals["swaps"] == 1
    assert story.totals["rollbacks"] == 0


def test_the_frames_look_clean_again(story: Story):
    assert story.scores["raw"] > 4
    assert story.scores["homogenized"] < 2


def test_headers_and_metrics_and_status_say_the_same(story: Story):
    assert story.camera.answers["front"][-1]["homogenizer"] == story.version
    assert {(one["sensor"], one["version"], one["source"]) for one in story.homogenizers} == {
        ("front", story.version, "fit"),
        ("rear", "factory", "factory"),
    }
    front = story.status["sensors"]["front"]
    assert front["state"] == story.camera.answers["front"][-1]["state"] == "active"
    assert front["last_fit"].startswith("accepted: ")
    assert front["drift_score"] == pytest.approx(story.scores["homogenized"], abs=0.001)


def test_the_audit_log_names_the_dossier_of_the_fit_and_no_frame_is_on_the_disk(story: Story):
    (filed,) = DossierArchive(story.state).read_all("front")
    assert (filed.dossier.result, filed.dossier.candidate) == ("accepted", story.version)
    with closing(AuditLog(audit_path(story.state), read_only=True)) as audit:
        (fit,) = (record.content() for record in audit.records("front") if record.event == "fit")
    assert fit["dossier"] == filed.digest
    assert not list(story.state.rglob("*.png"))


def test_the_manifest_says_where_the_homogenizer_comes_from(story: Story):
    manifest = ArtefactStore(story.state).get(story.version, story.status["model"]).manifest
    assert manifest["sensor"] == "front"
    assert manifest["parent"] == "factory"
    assert manifest["trigger"] == "drift"
    assert manifest["frames"]["count"] == 128
    assert manifest["verdict"]["accepted"] is True
    assert set(manifest["verdict"]["evidence"]) == {"factory", "candidate", "replicate"}


# ---- and after a restart


@pytest.fixture
def restart(story: Story, tiny_model: Path, folder: Path) -> Path:
    """The configuration of a daemon that takes over a copy of the story's state."""
    shutil.copytree(story.state, folder / "state")
    return write_config(folder, tiny_model, model=ONNX)


@pytest.fixture
def unwatched(restart: Path, tiny_model: Path) -> Path:
    """The same, without drift checks."""
    return write_config(restart.parent, tiny_model, model=ONNX, drift=UNWATCHED)


def test_a_restart_serves_the_same_homogenizer_and_a_rollback_leaves_it_for_good(story: Story, unwatched: Path):
    with serving(unwatched) as (daemon, camera):
        assert versions(camera) == [story.version]
        info = [labels for labels, _ in daemon.samples("recald_homogenizer_info") if labels["sensor"] == "front"]
        assert [one["source"] for one in info] == ["restored"]
        assert state(daemon) == "active"
        assert recald("rollback", "--sensor", "front", "--config", unwatched).returncode == 0
        eventually(lambda: camera.ask(dark()[0])[0]["homogenizer"] == "factory", "the factory homogenizer serves")
        assert state(daemon) in ("rolled_back", "factory")
        assert daemon.metric("recald_rollbacks_total", sensor="front", reason="operator") == 1
        assert daemon.stop()[0] == 0
    with serving(unwatched) as (daemon, camera):
        assert versions(camera) == ["factory"]


def test_a_camera_that_is_clean_again_needs_no_homogenizer_and_a_drift_that_returns_no_fit(story: Story, restart: Path):
    with serving(restart) as (daemon, camera):
        camera.stream({"front": CLEAN}, lambda: state(daemon) == "factory", "the factory homogenizer serves")
        assert camera.ask(CLEAN[0])[0]["homogenizer"] == "factory"
        assert daemon.metric("recald_swaps_total", result="committed") == 1
        assert daemon.metric("recald_rollbacks_total") == 0
        eventually(lambda: ArtefactStore(daemon.state).current("front").homogenizer == "factory", "a restart knows it")
        camera.stream({"front": dark()}, lambda: state(daemon) == "active", "the earlier homogenizer serves again")
        camera.settle()
        assert versions(camera) == [story.version, "factory", story.version]
        assert "an earlier one is better" in daemon.status()["last_fit"]
        assert daemon.metric("recald_fit_duration_seconds_count") == 0
        assert recald("rollback", "--sensor", "front", "--config", restart).returncode == 0
        camera.stream({"front": dark()}, lambda: state(daemon) == "fitting", "what was taken back is not tried again")


def test_verify_finds_a_changed_byte_and_a_changed_record(restart: Path):
    stored = restart.parent / "state"
    assert recald_here("verify", "--config", restart).stdout == f"{stored}: every byte is as it was written\n"
    newest = json.loads(recald_here("history", "--config", restart, "--json", "--limit", "1").stdout)
    (weights,) = stored.glob("objects/sha256/*/*.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with sqlite3.connect(stored / "audit.sqlite") as connection:
        connection.execute("DELETE FROM record WHERE number = ?", (newest["number"],))
    done = recald("verify", "--config", restart, "--anchor", f"{newest['number']}:{newest['digest']}")
    assert done.returncode == 78
    assert f"{weights}: damaged" in done.stdout and str(newest["number"]) in done.stdout


def test_what_is_damaged_is_not_served_and_the_log_says_why(story: Story, unwatched: Path):
    """The unit tests of a start look at every kind of damage."""
    (weights,) = unwatched.parent.glob(f"state/objects/sha256/*/{story.version[2:]}.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    with serving(unwatched) as (daemon, camera):
        assert versions(camera) == ["factory"]
        assert f"ERROR daemon.recalibration.restore: front: {weights}: damaged" in daemon.log


def test_on_a_disk_that_is_read_only_the_last_good_homogenizer_serves(story: Story, restart: Path):
    stored, here = restart.parent / "state", read_only(restart.parent / "state")
    (stored / "sensors" / "front" / ".current.json.0.tmp").touch()  # left by one that was killed
    with serving(restart, here) as (daemon, camera):
        eventually(
            lambda: "no new homogenizer serves until the audit log can be written" in daemon.log,
            "the warning is logged",
        )
        assert "make its disk and folder writable" in daemon.log
        assert versions(camera) == [story.version]
        camera.stream({"front": CLEAN}, lambda: versions(camera) == [story.version, FACTORY], "the way back is open")
        assert daemon.stop()[0] == 0
    assert recald("verify", "--config", restart, within=here).stdout == f"{stored}: every byte is as it was written\n"


def kill_after(daemon: Daemon, words: str, delay: float) -> None:
    """End the process without warning, `delay` s after its log says this."""

    def watch() -> None:
        while words not in daemon.log and daemon.process.poll() is None:
            time.sleep(0.001)
        time.sleep(delay)
        daemon.process.kill()

    threading.Thread(target=watch, daemon=True).start()


def test_kills_while_a_swap_is_written_leave_the_whole_old_or_the_whole_new_state(story: Story, restart: Path):
    store, random = ArtefactStore(restart.parent / "state"), Random(0)
    serves = story.version
    for _ in range(3):
        with serving(restart) as (daemon, camera):
            assert versions(camera) == [serves]
            better = {"front": CLEAN if serves == story.version else dark()}
            kill_after(daemon, " serves, pause ", random.uniform(0, 0.01))
            camera.stream(better, lambda daemon=daemon: daemon.process.poll() is not None, "a swap, and the kill")
        serves, _, complaints = store.load_current("front", story.status["model"])
        assert serves in (FACTORY, story.version)
        with closing(AuditLog(store.root / "audit.sqlite")) as audit:
            assert [*complaints, *store_problems(store), *audit.verify()] == []
