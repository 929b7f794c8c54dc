"""The objective's gradient does not depend on how much of the batch fits into memory."""

import pytest
import torch
from torch import nn

from calibrate import FeatureStatistics, objective, tap
from calibrate.statistics import gaussian_divergence


@pytest.fixture
def taps():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)]
    return tap(nn.Sequential(*layers).eval().requires_grad_(False))


@pytest.fixture
def rho():
    torch.manual_seed(1)
    return nn.Conv2d(3, 3, 1)


def gradients(taps, rho, batch, monkeypatch, frames_at_once):
    monkeypatch.setattr(objective, "CHUNK_PIXELS", frames_at_once * 12 * 12)
    rho.zero_grad()
    loss = objective.backpropagate(taps, rho, batch, taps.reference)
    return loss, rho.weight.grad.clone(), rho.bias.grad.clone()


@pytest.mark.parametrize("frames_at_once", [1, 3, 7])
def test_gradient_in_chunks_is_that_of_the_whole_batch(taps, rho, monkeypatch, frames_at_once):
    batch = torch.randn(10, 3, 12, 12)
    whole = gradients(taps, rho, batch, monkeypatch, 10)
    chunked = gradients(taps, rho, batch, monkeypatch, frames_at_once)
    for one, other in zip(whole, chunked, strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("frames_at_once", [1, 4, 10])
def test_value_in_chunks_is_that_of_the_whole_batch(taps, rho, monkeypatch, frames_at_once):
    batch = torch.randn(10, 3, 12, 12)
    monkeypatch.setattr(objective, "CHUNK_PIXELS", frames_at_once * 12 * 12)
    layers = []
    with torch.no_grad():
        for feature, mean, variance in zip(
            taps(rho(batch)).features, taps.reference.means, taps.reference.variances, strict=True
        ):
            observed, center = torch.var_mean(feature, dim=(0, 2, 3), unbiased=False)
            layers.append(gaussian_divergence(center, observed, mean, variance).mean())
    expected = float(torch.stack(layers).mean())
    assert objective.evaluate(taps, rho, batch, taps.reference) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("frames_at_once", [2, 10])
def test_an_objective_that_is_not_finite_leaves_no_gradient(taps, rho, monkeypatch, frames_at_once):
    monkeypatch.setattr(objective, "CHUNK_PIXELS", frames_at_once * 12 * 12)
    batch = torch.full((10, 3, 12, 12), 1e38)
    assert not torch.isfinite(objective.backpropagate(taps, rho, batch, taps.reference))
    assert rho.weight.grad is None


def test_statistics_of_another_network_are_refused(taps, rho):
    reference = taps.reference
    shorter = FeatureStatistics(reference.names[:1], reference.means[:1], reference.variances[:1])
    with pytest.raises(ValueError):
        objective.evaluate(taps, rho, torch.randn(10, 3, 12, 12), shorter)
