"""Cross-spectra split the covariance over frequencies, and a radial profile is their average over directions."""

import pytest
import torch
from coloured import distance
from hypothesis import given
from hypothesis import strategies as st

from calibrate.source.spectra import (
    SPECTRA_CHUNK_FRAMES,
    RadialProfile,
    cross_spectra,
    radial_profile,
    spatial_frequencies,
)
from calibrate.source.training import pink_noise

MIX = torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.4]])
sizes = st.integers(1, 24)


def mixed(count: int, height: int = 16, width: int = 16) -> torch.Tensor:
    """White noise with mixed channels, (N, 3, H, W)."""
    frames = torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))
    return torch.einsum("cd,ndhw->nchw", MIX, frames) + 5


@pytest.mark.parametrize("shape", [(16, 16), (9, 20)])
def test_the_mean_of_the_cross_spectra_is_the_covariance(shape):
    spectra = cross_spectra(mixed(400, *shape))
    assert spectra.shape == (*shape, 3, 3)
    assert distance(spectra.real.mean((0, 1)), MIX @ MIX.T) < 0.05
    torch.testing.assert_close(spectra, spectra.mH)


def test_white_noise_has_the_same_density_everywhere():
    profile = radial_profile(cross_spectra(mixed(600)))
    for density in profile.density[1:]:  # subtracting the mean takes a part of frequency zero
        assert distance(density, MIX @ MIX.T) < 0.15


def test_pink_noise_falls_as_one_over_frequency_squared():
    noise = pink_noise(400, (32, 32), 2.0, torch.Generator().manual_seed(0))
    density = radial_profile(cross_spectra(noise[:, None])).density[:, 0, 0]
    assert float((density[4] / density[12]).log() / torch.tensor(3.0).log()) == pytest.approx(2, abs=0.3)


def test_cross_spectra_do_not_depend_on_the_chunk():
    frames = mixed(2 * SPECTRA_CHUNK_FRAMES + 3)
    mean, parts = frames.mean((0, 2, 3), keepdim=True), frames.split(SPECTRA_CHUNK_FRAMES // 2)
    in_parts = sum(len(p) * cross_spectra(torch.cat([p, 2 * mean - p])) for p in parts) / len(frames)
    torch.testing.assert_close(cross_spectra(frames), in_parts, rtol=1e-3, atol=1e-4)


@given(sizes, sizes, st.integers(0, 1000))
def test_a_spectrum_that_is_equal_in_all_directions_comes_back_from_its_profile(height, width, seed):
    bins = int(spatial_frequencies(height, width).max().round()) + 1
    density = torch.randn(bins, 2, 2, generator=torch.Generator().manual_seed(seed))
    spectra = RadialProfile(density + density.mT).at(height, width)
    assert spectra.shape == (height, width, 2, 2)
    torch.testing.assert_close(radial_profile(spectra.to(torch.complex64)).at(height, width), spectra)


def test_a_profile_is_the_average_over_all_directions():
    spectra = torch.zeros(8, 8, 1, 1)
    spectra[0, 2], spectra[0, -2] = 6, 6  # of the frequencies that round to 2: (0, ±2), (±2, 0), (±1, ±2), (±2, ±1)
    assert radial_profile(spectra).density[2].item() == pytest.approx(12 / 12)


@given(sizes, sizes)
def test_frequencies_are_in_cycles_over_the_longer_side(height, width):
    found = spatial_frequencies(height, width)
    assert found.shape == (height, width) and found[0, 0] == 0
    if width > 2:
        torch.testing.assert_close(found[0, 1], torch.tensor(max(height, width) / width))
    torch.testing.assert_close(found[1:], found[1:].flip(0))
    torch.testing.assert_close(found[:, 1:], found[:, 1:].flip(1))
