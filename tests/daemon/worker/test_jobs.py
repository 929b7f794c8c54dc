"""The worker's jobs, in this process: drift checks, recalls and comparisons with a challenger."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import pytest
import torch
from synthetic import SHAPE, drifted, images, labelled, normalised

from calibrate import fit
from calibrate.homogenizer import Homogenizer
from calibrate.judge import UNREPEATED, Evidence
from calibrate.scoring.accuracy import AccuracyProxy
from daemon.worker.context import WorkerContext, clean_band, is_harmful, raw_frames_clean
from daemon.worker.fit_job import FitJob
from daemon.worker.main import concluded
from daemon.worker.observe_job import observe as observe_job
from daemon.worker.restore_job import restore_stored
from deploy.backends.engine_cache import compile_homogenizer
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError
from deploy.store.compiled import open_compiled

BAND = 1.6
JOB = {"sensor": "front", "active": FACTORY, "withdrawn": [], "trigger": "drift", "recall": True, "band": BAND}
JOB |= {"may_learn": False, "alarm": False, "fresh": 0, "now": 0.0, "learn": 3600.0, "relearn": False}
JOB |= {"until": 0.0, "seed": 0, "refused": {}, "keep": {"frames": 0, "mib": 1}, "corrections": []}


@pytest.fixture(scope="module")
def worker(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> WorkerContext:
    return WorkerContext(load_frozen(tiny_model), "eager", ArtefactStore(tmp_path_factory.mktemp("state")))


@pytest.fixture(autouse=True)
def no_faults_before(worker: WorkerContext) -> None:
    """All tests share the worker."""
    worker.faults.clear()


@pytest.fixture(scope="module")
def right(worker: WorkerContext) -> str:
    """The version of a homogenizer that suits drifted frames."""
    model = worker.frozen.module
    return keep(worker, fit(model, normalised(drifted(images(256, seed=1))), limits=worker.limits).homogenizer)


@pytest.fixture(scope="module")
def wrong(worker: WorkerContext) -> str:
    """The version of a homogenizer that darkens."""
    return keep(worker, with_bias(-1.0))


def with_bias(bias: float) -> Homogenizer:
    homogenizer = Homogenizer(*SHAPE)
    with torch.no_grad():
        homogenizer.bias += bias
    return homogenizer.eval()


def keep(
    worker: WorkerContext, homogenizer: Homogenizer, versions: dict | None = None, sensor: str = JOB["sensor"]
) -> str:
    """Store it as a fit of this sensor would; returns its version."""
    example = torch.zeros(2, *SHAPE)
    compiled = compile_homogenizer(worker.backend, homogenizer, example[:1], worker.store.root)
    manifest = {"sensor": sensor, "model": worker.frozen.digest}
    manifest |= {"versions": versions or worker.versions}
    return worker.store.put(homogenizer, manifest, compiled, worker.backend.name)


def of_one_class(count: int) -> np.ndarray:
    taken, labels = labelled(8 * count, seed=7)
    return taken[labels == 2][:count]


def observe(worker: WorkerContext, taken: np.ndarray, **job) -> dict:
    return observe_job(worker, JOB | {"job": "observe"} | job, taken)


def recalled(worker: WorkerContext, taken: np.ndarray, **job) -> dict:
    return FitJob(worker, JOB | job, taken, pytest.fail).run()


@pytest.mark.parametrize("view", [lambda: images(64, seed=5), lambda: of_one_class(64)], ids=["all", "one class"])
def test_a_homogenizer_for_drifted_frames_harms_clean_ones(worker, right, view):
    assert observe(worker, view(), active=right)["raw_clean"]
    assert not observe(worker, drifted(view()), active=right)["raw_clean"]


def test_an_earlier_homogenizer_that_suits_is_recalled(worker, right, wrong):
    answer = recalled(worker, drifted(images(128, seed=6)))
    assert (answer["result"], answer["version"]) == ("recalled", right)
    assert answer["reason"] == "an earlier one is better than every champion" + UNREPEATED


def test_a_withdrawn_homogenizer_is_not_recalled(worker, right, wrong):
    answer = recalled(worker, drifted(images(128, seed=6)), withdrawn=[right])
    assert answer["result"] == "unknown"


def test_a_stored_homogenizer_is_brought_back_unjudged_and_compiled_where_it_must_be(worker, wrong):
    version = keep(worker, with_bias(0.375), {"backend": "of an older release"})
    for restored in (wrong, version, version):
        answer = restore_stored(worker, {"restore": restored})
        assert (answer["result"], answer["version"]) == ("recalled", restored)
    manifest = worker.store.get(version, worker.frozen.digest).manifest
    assert manifest["versions"] == {"backend": worker.backend.version()} and manifest["sensor"] == "front"
    with pytest.raises(StoreError, match="missing"):
        restore_stored(worker, {"restore": "0" * 64})


def test_a_compiled_form_of_other_weights_is_built_again_before_it_is_brought_back(worker):
    compiled = compile_homogenizer(worker.backend, with_bias(0.0), torch.zeros(1, *SHAPE), worker.store.root)
    manifest = {"model": worker.frozen.digest, "sensor": "rear", "versions": worker.versions}
    version = worker.store.put(with_bias(0.625), manifest, compiled, "eager")
    restore_stored(worker, {"restore": version})
    artefact = worker.store.get(version, worker.frozen.digest)
    open_compiled(worker.backend, artefact, artefact.compiled).close()


def test_clean_frames_need_no_fit_and_no_homogenizer(worker, right):
    assert recalled(worker, images(128, seed=6))["result"] == "unknown"
    assert recalled(worker, images(128, seed=6), recall=False)["result"] == "unneeded"
    assert recalled(worker, images(128, seed=6), active=right)["result"] == "factory"


@pytest.mark.parametrize("view", [lambda: images(64, seed=5), lambda: of_one_class(64)], ids=["all", "one class"])
def test_a_candidate_is_compared_on_any_classes(worker, right, wrong, view):
    for version, better in ((right, True), (wrong, False)):
        seen = observe(worker, drifted(view()), challenger=version, role="candidate")["challenger"]
        assert (not seen["objections"]) is better
    assert observe(worker, view(), challenger=right, role="candidate")["challenger"]["objections"], (
        "where nothing has drifted"
    )
    assert not observe(worker, view(), active=right, challenger=FACTORY, role="candidate")["challenger"]["objections"]
    assert observe(worker, drifted(view()), active=right, challenger=FACTORY, role="candidate")["challenger"][
        "objections"
    ]


@pytest.mark.parametrize("role", ["candidate", "previous"])
def test_a_comparison_tells_no_more_than_what_speaks_against_the_challenger(worker, right, wrong, role):
    for active, challenger, objection in (
        (wrong, right, ""),
        (right, wrong, "is no better than active's"),
        (right, right, "is no better than active's"),
    ):
        taken = drifted(images(64, seed=5))
        seen = observe(worker, taken, active=active, challenger=challenger, role=role)["challenger"]
        assert set(seen) == {"version", "role", "objections", "abstains"}
        assert (seen["version"], seen["role"], seen["abstains"]) == (challenger, role, False)
        assert objection in seen["objections"] and bool(seen["objections"]) is bool(objection)


def test_a_candidate_is_compared_with_the_raw_frames_too_and_the_previous_one_is_not(worker, right, wrong):
    """Clean frames, and two that harm them: the one that harms less is better than what serves, and no good."""
    middle = {
        version: median(observe(worker, images(64, seed=5), active=version)["layers"].values())
        for version in (FACTORY, right, wrong)
    }
    assert middle[FACTORY] < 1 < middle[wrong] < 0.8 * middle[right]
    objection = f"score {middle[wrong]:.2f} is no better than factory's {middle[FACTORY]:.2f}"
    for role, told in (("candidate", objection), ("previous", "")):
        seen = observe(worker, images(64, seed=5), active=right, challenger=wrong, role=role)
        assert seen["challenger"]["objections"] == told


@pytest.mark.parametrize(
    ("bias", "better_as"),
    [(0.02, set()), (0.1, {"candidate"}), (0.2, {"candidate"}), (0.4, {"candidate", "previous"})],
)
def test_a_candidate_was_judged_and_needs_a_smaller_margin_than_a_step_back(worker, bias, better_as):
    """The biases bring a drifted camera's frames back by 2, 7, 14 and 29 % of their score."""
    version, taken = keep(worker, with_bias(bias), sensor="rear"), drifted(images(64, seed=5))
    seen = {role: observe(worker, taken, challenger=version, role=role) for role in ("candidate", "previous")}
    assert {role for role, answer in seen.items() if not answer["challenger"]["objections"]} == better_as


def test_a_look_at_few_classes_abstains_unless_the_challenger_is_better(worker, right, wrong, monkeypatch):
    """It is the view behind the challenger that counts: what is wrong may hide the classes."""
    monkeypatch.setattr("calibrate.scoring.scorer.has_label_shift", lambda drift, _: drift.score < BAND)
    taken, clean = drifted(images(64, seed=5)), images(64, seed=5)
    for role, view, active, challenger, objects, abstains in (
        ("candidate", taken, FACTORY, right, False, False),
        ("candidate", taken, right, right, True, True),
        ("candidate", taken, FACTORY, wrong, True, False),
        ("candidate", taken, right, FACTORY, True, False),
        ("candidate", clean, right, FACTORY, False, False),
        ("previous", taken, wrong, right, False, False),
        ("previous", taken, right, right, True, False),  # what serves stays
        ("previous", taken, right, wrong, True, False),
    ):
        seen = observe(worker, view, active=active, challenger=challenger, role=role)["challenger"]
        assert (bool(seen["objections"]), seen["abstains"]) == (objects, abstains), (role, seen)


def test_a_challenger_that_cannot_be_read_costs_the_comparison_and_no_scores(worker, right, caplog):
    seen = observe(worker, drifted(images(64, seed=5)), active=right, challenger="0" * 64, role="previous")
    assert seen["homogenized"] < seen["raw"] and "challenger" not in seen
    assert "previous 000000000000 is not compared: " in caplog.text
    with pytest.raises(StoreError):
        observe(worker, images(64, seed=5), active="0" * 64, challenger=right, role="previous")


# ---- a label shift: few classes, of which the network is sure


def evidence(score: float, confidence: float, label_shift: bool = False) -> Evidence:
    proxy = AccuracyProxy(confidence, confidence, 0.2, 0.01, 9.0, 10)
    return Evidence(score, proxy, layers=(score,), label_shift=label_shift)


@pytest.mark.parametrize(
    ("raw", "served", "clean"),
    [
        (evidence(1.0, 0.8), evidence(9.0, 0.95), True),  # how confident the network is decides nothing
        (evidence(3.0, 0.98), evidence(9.0, 0.9), False),
        (evidence(3.0, 0.98, label_shift=True), evidence(9.0, 0.9), True),
        (evidence(3.0, 0.98, label_shift=True), evidence(3.1, 0.9), False),
        (evidence(3.0, 0.94, label_shift=True), evidence(9.0, 0.99), True),
        (evidence(3.0, 0.94, label_shift=True), evidence(3.7, 0.94), False),  # it must be better by the margin
        (evidence(9.0, 0.95, label_shift=True), evidence(3.0, 0.98), False),
    ],
)
def test_when_frames_count_as_clean_without_a_homogenizer(raw, served, clean):
    assert raw_frames_clean(raw, served, BAND) is clean


@pytest.mark.parametrize(
    ("raw", "served", "harmful"),
    [
        (evidence(3.7, 0.9), evidence(29.7, 0.9), True),
        (evidence(3.7, 0.9), evidence(7.5, 0.9), True),
        (evidence(3.7, 0.9), evidence(7.3, 0.9), False),  # not clearly
        (evidence(0.3, 0.9), evidence(1.5, 0.9), False),  # both are clean
        (evidence(9.0, 0.9), evidence(1.0, 0.9), False),
    ],
)
def test_when_frames_are_clearly_worse_with_a_homogenizer_than_without(raw, served, harmful):
    assert is_harmful(raw, served, BAND) is harmful


def test_only_a_label_shift_has_no_clean_band():
    assert clean_band(evidence(3.0, 0.98, label_shift=True), BAND) == math.inf
    assert clean_band(evidence(3.0, 0.98), BAND) == clean_band(Evidence(3.0, None), BAND) == BAND


@pytest.mark.parametrize(("part", "counted"), [("baselines.learn", "learning"), ("pictures.watch", "read_outs")])
def test_a_fault_in_what_a_check_does_beside_costs_no_score(worker, monkeypatch, caplog, part, counted):
    def break_down(*_: object) -> None:
        raise IndexError("a fault")

    owner, name = part.split(".")
    monkeypatch.setattr(getattr(worker, owner), name, break_down)
    scores = observe(worker, images(64, seed=3), may_learn=True, alarm=True, fresh=64, now=0.0)
    assert scores["raw"] < 1.6 and scores["read_outs"] == {"found": [], "words": []}
    assert "a fault" in caplog.text
    assert concluded(worker, {"raw": 1.0})["faults"] == [counted]


def test_what_a_recalibration_does_without_is_a_fault(worker, monkeypatch):
    def refuse(*_: object) -> None:
        raise StoreError("damaged")

    def fill_disk(*_: object) -> None:
        raise OSError("no space left on device")

    keep(worker, with_bias(0.125))
    with monkeypatch.context() as patch:
        patch.setattr(worker.store, "get", refuse)
        assert recalled(worker, images(128, seed=6))["result"] == "unknown"
    assert set(concluded(worker, {})["faults"]) == {"recall"}
    monkeypatch.setattr("daemon.worker.fit_job.encode_examples", fill_disk)
    recalled(worker, images(128, seed=6), recall=False)
    assert concluded(worker, {})["faults"] == ["dossier"]


def test_faults_are_told_once_with_the_answer_that_follows(worker):
    worker.faults += ["keeping", "keeping"]
    assert concluded(worker, {"raw": 1.0}) == {"done": True, "raw": 1.0, "faults": ["keeping", "keeping"]}
    assert concluded(worker, {"raw": 1.0})["faults"] == []


def test_an_order_to_learn_anew_forgets_frames_and_pictures_first(worker, monkeypatch, caplog):
    forgotten: list[str] = []
    monkeypatch.setattr(worker.baselines, "forget", forgotten.append)
    monkeypatch.setattr(worker.pictures, "forget", forgotten.append)
    assert not observe(worker, images(64, seed=3))["relearned"] and not forgotten
    assert observe(worker, images(64, seed=3), relearn=True)["relearned"] and forgotten == ["front", "front"]

    def refuse(_: str) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(worker.baselines, "forget", refuse)
    assert observe(worker, images(64, seed=3), relearn=True)["relearned"]
    assert "cannot be removed: read-only file system" in caplog.text
    assert concluded(worker, {})["faults"] == ["keeping"]


def test_only_healthy_frames_without_a_homogenizer_are_learned_as_the_cameras(worker, right, monkeypatch):
    learned: list[str] = []
    monkeypatch.setattr(worker.baselines, "learn", lambda *_: learned.append("baseline"))
    monkeypatch.setattr(worker.pictures, "add_healthy", lambda *_: learned.append("pictures"))
    healthy, drift = images(64, seed=3), drifted(images(64, seed=3))
    observe(worker, healthy, may_learn=False, fresh=64)
    observe(worker, drift, may_learn=True, fresh=64)
    assert learned == []
    observe(worker, drift, may_learn=True, fresh=64, active=right)
    assert learned == ["baseline"]
    observe(worker, healthy, may_learn=True, fresh=64)
    assert learned == ["baseline", "baseline", "pictures"]


def test_pictures_of_few_classes_explain_no_drift(worker, monkeypatch):
    read: list[int] = []
    monkeypatch.setattr(worker.pictures, "watch", lambda sensor, new, *_: read.append(len(new)) or {})
    observe(worker, images(64, seed=3), alarm=True, fresh=40)
    monkeypatch.setattr("calibrate.scoring.scorer.has_label_shift", lambda *_: True)
    observe(worker, images(64, seed=3), alarm=True, fresh=40)
    assert read == [40, 0]


# ---- the newest frame, for people


def test_nobody_gets_a_frame_that_did_not_ask(worker):
    assert "shown" not in observe(worker, images(64, seed=5)) and "shown" not in observe(
        worker, images(64, seed=5), show=False
    )


def test_the_newest_frame_is_shown_as_received_and_as_restored(worker, right):
    clean = images(64, seed=5)
    received, restored = observe(worker, drifted(clean), active=right, show=True)["shown"]
    assert np.array_equal(picture(received), drifted(clean)[-1])
    error = np.abs(picture(restored).astype(float) - clean[-1])
    assert error.mean() < np.abs(drifted(clean)[-1].astype(float) - clean[-1]).mean() / 3


def test_without_a_homogenizer_there_is_no_restored_frame(worker):
    received, restored = observe(worker, images(64, seed=5), show=True)["shown"]
    assert received and restored is None


def test_a_frame_that_cannot_be_shown_costs_no_check(worker, monkeypatch):
    monkeypatch.setattr("daemon.worker.observe_job.encode_pair", None)
    assert "shown" not in (scores := observe(worker, images(64, seed=5), show=True)) and scores["raw"] > 0
    assert concluded(worker, {})["faults"] == ["page_frame"]


def test_a_challenger_that_cannot_be_read_costs_the_comparison_alone(worker):
    scores = observe(worker, images(64, seed=5), challenger="0" * 64, role="candidate")
    assert "challenger" not in scores and scores["raw"] > 0
    assert concluded(worker, {})["faults"] == ["comparison"]


def picture(encoded: str) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(base64.b64decode(encoded), np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
