"""Refinement starts where the closed form ended, goes down from there, and stops when it is told to."""

import pytest
import torch
from coloured import coloured, network
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate import Homogenizer, measured_source, tap
from calibrate.search import objective
from calibrate.search.descent import TRAINED_KERNEL, Coordinates, descend, patch_whitener
from calibrate.search.objective import Objective
from calibrate.search.starts import colour_start, offset_map

COUNT = 48


class Enough(Exception):
    pass


@pytest.fixture(autouse=True)
def exact(monkeypatch):
    monkeypatch.setattr(objective, "HAS_BFLOAT16", False)


@pytest.fixture(scope="module")
def goal():
    taps = tap(network(coloured(256, 0)).requires_grad_(False))
    return Objective(taps, taps.reference)


@pytest.fixture(scope="module")
def frames():
    return 0.6 * coloured(COUNT, 1) - 0.3


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def start_for(frames: torch.Tensor) -> Homogenizer:
    """One whose parts all differ from the identity, and that is not yet at the goal."""
    start = colour_start(frames, measured_source(frames * 1.2), offset_map(frames, 3.0))
    with torch.no_grad():
        start.curve += 0.05
    return start


def moved(coordinates: Coordinates, amount: float = 0.1) -> Coordinates:
    with torch.no_grad():
        for parameter in (coordinates.kernel, coordinates.bias, coordinates.offset, coordinates.curve):
            parameter += amount * torch.randn(parameter.shape, generator=generator(1))
    return coordinates


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(3, 18), st.integers(3, 18))
def test_coordinates_are_the_start_at_zero(channels, height, width):
    frames = torch.randn(8, channels, height, width, generator=generator())
    start = start_for(frames)
    coordinates = Coordinates(start, frames, generator())
    torch.testing.assert_close(coordinates(frames), start(frames), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(coordinates.homogenizer().state_dict(), start.state_dict(), rtol=1e-6, atol=1e-6)


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(3, 18), st.integers(3, 18), st.floats(0, 0.5))
def test_the_homogenizer_does_what_the_coordinates_do(channels, height, width, amount):
    frames = torch.randn(8, channels, height, width, generator=generator())
    coordinates = moved(Coordinates(start_for(frames), frames, generator()), amount)
    found = coordinates.homogenizer()
    torch.testing.assert_close(found(frames), coordinates(frames).detach(), rtol=1e-4, atol=1e-4)
    assert not found.training and not any(p.requires_grad for p in found.parameters())


def test_a_homogenizer_once_taken_does_not_move_with_the_coordinates(frames):
    coordinates = Coordinates(start_for(frames), frames, generator())
    found = coordinates.homogenizer()
    before = {name: value.clone() for name, value in found.state_dict().items()}
    moved(coordinates)
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())


def test_the_rim_of_a_wide_kernel_stays_as_it_is(frames):
    start = start_for(frames)
    change = moved(Coordinates(start, frames, generator())).homogenizer().kernel - start.kernel
    rim = (change.shape[-1] - TRAINED_KERNEL) // 2
    inner = change[..., rim:-rim, rim:-rim]
    assert rim > 0 and (inner.abs() > 0).all()
    assert change.abs().sum() == pytest.approx(float(inner.abs().sum()), rel=1e-5)


def test_every_coordinate_takes_part(goal, frames):
    coordinates = Coordinates(start_for(frames), frames, generator())
    goal.backpropagate(coordinates, frames)
    for parameter in (coordinates.kernel, coordinates.bias, coordinates.offset, coordinates.curve):
        assert parameter.grad.abs().max() > 0


def test_a_descent_lowers_the_objective_and_tells_every_value(goal, frames):
    coordinates, told = Coordinates(start_for(frames), frames, generator()), []
    before = goal.evaluate(coordinates, frames)
    descend(goal, coordinates, frames, None, 20, 0.0, told.append)
    assert told[0] == pytest.approx(before, rel=1e-4)
    assert 20 <= len(told) < 40
    assert goal.evaluate(coordinates.homogenizer(), frames) == pytest.approx(min(told), rel=1e-3)
    assert min(told) < 0.1 * before


def test_a_descent_ends_where_it_is_good_enough(goal, frames):
    coordinates, told = Coordinates(start_for(frames), frames, generator()), []
    enough = 0.5 * goal.evaluate(coordinates, frames)
    descend(goal, coordinates, frames, None, 20, enough, told.append)
    assert told[-1] <= enough < min(told[:-1])
    assert goal.evaluate(coordinates.homogenizer(), frames) == pytest.approx(told[-1], rel=1e-3)


def test_without_a_fixed_pattern_the_offset_map_stays_zero(goal, frames):
    coordinates = Coordinates(Homogenizer(*frames.shape[1:]), frames, generator())
    descend(goal, coordinates, frames, None, 5, 0.0, lambda loss: None)
    assert not coordinates.homogenizer().offset.any() and coordinates.homogenizer().bias.any()


@settings(max_examples=8)
@given(st.integers(1, 8))
def test_however_short_a_descent_never_ends_higher(goal, frames, evaluations):
    coordinates = Coordinates(start_for(frames), frames, generator())
    before = goal.evaluate(coordinates, frames)
    descend(goal, coordinates, frames, None, evaluations, 0.0, lambda loss: None)
    assert goal.evaluate(coordinates, frames) <= before * (1 + 1e-4)


def test_what_is_told_may_end_the_descent(goal, frames):
    coordinates, told = Coordinates(start_for(frames), frames, generator()), []

    def evaluated(loss):
        told.append(loss)
        if len(told) == 3:
            raise Enough

    with pytest.raises(Enough):
        descend(goal, coordinates, frames, None, 20, 0.0, evaluated)
    assert len(told) == 3


def test_whitened_patches_are_about_uncorrelated(frames):
    whitener = patch_whitener(frames, 3, generator())
    patches = frames.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
    raw, white = (torch.linalg.eigvalsh(torch.cov(p.T)) for p in (patches, patches @ whitener))
    assert whitener.shape == (27, 27)
    torch.testing.assert_close(whitener, whitener.T)
    assert white.max() < 1.2  # what the ridge holds back is below 1
    assert white.max() / white.median() < 0.1 * raw.max() / raw.median()


def test_the_whitener_is_told_by_the_seed(frames):
    one, same, other = (patch_whitener(frames, 3, generator(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-4)
    assert (one - other).abs().max() > 1e-3
