"""A tone start undoes a gamma, and gives the frames the colours of clean ones."""

import pytest
import torch
from coloured import coloured, distance

from calibrate import Limits, measured_source
from calibrate.search.tone import MAX_STRETCH, TONE_EXPONENTS, tone_start

LIMITS = Limits(torch.tensor([-1.8, -2.2, -0.8]), torch.tensor([2.5, 2.0, 2.2]))


def clipped(frames: torch.Tensor) -> torch.Tensor:
    """Frames with values between black and white."""
    return torch.maximum(torch.minimum(frames, LIMITS.white.view(-1, 1, 1)), LIMITS.black.view(-1, 1, 1))


def with_gamma(frames: torch.Tensor, exponent: float) -> torch.Tensor:
    black, white = LIMITS.black.view(-1, 1, 1), LIMITS.white.view(-1, 1, 1)
    return black + (white - black) * ((frames - black) / (white - black)) ** exponent


def covariance(frames: torch.Tensor) -> torch.Tensor:
    return torch.cov(frames.transpose(0, 1).flatten(1))


@pytest.fixture(scope="module")
def clean():
    return clipped(coloured(256, 0))


@pytest.fixture(scope="module")
def source(clean):
    return measured_source(clean)


@pytest.mark.parametrize("exponent", TONE_EXPONENTS)
def test_it_undoes_the_gamma_of_its_inverse_exponent(clean, source, exponent):
    drifted = with_gamma(clean, 1 / exponent)
    start = tone_start(drifted, source, LIMITS, exponent)
    with torch.no_grad():
        error = (start(drifted) - clean).square().mean()
    linear = torch.stack([_least_squares(d, c) for d, c in zip(drifted.unbind(1), clean.unbind(1), strict=True)]).mean()
    assert error < 0.2 * linear


def _least_squares(drifted: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
    """Mean square error of one channel after the best gain and offset."""
    return (1 - torch.corrcoef(torch.stack([drifted.flatten(), clean.flatten()]))[0, 1] ** 2) * clean.var()


@pytest.mark.parametrize("exponent", TONE_EXPONENTS)
def test_colours_are_those_of_the_source_for_any_curve(clean, source, exponent):
    start = tone_start(clean, source, LIMITS, exponent)
    with torch.no_grad():
        restored = start(clean)
    assert torch.allclose(restored.mean((0, 2, 3)), clean.mean((0, 2, 3)), atol=0.02)
    assert distance(covariance(restored), covariance(clean)) < 0.05


def test_frames_of_nearly_one_grey_level_give_finite_values(source):
    flat = torch.zeros(40, 3, 16, 16) + torch.randn(40, 1, 1, 1) * 1e-3
    start = tone_start(flat, source, LIMITS, 2.2)
    assert all(torch.isfinite(value).all() for value in start.state_dict().values())


def test_one_channel_is_enough(clean):
    grey = clean[:, :1]
    limits = Limits(LIMITS.black[:1], LIMITS.white[:1])
    drifted = with_gamma(clean, 2.2)[:, :1]
    start = tone_start(drifted, measured_source(grey), limits, 0.45)
    with torch.no_grad():
        assert (start(drifted) - grey).square().mean() < 0.05 * grey.var()


@pytest.mark.parametrize("scale", [10.0, 3000.0])
@pytest.mark.parametrize("exponent", TONE_EXPONENTS)
def test_values_far_beyond_black_and_white_give_bounded_slopes(clean, source, exponent, scale):
    """All of them should become white, which ever smaller slopes approach: without a bound the search overflows."""
    start = tone_start(scale * clean[:64], source, LIMITS, exponent)
    assert all(bool(parameter.isfinite().all()) for parameter in start.parameters())
    assert (1 + start.curve).log().abs().max() <= MAX_STRETCH + 1e-3
