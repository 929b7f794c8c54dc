"""Every recalibration has a dossier with its evidence; frames are kept only when configured."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from synthetic import MEAN, STD, drifted, images

from calibrate import FitError, fit
from calibrate.features.statistics import FeatureStatistics
from calibrate.homogenizer import Homogenizer
from calibrate.judge import UNREPEATED, split_frames
from calibrate.search.best_start import CORRECTIONS
from calibrate.shading import lens_gain
from calibrate.split import SplitHomogenizer
from daemon.levels import to_levels
from daemon.worker.context import WorkerContext
from daemon.worker.dossier_builder import RESPONSE_LEVELS, describe_effect, digest_statistics, encode_examples
from daemon.worker.fit_job import FitJob
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.dossier import Dossier
from deploy.store.dossier_archive import DossierArchive

DARK = drifted(images(128, seed=5), light=0.5)
SEED = 3
FITS: dict[int, Any] = {}  # by seed: a first and a second one are enough for all tests, since they take seconds


class Scene:
    """A worker, and the dossiers that it has stored."""

    def __init__(self, folder: Path, model: Path) -> None:
        self.store, self.archive = ArtefactStore(folder), DossierArchive(folder)
        self.worker = WorkerContext(load_frozen(model), "eager", self.store)

    def recalibrate(self, pictures: np.ndarray = DARK, frames: int = 0, **changes: Any) -> dict[str, Any]:
        job = {"job": "recalibrate", "sensor": "front", "active": FACTORY, "band": 1.6, "seed": SEED, "until": 12.5}
        job |= {"corrections": CORRECTIONS}
        job |= {
            "trigger": "drift",
            "recall": False,
            "withdrawn": [],
            "refused": {"blank": 2},
            "keep": {"frames": frames, "mib": 1},
        }
        return FitJob(self.worker, job | changes, pictures, lambda message: None).run()

    def dossier(self, answer: dict[str, Any]) -> Dossier:
        return self.archive.read(self.archive.path("front", answer["dossier"])).dossier


@pytest.fixture
def scene(tmp_path: Path, tiny_model: Path, monkeypatch) -> Scene:
    def fit_once(*given: Any, **options: Any) -> Any:
        if options["seed"] not in FITS:
            FITS[options["seed"]] = fit(*given, **options)
        return FITS[options["seed"]]

    monkeypatch.setattr("daemon.worker.fit_device.fit", fit_once)
    return Scene(tmp_path, tiny_model)


def test_an_accepted_recalibration_is_recorded_in_full(scene):
    answer = scene.recalibrate()
    told = scene.dossier(answer)
    assert (told.result, told.candidate, told.active, told.seed) == ("accepted", answer["version"], FACTORY, SEED)
    assert (told.frames.fitted, told.frames.held_out, told.frames.until) == (64, 32, 12.5)
    assert told.frames.refused == {"blank": 2} and told.frames.shape == (16, 16, 3)
    assert set(told.all_evidence) == {"factory", "candidate", "replicate"}
    assert all(len(one.layers) == len(told.layers) for one in told.all_evidence.values())
    assert told.verdict.accepted
    assert [c.name for c in told.verdict.criteria] == ["band", "score", "repeatability", "agreement"]
    assert told.fit.history == FITS[SEED].history and told.fit.start == FITS[SEED].start
    assert [name for name, _ in told.seconds][0] == "incumbents" and told.seconds[-1][0] == "compiling"
    assert told.model == load_frozen(scene.worker.frozen.path).digest
    weights = scene.store.get(answer["version"], told.model).homogenizer
    assert np.allclose(told.extents.colour, weights.kernel.sum((2, 3)), rtol=1e-3, atol=1e-6)


def test_an_unneeded_recalibration_is_recorded_too(scene):
    told = scene.dossier(scene.recalibrate(images(64, seed=5)))
    assert (told.result, told.candidate, told.fit, told.verdict) == ("unneeded", None, None, None)
    assert set(told.evidence) == {"factory"} and told.evidence["factory"].score < 1.6


def test_a_rejected_recalibration_is_recorded_with_its_criteria(scene):
    told = scene.dossier(scene.recalibrate(band=0.01))
    assert (told.result, told.candidate, told.verdict.accepted) == ("rejected", None, False)
    assert [c.name for c in told.verdict.criteria if not c.met] == ["band"]
    assert told.reason == told.verdict.reason and told.extents is not None


def test_a_recall_is_recorded_as_such(scene):
    version = scene.recalibrate()["version"]
    told = scene.dossier(scene.recalibrate())
    assert (told.result, told.candidate, told.fit) == ("recalled", version, None)
    assert [(one.version, one.accepted) for one in told.earlier] == [(version, True)]
    assert told.verdict.accepted and told.frames.fitted == 0
    assert set(told.all_evidence) == {"factory", "candidate"} and told.reason.endswith(UNREPEATED)


def test_a_failed_recalibration_is_recorded_with_the_reason(scene, monkeypatch):
    def fail(*_: Any, **__: Any) -> Any:
        raise FitError("the loss is not finite")

    monkeypatch.setattr("daemon.worker.fit_device.fit", fail)
    told = scene.dossier(scene.recalibrate())
    assert (told.result, told.reason) == ("failed", "FitError: the loss is not finite")
    assert set(told.evidence) == {"factory"}


def test_a_disk_that_refuses_the_dossier_does_not_cost_the_answer(scene, caplog):
    scene.archive.folder.write_text("in the way")
    answer = scene.recalibrate()
    assert (answer["result"], answer["dossier"]) == ("accepted", None)
    assert scene.store.get(answer["version"], scene.worker.frozen.digest)
    assert "this recalibration has no dossier" in caplog.text


def test_frames_are_kept_only_where_asked_for_and_as_they_came(scene):
    assert scene.dossier(scene.recalibrate()).frames.kept == []
    assert list(scene.archive.folder.rglob("*.png")) == []
    answer = scene.recalibrate(frames=3)
    filed = scene.archive.read(scene.archive.path("front", answer["dossier"]))
    kept = [cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR) for png in scene.archive.frames(filed)]
    assert np.array_equal(np.stack(kept)[..., ::-1], DARK[split_frames(len(DARK)).held_out][[0, 10, 21]])


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_kept_frames_of_finer_values_are_files_of_16_bits(dtype):
    image = np.random.default_rng(0).random((8, 8, 3)) * (65535 if dtype == np.uint16 else 255)
    images = image.astype(dtype)[None]
    (png,) = encode_examples(images, 1)
    kept = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)[..., ::-1]
    assert kept.dtype == np.uint16
    np.testing.assert_allclose(to_levels(kept), to_levels(images[0]), atol=0.5 / 257 + 1e-4)


def test_depth_and_highest_value_of_the_frames_are_recorded(scene):
    frames, held_out = scene.dossier(scene.recalibrate()).frames, DARK[split_frames(len(DARK)).held_out]
    assert frames.depth == "uint8" and frames.peak == pytest.approx(held_out.max() / 255)


# ---- its parts


def test_the_identity_changes_no_grey_level():
    told = describe_effect(Homogenizer(3, 6, 6), SimpleNamespace(mean=MEAN, std=STD))
    assert np.allclose(told["response"], np.array(RESPONSE_LEVELS)[:, None], atol=0.1)
    assert np.array_equal(told["colour"], np.eye(3)) and told["offset"] == [0, 0, 0]
    json.dumps(told, allow_nan=False)


def test_a_fixed_pattern_is_recorded_in_grey_levels():
    homogenizer = Homogenizer(1, 6, 6)
    with torch.no_grad():
        homogenizer.offset[0, 0, 2, 3] = -0.2
    assert describe_effect(homogenizer, SimpleNamespace(mean=[0.5], std=[0.25]))["offset"] == [
        pytest.approx(0.2 * 0.25 * 255)
    ]


def test_replaced_defects_and_shading_are_recorded_only_where_they_are():
    plain, normalisation = Homogenizer(1, 6, 8), SimpleNamespace(mean=[0.5], std=[0.25])
    assert not {"defect_step", "shading"} & set(describe_effect(plain, normalisation))
    homogenizer = plain.with_parts(defects=True, shading=True).requires_grad_(False)
    homogenizer.defect_step.fill_(0.8)
    homogenizer.gain.copy_(lens_gain(0.75, 6, 8))
    told = describe_effect(homogenizer, normalisation)
    assert told["defect_step"] == [pytest.approx(0.8 * 0.25 * 255)]
    assert told["shading"][-1] == pytest.approx(4.0) and told["shading"] == sorted(told["shading"])
    assert 1 <= told["shading"][0] < 1.1
    assert told["response"] == describe_effect(plain, normalisation)["response"]  # in the middle of the picture
    json.dumps(told, allow_nan=False)


def test_a_branch_without_a_part_that_the_other_has_is_told_as_one_without():
    first = Homogenizer(1, 6, 8, defects=True, shading=True).requires_grad_(False)
    first.defect_step.fill_(0.8)
    first.gain.copy_(lens_gain(0.75, 6, 8))
    split = SplitHomogenizer.of(torch.zeros(5), first, Homogenizer(1, 6, 8))
    one, other = (describe_effect(branch, SimpleNamespace(mean=[0.5], std=[0.25])) for branch in split.branches)
    assert {"defect_step", "shading"} <= set(one) and not {"defect_step", "shading"} & set(other)


def test_another_reference_has_another_digest():
    def statistics(variance: float, name: str = "bn") -> FeatureStatistics:
        return FeatureStatistics((name,), (torch.zeros(2),), (torch.full((2,), variance),))

    assert digest_statistics(statistics(1.0)) == digest_statistics(statistics(1.0))
    assert len({digest_statistics(one) for one in (statistics(1.0), statistics(1.1), statistics(1.0, "other"))}) == 3
