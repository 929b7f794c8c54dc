"""Each frame gets the homogenizer of its own camera, alone as in a batch, and compilers support the choice."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.homogenizer import Homogenizer
from calibrate.split import STATISTICS_FLOOR, SplitHomogenizer, frame_statistics, rebuild
from deploy.backends.protocol import check_parity, load_backend

SHAPE = (3, 12, 10)
shapes = st.tuples(st.integers(1, 4), st.integers(3, 20), st.integers(3, 20))


def changed(seed: int, **parts: bool) -> Homogenizer:
    """A homogenizer whose parts all change the frames."""
    generator = torch.Generator().manual_seed(seed)
    homogenizer = Homogenizer(*SHAPE, **parts).requires_grad_(False).eval()
    if homogenizer.defect_step is not None:
        homogenizer.defect_step.fill_(0.5)
    for parameter in homogenizer.parameters():
        parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return homogenizer


def by_brightness(limit: float = 0.0, first: Homogenizer | None = None) -> SplitHomogenizer:
    """The second branch takes the frames whose first channel has a mean above the limit."""
    rule = torch.zeros(1 + 4 * SHAPE[0])
    rule[0], rule[1] = limit, 1.0
    return SplitHomogenizer.of(rule, first or changed(1), changed(2))


def frames_of(means: list[float]) -> torch.Tensor:
    noise = torch.randn(len(means), *SHAPE, generator=torch.Generator().manual_seed(0))
    return noise - noise.mean((2, 3), keepdim=True) + torch.tensor(means).view(-1, 1, 1, 1)


@settings(deadline=None, max_examples=30)
@given(shapes, st.integers(0, 1000))
def test_a_new_one_is_the_identity_for_any_shape(shape, seed):
    frames = 3 * torch.randn(2, *shape, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(SplitHomogenizer(*shape)(frames), frames, rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(-2, 2).filter(lambda mean: abs(mean) > 0.01), min_size=1, max_size=6))
def test_each_frame_gets_the_homogenizer_of_its_side_alone_as_in_a_batch(means):
    split, frames = by_brightness(), frames_of(means)
    restored = split(frames)
    assert split.takes_second(frames).tolist() == [mean > 0 for mean in means]
    for frame, found, mean in zip(frames.split(1), restored.split(1), means, strict=True):
        expected = changed(2 if mean > 0 else 1)(frame)
        assert torch.allclose(found, expected, atol=1e-5) and torch.allclose(split(frame), expected, atol=1e-5)


def test_the_branches_are_the_homogenizers_it_was_made_of():
    split = by_brightness()
    for branch, original in zip(split.branches, (changed(1), changed(2)), strict=True):
        assert not branch.training and branch.architecture() == original.architecture()
        for name, value in original.state_dict().items():
            assert torch.equal(branch.state_dict()[name], value)
    (only,) = original.branches
    assert only is original


@pytest.mark.parametrize("parts", [{"defects": True}, {"shading": True}, {"defects": True, "shading": True}])
def test_a_part_of_one_homogenizer_changes_nothing_for_the_frames_of_the_other(parts):
    first, frames = changed(1, **parts), frames_of([-1.0, 1.0])
    split = by_brightness(first=first)
    for frame, original in zip(frames.split(1), (first, changed(2)), strict=True):
        assert torch.allclose(split(frame), original(frame), atol=1e-5)
    assert split.architecture().items() >= parts.items()


@pytest.mark.parametrize(
    "original",
    [by_brightness(0.3), by_brightness(0.3, changed(1, defects=True, shading=True)), changed(3)],
    ids=["split", "split with all parts", "plain"],
)
def test_the_architecture_is_json_and_builds_the_same_again(original):
    again = rebuild(json.loads(json.dumps(original.architecture())))
    again.load_state_dict(original.state_dict())
    frames = frames_of([-1.0, 0.2, 0.4, 1.0])
    assert type(again) is type(original) and torch.equal(again(frames), original(frames))


@pytest.mark.parametrize("branches", [0, 3, "2"])
def test_another_number_of_branches_is_refused(branches):
    with pytest.raises(ValueError, match=f"1 or 2 branches, not of {branches}"):
        rebuild(Homogenizer(*SHAPE).architecture() | {"branches": branches})


@pytest.mark.parametrize("backend", ["eager", pytest.param("onnx", marks=pytest.mark.slow)])
def test_its_compiled_form_chooses_as_it_does(backend):
    split, backend = by_brightness(), load_backend(backend)
    runner = backend.load(backend.compile(split, torch.zeros(1, *SHAPE)), threads=1)
    assert check_parity(runner, split, frames_of([-1.0, 1.0, 0.5, -0.5])) < 1e-5
    runner.close()


# ---- the statistics


def test_a_ramp_has_contrast_and_slopes_but_nothing_of_the_laplacian():
    frames = (torch.arange(8.0).view(-1, 1) + 2 * torch.arange(8.0)).view(1, 1, 8, 8)
    mean, contrast, slopes, laplacian = frame_statistics(frames)[0].tolist()
    assert mean == pytest.approx(10.5)
    assert contrast == pytest.approx(math.log(5 * 5.25 + STATISTICS_FLOOR))
    assert slopes == pytest.approx(math.log(1 + 4 + STATISTICS_FLOOR))
    assert laplacian == pytest.approx(math.log(STATISTICS_FLOOR))


@settings(deadline=None, max_examples=30)
@given(
    st.tuples(st.integers(1, 4), st.integers(8, 20), st.integers(8, 20)),
    st.floats(0.5, 4),
    st.floats(-2, 2),
    st.integers(0, 1000),
)
def test_gain_and_level_of_a_camera_shift_the_statistics_of_every_frame_alike(shape, gain, level, seed):
    frames = torch.randn(3, *shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    channels = shape[0]
    before, after = frame_statistics(frames), frame_statistics(gain * frames + level)
    torch.testing.assert_close(after[:, :channels], gain * before[:, :channels] + level)
    shift = (after - before)[:, channels:]
    torch.testing.assert_close(shift, torch.full_like(shift, 2 * math.log(gain)), rtol=0.02, atol=0.02)
