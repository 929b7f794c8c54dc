"""A convolution in blocks is the convolution."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.homogenizer import convolve_in_blocks

sizes = st.sampled_from([1, 3, 5, 15])
extents = st.integers(0, 19)  # of the output, less one


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 4), sizes, extents, extents, st.integers(1, 5), st.integers(0, 1000))
def test_it_gives_the_same_sums_for_any_shape(channels, size, height, width, block, seed):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randn(2, channels, size + height, size + width, generator=generator, dtype=torch.float64)
    kernel = torch.randn(channels, channels, size, size, generator=generator, dtype=torch.float64)
    bias = torch.randn(channels, generator=generator, dtype=torch.float64)
    found = convolve_in_blocks(frames, kernel, bias, block)
    assert found.shape == (2, channels, height + 1, width + 1)
    torch.testing.assert_close(found, F.conv2d(frames, kernel, bias))


@pytest.mark.parametrize("block", [2, 4])
def test_its_gradients_are_those_of_the_convolution(block):
    given = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 3, 20, 23), (3, 3, 7, 7), (3,))]
    weights = torch.randn(2, 3, 14, 17, dtype=torch.float64)
    ours = torch.autograd.grad((weights * convolve_in_blocks(*given, block)).sum(), given)
    theirs = torch.autograd.grad((weights * F.conv2d(*given)).sum(), given)
    for own, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, other)
