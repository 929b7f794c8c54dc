"""A new homogenizer is the identity, its parts do what they say, and compilers support it."""

import json

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.homogenizer import (
    MAX_KERNEL_SIZE,
    TONE_KNOTS,
    Homogenizer,
    convolve_in_blocks,
    identity_kernel,
    largest_kernel,
)
from deploy.backends.protocol import check_parity, load_backend

shapes = st.tuples(st.integers(1, 4), st.integers(2, 24), st.integers(2, 24))  # a pixel has neighbours
PARTS = [{}, {"defects": True}, {"shading": True}, {"defects": True, "shading": True}]


def random_homogenizer(channels: int, height: int, width: int, **parts: bool) -> Homogenizer:
    """A homogenizer whose parts all change the frames."""
    generator = torch.Generator().manual_seed(0)
    homogenizer = Homogenizer(channels, height, width, **parts).requires_grad_(False).eval()
    if homogenizer.defect_step is not None:
        homogenizer.defect_step.fill_(0.5)
    for parameter in homogenizer.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return homogenizer


@settings(deadline=None, max_examples=40)
@given(shapes, st.sampled_from(PARTS), st.integers(1, 3), st.integers(0, 1000))
def test_a_new_one_is_the_identity_for_any_shape(shape, parts, count, seed):
    frames = 3 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(Homogenizer(*shape, **parts)(frames), frames, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 5), (3, 5, 1)])
def test_a_new_one_is_the_identity_for_frames_one_pixel_wide(shape):
    frames = torch.randn(2, *shape)
    assert torch.allclose(Homogenizer(*shape)(frames), frames, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(1, 8), (8, 1)])
def test_defects_need_neighbours(height, width):
    with pytest.raises(ValueError, match=f"no pixel of {height}x{width} frames has neighbours"):
        Homogenizer(3, height, width, defects=True)


@pytest.mark.parametrize("added", PARTS)
@pytest.mark.parametrize("before", PARTS)
def test_a_part_that_is_added_changes_nothing_and_none_is_lost(before, added):
    original = random_homogenizer(3, 9, 8, **before)
    more = original.with_parts(**added)
    assert more.architecture() == original.architecture() | added and not more.training
    frames = torch.randn(2, 3, 9, 8)
    assert torch.allclose(more(frames), original(frames), atol=1e-6)
    more.bias.add_(1)
    assert not torch.equal(more.bias, original.bias)


def test_defects_are_replaced_before_the_shading_is_undone_and_the_tone_comes_last():
    homogenizer = Homogenizer(1, 5, 5, kernel_size=1, defects=True, shading=True).requires_grad_(False)
    homogenizer.defect_step.fill_(1.0)
    homogenizer.gain.fill_(2.0)
    homogenizer.black.fill_(-1.0)
    homogenizer.curve[0, 0] = 1.0  # twice the slope above TONE_KNOTS[0]
    frames = torch.full((1, 1, 5, 5), -0.5)
    frames[0, 0, 2, 2] = 5.0
    brightened = 2 * (-0.5 + 1) - 1
    assert torch.allclose(homogenizer(frames), torch.tensor(brightened + (brightened - TONE_KNOTS[0])))


@settings(deadline=None, max_examples=40)
@given(shapes, st.sampled_from(PARTS))
def test_frames_keep_their_shape(shape, parts):
    assert random_homogenizer(*shape, **parts)(torch.randn(2, *shape)).shape == (2, *shape)


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_largest_kernel_is_odd_and_fits(height, width):
    size = largest_kernel(height, width)
    assert size % 2 == 1 and 1 <= size <= min(MAX_KERNEL_SIZE, height, width)
    assert size == MAX_KERNEL_SIZE or size + 2 > min(height, width)


@pytest.mark.parametrize("size", [-1, 0, 2, 9, 11])
def test_a_kernel_that_has_no_centre_or_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match=f"kernel_size {size} must be odd and fit into 8x12"):
        Homogenizer(3, 8, 12, kernel_size=size)


def test_the_largest_kernel_that_fits_has_room_to_reflect():
    frames = torch.randn(1, 3, 7, 12)
    assert torch.allclose(Homogenizer(3, 7, 12, kernel_size=7)(frames), frames, atol=1e-6)


@pytest.mark.parametrize("parts", PARTS)
def test_the_architecture_is_json_and_builds_the_same_again(parts):
    original = random_homogenizer(3, 10, 12, **parts)
    again = Homogenizer(**json.loads(json.dumps(original.architecture())))
    again.load_state_dict(original.state_dict())
    frames = torch.randn(2, 3, 10, 12)
    assert torch.equal(again(frames), original(frames))


@given(st.lists(st.floats(-0.9, 2), min_size=len(TONE_KNOTS), max_size=len(TONE_KNOTS)))
def test_each_knot_scales_the_slope_above_it(stretches):
    homogenizer = Homogenizer(1, 4, 4, kernel_size=1).requires_grad_(False).double()
    homogenizer.curve[:] = torch.tensor([stretches])
    levels = torch.linspace(-50, 50, 401, dtype=torch.float64)
    curve = homogenizer.correct_levels(levels.view(-1, 1, 1, 1)).flatten()
    slope = curve.diff() / levels.diff()
    assert (slope > 0).all()
    assert torch.equal(curve[levels <= TONE_KNOTS[0]], levels[levels <= TONE_KNOTS[0]])
    expected = levels
    for knot, stretch in zip(TONE_KNOTS, homogenizer.curve[0], strict=True):
        expected = torch.where(expected > knot, knot + (1 + stretch) * (expected - knot), expected)
    assert torch.allclose(curve, expected)


def test_the_kernel_mixes_colours_and_the_offset_is_one_value_for_each_pixel():
    homogenizer = Homogenizer(2, 5, 5, kernel_size=3).requires_grad_(False)
    homogenizer.kernel[:] = identity_kernel(2, 3).flip(1)  # exchanges the channels
    homogenizer.offset[0, 1, 2, 3] = 7
    homogenizer.bias[:] = torch.tensor([0.0, 1.0])
    expected = torch.zeros(1, 2, 5, 5)
    expected[0, 0, 2, 3] = 7
    expected[0, 1] = 1
    assert torch.equal(homogenizer(torch.zeros(1, 2, 5, 5)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("parts", PARTS)
def test_its_onnx_form_gives_the_same_output(parts):
    homogenizer = random_homogenizer(3, 16, 12, **parts)
    backend = load_backend("onnx")
    runner = backend.load(backend.compile(homogenizer, torch.zeros(1, 3, 16, 12)), threads=1)
    assert check_parity(runner, homogenizer, 2 * torch.randn(3, 3, 16, 12)) < 1e-5
    runner.close()


# ---- the convolution on blocks of pixels

sizes = st.sampled_from([1, 3, 5, 15])
extents = st.integers(0, 19)  # side of the output minus 1


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), sizes, extents, extents, st.integers(1, 5), st.integers(0, 1000))
def test_a_convolution_in_blocks_gives_the_same_sums_for_any_shape(channels, size, height, width, block, seed):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(2, channels, size + height, size + width, generator=generator, dtype=torch.float64)
    kernel = torch.randn(channels, channels, size, size, generator=generator, dtype=torch.float64)
    bias = torch.randn(channels, generator=generator, dtype=torch.float64)
    found = convolve_in_blocks(frames, kernel, bias, block)
    assert found.shape == (2, channels, height + 1, width + 1)
    torch.testing.assert_close(found, F.conv2d(frames, kernel, bias))


@pytest.mark.parametrize("block", [2, 4])
def test_the_gradients_of_a_convolution_in_blocks_are_those_of_the_convolution(block):
    given = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 20, 23), (3, 3, 7, 7), (3,))]
    weights = torch.randn(2, 3, 14, 17, dtype=torch.float64)
    ours = torch.autograd.grad((weights * convolve_in_blocks(*given, block)).sum(), given)
    theirs = torch.autograd.grad((weights * F.conv2d(*given)).sum(), given)
    torch.testing.assert_close(ours, theirs)
