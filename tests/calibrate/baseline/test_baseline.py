"""A baseline tells a changed camera from changed content, is the same for the same frames, and survives a file."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.baseline.baseline import Baseline
from calibrate.baseline.frames import MAX_CHANNELS, FrameStatistics
from calibrate.baseline.learning import MIN_HEALTHY_FRAMES, BaselineError, learn_baseline
from calibrate.baseline.run_length import ALLOWANCE
from calibrate.baseline.scenes import MIN_CLASS_FRAMES, MIXED, draw_scenes
from calibrate.baseline.variety import different_frames
from calibrate.features.statistics import FeatureStatistics, ImageMoments

CHANNELS, CLASSES, WINDOW = 40, 5, 64


def filmed(count: int, seed: int, classes: range = range(CLASSES), camera: float = 0.0) -> FrameStatistics:
    """Frames whose class moves all channels, in another way for each class, and whose camera brightens a few."""
    fixed = torch.Generator().manual_seed(0)
    of_class, of_camera = torch.randn(CLASSES, CHANNELS, generator=fixed), torch.randn(CHANNELS, generator=fixed)
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor(classes)[torch.randint(len(classes), (count,), generator=generator)]
    light = torch.randn(count, 1, generator=generator)  # of the scene: moves all channels alike
    first = of_class[labels] + light + torch.randn(count, CHANNELS, generator=generator) + camera * of_camera
    return FrameStatistics(first, first.square() + 0.5, labels)


@pytest.fixture(scope="module")
def baseline() -> Baseline:
    return learn_baseline(filmed(1500, seed=1), WINDOW, CLASSES)


def drifts(baseline: Baseline, **film) -> torch.Tensor:
    return torch.tensor([baseline.compare(filmed(WINDOW, seed=100 + n, **film)).drift for n in range(40)])


def test_new_healthy_windows_lie_within_a_few_standard_deviations(baseline):
    found = drifts(baseline)
    assert abs(float(found.mean())) < 1.5 and float(found.max()) < ALLOWANCE


def test_a_scene_of_one_class_is_no_drift_of_the_camera(baseline):
    states = [baseline.compare(filmed(WINDOW, seed=n, classes=range(2, 3))) for n in range(20)]
    assert max(state.drift for state in states) < 3 and all(state.known for state in states)
    assert min(state.content for state in states) > 1, "but it is unusual content"
    assert baseline.compare(filmed(WINDOW, seed=3)).content < 1.2


@pytest.mark.parametrize("classes", [range(CLASSES), range(2, 3)], ids=["all classes", "one class"])
def test_a_drift_of_the_camera_shows_whatever_is_in_view(baseline, classes):
    assert float(drifts(baseline, camera=0.6, classes=classes).min()) > 5


def test_content_that_no_healthy_frame_showed_is_not_known(baseline):
    narrow = learn_baseline(filmed(1000, seed=1, classes=range(2)), WINDOW, CLASSES)
    assert not narrow.compare(filmed(WINDOW, seed=5)).known
    assert narrow.compare(filmed(WINDOW, seed=5, classes=range(2))).known


def test_a_scene_of_a_class_that_was_hardly_seen_is_not_known_either():
    seldom = filmed(MIN_CLASS_FRAMES - 1, seed=2, classes=range(4, 5))
    baseline = learn_baseline(FrameStatistics.join([filmed(1000, seed=1, classes=range(4)), seldom]), WINDOW, CLASSES)
    assert not baseline.compare(filmed(WINDOW, seed=5, classes=range(4, 5))).known
    assert baseline.compare(filmed(WINDOW, seed=5, classes=range(4))).known


@pytest.mark.parametrize("different", [1, 2, 4, 8, 16, 32])
def test_a_camera_that_hardly_moves_is_no_drift(baseline, different):
    shown = torch.arange(WINDOW) * different // WINDOW
    windows = [filmed(different, seed=n)[shown] for n in range(200, 240)]
    found = torch.tensor([baseline.compare(window).drift for window in windows])
    assert float(found.mean()) < 1 and float((found > ALLOWANCE).float().mean()) < 0.1


def test_the_noise_of_a_camera_that_stands_still_is_no_new_content(baseline):
    for seed in range(20):
        still = filmed(1, seed=seed)[torch.zeros(WINDOW, dtype=torch.long)]
        noisy = still.first + 0.01 * torch.randn(WINDOW, CHANNELS, generator=torch.Generator().manual_seed(seed))
        assert baseline.compare(FrameStatistics(noisy, noisy.square() + 0.5, still.labels)).drift < ALLOWANCE


def test_a_drift_shows_on_slow_scenes_once_it_is_larger_than_what_scenes_do(baseline):
    shown = torch.arange(WINDOW) * 16 // WINDOW
    assert baseline.compare(filmed(16, seed=7, camera=1.5)[shown]).drift > 5


def test_a_larger_drift_is_never_taken_for_a_still_scene(baseline):
    found = [float(drifts(baseline, camera=camera).median()) for camera in (0.3, 0.6, 1.2, 4.0, 12.0)]
    assert found == sorted(found) and found[-1] > 15


def test_a_camera_that_sees_next_to_nothing_is_no_still_scene(baseline):
    """All frames are nearly the same, and like no healthy one."""
    dark = filmed(WINDOW, seed=5)
    first = 0.01 * dark.first + 5
    state = baseline.compare(FrameStatistics(first, first.square() + 0.01, dark.labels))
    assert state.drift > 10 and state.weight == 1


def test_a_network_of_many_classes_knows_its_own_content():
    """Each has a few healthy frames; none of them is a scene of its own."""
    frames = filmed(1000, seed=1)
    many = FrameStatistics(frames.first, frames.second, torch.arange(1000) % 400)
    baseline = learn_baseline(many, WINDOW, 400)
    states = [baseline.compare(many[torch.arange(n, n + WINDOW)]) for n in range(0, 900, 90)]
    assert all(state.known for state in states)


def test_windows_of_a_still_scene_weigh_next_to_nothing(baseline):
    weights = []
    for different in (1, 16, 64):
        shown = torch.arange(WINDOW) * different // WINDOW
        weights.append(baseline.compare(filmed(different, seed=3)[shown]).weight)
    assert weights[0] == (1 / 32) ** 2 and weights[0] < weights[1] < weights[2] == 1


def test_one_odd_frame_is_no_drift(baseline):
    odd = filmed(WINDOW, seed=8)
    odd.first[5] += 40
    odd.second[5] = odd.first[5].square() + 0.5
    assert baseline.compare(odd).drift < ALLOWANCE


def test_frames_of_which_the_network_is_not_certain_have_no_class():
    features = [torch.randn(3, 2, 4, 4)]
    reference = FeatureStatistics(("a",), (torch.zeros(2),), (torch.ones(2),))
    logits = torch.tensor([[0.0, 0.1, 0.0], [0.0, 5.0, 0.0], [3.0, 3.0, 0.0]])
    assert FrameStatistics.of(ImageMoments.of(features), logits, reference).labels.tolist() == [-1, 1, -1]


@given(st.integers(0, 2**32 - 1), st.integers(2, 64), st.floats(0.01, 100), st.floats(-100, 100))
@settings(max_examples=40, deadline=None)
def test_how_many_frames_are_different_does_not_depend_on_gain_and_offset(seed, count, gain, offset):
    """As a drift that acts on all frames alike has them."""
    frames = torch.randn(count, CHANNELS, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    found = different_frames(frames, torch.zeros(CHANNELS), torch.ones(CHANNELS))
    assert 1 <= float(found) <= count
    assert different_frames(
        gain * frames + offset, torch.full((CHANNELS,), offset), torch.full((CHANNELS,), gain**2)
    ).isclose(found, rtol=1e-3)


def test_frames_that_change_slowly_count_as_few():
    steps = torch.randn(WINDOW, CHANNELS, generator=torch.Generator().manual_seed(1))
    slow = torch.zeros_like(steps)
    for n in range(1, WINDOW):
        slow[n] = 0.9 * slow[n - 1] + steps[n] * (1 - 0.9**2) ** 0.5
    assert (
        2 < float(different_frames(slow, torch.zeros(CHANNELS), torch.ones(CHANNELS))) < 8
    )  # 64 * (1 - 0.9) / (1 + 0.9) = 3.4


def test_a_network_that_is_no_classifier_has_a_baseline_too():
    def unlabelled(count: int, **film) -> FrameStatistics:
        frames = filmed(count, **film)
        return FrameStatistics(frames.first, frames.second, torch.full((count,), -1))

    baseline = learn_baseline(unlabelled(2000, seed=1), WINDOW, 0)
    assert set(draw_scenes(unlabelled(200, seed=2), 2, 8, torch.Generator())) == {MIXED, "one light", "frames alike"}
    healthy, drifted = (baseline.compare(unlabelled(WINDOW, seed=9, camera=camera)) for camera in (0.0, 0.6))
    assert healthy.known and healthy.drift < 3 and drifted.drift > 5


def test_the_same_frames_always_lead_to_the_same_baseline(baseline):
    again = learn_baseline(filmed(1500, seed=1), WINDOW, CLASSES)
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in baseline.tensors().items())


@pytest.mark.parametrize(("count", "size"), [(MIN_HEALTHY_FRAMES - 1, WINDOW), (600, 151)])
def test_too_few_frames_are_refused(count, size):
    with pytest.raises(BaselineError, match="too few for a baseline: at least (512|604) are needed"):
        learn_baseline(filmed(count, seed=1), size, CLASSES)


def test_frames_all_the_same_make_no_baseline():
    with pytest.raises(BaselineError, match="the frames are all alike"):
        learn_baseline(filmed(1, seed=1)[torch.zeros(600, dtype=torch.long)], WINDOW, CLASSES)


# ---- statistics of frames


def test_the_statistics_of_a_window_are_those_of_its_pixels():
    features = [torch.randn(6, 3, 4, 4) * 2 + 1, torch.randn(6, 2)]
    reference = FeatureStatistics(("a", "b"), (torch.ones(3), torch.zeros(2)), (torch.full((3,), 4.0), torch.ones(2)))
    frames = FrameStatistics.of(ImageMoments.of(features), 9 * torch.eye(6), reference)
    pixels = features[0].transpose(0, 1).flatten(1)
    window = frames.window()
    assert torch.allclose(window[:3], (pixels.mean(1) - 1) / 2, atol=1e-5)
    assert torch.allclose(window[5:8], (pixels.var(1, correction=0) / 4).log() / 2, atol=1e-4)
    assert frames.labels.tolist() == [0, 1, 2, 3, 4, 5]
    assert torch.equal(frames.windows(torch.tensor([[0, 1, 2, 3, 4, 5]]))[0], window)


def test_a_deep_network_is_thinned_over_all_layers():
    features = [torch.randn(2, 1500), torch.randn(2, 600)]
    shape = (torch.zeros(1500), torch.zeros(600)), (torch.ones(1500), torch.ones(600))
    frames = FrameStatistics.of(ImageMoments.of(features), None, FeatureStatistics(("a", "b"), *shape))
    assert frames.first.shape == (2, MAX_CHANNELS) and frames.labels.tolist() == [-1, -1]
    assert torch.equal(frames.first[:, [0, -1]], torch.stack([features[0][:, 0], features[1][:, -1]], 1))


# ---- files


FORMAT = "baseline.unseen_limit"  # a file of an earlier format has none


def test_one_of_an_earlier_format_is_none(baseline):
    tensors = dict(baseline.tensors())
    del tensors[FORMAT]
    assert Baseline.of_tensors(tensors, CHANNELS, CLASSES) is None


def test_a_baseline_survives_a_file(baseline):
    again = Baseline.of_tensors(baseline.tensors(), CHANNELS, CLASSES)
    assert again is not None and again.compare(filmed(WINDOW, seed=4)) == baseline.compare(filmed(WINDOW, seed=4))
    assert Baseline.of_tensors({}, CHANNELS, CLASSES) is None


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_damaged_baseline_is_refused(baseline, data):
    tensors = dict(baseline.tensors())
    name = data.draw(st.sampled_from(sorted(tensors)))
    damage = data.draw(st.sampled_from(("missing", "shape", "nan", "type", "negative")))
    if damage == "missing":
        del tensors[data.draw(st.sampled_from(sorted(tensors.keys() - {FORMAT})))]
    elif damage == "shape":
        tensors[name] = torch.ones(7, 3)
    elif damage == "type":
        tensors[name] = torch.zeros_like(tensors[name], dtype=torch.long)
    elif damage == "nan":
        tensors[name] = torch.full_like(tensors[name], math.nan)
    else:
        name = data.draw(
            st.sampled_from(["unseen_limit", "variance", "spread", "content_spread", "content_limit", "size", "frames"])
        )
        tensors[f"baseline.{name}"] = -tensors[f"baseline.{name}"]
    with pytest.raises(ValueError, match="the baseline"):
        Baseline.of_tensors(tensors, CHANNELS, CLASSES)


@pytest.mark.parametrize(("channels", "classes"), [(CHANNELS + 1, CLASSES), (CHANNELS, CLASSES + 1)])
def test_a_baseline_of_another_network_is_refused(baseline, channels, classes):
    with pytest.raises(ValueError, match="other shapes"):
        Baseline.of_tensors(baseline.tensors(), channels, classes)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_frames_that_are_not_finite_are_no_healthy_ones(baseline, value):
    frames = filmed(WINDOW, seed=4)
    frames.first[3] = value
    assert math.isnan(baseline.compare(frames).drift)


@pytest.mark.parametrize("name", ["directions", "expected", "alike"])
def test_a_number_in_the_place_of_a_table_is_refused(baseline, name):
    with pytest.raises(ValueError, match="other shapes"):
        Baseline.of_tensors(baseline.tensors() | {f"baseline.{name}": torch.ones(())}, CHANNELS, CLASSES)


def test_new_frames_of_a_short_healthy_time_are_no_drift_either():
    """Frames lie nearer to a baseline that knows them than new ones will, which is no drift."""
    short = learn_baseline(filmed(MIN_HEALTHY_FRAMES, seed=1), WINDOW, CLASSES)
    assert float(drifts(short).median()) < 0, "what is expected is that of a baseline of even fewer frames"
