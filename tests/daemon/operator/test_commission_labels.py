"""Labelled clean frames teach a model's daemon to estimate accuracy; labels that cannot be right are refused."""

from __future__ import annotations

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from drift_check_job import OBSERVE
from running import copied_model, recald_here
from synthetic import CLASSES, drifted, images, labelled, normalised

from calibrate import measure_clean, tap
from calibrate.estimate.estimator import PREFIX
from calibrate.estimate.learning import MIN_LABELLED, SeenDrift, learn_estimator
from daemon.operator.commissioning import learn_accuracy
from daemon.worker.context import WorkerContext
from daemon.worker.observe_job import observe
from deploy.model.card import card_path
from deploy.model.commissioned import load_clean_data, load_estimator, save_clean_data
from deploy.model.frozen import load_frozen
from deploy.model.program import ModelError
from deploy.store.artefacts import ArtefactStore

COUNT = 2 * MIN_LABELLED


@pytest.fixture(scope="module")
def commissioned(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was commissioned with labels by the command."""
    folder = tmp_path_factory.mktemp("commissioned")
    model, clean = copied_model(tiny_model, folder), folder / "clean.npz"
    pictures, labels = labelled(COUNT, seed=3)
    np.savez(clean, images=pictures, labels=labels)
    done = recald_here("commission", "--model", model, "--frames", clean, "--labels", clean)
    assert done.returncode == 0, done.stderr
    assert "% of them right; estimates of its accuracy behind a drift of a kind that was not simulated" in done.stdout
    return model


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return copied_model(tiny_model, tmp_path)


@pytest.mark.parametrize("light", [1.0, 0.75, 0.6])
def test_a_drift_check_estimates_the_accuracy_behind_a_drift_it_has_not_seen(commissioned, tmp_path, light):
    worker = WorkerContext(load_frozen(commissioned), "eager", ArtefactStore(tmp_path / "state"))
    estimates, right = [], []
    for seed in range(8):
        pictures, labels = labelled(64, seed=50 + seed)
        dark = drifted(pictures, light)
        estimate = observe(worker, OBSERVE, dark)["accuracy"]
        assert estimate["raw"] == estimate["homogenized"]
        estimates.append(estimate["homogenized"])
        right.append(np.mean(worker.scorer.answers(worker.frames(dark)).numpy() == labels))
    value, lower, upper = np.mean(estimates, axis=0)
    assert lower <= np.mean(right) <= upper and upper - lower < 0.5 and value == pytest.approx(np.mean(right), abs=0.2)


def test_proxies_are_calibrated_and_an_estimate_needs_a_whole_window(commissioned, tmp_path):
    worker = WorkerContext(load_frozen(commissioned), "eager", ArtefactStore(tmp_path / "state"))
    seen = observe(worker, OBSERVE, images(64, seed=5))
    assert seen["proxy"].keys() > {"confidence", "agreement", "calibrated_confidence", "atc_entropy"}
    assert seen["accuracy"]["homogenized"].lower > 0.8
    assert observe(worker, OBSERVE, images(48, seed=5))["accuracy"] == {}
    assert observe(worker, OBSERVE, images(200, seed=5))["accuracy"]["homogenized"].lower > 0.8


def test_without_labels_there_is_no_estimate(model, tmp_path):
    worker = WorkerContext(load_frozen(model), "eager", ArtefactStore(tmp_path / "state"))
    seen = observe(worker, OBSERVE, images(64, seed=5))
    assert seen["accuracy"] == {} and seen["proxy"].keys() == {"confidence", "certainty", "agreement"}


def test_a_label_shift_leaves_no_estimate(commissioned, tmp_path, monkeypatch):
    """Few classes in view look like a network that prefers them."""
    worker = WorkerContext(load_frozen(commissioned), "eager", ArtefactStore(tmp_path / "state"))
    monkeypatch.setattr("calibrate.scoring.scorer.has_label_shift", lambda *_: True)
    seen = observe(worker, OBSERVE, images(64, seed=5))
    assert seen["label_shift"] and seen["accuracy"] == {}


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("signs", None, "the accuracy estimate is not whole"),
        ("errors", torch.tensor(math.nan), "the accuracy estimate is not whole"),
        ("errors", torch.tensor(0), "the accuracy estimate is not whole"),
        ("accuracies", torch.tensor(2.0), "other shapes or out of range"),
        ("temperature", torch.tensor(0.0), "other shapes or out of range"),
        ("probabilities", torch.full((9,), 1 / 9), "the accuracy estimate is for 9 classes"),
    ],
)
def test_a_file_with_an_estimate_that_cannot_be_used_is_refused_at_the_start(model, tmp_path, name, value, said):
    frozen = load_frozen(model)
    clean = measure_clean(tap(frozen.module), normalised(images(256, seed=3)))
    labels = torch.arange(256) % 4
    logits = torch.nn.functional.one_hot(labels, 4) * 5.0
    estimator = learn_estimator([SeenDrift(frozenset(kinds), logits) for kinds in ((), ("blur",))], labels)
    tensors = estimator.tensors()
    if value is None:
        del tensors[PREFIX + name]
    else:
        tensors[PREFIX + name] = value if value.dim() else value.expand(tensors[PREFIX + name].shape).clone()
    save_clean_data(frozen, clean.tensors() | tensors, 256)
    with pytest.raises(ModelError, match=said):
        WorkerContext(load_frozen(model), "eager", ArtefactStore(tmp_path / "state"))
    with pytest.raises(ModelError, match=said):
        load_clean_data(load_frozen(model), tap(frozen.module))


# ---- labels


@pytest.fixture
def folder(tmp_path: Path) -> tuple[Path, list[str]]:
    """A folder of pictures, sorted by class as folders often are, and the lines of their labels."""
    path = tmp_path / "photos"
    path.mkdir()
    pictures, labels = labelled(MIN_LABELLED, seed=3)
    order = np.argsort(labels, kind="stable")
    pictures, labels = pictures[order], labels[order]
    for number, picture in enumerate(pictures):
        cv2.imwrite(str(path / f"{number:04d}.png"), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    return path, [f"{number:04d}.png,{CLASSES[label]}" for number, label in enumerate(labels)]


def commission(model: Path, pictures: Path, labels: Path):
    return recald_here("commission", "--model", model, "--frames", pictures, "--labels", labels)


def test_pictures_of_a_folder_have_their_labels_in_a_file_in_any_order(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(learn_accuracy, "DRIFTS_OF_KIND", 1)
    pictures, lines = folder
    file = tmp_path / "labels.csv"
    file.write_text("picture,label\n" + "\n".join(reversed(lines)) + "\nno-picture.png,north-west\n")
    done = commission(model, pictures, file)
    assert done.returncode == 0, done.stderr
    learnt = load_estimator(load_frozen(model))
    assert learnt.calibration.accuracy > 0.9
    assert learnt.signs[:2, 1].max() < 0.2, "a window of clean frames shows every class"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda lines: lines[1:], r"labels.csv: has no class for 1 of the pictures, the first is 0000.png: add a line"),
        (lambda lines: ["0000.png,north", *lines[1:]], r"labels.csv:1: 'north' is no class of the model"),
        (lambda lines: ["0000.png", *lines], r"labels.csv:1: has 1 column\(s\): write picture,label"),
        (lambda lines: [], r"labels.csv: holds no labels"),
        (lambda lines: [*lines, "0000.png,0", "0000.png,1"], r"0000.png has another class on an earlier line"),
        (lambda lines: [f"{line.split(',')[0]},0" for line in lines], r"no more than by chance: check that the labels"),
    ],
)
def test_labels_that_cannot_be_right_are_refused_in_one_line_and_nothing_is_written(
    model, folder, tmp_path, change, said
):
    pictures, lines = folder
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(change(lines)))
    card = card_path(model).read_bytes()
    done = commission(model, pictures, file)
    assert done.returncode == 78 and len(done.stderr.strip().splitlines()) == 1
    assert re.search(said, done.stderr), done.stderr
    assert card_path(model).read_bytes() == card


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "has no array labels"),
        (np.zeros(3, np.int64), "labels of shape (3,)"),
        (np.zeros(MIN_LABELLED), "labels of the type float64"),
        (np.full(MIN_LABELLED, 4), "'4' is no class of the model"),
        (np.full(MIN_LABELLED, -1), "'-1' is no class of the model"),
    ],
)
def test_labels_of_an_npz_file_are_checked(model, tmp_path, labels, said):
    path = tmp_path / "clean.npz"
    arrays = {"images": images(MIN_LABELLED, seed=3)} | ({} if labels is None else {"labels": labels})
    np.savez(path, **arrays)
    done = commission(model, path, path)
    assert done.returncode == 78 and said in done.stderr and len(done.stderr.strip().splitlines()) == 1


def test_nothing_is_learned_while_the_measurement_is_removed(model, tmp_path):
    done = recald_here("commission", "--model", model, "--remove", "--labels", tmp_path / "labels.csv")
    assert done.returncode == 78 and "--remove takes no --labels" in done.stderr
