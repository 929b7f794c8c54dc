"""The closed forms find out what a network was trained on, and give other frames the same second-order statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calibrate import tap
from calibrate.initialize import (
    colour_start,
    cross_spectra,
    monge_map,
    offset_map,
    pink_noise,
    source_moments,
    spectral_start,
)

SHAPE = (3, 16, 16)
MEAN = torch.tensor([0.3, -0.2, 0.5])
ROOT = torch.tensor([[0.9, 0.0, 0.0], [0.6, 0.5, 0.0], [0.4, 0.3, 0.4]])
COVARIANCE = ROOT @ ROOT.T
MIX = torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.4]])  # cross-talk at half the exposure
STARTS = [colour_start, spectral_start]


def coloured(count: int, seed: int, exponent: float = 2.0) -> torch.Tensor:
    """Frames (N, 3, 16, 16) of mean colour MEAN, channel covariance COVARIANCE and power ~ 1/f^exponent."""
    noise = pink_noise(3 * count, SHAPE[1:], exponent, torch.Generator().manual_seed(seed))
    return torch.einsum("cd,ndhw->nchw", ROOT, noise.view(count, *SHAPE)) + MEAN.view(1, 3, 1, 1)


def network(frames: torch.Tensor, *before: nn.Module) -> nn.Module:
    """A convolution and the BatchNorm statistics of its response to `frames`."""
    torch.manual_seed(0)
    module = nn.Sequential(*before, nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=None))
    with torch.no_grad():
        module(frames)
    return module.eval()


def covariance(frames: torch.Tensor) -> torch.Tensor:
    return torch.cov(frames.transpose(0, 1).flatten(1))


def power(frames: torch.Tensor) -> torch.Tensor:
    """Log power at each frequency, (H, W)."""
    return cross_spectra(frames).diagonal(dim1=-2, dim2=-1).real.mean(-1).log()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Of matrices, relative to the second."""
    return float((one - other).norm() / other.norm())


@pytest.fixture(scope="module")
def source():
    return source_moments(tap(network(coloured(512, seed=0))), SHAPE)


def positive(*shape: int, seed: int) -> torch.Tensor:
    root = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT + 0.05 * torch.eye(shape[-1], dtype=torch.float64)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_the_source_is_found_from_the_first_layers_statistics(exponent):
    found = source_moments(tap(network(coloured(512, 1, exponent))), SHAPE)
    assert found.exponent == exponent
    assert torch.allclose(found.mean, MEAN, atol=0.05)
    assert distance(found.covariance, COVARIANCE) < 0.1
    assert found.residual < 0.05


def test_a_strided_layer_tells_as_much():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, bias=False), nn.BatchNorm2d(8, momentum=None))
    with torch.no_grad():
        module(coloured(512, 2))
    found = source_moments(tap(module.eval()), SHAPE)
    assert torch.allclose(found.mean, MEAN, atol=0.08)
    assert distance(found.covariance, COVARIANCE) < 0.15


def test_one_channel_is_enough():
    frames = pink_noise(256, SHAPE[1:], 2.0, torch.Generator().manual_seed(0))[:, None] * 0.7 + 0.4
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, momentum=None))
    with torch.no_grad():
        module(frames)
    source = source_moments(tap(module.eval()), (1, 16, 16))
    assert source.mean.item() == pytest.approx(0.4, abs=0.05)
    assert source.covariance.item() == pytest.approx(0.49, rel=0.1)
    restored = colour_start(0.5 * frames - 1, source)(0.5 * frames - 1)
    assert restored.std().item() == pytest.approx(0.7, rel=0.1)


def test_the_same_seed_finds_the_same(source):
    again = source_moments(tap(network(coloured(512, seed=0))), SHAPE)
    # not to the last bit: how a linear algebra library sums depends on where in memory the numbers lie
    torch.testing.assert_close(again.mean, source.mean)
    torch.testing.assert_close(again.covariance, source.covariance)


@pytest.mark.parametrize("first", [nn.ReLU(), nn.MaxPool2d(2)])
def test_a_first_layer_that_is_not_linear_tells_nothing(first):
    assert source_moments(tap(network(coloured(64, 0), first)), SHAPE) is None


def test_normalisation_before_the_first_layer_is_linear_too():
    class Shift(nn.Module):
        def forward(self, frames):
            return frames * 2 - 1

    found = source_moments(tap(network(coloured(512, 0), Shift())), SHAPE)
    assert torch.allclose(found.mean, MEAN, atol=0.05)


@pytest.mark.parametrize("shape", [(1, 1), (3, 3), (7, 5, 3, 3)])
def test_the_monge_map_carries_one_covariance_to_the_other_and_is_symmetric(shape):
    target, source = positive(*shape, seed=0), positive(*shape, seed=1)
    found = monge_map(target, source)
    torch.testing.assert_close(found @ target @ found.mT, source)
    torch.testing.assert_close(found, found.mT)
    assert (torch.linalg.eigvalsh(found) > 0).all()


def test_the_monge_map_between_equals_is_the_identity():
    same = positive(3, 3, seed=0)
    torch.testing.assert_close(monge_map(same, same), torch.eye(3, dtype=torch.float64))


def test_the_offset_map_removes_a_fixed_pattern_and_leaves_the_scene():
    scene = coloured(512, 3)
    pattern = 0.5 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    flat = scene + pattern + offset_map(scene + pattern)
    fine = (flat - scene).mean(0) - F.avg_pool2d((flat - scene).mean(0), 9, 1, 4, count_include_pad=False)
    assert fine.std() < 0.1 * pattern.std()
    assert offset_map(scene).std() < 0.1 * pattern.std()


def test_a_shade_is_no_fixed_pattern():
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    assert offset_map(ramp.expand(8, -1, -1, -1))[..., 6:10].abs().max() < 0.02


@pytest.mark.parametrize("start", STARTS)
def test_mixed_colours_at_another_exposure_come_back(source, start):
    drifted = torch.einsum("cd,ndhw->nchw", MIX, coloured(256, 4)) - 0.4
    with torch.no_grad():
        restored = start(drifted, source)(drifted)
    assert distance(covariance(drifted), COVARIANCE) > 0.5
    assert distance(covariance(restored), COVARIANCE) < 0.12
    assert torch.allclose(restored.mean((0, 2, 3)), MEAN, atol=0.06)


@pytest.mark.parametrize("start", STARTS)
def test_a_fixed_pattern_is_taken_off(source, start):
    pattern = torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    clean = coloured(256, 4)
    with torch.no_grad():
        restored = start(clean + pattern, source)(clean + pattern)
    assert distance(covariance(clean + pattern), COVARIANCE) > 0.5
    assert distance(covariance(restored), COVARIANCE) < 0.15


def test_blur_is_undone_by_the_spectral_start(source):
    kernel = torch.ones(3, 1, 3, 3) / 9
    blurred = F.conv2d(F.pad(coloured(256, 4), (1, 1, 1, 1), mode="reflect"), kernel, groups=3)
    expected = power(coloured(256, 5))
    with torch.no_grad():
        restored = spectral_start(blurred, source)(blurred)
    lost, left = (power(blurred) - expected).abs().mean(), (power(restored) - expected).abs().mean()
    assert left < 0.25 * lost


def test_the_mean_of_the_cross_spectra_is_the_covariance():
    frames = torch.randn(400, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mixed = torch.einsum("cd,ndhw->nchw", MIX, frames) + 5
    spectra = cross_spectra(mixed)
    assert distance(spectra.real.mean((0, 1)), MIX @ MIX.T) < 0.05
    torch.testing.assert_close(spectra, spectra.mH)


@pytest.mark.parametrize("shape", [(8, 20), (15, 6)])
def test_frames_need_not_be_square(source, shape):
    frames = torch.randn(40, 3, *shape, generator=torch.Generator().manual_seed(0))
    for start in STARTS:
        assert torch.isfinite(start(frames, source)(frames)).all()
