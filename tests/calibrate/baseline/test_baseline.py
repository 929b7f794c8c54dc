"""A baseline tells a changed camera from changed content, is the same for the same frames, and survives a file."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from calibrate.baseline.baseline import Baseline
from calibrate.baseline.frames import MAX_CHANNELS, FrameStatistics
from calibrate.baseline.learning import MIN_HEALTHY_FRAMES, BaselineError, learn_baseline
from calibrate.baseline.scenes import MIXED, draw_scenes
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
    assert abs(float(found.mean())) < 1 and float(found.max()) < 3.5


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
    with pytest.raises(BaselineError, match="the frames are all the same"):
        learn_baseline(filmed(1, seed=1)[torch.zeros(600, dtype=torch.long)], WINDOW, CLASSES)


# ---- statistics of frames


def test_the_statistics_of_a_window_are_those_of_its_pixels():
    features = [torch.randn(6, 3, 4, 4) * 2 + 1, torch.randn(6, 2)]
    reference = FeatureStatistics(("a", "b"), (torch.ones(3), torch.zeros(2)), (torch.full((3,), 4.0), torch.ones(2)))
    frames = FrameStatistics.of(ImageMoments.of(features), torch.eye(6), reference)
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
        del tensors[name]
    elif damage == "shape":
        tensors[name] = torch.ones(7, 3)
    elif damage == "type":
        tensors[name] = torch.zeros_like(tensors[name], dtype=torch.long)
    elif damage == "nan":
        tensors[name] = torch.full_like(tensors[name], math.nan)
    else:
        name = data.draw(st.sampled_from(["spread", "content_spread", "content_limit", "size", "frames"]))
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


@pytest.mark.parametrize("name", ["directions", "expected"])
def test_a_number_in_the_place_of_a_table_is_refused(baseline, name):
    with pytest.raises(ValueError, match="other shapes"):
        Baseline.of_tensors(baseline.tensors() | {f"baseline.{name}": torch.ones(())}, CHANNELS, CLASSES)


def test_new_frames_of_a_short_healthy_time_are_no_drift_either():
    """Frames lie nearer to a baseline that knows them than new ones will, which is no drift."""
    short = learn_baseline(filmed(MIN_HEALTHY_FRAMES, seed=1), WINDOW, CLASSES)
    assert float(drifts(short).median()) < 0, "what is expected is that of a baseline of even fewer frames"
