"""The closed forms give drifted frames the second-order statistics of clean ones, for every rotation."""

import math

import pytest
import torch
import torch.nn.functional as F
from coloured import COVARIANCE, MEAN, SHAPE, coloured, distance

from calibrate import measured_source
from calibrate.search.starts import (
    SpectralStarts,
    colour_start,
    monge_map,
    negative_start,
    offset_map,
    random_rotations,
    search_rotation,
)
from calibrate.source.spectra import cross_spectra

MIX = torch.tensor([[0.5, 0.2, 0.0], [0.1, 0.6, 0.1], [0.0, 0.1, 0.4]])  # cross-talk at half the exposure
ROTATIONS = [torch.tensor(vector) for vector in ([0.5, 0.0, 0.0], [-0.7, 0.9, 0.2], [0.0, 2.0, -2.4])]


def flat_colour_start(frames, source):
    return colour_start(frames, source, offset_map(frames, 3.0))


def starts_of(frames, source):
    return SpectralStarts(frames, source, offset_map(frames, 3.0))


def spectral_start(frames, source):
    return starts_of(frames, source).start()


STARTS = [flat_colour_start, spectral_start]


def covariance(frames: torch.Tensor) -> torch.Tensor:
    return torch.cov(frames.transpose(0, 1).flatten(1))


def power(frames: torch.Tensor) -> torch.Tensor:
    """Log power at each frequency, (H, W)."""
    return cross_spectra(frames).diagonal(dim1=-2, dim2=-1).real.mean(-1).log()


def mixed(frames: torch.Tensor) -> torch.Tensor:
    return torch.einsum("cd,ndhw->nchw", MIX, frames) - 0.4


@pytest.fixture(scope="module")
def source():
    return measured_source(coloured(512, seed=0))


def positive(*shape: int, seed: int) -> torch.Tensor:
    root = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return root @ root.mT + 0.05 * torch.eye(shape[-1], dtype=torch.float64)


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


@pytest.mark.parametrize(("sigma", "remaining"), [(1.0, 0.35), (3.0, 0.1)])
def test_the_offset_map_removes_a_fixed_pattern_and_leaves_the_scene(sigma, remaining):
    scene = coloured(512, 3)
    pattern = 0.5 * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))
    flat = scene + pattern + offset_map(scene + pattern, sigma)
    fine = (flat - scene).mean(0) - F.avg_pool2d((flat - scene).mean(0), 9, 1, 4, count_include_pad=False)
    assert fine.std() < remaining * pattern.std()
    assert offset_map(scene, sigma).std() < 0.1 * pattern.std()


def test_a_gradient_is_no_fixed_pattern():
    ramp = torch.linspace(-1, 1, 16).expand(1, 3, 16, 16)
    assert offset_map(ramp.expand(8, -1, -1, -1), 3.0)[..., 6:10].abs().max() < 0.02


@pytest.mark.parametrize("start", STARTS)
def test_mixed_colours_at_another_exposure_come_back(source, start):
    drifted = mixed(coloured(256, 4))
    with torch.no_grad():
        restored = start(drifted, source)(drifted)
    assert distance(covariance(drifted), COVARIANCE) > 0.5
    assert distance(covariance(restored), COVARIANCE) < 0.12
    assert torch.allclose(restored.mean((0, 2, 3)), MEAN, atol=0.06)


@pytest.mark.parametrize("start", STARTS)
def test_a_fixed_pattern_is_removed(source, start):
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


def test_colours_shifted_against_one_another_are_aligned_by_the_spectral_start():
    clean = coloured(256, 4)
    shifted = torch.stack([clean[:, 0, :, :-1], clean[:, 1, :, 1:], clean[:, 2, :, :-1]], 1)
    same = measured_source(coloured(512, 0)[..., :-1])
    with torch.no_grad():
        restored = spectral_start(shifted, same)(shifted)
    lost, left = (cross_spectra(f)[..., 0, 1].imag.abs().mean() for f in (shifted, restored))
    assert left < 0.3 * lost


@pytest.mark.parametrize("shape", [(8, 20), (15, 6), (2, 3), (1, 1)])
def test_frames_may_have_any_shape(shape):
    clean, frames = torch.randn(2, 40, 3, *shape, generator=torch.Generator().manual_seed(0)).unbind(0)
    for start in STARTS:
        assert torch.isfinite(start(frames, measured_source(clean))(frames)).all()


@pytest.mark.parametrize("start", STARTS)
def test_one_channel_comes_back_too(start):
    clean = coloured(256, 0)[:, :1]
    drifted = 0.5 * clean - 1
    with torch.no_grad():
        restored = start(drifted, measured_source(clean))(drifted)
    assert restored.std().item() == pytest.approx(clean.std().item(), rel=0.1)
    assert restored.mean().item() == pytest.approx(clean.mean().item(), abs=0.05)


def test_no_rotation_is_the_rotation_by_zero(source):
    starts = starts_of(mixed(coloured(256, 4)), source)
    none, by_zero = starts.start(), starts.start(torch.zeros(3))
    for name, value in none.state_dict().items():
        torch.testing.assert_close(by_zero.state_dict()[name], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rotation", [torch.zeros(3), *ROTATIONS])
def test_frames_are_restored_as_the_start_for_a_rotation_does_it(source, rotation):
    drifted = mixed(coloured(16, 4))
    starts = starts_of(drifted, source)
    made = starts.start(rotation)
    with torch.no_grad():
        torch.testing.assert_close(starts.restore(drifted, rotation), made(drifted), rtol=1e-4, atol=1e-4)
    whole = starts._rotations(rotation)[0, 0].real  # of the frequency zero
    torch.testing.assert_close(whole, rotation_matrix(rotation), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rotation", ROTATIONS)
def test_a_rotation_is_right_to_second_order_too(source, rotation):
    drifted = mixed(coloured(256, 4))
    starts = starts_of(drifted, source)
    with torch.no_grad():
        rotated, straight = starts.start(rotation)(drifted), starts.start()(drifted)
    change = (rotated - straight).square().mean().sqrt() / straight.std()
    assert change > 0.4 * 2 * math.sin(float(rotation.norm()) / 2)  # of the chord by which it rotates a colour
    assert distance(covariance(rotated), COVARIANCE) < 0.15
    assert torch.allclose(rotated.mean((0, 2, 3)), MEAN, atol=0.06)
    assert (power(rotated) - power(straight)).abs().mean() < 0.2


def test_a_rotation_changes_low_frequencies_and_not_high_ones(source):
    drifted = coloured(256, 4, exponent=0.0)
    starts = starts_of(drifted, measured_source(coloured(512, 0, exponent=0.0)))
    with torch.no_grad():
        change = cross_spectra(starts.start(ROTATIONS[1])(drifted) - starts.start()(drifted))
    amount = change.diagonal(dim1=-2, dim2=-1).real.mean(-1)
    assert amount[8, 8] < 0.01 * amount[0, 1]


def test_random_rotations_are_spread_evenly():
    vectors = random_rotations(4000, torch.Generator().manual_seed(0))
    angle = vectors.norm(dim=1)
    assert vectors.shape == (4000, 3)
    assert angle.min() >= 0 and angle.max() <= math.pi + 1e-5
    # The angle of a uniform random rotation has the density (1 - cos) / pi (Miles 1965).
    for quantile in (0.5, 1.5, 2.5):
        share = float((angle < quantile).float().mean())
        assert share == pytest.approx((quantile - math.sin(quantile)) / math.pi, abs=0.03)
    axis = vectors / angle[:, None]
    assert axis.mean(0).abs().max() < 0.05
    torch.testing.assert_close(axis.T @ axis / len(axis), torch.eye(3) / 3, rtol=0, atol=0.03)


def test_random_rotations_depend_on_the_seed_alone():
    one, same, other = (random_rotations(5, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.allclose(one, other)


def rotation_matrix(vector: torch.Tensor) -> torch.Tensor:
    return torch.matrix_exp(torch.linalg.cross(torch.eye(3), vector.expand(3, 3)))


@pytest.mark.parametrize("wanted", [torch.zeros(3), *ROTATIONS])
def test_the_search_comes_near_the_rotation_that_scores_best(wanted):
    def score(vector):
        return float((rotation_matrix(vector) - rotation_matrix(wanted)).square().sum())

    found = search_rotation(score, torch.Generator().manual_seed(0))
    assert score(found) < score(wanted + torch.tensor([math.radians(30), 0, 0]))


@pytest.mark.parametrize("odd", [torch.nan, torch.inf])
def test_the_search_ignores_scores_that_are_not_finite(odd):
    found = search_rotation(lambda v: odd if v[0] <= 0 else float(v[0]), torch.Generator().manual_seed(0))
    assert found[0] > 0
    none_finite = search_rotation(lambda v: odd, torch.Generator().manual_seed(0))
    assert none_finite.shape == (3,) and torch.isfinite(none_finite).all()


@pytest.mark.parametrize("start", STARTS)
def test_a_negative_start_does_to_frames_what_the_start_does_to_their_negative(source, start):
    frames, whole = mixed(coloured(64, seed=1)), torch.tensor([0.5, -1.0, 2.0])
    negative = whole.view(-1, 1, 1) - frames
    made = start(negative, source)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    torch.testing.assert_close(negative_start(made, whole)(frames), made(negative), rtol=1e-4, atol=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
