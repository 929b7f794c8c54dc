"""Fits that change nothing in a running daemon: to clean frames, by a worker that dies or hangs, beyond an envelope."""

from __future__ import annotations

import itertools
import signal
import time
from contextlib import closing
from pathlib import Path

import psutil
import torch
from envelopes import sign
from running import PATIENCE, Camera, Daemon, recald, serving, write_config
from synthetic import SHAPE, dark, drifted, images

from calibrate.homogenizer import Homogenizer
from deploy.audit.log import AuditLog, audit_path
from deploy.backends.eager import EagerBackend
from deploy.files import digest_file
from deploy.store.artefacts import FACTORY, ArtefactStore

CLEAN, OTHER = images(256, 1), images(256, 2)
MILD = drifted(CLEAN)  # frames for a fit come together sooner than of a darker scene


def order_fit(daemon: Daemon) -> None:
    assert recald("recalibrate", "--sensor", "front", "--config", daemon.config).returncode == 0


def fits(daemon: Daemon, result: str) -> float:
    return daemon.metric("recald_fits_total", sensor="front", result=result)


def state(daemon: Daemon) -> str:
    return daemon.status()["state"]


def under_way(daemon: Daemon) -> bool:
    """The fit's own process is at its gradient steps."""
    status = daemon.status()
    return status["state"] == "fitting" and status["progress"] > 0


def answered_by(camera: Camera) -> set[str]:
    """The homogenizers that answered."""
    return {header["homogenizer"] for header in camera.answers["front"]}


def test_a_fit_of_clean_frames_changes_nothing_and_drift_checks_outlive_their_worker(tiny_model: Path, folder: Path):
    with serving(write_config(folder, tiny_model)) as (daemon, camera):
        clean = {"front": CLEAN}
        camera.stream(clean, lambda: daemon.status()["drift_score"] is not None, "a first drift check")
        (worker,) = daemon.workers()
        worker.kill()
        camera.stream(
            clean, lambda: "drift check failed: the worker process ended with -9" in daemon.log, "it is noticed"
        )
        before = daemon.status()["drift_score"]

        order_fit(daemon)
        camera.stream(clean, lambda: fits(daemon, "unneeded") == 1, "the fit has ended")
        assert state(daemon) == "factory"
        assert daemon.status()["last_fit"].startswith("unneeded: ")
        assert daemon.metric("recald_swaps_total") == 0

        camera.stream(clean, lambda: daemon.status()["drift_score"] != before, "drift checks go on")
        assert worker.pid not in [one.pid for one in daemon.workers()]
        camera.settle()
    assert answered_by(camera) == {FACTORY}
    assert ArtefactStore(folder / "state").current("front") is None


def fitting(daemon: Daemon, camera: Camera) -> psutil.Process:
    """The worker that is in the middle of a fit."""
    deadline = time.monotonic() + PATIENCE
    for image in itertools.cycle(MILD):  # asks after each: the steps are soon over
        camera.send(image)
        while camera.receive(0):
            pass
        if under_way(daemon):
            return daemon.workers()[-1]
        assert time.monotonic() < deadline, "no fit was seen under way"
        time.sleep(0.002)
    raise AssertionError


def has_failed(camera: Camera, since: int) -> bool:
    """Whether a frame after this one was answered in the state of a failed fit. It lasts for the back-off."""
    return any(answer["state"] == "failed" and answer["seq"] > since for answer in camera.answers["front"])


def test_a_fit_whose_worker_dies_or_hangs_costs_no_frame(tiny_model: Path, folder: Path):
    config = write_config(folder, tiny_model, recalibrate={"timeout": "8s", "frames": 256})
    mild = {"front": MILD}
    with serving(config) as (daemon, camera):
        order_fit(daemon)
        for number, result, reason in (  # the second fit comes by itself: the drift lasts
            (signal.SIGKILL, "failed", "ended with -9"),
            (signal.SIGSTOP, "timeout", "took too long and was killed"),
        ):
            worker = fitting(daemon, camera)
            worker.send_signal(number)
            first = camera.sent["front"][-1]
            camera.stream(mild, lambda result=result: fits(daemon, result) == 1, f"the fit ends as {result}")
            assert reason in daemon.status()["last_fit"]
            assert not worker.is_running()
            camera.stream(mild, lambda first=first: has_failed(camera, first), "the failure shows in the answers")
            camera.stream(mild, lambda: state(daemon) != "failed", "the back-off is over")
        camera.assert_none_lost()
        assert answered_by(camera) == {FACTORY}


# ---- an envelope


def stored_outside(state: Path, model: Path) -> str:
    """The state of a daemon that has served another homogenizer than the identity; its version."""
    homogenizer, backend, digest = Homogenizer(*SHAPE).eval(), EagerBackend(), digest_file(model)
    with torch.no_grad():
        homogenizer.bias += 0.01
    manifest = {"model": digest, "sensor": "front", "versions": {"backend": backend.version()}}
    compiled = backend.compile(homogenizer, torch.zeros(1, *SHAPE))
    store = ArtefactStore(state)
    version = store.put(homogenizer, manifest, compiled, backend.name)
    store.point("front", version, digest, time.time())
    return version


def test_what_is_outside_of_the_envelope_serves_neither_after_a_restart_nor_after_a_fit(tiny_model: Path, folder: Path):
    """The whole way, since each of its steps can be right and not be taken."""
    envelope = folder / "envelope.yaml"
    envelope.write_text("version: 1\nhomogenizer: {bias: 0.001}\n")
    given = {"envelope": "envelope.yaml", "envelope_key": str(sign(envelope))}
    config = write_config(folder, tiny_model, recalibrate=given)
    before = stored_outside(folder / "state", tiny_model)
    with serving(config) as (daemon, camera):
        assert daemon.status()["homogenizer"] == FACTORY
        assert f"homogenizer {before[:12]} is outside of envelope.yaml: bias 0.01, at most 0.001" in daemon.log
        camera.stream({"front": dark(), "rear": OTHER}, lambda: fits(daemon, "refused"), "a fit is refused")
        status = daemon.status()
        assert status["homogenizer"] == FACTORY and status["candidate"] is None
        assert "is outside of envelope.yaml: bias" in status["last_fit"]
        assert daemon.stop()[0] == 0, daemon.log
    with closing(AuditLog(audit_path(daemon.state), read_only=True)) as audit:
        records = {record.event: record.content() for record in audit.records()}
    assert records["start"]["envelope"] == digest_file(envelope) and records["start"]["envelope_signed"] is True
    assert records["fit"]["result"] == "refused" and records["fit"]["withdrawn"] != before
    assert answered_by(camera) == {FACTORY}
