"""The frames of a fit are divided into blocks of time: to fit to, for the second fit, and to judge."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.judge import BLOCKS_OF_PERIOD, PERIODS, FrameParts, split_frames


@given(st.integers(64, 3000))
def test_the_parts_of_a_fit_are_disjoint_complete_and_of_their_sizes(count):
    parts = split_frames(count)
    assert all(part.shape == (count,) and part.dtype == torch.bool for part in parts)
    assert torch.equal(sum(part.int() for part in parts), torch.ones(count, dtype=torch.int32))
    block = count / (PERIODS * len(BLOCKS_OF_PERIOD))
    for part, share in zip(parts, (1 / 2, 1 / 4, 1 / 4), strict=True):
        assert abs(int(part.sum()) - share * count) <= block


@given(st.integers(64, 3000))
def test_each_part_of_a_fit_lies_in_every_period_in_blocks(count):
    """So each sees all that the camera saw, and its frames are no neighbours of another's."""
    for part, blocks in zip(split_frames(count), (2, 1, 1), strict=True):
        begins = part & ~torch.cat([torch.tensor([False]), part[:-1]])
        assert int(begins.sum()) == PERIODS * blocks
        for period in range(PERIODS):
            first, end = (math.ceil(count * number / PERIODS) for number in (period, period + 1))
            share = int(part[first:end].sum()) / (end - first)
            assert share == pytest.approx(blocks / 4, abs=blocks / (end - first))


@given(st.integers(64, 3000))
def test_every_quarter_of_the_time_is_fitted_to_twice_and_judged(count):
    for part in split_frames(count):
        for quarter in range(4):
            assert part[math.ceil(count * quarter / 4) : math.ceil(count * (quarter + 1) / 4)].any()


@given(st.integers(64, 3000))
def test_the_held_out_frames_are_the_newest_of_each_period(count):
    parts = split_frames(count)
    assert isinstance(parts, FrameParts) and bool(parts.fitted[0])
    assert all(bool(parts.held_out[math.ceil(count * period / PERIODS) - 1]) for period in range(1, PERIODS + 1))
    neighbours = parts.held_out[:-1] & parts.replicated[1:] | parts.replicated[:-1] & parts.held_out[1:]
    assert not neighbours.any(), "a block that is fitted to lies between the frames of the second fit and of the judge"
