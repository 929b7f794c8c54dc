"""Statistics do not depend on the chunks, and the divergence is that of normal distributions."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence

from calibrate.features.statistics import (
    VARIANCE_FLOOR,
    FeatureStatistics,
    ImageMoments,
    _PositionMoments,
    gaussian_divergence,
)

IMAGES = 12
NAMES = ("conv", "linear")
positive = st.floats(1e-3, 1e3)
number = st.floats(-1e3, 1e3)


def features(offset: float = 0.0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    conv = torch.randn(IMAGES, 3, 5, 4, generator=generator) * torch.tensor([0.1, 1.0, 20.0]).view(1, 3, 1, 1)
    return [conv * (1 + torch.arange(IMAGES).view(-1, 1, 1, 1)) + offset, torch.randn(IMAGES, 6, generator=generator)]


def statistics(layers: list[torch.Tensor], sizes: list[int]) -> FeatureStatistics:
    chunks = zip(*(layer.split(sizes) for layer in layers), strict=True)
    return ImageMoments.join(map(ImageMoments.of, chunks)).statistics(NAMES)


@st.composite
def splits(draw):
    cuts = sorted(draw(st.sets(st.integers(1, IMAGES - 1))))
    return [stop - start for start, stop in zip([0, *cuts], [*cuts, IMAGES], strict=True)]


@settings(deadline=None)
@given(splits(), st.floats(-10, 10))
def test_statistics_are_those_of_all_values_at_once(sizes, offset):
    layers = features(offset)
    found = statistics(layers, sizes)
    for layer, mean, variance in zip(layers, found.means, found.variances, strict=True):
        dims = [d for d in range(layer.dim()) if d != 1]
        expected_variance, expected_mean = torch.var_mean(layer.double(), dim=dims, correction=0)
        assert torch.allclose(mean.double(), expected_mean, rtol=1e-5, atol=1e-5)
        assert torch.allclose(variance.double(), expected_variance, rtol=1e-3)


@settings(deadline=None)
@given(splits())
def test_statistics_are_the_same_for_any_chunks(sizes):
    whole, cut = statistics(features(), [IMAGES]), statistics(features(), sizes)
    for mine, theirs in zip((*whole.means, *whole.variances), (*cut.means, *cut.variances), strict=True):
        assert torch.allclose(mine, theirs, rtol=1e-6, atol=1e-7)


def test_each_image_has_its_moments_in_order():
    layers = features()
    moments = ImageMoments.join([ImageMoments.of([f[:5] for f in layers]), ImageMoments.of([f[5:] for f in layers])])
    assert len(moments) == IMAGES
    torch.testing.assert_close(moments.first[0][7], layers[0][7].mean((1, 2)))
    torch.testing.assert_close(moments.second[1], layers[1].square())


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 30), st.integers(0, 1000), st.floats(-5, 5))
def test_the_backward_pass_of_moments_is_autograds_own(images, channels, positions, seed, offset):
    generator = torch.Generator().manual_seed(seed)
    x = (torch.randn(images, channels, positions, generator=generator) + offset).requires_grad_()
    weights = torch.randn(2, images, channels, generator=generator)
    pairs = [_PositionMoments.apply(x), (x.mean(2), x.square().mean(2))]
    found, expected = (torch.autograd.grad((torch.stack(pair) * weights).sum(), x)[0] for pair in pairs)
    torch.testing.assert_close(torch.stack(pairs[0]), torch.stack(pairs[1]), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("used", [0, 1])
def test_a_loss_may_use_one_of_the_moments_alone(used):
    x = torch.randn(3, 2, 7, requires_grad=True)
    _PositionMoments.apply(x)[used].sum().backward()
    torch.testing.assert_close(x.grad, (torch.ones_like(x) if used == 0 else 2 * x.detach()) / 7)


def test_moments_of_half_precision_are_float32_and_their_gradient_is_half_again():
    exact = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)) + 2
    half = exact.bfloat16().requires_grad_()
    moments = ImageMoments.of([half])
    assert moments.first[0].dtype == moments.second[0].dtype == torch.float32
    torch.testing.assert_close(moments.second[0], half.detach().float().square().mean((2, 3)), rtol=1e-5, atol=0)
    (moments.first[0] + moments.second[0]).sum().backward()
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad.float(), (1 + 2 * exact) / 25, rtol=0.02, atol=0.002)


def test_computed_statistics_are_not_marked_as_shipped():
    assert not statistics(features(), [IMAGES]).shipped


def test_a_dead_channel_has_no_negative_variance():
    found = ImageMoments.of([torch.full((4, 2, 3, 3), 123.4567), torch.ones(4, 1)]).statistics(NAMES)
    assert (found.variances[0] >= 0).all()


def test_statistics_that_are_not_finite_are_refused_by_name():
    with pytest.raises(ValueError, match="'linear' are not finite"):
        FeatureStatistics(NAMES, (torch.zeros(3), torch.tensor([0.0, torch.nan])), (torch.ones(3), torch.ones(2)))


def test_every_layer_needs_a_mean_and_a_variance():
    with pytest.raises(ValueError, match="one mean and one variance"):
        FeatureStatistics(NAMES, (torch.zeros(3), torch.zeros(2)), (torch.ones(3),))


@given(number, positive, number, positive)
def test_the_divergence_is_that_of_normal_distributions(mean, variance, to_mean, to_variance):
    values = torch.tensor([mean, variance, to_mean, to_variance], dtype=torch.float64)
    found = gaussian_divergence(*values)
    observed, target = Normal(values[0], values[1].sqrt()), Normal(values[2], values[3].sqrt())
    assert torch.allclose(found, kl_divergence(observed, target), rtol=1e-9, atol=1e-9)
    assert found >= -1e-12


@given(number, positive, st.floats(0.01, 10), st.booleans())
def test_the_divergence_is_zero_between_equals_only(mean, variance, change, of_the_mean):
    here = torch.tensor([mean, variance], dtype=torch.float64)
    there = here + change * here[1].sqrt() * torch.tensor([1.0, 0.0]) if of_the_mean else here * (1 + change)
    there = torch.stack([there[0] if of_the_mean else here[0], here[1] if of_the_mean else there[1]])
    assert gaussian_divergence(*here, *here) == 0
    assert gaussian_divergence(*here, *there) > 0


def test_the_divergence_of_dead_channels_is_finite():
    zero, one = torch.zeros(2), torch.ones(2)
    assert torch.isfinite(gaussian_divergence(zero, zero, one, zero)).all()
    assert (gaussian_divergence(zero, zero, zero, torch.full((2,), VARIANCE_FLOOR / 2)) == 0).all()
