"""The signs of a window are finite whatever the network says, and 0 or small where the window is like clean frames."""

import math

import pytest
import torch
from calibrated import CLASSES, outputs
from hypothesis import given
from hypothesis import strategies as st

from calibrate.estimate.outputs import OutputCalibration
from calibrate.estimate.signs import LEAST_SHARE, SIGN_WINDOW, SIGNS, log_odds, signs_of, total_variation

LOGITS, LABELS = outputs(640, 3.0, 0.9)
CALIBRATION = OutputCalibration.of(LOGITS, LABELS)


def test_a_window_of_clean_frames_is_near_to_the_clean_ones():
    signs = signs_of(LOGITS[:SIGN_WINDOW], 1.0, CALIBRATION)
    assert signs.shape == (SIGNS,)
    assert signs[2] == 0 and signs[3] < 0.15 and signs[4] < 0.2


def test_a_network_that_prefers_a_class_is_far_from_the_clean_ones_however_sure_it_is():
    one_class = torch.nn.functional.one_hot(torch.zeros(SIGN_WINDOW, dtype=torch.int64), CLASSES) * 20.0
    signs = signs_of(one_class, 8.0, CALIBRATION)
    assert signs[0] > 3 and signs[2] == pytest.approx(math.log(8)) and signs[3] > 0.6 and signs[4] > 0.6


@given(st.floats(allow_nan=True), st.floats(-1e4, 1e4), st.integers(0, CLASSES - 1))
def test_signs_are_finite(score, height, label):
    logits = torch.zeros(SIGN_WINDOW, CLASSES)
    logits[:, label] = height
    assert torch.isfinite(signs_of(logits, score, CALIBRATION)).all()


@given(st.floats(0, 1))
def test_log_odds_grow_with_the_share(share):
    assert math.isfinite(log_odds(share))
    assert log_odds(share) == pytest.approx(-log_odds(1 - share), abs=1e-6)
    assert log_odds(0.5) == 0 and log_odds(0) == log_odds(LEAST_SHARE) < log_odds(0.5)


def test_total_variation_is_the_share_that_moved():
    assert total_variation(torch.tensor([0.5, 0.5, 0]), torch.tensor([0.5, 0, 0.5])) == 0.5
