"""A descent begins at its start, lowers the objective, and ends at its goal."""

import pytest
import torch
from coloured import coloured, network
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate import Homogenizer, measured_source, tap
from calibrate.search import objective
from calibrate.search.descent import SHADING_STEP, TRAINED_KERNEL_SIZE, Coordinates, descend, patch_whitener
from calibrate.search.objective import Objective
from calibrate.search.starts import colour_start, offset_map
from calibrate.shading import lens_gain, radial_basis

COUNT = 48


class Stop(Exception):
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


def start_for(frames: torch.Tensor, shading: bool = False) -> Homogenizer:
    """A start whose parts all differ from the identity, and that is not yet at the goal."""
    start = colour_start(frames, measured_source(frames * 1.2), offset_map(frames, 3.0))
    with torch.no_grad():
        start.curve += 0.05
        if shading:
            start = start.with_parts(shading=True)
            start.gain.copy_(lens_gain(0.3, *frames.shape[2:]))
            start.black.fill_(-1.5)
    return start


def moved(coordinates: Coordinates, amount: float = 0.1) -> Coordinates:
    with torch.no_grad():
        for part in coordinates.parts().values():
            part += amount * torch.randn(part.shape, generator=generator(1))
    return coordinates


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(3, 18), st.integers(3, 18), st.booleans())
def test_coordinates_are_the_start_at_zero(channels, height, width, shading):
    frames = torch.randn(8, channels, height, width, generator=generator())
    start = start_for(frames, shading)
    coordinates = Coordinates(start, frames, generator())
    torch.testing.assert_close(coordinates(frames), start(frames), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(coordinates.homogenizer().state_dict(), start.state_dict(), rtol=1e-6, atol=1e-6)


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(3, 18), st.integers(3, 18), st.floats(0, 0.5), st.booleans())
def test_the_homogenizer_does_what_the_coordinates_do(channels, height, width, amount, shading):
    frames = torch.randn(8, channels, height, width, generator=generator())
    coordinates = moved(Coordinates(start_for(frames, shading), frames, generator()), amount)
    found = coordinates.homogenizer()
    torch.testing.assert_close(found(frames), coordinates(frames).detach(), rtol=1e-4, atol=1e-4)
    assert not found.training and not any(p.requires_grad for p in found.parameters())


def test_a_returned_homogenizer_does_not_change_with_the_coordinates(frames):
    coordinates = Coordinates(start_for(frames), frames, generator())
    found = coordinates.homogenizer()
    before = {name: value.clone() for name, value in found.state_dict().items()}
    moved(coordinates)
    assert all(torch.equal(value, before[name]) for name, value in found.state_dict().items())


def test_the_rim_of_a_wide_kernel_stays_as_it_is(frames):
    start = start_for(frames)
    change = moved(Coordinates(start, frames, generator())).homogenizer().kernel - start.kernel
    rim = (change.shape[-1] - TRAINED_KERNEL_SIZE) // 2
    inner = change[..., rim:-rim, rim:-rim]
    assert rim > 0 and (inner.abs() > 0).all()
    assert change.abs().sum() == pytest.approx(float(inner.abs().sum()), rel=1e-5)


@pytest.mark.parametrize("shading", [False, True])
def test_every_coordinate_gets_a_gradient(goal, frames, shading):
    coordinates = Coordinates(start_for(frames, shading), frames, generator())
    _, (gradient,) = goal.differentiate(coordinates, [coordinates.vector], frames)
    with torch.no_grad():
        coordinates.vector.copy_(gradient)
    assert set(coordinates.parts()) == {"kernel", "bias", "offset", "curve"} | ({"gain"} if shading else set())
    assert all(part.abs().max() > 0 for part in coordinates.parts().values())


def test_the_gain_changes_by_powers_of_the_radius(frames):
    start = start_for(frames, shading=True)
    coordinates = Coordinates(start, frames, generator())
    with torch.no_grad():
        coordinates.parts()["gain"].copy_(torch.tensor([1.0, -2.0, 3.0]))
    first, second, third = radial_basis(*frames.shape[2:])
    change = coordinates.homogenizer().gain - start.gain
    assert torch.allclose(change, SHADING_STEP * (first - 2 * second + 3 * third), atol=1e-6)


def test_a_descent_lowers_the_objective_and_reports_every_value(goal, frames):
    coordinates, losses = Coordinates(start_for(frames), frames, generator()), []
    before = goal.evaluate(coordinates, frames)
    descend(goal, coordinates, frames, None, 20, 0.0, losses.append)
    assert losses[0] == pytest.approx(before, rel=1e-4)
    assert 20 <= len(losses) < 40
    assert goal.evaluate(coordinates.homogenizer(), frames) == pytest.approx(min(losses), rel=1e-3)
    assert min(losses) < 0.1 * before


def test_a_descent_ends_at_its_goal(goal, frames):
    coordinates, losses = Coordinates(start_for(frames), frames, generator()), []
    halfway = 0.5 * goal.evaluate(coordinates, frames)
    descend(goal, coordinates, frames, None, 20, halfway, losses.append)
    assert losses[-1] <= halfway < min(losses[:-1])
    assert goal.evaluate(coordinates.homogenizer(), frames) == pytest.approx(losses[-1], rel=1e-3)


def test_without_a_fixed_pattern_the_offset_map_stays_zero(goal, frames):
    coordinates = Coordinates(Homogenizer(*frames.shape[1:]), frames, generator())
    descend(goal, coordinates, frames, None, 5, 0.0, lambda loss: None)
    assert not coordinates.homogenizer().offset.any() and coordinates.homogenizer().bias.any()


@settings(max_examples=8)
@given(st.integers(1, 8))
def test_a_descent_of_any_length_never_ends_higher(goal, frames, evaluations):
    coordinates = Coordinates(start_for(frames), frames, generator())
    before = goal.evaluate(coordinates, frames)
    descend(goal, coordinates, frames, None, evaluations, 0.0, lambda loss: None)
    assert goal.evaluate(coordinates, frames) <= before * (1 + 1e-4)


def test_an_exception_from_the_callback_ends_the_descent(goal, frames):
    coordinates, losses = Coordinates(start_for(frames), frames, generator()), []

    def on_evaluation(loss):
        losses.append(loss)
        if len(losses) == 3:
            raise Stop

    with pytest.raises(Stop):
        descend(goal, coordinates, frames, None, 20, 0.0, on_evaluation)
    assert len(losses) == 3


def test_whitened_patches_are_about_uncorrelated(frames):
    whitener = patch_whitener(frames, 3, generator())
    patches = frames.unfold(2, 3, 1).unfold(3, 3, 1).permute(0, 2, 3, 1, 4, 5).flatten(0, 2).flatten(1)
    raw, white = (torch.linalg.eigvalsh(torch.cov(p.T)) for p in (patches, patches @ whitener))
    assert whitener.shape == (27, 27)
    torch.testing.assert_close(whitener, whitener.T)
    assert white.max() < 1.2  # directions that the ridge holds back are below 1
    assert white.max() / white.median() < 0.1 * raw.max() / raw.median()


def test_the_whitener_depends_on_the_seed_alone(frames):
    one, same, other = (patch_whitener(frames, 3, generator(seed)) for seed in (0, 0, 1))
    torch.testing.assert_close(one, same, rtol=1e-4, atol=1e-4)
    assert (one - other).abs().max() > 1e-3
