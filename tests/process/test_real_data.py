"""The method on real images and a third party's network: CIFAR-10 and a published ResNet-20."""

import numpy as np
import pytest
import torch

from bench.fit import CAMERA
from bench.material.cifar import LIMITS, accuracy, lossless, network, normalise
from calibrate import fit, tap
from calibrate.judge import collect_champions, collect_evidence, judge_evidence, needs_no_fit
from calibrate.scoring.scorer import Scorer
from daemon.config import DriftConfig
from daemon.simulation.drifts import parse_drift

pytestmark = pytest.mark.data
BAND = DriftConfig().threshold


@pytest.fixture(scope="module")
def model(recald_data):
    return network(recald_data, "resnet20")


@pytest.fixture(scope="module")
def images(recald_data):
    return lossless(recald_data / "cifar10_test.npz")


@pytest.fixture(scope="module")
def drifted(images):
    drift = parse_drift(CAMERA, seed=1)
    return normalise(np.stack([drift(image) for image in images.pictures[:1024]]))


@pytest.fixture(scope="module")
def scorer(model):
    return Scorer.of(tap(model), (3, 32, 32), LIMITS)


def test_clean_images_are_within_the_band_and_need_no_fit(scorer, images):
    for window in normalise(images.pictures[:640]).split(64):
        assert scorer.measure(window).drift.score < BAND / 2
    assert needs_no_fit(collect_champions(scorer, None, normalise(images.pictures[:128])), BAND)


def test_a_drifted_camera_is_far_outside_the_clean_band(scorer, drifted):
    for window in drifted[:640].split(64):
        assert scorer.measure(window).drift.score > 1.5 * BAND


def test_a_drift_that_costs_a_few_points_is_outside_the_clean_band(scorer, images):
    drift = parse_drift("fixed-pattern=6", seed=1)
    for window in normalise(np.stack([drift(image) for image in images.pictures[:640]])).split(64):
        assert scorer.measure(window).drift.score > BAND


def test_a_scene_of_one_class_is_a_label_shift_and_a_drifted_camera_is_none(scorer, images, drifted):
    for name in range(10):
        scene = scorer.measure(normalise(images.pictures[images.labels.numpy() == name][:128]))
        assert scene.drift.score > BAND and scene.label_shift
    for window in (*drifted[:640].split(64), normalise(images.pictures[:64])):
        assert not scorer.measure(window).label_shift


@pytest.mark.slow
def test_a_fit_brings_accuracy_back_and_the_judge_sees_it_by_a_second_fit(model, scorer, images, drifted):
    labels = images.labels
    before = accuracy(model, drifted[512:], labels[512:1024])
    result = fit(model, drifted[:128], limits=LIMITS)  # brings back 0.96 of it, as 192 frames do
    with torch.no_grad():
        after = accuracy(model, result.homogenizer(drifted[512:]), labels[512:1024])
    clean = accuracy(model, normalise(images.pictures[512:1024]), labels[512:1024])
    assert (after - before) / (clean - before) > 0.8
    held_out = drifted[384:512]
    second = fit(model, drifted[128:192], limits=LIMITS, seed=1).homogenizer
    candidate, replicate = (collect_evidence(scorer, made, held_out) for made in (result.homogenizer, second))
    verdict = judge_evidence(candidate, collect_champions(scorer, None, held_out), BAND, replicate)
    assert verdict.accepted, verdict.reason
