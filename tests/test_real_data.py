"""The method on real images and a third party's network: CIFAR-10 and a published ResNet-20."""

import numpy as np
import pytest
import torch

from bench.cifar import accuracy, lossless, network, normalise
from bench.fit import CAMERA
from calibrate import fit, tap
from calibrate.drift import collect_moments, drift_score
from calibrate.judge import incumbents, judge, needs_no_fit
from daemon.config import DriftConfig
from daemon.distort import parse_drift

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


def test_clean_images_score_about_one_and_need_no_fit(model, images):
    taps = tap(model)
    for window in normalise(images.pictures[:640]).split(64):
        moments, _ = collect_moments(taps, [window])
        assert 0.7 < drift_score(moments, taps.reference).score < BAND
    assert needs_no_fit(incumbents(taps, None, normalise(images.pictures[:128])), BAND)


def test_a_drifted_camera_is_far_outside_the_clean_band(model, drifted):
    taps = tap(model)
    for window in drifted[:640].split(64):
        moments, _ = collect_moments(taps, [window])
        assert drift_score(moments, taps.reference).score > 1.5 * BAND


@pytest.mark.slow
def test_a_fit_brings_accuracy_back_and_the_judge_sees_it(model, images, drifted):
    taps, labels = tap(model), images.labels
    before = accuracy(model, drifted[512:], labels[512:1024])
    result = fit(model, drifted[:384])
    with torch.no_grad():
        after = accuracy(model, result.homogenizer(drifted[512:]), labels[512:1024])
    clean = accuracy(model, normalise(images.pictures[512:1024]), labels[512:1024])
    assert (after - before) / (clean - before) > 0.8
    held_out = drifted[384:512]
    assert judge(taps, result.homogenizer, held_out, incumbents(taps, None, held_out), BAND).accepted
