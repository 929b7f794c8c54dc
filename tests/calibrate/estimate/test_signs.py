"""The signs of a window are finite whatever the network says, and 0 or small where the window is like clean frames."""

import math

import pytest
import torch
from calibrated import CLASSES, outputs
from hypothesis import given
from hypothesis import strategies as st

from calibrate.estimate.outputs import OutputCalibration
from calibrate.estimate.signs import (
    LEAST_PROBABILITY,
    LEAST_SHARE,
    SIGN_WINDOW,
    SIGNS,
    divergence,
    log_odds,
    signs_of,
)

LOGITS, LABELS = outputs(640, 3.0, 0.9)
CALIBRATION = OutputCalibration.of(LOGITS, LABELS)


def test_a_window_of_clean_frames_is_near_to_the_clean_ones():
    signs = signs_of(LOGITS[:SIGN_WINDOW], CALIBRATION)
    assert signs.shape == (SIGNS,)
    assert signs[0] == pytest.approx(log_odds(float(CALIBRATION.confidence)), abs=0.5) and 0 <= signs[1] < 0.05


def test_a_network_that_prefers_a_class_is_far_from_the_clean_ones_however_sure_it_is():
    one_class = torch.nn.functional.one_hot(torch.zeros(SIGN_WINDOW, dtype=torch.int64), CLASSES) * 20.0
    signs = signs_of(one_class, CALIBRATION)
    assert signs[0] > 3 and signs[1] > 1


@given(st.floats(allow_nan=True, width=32), st.integers(0, CLASSES - 1), st.integers(1, SIGN_WINDOW))
def test_signs_are_finite_whatever_the_network_says(height, label, frames):
    logits = LOGITS[:SIGN_WINDOW].clone()
    logits[:frames, label] = height
    assert torch.isfinite(signs_of(logits, CALIBRATION)).all()
    assert all(math.isfinite(value) for value in CALIBRATION.proxies(logits).values())


def test_a_frame_whose_outputs_are_not_finite_counts_as_unsure():
    logits = LOGITS[:SIGN_WINDOW].clone()
    logits[:10] = torch.nan
    unsure = LOGITS[:SIGN_WINDOW].clone()
    unsure[:10] = 0.0
    assert torch.equal(signs_of(logits, CALIBRATION), signs_of(unsure, CALIBRATION))


@given(st.floats(0, 1))
def test_log_odds_grow_with_the_share(share):
    assert math.isfinite(log_odds(share))
    assert log_odds(share) == pytest.approx(-log_odds(1 - share), abs=1e-6)
    assert log_odds(0.5) == 0 and log_odds(0) == log_odds(LEAST_SHARE) < log_odds(0.5)


def test_the_divergence_is_that_computed_by_hand_and_finite_for_a_class_that_clean_frames_never_show():
    found, known = torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.25, 0.5, 0.25])
    assert divergence(found, known) == pytest.approx(0.5 * math.log(2))
    assert divergence(known, known) == pytest.approx(0, abs=1e-6)
    never = torch.tensor([0.5, 0.0, 0.5])
    assert divergence(found, never) == pytest.approx(0.5 * math.log(0.5 / LEAST_PROBABILITY), rel=1e-5)
