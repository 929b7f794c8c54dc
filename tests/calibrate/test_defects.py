"""Pixels that stand out of their neighbours get the median around them, and no other value is touched."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from calibrate.defects import median_of_neighbours, replace_defects, replace_defects_of_many
from calibrate.search.defects import DEFECT_STEPS

shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(2, 12), st.integers(2, 12))
seeds = st.integers(0, 1000)


def noise(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(shapes, seeds)
def test_the_median_is_that_of_nine_pixels(shape, seed):
    frames = noise(shape, seed).mul(2).round()  # with many equal values
    padded = F.pad(frames, (1, 1, 1, 1), mode="reflect")
    height, width = frames.shape[2:]
    nine = torch.stack([padded[..., i : i + height, j : j + width] for i in range(3) for j in range(3)])
    assert torch.equal(median_of_neighbours(frames), nine.median(0).values)


@given(shapes, seeds, st.floats(0, 3))
def test_values_beyond_the_step_become_the_median_and_all_others_stay_bit_for_bit(shape, seed, step):
    frames = noise(shape, seed)
    found, median = replace_defects(frames, torch.full(shape[1:2], step)), median_of_neighbours(frames)
    beyond = (frames - median).abs() > step
    assert torch.equal(found[~beyond], frames[~beyond]) and torch.equal(found[beyond], median[beyond])


def test_each_channel_has_a_step_of_its_own():
    frames = torch.zeros(1, 2, 5, 5)
    frames[0, :, 2, 2] = 1.0
    found = replace_defects(frames, torch.tensor([0.5, 1.5]))
    assert found[0, 0, 2, 2] == 0 and found[0, 1, 2, 2] == 1


def test_dead_pixels_of_an_even_gradient_are_all_repaired():
    clean = torch.linspace(0, 1, 16).expand(1, 1, 16, 16).clone()
    spoilt = clean.clone()
    spoilt[0, 0, ::4, 2::5] = 3.0
    repaired = replace_defects(spoilt, torch.tensor([0.5]))
    assert (repaired - clean).abs().max() < 0.1


def test_many_frames_give_what_each_gives_alone():
    frames = noise((37, 2, 6, 5), 0)
    step = torch.tensor([0.7, 1.2])
    assert torch.equal(replace_defects_of_many(frames, step), replace_defects(frames, step))


def test_no_step_lies_on_a_level_of_a_camera():
    """Two normalisations that are equal but for rounding must replace the same pixels."""
    for share in DEFECT_STEPS:
        assert share * 255 % 1 == pytest.approx(0.5)
