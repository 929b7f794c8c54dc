"""What a classifier's outputs tell of its accuracy, once they are calibrated on frames of known classes."""

import math

import pytest
import torch
from calibrated import outputs

from calibrate.estimate.outputs import TEMPERATURES, OutputCalibration, entropy, shares_of


def test_on_the_frames_of_the_calibration_every_estimate_is_the_accuracy():
    logits, labels = outputs(4000, 3.0, 0.9)
    accuracy = float((logits.argmax(1) == labels).float().mean())
    proxies = OutputCalibration.of(logits, labels).proxies(logits)
    assert proxies == pytest.approx(dict.fromkeys(proxies, accuracy), abs=0.06)
    assert proxies["difference_of_confidences"] == pytest.approx(accuracy, abs=1e-5)
    assert len(proxies) == 4


@pytest.mark.parametrize("scale", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_a_network_that_is_too_sure(scale):
    logits, labels = outputs(4000, 3.0, 0.9)
    plain, scaled = OutputCalibration.of(logits, labels), OutputCalibration.of(scale * logits, labels)
    step = float(TEMPERATURES[1] / TEMPERATURES[0])
    assert scale / step**2 <= float(scaled.temperature / plain.temperature) <= scale * step**2


def test_a_drift_that_makes_the_network_unsure_lowers_every_estimate():
    logits, labels = outputs(2000, 3.0, 0.9)
    calibration = OutputCalibration.of(logits, labels)
    clean, unsure = calibration.proxies(logits), calibration.proxies(0.4 * logits)
    assert all(unsure[name] < clean[name] - 0.05 for name in clean)
    assert all(0 <= value <= 1 for value in calibration.proxies(100 * logits).values())


def test_a_network_that_is_always_right_has_an_estimate_too():
    logits, _ = outputs(200, 3.0, 0.9)
    proxies = OutputCalibration.of(logits, logits.argmax(1)).proxies(logits)
    assert all(math.isfinite(value) for value in proxies.values())
    assert proxies["atc_entropy"] == proxies["atc_confidence"] == 1


def test_entropy_and_shares():
    rows = torch.tensor([[1.0, 0, 0], [1 / 3, 1 / 3, 1 / 3]])
    assert entropy(rows).tolist() == pytest.approx([0, math.log(3)])
    assert shares_of(torch.tensor([0, 2, 2, 2]), 4).tolist() == [0.25, 0, 0.75, 0]
