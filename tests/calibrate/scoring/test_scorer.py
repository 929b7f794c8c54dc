"""Frames are scored with the crop of the training; outputs are those of the frames as they are served."""

from dataclasses import asdict

import pytest
import torch
from coloured import BLACK, SHAPE, coloured, network
from synthetic import images, normalised, trained_network
from torch import nn

from calibrate import Limits, PaddedCrop, tap
from calibrate.scoring.accuracy import accuracy_proxy
from calibrate.scoring.scorer import Scorer

LIMITS = Limits(torch.tensor(BLACK), -torch.tensor(BLACK))
CROP = PaddedCrop(2, BLACK)


class Gain(nn.Module):
    def forward(self, frames):
        return 1.5 * frames


class Classifier(nn.Module):
    """A network whose statistics are those of cropped frames, and whose outputs are logits."""

    def __init__(self):
        super().__init__()
        self.features = network(CROP(coloured(512, 0)), filters=24)

    def forward(self, frames):
        return self.features(frames).mean((2, 3))


@pytest.fixture(scope="module")
def cropped():
    return tap(Classifier().eval().requires_grad_(False))


@pytest.fixture(scope="module")
def whole():
    return tap(trained_network())


def test_the_crop_is_detected_in_the_network(cropped, whole):
    assert Scorer.of(cropped, SHAPE, LIMITS).crop.padding == 2
    assert Scorer.of(whole, SHAPE, LIMITS).crop is None


def test_clean_frames_score_low_if_they_are_cropped_as_in_training(cropped):
    clean = coloured(64, 7)
    assert Scorer.of(cropped, SHAPE, LIMITS).measure(clean).drift.score < 1
    assert Scorer(cropped).measure(clean).drift.score > 1.6


def test_a_mild_drift_scores_high_if_the_crop_is_known(cropped):
    dimmer = torch.tensor(BLACK).view(-1, 1, 1) + 0.85 * (coloured(64, 7) - torch.tensor(BLACK).view(-1, 1, 1))
    assert Scorer.of(cropped, SHAPE, LIMITS).measure(dimmer).drift.score > 1.6


def test_outputs_are_those_of_the_frames_as_they_are_served(cropped):
    frames = coloured(100, 7)
    measured, outputs = Scorer(cropped, CROP).measure(frames), cropped(frames).output
    assert measured.proxy == accuracy_proxy(outputs) and torch.equal(measured.answers, outputs.argmax(1))
    outputs = cropped(CROP(frames)).output
    assert measured.proxy != accuracy_proxy(outputs) and not torch.equal(measured.answers, outputs.argmax(1))


@pytest.mark.parametrize("crop", [None, CROP])
def test_a_homogenizer_stands_before_the_crop(cropped, crop):
    frames = coloured(100, 7)
    scorer = Scorer(cropped, crop)
    repaired, expected = scorer.measure(frames, Gain()), scorer.measure(Gain()(frames))
    assert repaired.drift == expected.drift and torch.equal(repaired.answers, expected.answers)


@pytest.mark.parametrize("crop", [None, CROP])
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_chunks_do_not_change_the_measurement(cropped, crop, size, monkeypatch):
    frames, scorer = coloured(100, 7), Scorer(cropped, crop)
    at_once = scorer.measure(frames, Gain())
    monkeypatch.setattr("calibrate.scoring.scorer.SCORE_CHUNK_FRAMES", size)
    in_chunks = scorer.measure(frames, Gain())
    assert in_chunks.drift.score == pytest.approx(at_once.drift.score, rel=1e-3)
    assert in_chunks.proxy.confidence == pytest.approx(at_once.proxy.confidence, rel=1e-4)
    assert torch.equal(in_chunks.answers, at_once.answers)


def test_a_network_that_is_no_classifier_has_no_proxy(whole):
    features = tap(trained_network()[:6].eval())
    frames = normalised(images(20, seed=1))
    assert Scorer(features).measure(frames).proxy is None
    assert Scorer(whole).measure(frames).proxy is not None


@pytest.mark.parametrize("output", ["logits", "none"])
def test_a_measurement_keeps_no_gradients(cropped, output):
    frames = coloured(20, 7).requires_grad_()
    assert not Scorer(cropped, CROP, output=output).measure(frames, Gain()).answers.requires_grad


def test_probabilities_are_no_logits_and_the_answers_of_other_networks_are_values():
    frames, network = normalised(images(64, 3)), trained_network()
    ends_in_softmax = nn.Sequential(*network, nn.Softmax(1)).eval()
    expected = Scorer(tap(network)).measure(frames)
    found = Scorer(tap(ends_in_softmax), output="probabilities").measure(frames)
    assert asdict(found.proxy) == pytest.approx(asdict(expected.proxy), abs=1e-5)
    assert torch.equal(found.answers, expected.answers)
    other = Scorer(tap(network), output="none").measure(frames)
    assert (other.proxy, other.label_shift, other.drift) == (None, False, expected.drift)
    assert torch.equal(other.answers.sort(1).values, network(frames).sort(1).values)
