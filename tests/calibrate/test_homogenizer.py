"""A new homogenizer changes nothing, and a fitted one is nothing that a compiler would not have."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.homogenizer import KERNEL_SIZE, KNOTS, Homogenizer, identity_kernel, largest_kernel
from deploy.backends.protocol import check_parity, load_backend

shapes = st.tuples(st.integers(1, 4), st.integers(1, 24), st.integers(1, 24))


def bent(channels: int, height: int, width: int) -> Homogenizer:
    """One in which every part does something."""
    generator = torch.Generator().manual_seed(0)
    homogenizer = Homogenizer(channels, height, width).requires_grad_(False).eval()
    for parameter in homogenizer.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return homogenizer


@settings(deadline=None, max_examples=40)
@given(shapes, st.integers(1, 3), st.integers(0, 1000))
def test_a_new_one_is_the_identity_for_any_shape(shape, count, seed):
    frames = 3 * torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(Homogenizer(*shape)(frames), frames, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=40)
@given(shapes)
def test_frames_keep_their_shape(shape):
    assert bent(*shape)(torch.randn(2, *shape)).shape == (2, *shape)


@given(st.integers(1, 60), st.integers(1, 60))
def test_the_largest_kernel_is_odd_and_fits(height, width):
    size = largest_kernel(height, width)
    assert size % 2 == 1 and 1 <= size <= min(KERNEL_SIZE, height, width)
    assert size == KERNEL_SIZE or size + 2 > min(height, width)


@pytest.mark.parametrize("size", [-1, 0, 2, 9, 11])
def test_a_kernel_that_has_no_centre_or_does_not_fit_is_refused(size):
    with pytest.raises(ValueError, match=f"kernel_size {size} must be odd and fit into 8x12"):
        Homogenizer(3, 8, 12, kernel_size=size)


def test_the_largest_kernel_that_fits_has_room_to_reflect():
    frames = torch.randn(1, 3, 7, 12)
    assert torch.allclose(Homogenizer(3, 7, 12, kernel_size=7)(frames), frames, atol=1e-6)


def test_the_architecture_is_json_and_builds_the_same_again():
    original = bent(3, 10, 12)
    again = Homogenizer(**json.loads(json.dumps(original.architecture())))
    again.load_state_dict(original.state_dict())
    frames = torch.randn(2, 3, 10, 12)
    assert torch.equal(again(frames), original(frames))


@given(st.lists(st.floats(-0.9, 2), min_size=len(KNOTS), max_size=len(KNOTS)))
def test_each_knot_stretches_what_lies_above_it(bends):
    homogenizer = Homogenizer(1, 4, 4, kernel_size=1).requires_grad_(False).double()
    homogenizer.curve[:] = torch.tensor([bends])
    levels = torch.linspace(-50, 50, 401, dtype=torch.float64)
    curve = homogenizer.tone(levels.view(-1, 1, 1, 1)).flatten()
    slope = curve.diff() / levels.diff()
    assert (slope > 0).all()
    assert torch.equal(curve[levels <= KNOTS[0]], levels[levels <= KNOTS[0]])
    expected = levels
    for knot, bend in zip(KNOTS, homogenizer.curve[0], strict=True):
        expected = torch.where(expected > knot, knot + (1 + bend) * (expected - knot), expected)
    assert torch.allclose(curve, expected)


def test_the_kernel_mixes_colours_and_the_offset_belongs_to_a_pixel():
    homogenizer = Homogenizer(2, 5, 5, kernel_size=3).requires_grad_(False)
    homogenizer.kernel[:] = identity_kernel(2, 3).flip(1)  # exchanges the channels
    homogenizer.offset[0, 1, 2, 3] = 7
    homogenizer.bias[:] = torch.tensor([0.0, 1.0])
    expected = torch.zeros(1, 2, 5, 5)
    expected[0, 0, 2, 3] = 7
    expected[0, 1] = 1
    assert torch.equal(homogenizer(torch.zeros(1, 2, 5, 5)), expected)


def test_it_has_an_onnx_form_that_agrees():
    homogenizer = bent(3, 16, 12)
    backend = load_backend("onnx")
    runner = backend.load(backend.compile(homogenizer, torch.zeros(1, 3, 16, 12)), threads=1)
    assert check_parity(runner, homogenizer, 2 * torch.randn(3, 3, 16, 12)) < 1e-5
    runner.close()
