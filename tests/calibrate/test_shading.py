"""A gain evens out what a lens darkens: by the law of a lens, and from the centre on."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.shading import RADIAL_POWERS, brighten, lens_gain, radial_basis, squared_radius
from daemon.simulation.drifts import vignetting

sides = st.integers(1, 30)


@given(sides, sides)
def test_the_radius_is_largest_in_the_corners_and_the_same_in_all(height, width):
    squares = squared_radius(height, width)[0, 0]
    corners = squares[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert torch.allclose(corners, torch.tensor(float(height * width > 1)).expand(4)) and squares.max() <= 1
    assert torch.allclose(squares, squares.flip(0, 1))


@given(sides, sides)
def test_the_basis_are_powers_of_the_radius(height, width):
    radius = squared_radius(height, width)[0, 0].sqrt()
    for found, power in zip(radial_basis(height, width), RADIAL_POWERS, strict=True):
        assert torch.allclose(found, radius**power, atol=1e-5)


@pytest.mark.parametrize("lost", [0.1, 0.5, 0.9])
def test_a_lens_that_loses_this_share_is_evened_out(lost):
    scene = np.random.default_rng(0).uniform(0, 200, (12, 20, 3)).astype(np.float32)
    seen = torch.from_numpy(vignetting(scene, lost)).permute(2, 0, 1)[None]
    restored = brighten(seen, lens_gain(lost, 12, 20), torch.zeros(3))
    assert torch.allclose(restored[0].permute(1, 2, 0), torch.from_numpy(scene), rtol=1e-4)


def test_a_gain_of_one_changes_nothing_whatever_is_black():
    frames = torch.randn(2, 3, 5, 5)
    assert torch.equal(brighten(frames, torch.ones(1, 1, 5, 5), torch.full((3,), 1e9)), frames)


def test_black_stays_black():
    black = torch.tensor([-2.0, 0.5])
    frames = black.view(1, 2, 1, 1).expand(3, 2, 6, 6)
    assert torch.allclose(brighten(frames, 3 * torch.ones(1, 1, 6, 6), black), frames)
