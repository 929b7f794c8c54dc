"""Two cameras in turn are told apart frame by frame; one camera, whatever it shows, is not divided."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import drifted, images, labelled, normalised

from calibrate.search.separation import MIN_GROUP_SHARE, find_split
from calibrate.split import frame_statistics
from calibrate.validation import MIN_FIT_FRAMES

COUNT = 128


def noisy(pictures: np.ndarray, levels: float, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(0, levels, pictures.shape)
    return np.clip(pictures + noise, 0, 255).astype(np.uint8)


def statistics(pictures: np.ndarray) -> torch.Tensor:
    return frame_statistics(normalised(pictures))


def in_turn(seed: int, count: int = COUNT, every: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """Frames of a clean camera with a little noise and of a drifted one with much, and which are of the drifted one."""
    pictures = images(count, seed)
    other = np.arange(count) % every == 0
    taken = np.where(other[:, None, None, None], noisy(drifted(pictures), 12, seed), noisy(pictures, 1, seed))
    return taken, other


def takes_second(rule: torch.Tensor, pictures: np.ndarray) -> np.ndarray:
    return (statistics(pictures) @ rule[1:] > rule[0]).numpy()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_two_cameras_in_turn_are_told_apart_also_on_new_frames(seed):
    rule = find_split(statistics(in_turn(seed)[0]))
    assert rule is not None and rule.dtype == torch.float32 and rule.shape == (13,)
    new, other = in_turn(seed + 1, 64)
    found = takes_second(rule, new)
    assert (found == other).all() or (found != other).all()


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 10_000))
def test_the_order_of_the_frames_changes_nothing_but_which_comes_first(seed):
    taken, other = in_turn(seed)
    shuffled = np.random.default_rng(seed).permutation(len(taken))
    rule = find_split(statistics(taken[shuffled]))
    assert rule is not None
    found = takes_second(rule, taken)
    assert (found == other).all() or (found != other).all()


@pytest.mark.parametrize("noise", [1, 12])
@pytest.mark.parametrize("light", [None, 1.0, 0.5])
@pytest.mark.parametrize("corners", [1, 2, 4])
def test_one_camera_is_not_divided_whatever_it_shows(light, noise, corners):
    pictures, labels = labelled(4 * COUNT, seed=3)
    pictures = pictures[labels < corners][:COUNT]
    taken = pictures if light is None else drifted(pictures, light)
    assert find_split(statistics(noisy(taken, noise))) is None


def test_frames_without_noise_are_not_divided_by_rounding():
    assert find_split(statistics(images(COUNT, seed=3))) is None
    assert find_split(statistics(np.full((COUNT, 16, 16, 3), 90, np.uint8))) is None


def test_a_few_frames_of_another_camera_are_no_second_camera():
    every = round(1 / MIN_GROUP_SHARE) + 2
    assert find_split(statistics(in_turn(1, 3 * COUNT, every)[0])) is None


def test_each_camera_needs_as_many_frames_as_a_fit():
    least = 2 * MIN_FIT_FRAMES
    assert find_split(statistics(in_turn(1, least)[0])) is not None
    few = statistics(in_turn(1, least - 2)[0])
    assert find_split(few) is find_split(few[:1]) is find_split(few[:0]) is None


def test_frames_that_are_not_finite_are_not_divided():
    broken = statistics(in_turn(1)[0])
    broken[3, 0] = torch.nan
    assert find_split(broken) is None
