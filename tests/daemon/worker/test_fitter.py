"""Frames of two cameras in turn get a homogenizer for each; frames of one camera, or of two scenes, get one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from synthetic import drifted, images, labelled, normalised, trained_network

from calibrate.scoring.accuracy import ScoredOutput
from calibrate.search.best_start import CORRECTIONS
from calibrate.split import SplitHomogenizer
from daemon.worker.context import WorkerContext
from daemon.worker.fit_job import FIT_SHARES, FitJob
from deploy.backends.protocol import check_parity
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import FACTORY, ArtefactStore
from deploy.store.dossier import Dossier
from deploy.store.dossier_archive import DossierArchive

COUNT = 256
JOB = {"job": "recalibrate", "sensor": "front", "active": FACTORY, "withdrawn": [], "trigger": "drift", "recall": False}
JOB |= {"band": 1.6, "until": 12.5, "seed": 3, "refused": {}, "keep": {"frames": 0, "mib": 1}}
JOB |= {"corrections": CORRECTIONS}


def hazy(pictures: np.ndarray) -> np.ndarray:
    """What a second camera makes of the same scenes."""
    noise = np.random.default_rng(0).normal(0, 3, pictures.shape)
    return np.clip(150 + 0.3 * pictures + noise, 0, 255).astype(np.uint8)


def in_turn(pictures: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Frames of two cameras, the dark one first."""
    odd = (np.arange(len(pictures)) % 2 == 1)[:, None, None, None]
    return np.where(odd, hazy(others), drifted(pictures, light=0.5))


def accuracy(homogenizer: Any, pictures: np.ndarray, labels: np.ndarray) -> float:
    network = trained_network()  # which is trained at the first call
    with torch.no_grad():
        named = network(homogenizer(normalised(pictures))).argmax(1).numpy()
    return float((named == labels).mean())


class Recalibrated:
    """A job, with its answer, its messages, and the artefact that it stored."""

    def __init__(self, folder: Path, model: Path, pictures: np.ndarray, output: ScoredOutput = "logits") -> None:
        self.worker = WorkerContext(load_frozen(model), "eager", ArtefactStore(folder))
        self.worker.scorer = replace(self.worker.scorer, output=output)
        self.told: list[dict[str, Any]] = []
        self.answer = FitJob(self.worker, JOB, pictures, self.told.append).run()

    @property
    def artefact(self) -> Any:
        return self.worker.store.get(self.answer["version"], self.worker.frozen.digest)

    @property
    def dossier(self) -> Dossier:
        archive = DossierArchive(self.worker.store.root)
        return archive.read(archive.path("front", self.answer["dossier"])).dossier


@pytest.fixture(scope="module")
def two_cameras(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recalibrated:
    pictures = images(COUNT, seed=5)
    return Recalibrated(tmp_path_factory.mktemp("state"), tiny_model, in_turn(pictures, pictures))


@pytest.fixture(scope="module")
def two_scenes(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Recalibrated:
    """Each camera sees other classes than the other one."""
    pictures, labels = labelled(4 * COUNT, seed=5)
    north, south = (pictures[part][:COUNT] for part in (labels < 2, labels >= 2))
    return Recalibrated(tmp_path_factory.mktemp("state"), tiny_model, in_turn(north, south))


def test_two_cameras_in_turn_get_a_homogenizer_each_and_new_frames_are_named_right(two_cameras):
    assert (two_cameras.answer["result"], two_cameras.answer["reason"]) == ("accepted", "better than every champion")
    homogenizer = two_cameras.artefact.homogenizer
    assert isinstance(homogenizer, SplitHomogenizer)
    pictures, labels = labelled(COUNT, seed=77)
    new = in_turn(pictures, pictures)
    second = homogenizer.takes_second(normalised(new)).numpy()
    assert (second == second[0]).tolist() == [number % 2 == 0 for number in range(COUNT)]
    assert accuracy(homogenizer, new, labels) > 0.95 > 0.8 > accuracy(lambda frames: frames, new, labels)


def test_what_is_compiled_is_both_homogenizers(two_cameras):
    artefact, pictures = two_cameras.artefact, images(8, seed=9)
    runner = two_cameras.worker.backend.load(artefact.compiled, threads=1)
    assert check_parity(runner, artefact.homogenizer, normalised(in_turn(pictures, pictures))) < 1e-5
    runner.close()


def test_the_dossier_tells_of_both_branches_and_that_they_see_the_same(two_cameras):
    told = two_cameras.dossier
    assert len(told.other_extents) == 1 and told.other_extents[0] != told.extents
    assert told.refused_split is None
    (view,) = (criterion for criterion in told.verdict.criteria if criterion.name == "view")
    assert view.met and view.value < 0.2
    first, second = told.fit.start.split("; ")
    assert {first, second} <= set(told.fit.start_losses) and first.startswith("1: ") and second.startswith("2: ")
    assert (told.frames.fitted, told.frames.replicated) == (COUNT // 2, COUNT // 4)
    assert two_cameras.artefact.manifest["fit"]["start"] == told.fit.start


def test_the_progress_rises_over_all_four_fits(two_cameras):
    ratios = [message["ratio"] for message in two_cameras.told if message["stage"] == "fitting"]
    assert ratios == sorted(ratios) and 0 <= ratios[0] < 0.1 and 0.9 < ratios[-1] <= 1
    begin, end = FIT_SHARES["fit"]
    assert any(begin < ratio < (begin + end) / 2 for ratio in ratios)


def test_two_scenes_get_no_homogenizer_each(two_scenes):
    assert "the two kinds of frames show other classes" in two_scenes.dossier.refused_split
    assert two_scenes.dossier.other_extents == []
    if two_scenes.answer["result"] == "accepted":
        assert not isinstance(two_scenes.artefact.homogenizer, SplitHomogenizer)


def test_one_camera_gets_one_homogenizer(tmp_path, tiny_model):
    one = Recalibrated(tmp_path, tiny_model, drifted(images(COUNT, seed=5), light=0.5))
    assert one.answer["result"] == "accepted" and not isinstance(one.artefact.homogenizer, SplitHomogenizer)
    assert one.dossier.refused_split is None and one.dossier.other_extents == []
    assert "view" not in {criterion.name for criterion in one.dossier.verdict.criteria}


def test_a_network_without_classes_gets_one_homogenizer(tmp_path, tiny_model):
    """Nobody could tell two cameras from two scenes."""
    pictures = images(COUNT, seed=5)
    one = Recalibrated(tmp_path, tiny_model, in_turn(pictures, pictures), output="none")
    assert one.dossier.refused_split is None and one.dossier.other_extents == []
