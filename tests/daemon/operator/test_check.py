"""One verdict on a camera: from the status of a running daemon, or from pictures that are compared and fitted to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from running import copied_model, eventually, recald, recald_here, serving, write_config
from synthetic import drifted, images, labelled

import daemon.operator.checking.pictures
from calibrate.baseline.baseline import SensorState
from calibrate.errors import RecaldError
from calibrate.estimate.estimator import Estimate
from daemon.exit_codes import EX_BEYOND_REPAIR, EX_CONFIG, EX_CONTENT_SHIFT, EX_DEGRADED, EX_TEMPFAIL, TemporaryError
from daemon.operator.checking import repair
from daemon.operator.checking.check import SAME_CAMERA, CameraVerdict, Condition, check_sensor, tell
from daemon.operator.checking.pictures import Looks, check_pictures
from daemon.operator.checking.repair import MIN_REPAIR_PICTURES, RepairTrial
from daemon.operator.commissioning.commission import CLEAN_BAND, commission
from daemon.recalibration.state_machine import LABEL_SHIFT_REASON
from deploy.model.frozen import load_frozen

NEW = images(256, seed=7)
DARK = drifted(NEW, light=0.5)
NOISE = np.random.default_rng(0).integers(0, 256, NEW.shape).astype(np.uint8)

LIKE_CLEAN = {"drift": -0.5, "content": 0.4, "known": True}
SENSOR: dict[str, Any] = {"state": "factory", "progress": 0.0, "reason": "", "homogenizer": "factory", "frames": 900}
SENSOR |= {"drift_score": 0.9, "drift_alarm": False, "drift_checks": "running", "last_fit": "none yet"}
SENSOR |= {"camera": {"raw": LIKE_CLEAN, "homogenized": LIKE_CLEAN}, "baseline_ratio": 1.0, "estimated_accuracy": None}
FITTED = "c0ffee11" * 8


def camera(**changes: Any) -> dict[str, Any]:
    return {"camera": {"raw": LIKE_CLEAN | changes, "homogenized": LIKE_CLEAN | changes}}


ALARM = {"drift_alarm": True, "drift_score": 4.5} | camera(drift=9.0)


def live(mode: str = "autonomous", **changes: Any) -> CameraVerdict:
    return check_sensor({"mode": mode, "sensors": {"front": SENSOR | changes}}, "front")


# ---- a live sensor


def test_a_camera_as_its_baseline_is_well():
    verdict = live()
    assert (verdict.condition, verdict.summary) == (Condition.OK, "no drift")
    assert verdict.reasons[0] == "camera: drift of -0.5 standard deviations beside healthy frames; up to 2.75 is clean"
    assert any(reason.startswith("content: 0.40 ") for reason in verdict.reasons)


def test_without_a_baseline_the_verdict_says_that_it_is_coarser():
    verdict = live(camera={}, baseline_ratio=0.4)
    assert verdict.condition is Condition.OK
    assert verdict.reasons[0].startswith("no baseline of healthy frames yet (40%)")
    assert verdict.figures["drift"] is None


def test_frames_that_are_not_finite_are_told_as_such():
    verdict = live(camera={"homogenized": {"drift": None, "content": None, "known": True}})
    assert "not finite" in verdict.reasons[0] and verdict.figures["drift"] is None


def test_a_homogenizer_that_repairs_the_camera_is_well_and_tells_what_is_without():
    repaired = {"raw": LIKE_CLEAN | {"drift": 12.0}, "homogenized": LIKE_CLEAN}
    verdict = live(state="active", homogenizer=FITTED, camera=repaired)
    assert (verdict.condition, verdict.summary) == (Condition.OK, "no drift of the frames as they are served")
    assert "homogenizer c0ffee11c0ff serves; without it 12.0 standard deviations" in verdict.reasons


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (camera(content=1.4), SAME_CAMERA),
        (camera(known=False), "content that hardly any healthy frame had"),
        (ALARM | {"camera": {}, "reason": f"held; {LABEL_SHIFT_REASON}"}, "this is no drift"),
    ],
)
def test_unusual_content_is_no_drift(changes, said):
    verdict = live(**changes)
    assert verdict.condition is Condition.CONTENT_SHIFT and said in verdict.summary


@pytest.mark.parametrize(
    ("changes", "condition", "said"),
    [
        ({"state": "invalid", "reason": "check the lens"}, Condition.NOT_REPAIRABLE, "check the lens"),
        ({"last_fit": "rejected: score 5.00 stays above 2.00"}, Condition.NOT_REPAIRABLE, "score 5.00 stays"),
        ({"last_fit": "unneeded: nothing to repair"}, Condition.NOT_REPAIRABLE, "nothing to repair"),
        ({"last_fit": "refused: out of the envelope"}, Condition.NOT_REPAIRABLE, "envelope"),
        ({"state": "rolled_back", "last_fit": "accepted: x", "reason": "regress"}, Condition.NOT_REPAIRABLE, "regress"),
        ({"last_fit": "accepted: better than every champion"}, Condition.REPAIRABLE, "better than every champion"),
        ({"last_fit": "shadowed: better"}, Condition.REPAIRABLE, "better"),
        ({"state": "probation", "last_fit": "rejected: older"}, Condition.REPAIRABLE, "a homogenizer was found"),
        ({"state": "awaiting_approval", "reason": "`recald approve`"}, Condition.REPAIRABLE, "`recald approve`"),
        ({"state": "fitting", "progress": 0.25}, Condition.UNDECIDED, "a recalibration is under way (fitting 25%)"),
        ({"state": "collecting", "last_fit": "rejected: x"}, Condition.UNDECIDED, "under way (collecting 0%)"),
        ({"state": "failed", "last_fit": "failed: MemoryError", "reason": "memory"}, Condition.UNDECIDED, "memory"),
        ({}, Condition.UNDECIDED, "a recalibration is due"),
        ({"reason": LABEL_SHIFT_REASON}, Condition.UNDECIDED, LABEL_SHIFT_REASON),
    ],
)
def test_under_an_alarm_what_was_tried_decides(changes, condition, said):
    verdict = live(**ALARM | changes)
    assert verdict.condition is condition and said in verdict.summary
    assert verdict.reasons[0] == "camera: drift of 9.0 standard deviations beside healthy frames; up to 2.75 is clean"
    assert not any(reason.startswith("content") for reason in verdict.reasons), "it says nothing behind a drift"


def test_a_locked_daemon_fits_nothing():
    verdict = live(mode="locked", **ALARM)
    assert verdict.condition is Condition.UNDECIDED and "recalibrate.mode is locked" in verdict.summary


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"drift_checks": "stopped", "drift_score": None, "reason": "no frames for 12 s"}, "front: no frames for 12 s"),
        ({"drift_checks": "failing", "drift_alarm": None, "reason": "no check for 40 s"}, "front: no check for 40 s"),
        ({"drift_score": None, "frames": 3}, "front: no drift check has a score yet, 3 frames were served"),
    ],
)
def test_where_no_check_looks_at_the_frames_there_is_no_verdict(changes, said):
    with pytest.raises(TemporaryError, match=said):
        live(**changes)


def test_an_unknown_sensor_is_refused():
    with pytest.raises(RecaldError, match="unknown sensor 'rear', configured are front"):
        check_sensor({"sensors": {"front": SENSOR}}, "rear")


def test_a_daemon_that_says_less_is_understood():
    newer = ("camera", "baseline_ratio", "estimated_accuracy", "drift_checks")
    older = {key: value for key, value in SENSOR.items() if key not in newer}
    assert check_sensor({"sensors": {"front": older}}, "front").condition is Condition.OK


@pytest.mark.parametrize(
    ("condition", "code", "repairable"),
    [
        (Condition.OK, 0, None),
        (Condition.CONTENT_SHIFT, 10, None),
        (Condition.REPAIRABLE, 20, True),
        (Condition.UNDECIDED, 20, None),
        (Condition.NOT_REPAIRABLE, 21, False),
    ],
)
def test_each_verdict_has_its_code_in_words_and_for_programs(condition, code, repairable, capsys):
    verdict = CameraVerdict(condition, "a\x1b[2J", ("why",), {"drift": 1.5})
    assert tell(verdict, as_json=False) == code
    assert capsys.readouterr().out == f"{condition.value}: a?[2J\n  why\n"
    assert tell(verdict, as_json=True) == code
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["repairable"], told["exit_code"]) == (condition.value, repairable, code)
    assert (told["reasons"], told["drift"]) == (["why"], 1.5)


def test_a_running_daemon_is_asked(tiny_model, folder):
    """Its real answer has what the verdict is made of; and a camera that has stopped has no verdict."""
    config = write_config(folder, tiny_model, recalibrate={"mode": "locked"})
    with serving(config) as (running, sender):
        sender.stream({"front": DARK}, lambda: running.status()["drift_alarm"], "the alarm", timeout=150)
        done = recald("check", "--config", config, "front")
        assert done.returncode == EX_DEGRADED, done.stderr
        assert done.stdout.startswith("DEGRADED, not known whether repairable: recalibrate.mode is locked")
        eventually(lambda: running.status()["drift_checks"] == "stopped", "the camera counts as stopped")
        done = recald_here("check", "--config", config, "front")
        assert done.returncode == EX_TEMPFAIL and "recald check: front: no frames for " in done.stderr


# ---- pictures


@pytest.fixture(scope="module")
def commissioned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with the baseline of 512 clean pictures."""
    path = copied_model(tiny_model, tmp_path_factory.mktemp("commissioned"))
    commission(path, saved(path.with_name("clean.npz"), images(512, seed=3)), 512)
    return path


def saved(path: Path, pictures: np.ndarray) -> Path:
    np.savez(path, images=pictures)
    return path


@pytest.fixture
def check(tmp_path: Path):
    return lambda model, pictures: check_pictures(model, saved(tmp_path / "pictures.npz", pictures))


def of_one_class(count: int) -> np.ndarray:
    pictures, labels = labelled(8 * count, seed=8)
    return pictures[labels == 1][:count]


def test_clean_pictures_are_ok(check, commissioned, tiny_model):
    fine, coarse = check(commissioned, NEW), check(tiny_model, NEW)
    assert fine.condition is coarse.condition is Condition.OK
    assert fine.reasons[0].startswith("camera: drift of ") and -3 < fine.figures["drift"] < 3
    assert "`recald commission` with 512 clean pictures or more" in coarse.reasons[-1]
    assert coarse.figures == {"pictures": 256, "drift": None, "content": None, "drift_score": pytest.approx(0.2, abs=1)}


def test_pictures_of_one_class_are_no_drift(check, commissioned, tiny_model):
    for model in (commissioned, tiny_model):
        assert check(model, of_one_class(192)).condition in (Condition.OK, Condition.CONTENT_SHIFT)


def test_a_drift_that_a_fit_repairs_is_repairable_and_tells_the_gain(check, commissioned):
    verdict = check(commissioned, DARK)
    assert verdict.condition is Condition.REPAIRABLE
    gain = verdict.figures["gain"]
    assert gain["quantity"] == "drift score" and gain["with"] < CLEAN_BAND < 5 < gain["without"]
    assert verdict.summary == f"expected drift score {gain['with']:.2f} instead of {gain['without']:.2f}"


def test_the_gain_is_accuracy_where_it_can_be_estimated(tiny_model, tmp_path):
    model = copied_model(tiny_model, tmp_path)
    clean, classes = labelled(512, seed=3)
    np.savez(tmp_path / "labelled.npz", images=clean, labels=classes)
    commission(model, tmp_path / "labelled.npz", 512, labels=tmp_path / "labelled.npz")
    verdict = check_pictures(model, saved(tmp_path / "dark.npz", drifted(images(512, seed=9), light=0.5)))
    gain = verdict.figures["gain"]
    assert gain["quantity"] == "estimated accuracy" and gain["without"] < 0.9 < 0.95 < gain["with"]
    expected = f"expected accuracy {gain['with']:.1%} instead of {gain['without']:.1%} (estimates"
    assert verdict.summary.startswith(expected)


def test_estimates_that_cannot_be_told_apart_are_no_sure_gain(commissioned, monkeypatch):
    trial = RepairTrial(load_frozen(commissioned), None, torch.zeros(128, 3, 16, 16), print)

    def gain_of(*estimates: Estimate) -> str:
        monkeypatch.setattr(repair, "estimate_accuracy", lambda _, measured: estimates[measured])
        return trial._repairable(0, 1).summary

    low, high = Estimate(0.6, 0.5, 0.7), Estimate(0.9, 0.8, 0.95)
    assert gain_of(low, high) == "expected accuracy 90.0% instead of 60.0% (estimates)"
    assert gain_of(Estimate(0.89, 0.85, 0.92), high).endswith("(estimates, no sure difference)")


def test_white_noise_is_beyond_repair(check, commissioned):
    verdict = check(commissioned, NOISE)
    assert verdict.condition is Condition.NOT_REPAIRABLE and verdict.summary.startswith("a fit does not help: ")
    assert verdict.reasons[0].startswith("look at the lens")


def test_a_drift_that_the_network_does_not_mind_is_nothing_to_repair(check, tiny_model):
    verdict = check(tiny_model, drifted(NEW))
    assert verdict.condition is Condition.NOT_REPAIRABLE
    assert verdict.summary.startswith("the network answers alike with a fit and without: ")


def test_a_covered_camera_is_beyond_repair(check, commissioned):
    verdict = check(commissioned, np.full_like(NEW, 12))
    assert verdict.condition is Condition.NOT_REPAIRABLE and "covered or frozen" in verdict.summary


@pytest.mark.parametrize("count", [64, MIN_REPAIR_PICTURES - 1])
def test_too_few_pictures_for_a_fit_leave_open_whether_one_helps(check, commissioned, count):
    verdict = check(commissioned, DARK[:count])
    assert verdict.condition is Condition.UNDECIDED
    assert verdict.summary == f"{count} pictures are too few for a fit; 128 or more tell it"


def test_with_few_classes_in_view_no_fit_tells(commissioned, tmp_path, monkeypatch):
    looks = Looks(4.0, SensorState(8.0, 3.0, True), label_shift=True, windows=4)
    monkeypatch.setattr(daemon.operator.checking.pictures.PictureChecker, "_look", lambda self: looks)
    verdict = check_pictures(commissioned, saved(tmp_path / "dark.npz", DARK))
    assert verdict.condition is Condition.UNDECIDED and verdict.summary.startswith("few classes are in view")


@pytest.mark.parametrize(
    ("looks", "drifted", "unusual"),
    [
        (Looks(1.0, None, False, 1), False, False),
        (Looks(2.0, None, False, 1), True, False),
        (Looks(2.0, None, True, 1), False, True),
        (Looks(float("nan"), None, False, 1), True, False),
        (Looks(2.0, SensorState(2.7, 0.5, True), True, 1), False, False),
        (Looks(1.0, SensorState(3.1, 0.5, True), False, 1), True, False),
        (Looks(1.0, SensorState(0.0, 1.1, True), False, 1), False, True),
        (Looks(1.0, SensorState(9.0, 0.5, False), False, 1), False, True),
        (Looks(2.0, SensorState(0.0, 0.5, False), False, 1), False, True),
        (Looks(1.0, SensorState(20.0, 0.5, False), False, 1), True, True),
    ],
)
def test_the_baseline_decides_where_it_knows_the_content_and_else_the_drift_score(looks, drifted, unusual):
    assert (looks.drifted, looks.unusual) == (drifted, unusual)


@pytest.mark.parametrize(("clean", "dark"), [(128, 64), (64, 36)])
def test_each_window_is_spread_over_all_pictures(check, commissioned, clean, dark):
    """Most neighbours show a camera that is well, and it is not; also where there is a single window."""
    assert check(commissioned, np.concatenate([NEW[:clean], DARK[:dark]])).figures["drift"] > 3


def test_a_change_within_the_clean_band_is_too_small_for_a_fit(commissioned, tmp_path, monkeypatch):
    looks = Looks(1.5, SensorState(4.0, 0.5, True), label_shift=False, windows=4)
    monkeypatch.setattr(daemon.operator.checking.pictures.PictureChecker, "_look", lambda self: looks)
    verdict = check_pictures(commissioned, saved(tmp_path / "new.npz", NEW))
    assert verdict.condition is Condition.NOT_REPAIRABLE
    assert verdict.summary.startswith("the change is too small for a fit: drift score 0.")


def test_nothing_is_stored_or_changed(check, commissioned):
    def kept() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in commissioned.parent.iterdir()}

    before = kept()
    check(commissioned, DARK)
    assert kept() == before


# ---- the command


def test_the_command_ends_with_the_code_of_the_verdict(commissioned, tmp_path):
    pictures = saved(tmp_path / "noise.npz", NOISE)
    done = recald("check", "--model", commissioned, "--frames", pictures, "--json")
    assert done.returncode == EX_BEYOND_REPAIR, done.stderr
    told = json.loads(done.stdout)
    assert (told["verdict"], told["repairable"]) == ("DEGRADED, not repairable", False) and told["drift"] > 3


def test_content_has_its_code(tiny_model, tmp_path, monkeypatch):
    looks = Looks(4.0, None, label_shift=True, windows=4)
    monkeypatch.setattr(daemon.operator.checking.pictures.PictureChecker, "_look", lambda self: looks)
    done = recald_here("check", "--model", tiny_model, "--frames", saved(tmp_path / "new.npz", NEW))
    assert done.returncode == EX_CONTENT_SHIFT
    assert done.stdout.splitlines()[0] == f"CONTENT SHIFT: {SAME_CAMERA}"


def test_too_few_pictures_are_refused_in_one_line(tiny_model, tmp_path):
    pictures = saved(tmp_path / "few.npz", NEW[:63])
    done = recald_here("check", "--model", tiny_model, "--frames", pictures)
    assert (done.returncode, done.stdout) == (EX_CONFIG, "")
    assert done.stderr == f"recald check: {pictures}: 63 pictures are too few, at least 64 are needed\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--model", "m.pt2"],
        ["--frames", "f"],
        ["front", "--model", "m.pt2", "--frames", "f"],
        ["front", "--frames", "f"],
        ["--model", "m.pt2", "--frames", "f", "--config", "recald.yaml"],
    ],
)
def test_a_camera_is_live_or_on_pictures(arguments):
    done = recald_here("check", *arguments)
    assert done.returncode == EX_CONFIG and "give a live sensor's id" in done.stderr
