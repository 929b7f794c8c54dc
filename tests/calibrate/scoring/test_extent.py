"""The extent of a homogenizer follows from its parameters, and bounds how a difference of two frames grows."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calibrate.homogenizer import TONE_KNOTS, Homogenizer, apply_tone_curve, identity_kernel
from calibrate.scoring.extent import Extent, Range, kernel_gain

SIDE = 16
ROUNDING = 1e-4  # relative error of a float32 homogenizer
sizes = st.sampled_from([1, 3, 5, 7])
strengths = st.sampled_from([0.01, 0.1, 0.5])
seeds = st.integers(0, 10_000)


def random_homogenizer(channels: int, size: int, strength: float, seed: int) -> Homogenizer:
    """A homogenizer whose parts all change the frames."""
    generator = torch.Generator().manual_seed(seed)
    homogenizer = Homogenizer(channels, SIDE, SIDE, size).requires_grad_(False).eval()
    for parameter in homogenizer.parameters():
        parameter += strength * torch.randn(parameter.shape, generator=generator)
    return homogenizer


def pair(channels: int, seed: int, border: int) -> tuple[Tensor, Tensor]:
    """Two frames that are equal within `border` pixels of their edge."""
    generator = torch.Generator().manual_seed(seed)
    one = 2 * torch.randn(1, channels, SIDE, SIDE, generator=generator)
    inner = torch.zeros_like(one)
    inner[..., border : SIDE - border, border : SIDE - border] = 1
    return one, one + inner * torch.randn(one.shape, generator=generator)


def growth(homogenizer: Homogenizer, one: Tensor, other: Tensor) -> float:
    """|ρ(a) - ρ(b)| / |a - b|"""
    return float((homogenizer(one) - homogenizer(other)).norm() / (one - other).norm())


@given(st.sampled_from([1, 3]), st.integers(1, 20))
def test_the_identity_has_zeros_and_ones(channels, side):
    extent, ones = Extent.of(Homogenizer(channels, side, side)), Range(1.0, 1.0)
    assert (extent.curve, extent.offset, extent.kernel, extent.bias) == (0, 0, 0, 0)
    assert extent.slope == extent.gain == extent.shading == extent.jacobian == ones
    assert (extent.black, extent.defect_step) == (0, math.inf)


def test_shading_is_a_range_and_part_of_how_differences_grow():
    homogenizer = Homogenizer(3, 8, 8, 3, shading=True).requires_grad_(False)
    homogenizer.gain[0, 0, 0, 0], homogenizer.gain[0, 0, 1, 1] = 4.0, 0.5
    homogenizer.kernel.mul_(2)
    extent = Extent.of(homogenizer)
    assert extent.shading == Range(0.5, 4.0)
    assert extent.jacobian.least == pytest.approx(1.0) and extent.jacobian.most >= 8.0


def test_the_least_step_of_replaced_pixels_and_the_largest_black_are_told():
    homogenizer = Homogenizer(3, 8, 8, defects=True, shading=True).requires_grad_(False)
    homogenizer.defect_step.copy_(torch.tensor([0.9, 0.8, 1.0]))
    homogenizer.black.copy_(torch.tensor([-2.0, 1.0, 0.5]))
    extent = Extent.of(homogenizer)
    assert extent.defect_step == pytest.approx(0.8) and extent.black == 2.0


@pytest.mark.parametrize("part", ["curve", "offset", "kernel", "bias"])
def test_the_largest_change_of_a_part_is_found_at_any_place(part):
    homogenizer = Homogenizer(3, 8, 8, 3).requires_grad_(False)
    getattr(homogenizer, part).view(-1)[-1].sub_(0.25)
    assert getattr(Extent.of(homogenizer), part) == 0.25


@given(st.lists(st.floats(-0.9, 3), min_size=len(TONE_KNOTS), max_size=len(TONE_KNOTS)))
def test_the_slope_range_of_a_rising_curve_is_exact(stretches):
    homogenizer = Homogenizer(1, 8, 8, 1).requires_grad_(False)
    homogenizer.curve.copy_(torch.tensor([stretches]))
    slope = Extent.of(homogenizer).slope
    steps = torch.linspace(-2, 60, 62_001, dtype=torch.float64)
    toned = apply_tone_curve(steps.view(1, 1, 1, -1), homogenizer.curve.double()).flatten()
    slopes = toned.diff() / steps.diff()
    assert slope.least - 1e-6 <= slopes.min() and slopes.max() <= slope.most + 1e-6
    reached = toned[-1] > TONE_KNOTS[-1] and stretches[-1] > -0.9  # otherwise the last piece begins beyond the steps
    if reached:
        assert slopes.min() == pytest.approx(slope.least, abs=1e-6)
        assert slopes.max() == pytest.approx(slope.most, abs=1e-6)


@pytest.mark.parametrize("stretch", [-1.0, -1.5])
def test_a_curve_that_does_not_rise_makes_different_frames_the_same(stretch):
    homogenizer = Homogenizer(1, 8, 8, 1).requires_grad_(False)
    homogenizer.curve[0, -1] = stretch
    extent = Extent.of(homogenizer)
    assert extent.slope.least == 1 + stretch and extent.jacobian.least == 0


@settings(max_examples=60)
@given(st.sampled_from([1, 3]), sizes, strengths, seeds)
def test_no_difference_away_from_the_border_grows_or_shrinks_more_than_the_jacobian(channels, size, strength, seed):
    homogenizer = random_homogenizer(channels, size, strength, seed)
    extent = Extent.of(homogenizer)
    found = growth(homogenizer, *pair(channels, seed, border=size // 2 + 1))
    assert found <= extent.jacobian.most * (1 + ROUNDING)
    steepest = max(map(abs, extent.slope))
    assert extent.jacobian.most == pytest.approx(steepest * extent.gain.most)
    assert found >= extent.jacobian.least * (1 - ROUNDING) - 0.01 * extent.gain.most


@settings(max_examples=60)
@given(st.sampled_from([1, 3]), sizes, strengths, seeds)
def test_near_the_border_a_difference_grows_at_most_twice_as_much(channels, size, strength, seed):
    homogenizer = random_homogenizer(channels, size, strength, seed)
    found = growth(homogenizer, *pair(channels, seed, border=0))
    assert found <= 2 * Extent.of(homogenizer).jacobian.most * (1 + ROUNDING)


def amplified(kernel: Tensor, frequencies: list[Tensor]) -> Tensor:
    """(F, G): the largest singular value of the kernel's transfer at F x G frequencies."""
    taps = torch.arange(kernel.shape[-1], dtype=torch.float64)
    down, along = (torch.exp(1j * given[:, None] * taps) for given in frequencies)
    transfer = torch.einsum("ocyx,fy,gx->fgoc", kernel.to(torch.complex128), down, along)
    return torch.linalg.svdvals(transfer)[..., 0]


def peak(kernel: Tensor) -> float:
    """The largest gain at any frequency: a search from the highest peaks of a grid."""
    grid = torch.arange(120, dtype=torch.float64) * 2 * torch.pi / 120
    values = amplified(kernel, [grid, grid])
    peaks = torch.where(values == F.max_pool2d(values[None], 3, 1, 1)[0], values, 0)
    places = [divmod(int(at), 120) for at in peaks.flatten().topk(20).indices]
    return max(highest_near(kernel, [float(grid[i]) for i in at], float(grid[1])) for at in places)


def highest_near(kernel: Tensor, centre: list[float], width: float) -> float:
    for _ in range(8):
        frequencies = [middle + torch.linspace(-width, width, 13, dtype=torch.float64) for middle in centre]
        values = amplified(kernel, frequencies)
        at = divmod(int(values.argmax()), 13)
        centre, width = [float(f[i]) for f, i in zip(frequencies, at, strict=True)], width / 4
    return float(values.max())


@settings(max_examples=25)
@given(st.sampled_from([1, 3]), sizes, seeds)
def test_the_gain_bounds_all_frequencies_and_is_at_most_a_percent_too_high(channels, size, seed):
    kernel = torch.randn(channels, channels, size, size, generator=torch.Generator().manual_seed(seed)).double()
    worst = peak(kernel)
    assert worst * (1 - 1e-9) <= kernel_gain(kernel).most <= worst * 1.01


def test_the_gain_is_zero_for_an_erased_colour():
    kernel = identity_kernel(3, 3).double()
    kernel[2, 2] = 0
    assert kernel_gain(kernel) == Range(0.0, 1.0)


def test_parameters_near_the_end_of_float32_do_not_overflow():
    homogenizer = Homogenizer(3, 8, 8, 3).requires_grad_(False)
    for parameter in homogenizer.parameters():
        parameter.fill_(3e38)
    extent = Extent.of(homogenizer)
    assert 3e38 <= extent.jacobian.most < float("inf")
