"""Statistics of another mix of classes follow from those of the classes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from calibrate import FitError, measure_clean, tap
from calibrate.features.class_statistics import collect_moments, collect_statistics
from calibrate.source.class_mix import MIN_MEASURED_FRAMES, CleanClasses, measure_classes
from calibrate.source.commissioned import CleanData

COUNTS = (40, 100, 160, MIN_MEASURED_FRAMES - 1)


@pytest.fixture(scope="module")
def taps():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.BatchNorm2d(4))
    return tap(network.eval())


@pytest.fixture(scope="module")
def labels() -> torch.Tensor:
    torch.manual_seed(1)
    return torch.repeat_interleave(torch.arange(4), torch.tensor(COUNTS))[torch.randperm(sum(COUNTS))]


@pytest.fixture(scope="module")
def frames(labels) -> torch.Tensor:
    """Classes differ in brightness and in contrast."""
    torch.manual_seed(2)
    level = labels.view(-1, 1, 1, 1)
    return (1 + 0.5 * level) * torch.randn(len(labels), 3, 12, 12) + 0.3 * level


def measured(taps, frames, labels) -> CleanClasses | None:
    return measure_classes(collect_moments(taps, frames), taps.names, labels)


@pytest.fixture(scope="module")
def classes(taps, frames, labels) -> CleanClasses:
    return measured(taps, frames, labels)


def test_a_mix_has_the_statistics_of_frames_of_that_mix(taps, frames, labels, classes):
    chosen = torch.cat([(labels == label).nonzero().flatten()[:count] for label, count in ((0, 30), (1, 90))])
    exact = collect_statistics(taps, frames[chosen])
    subset = measured(taps, frames[chosen], labels[chosen])
    mixed, count = subset.mixed({0: 0.25, 1: 0.75})
    for one, other in zip((*mixed.means, *mixed.variances), (*exact.means, *exact.variances), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-5)
    assert mixed.names == exact.names and not mixed.shipped and count == len(chosen)


def test_the_mix_of_a_rare_class_is_known_no_better_than_that_class(classes):
    assert classes.mixed({0: 1.0})[1] == 40
    assert classes.mixed({0: 0.5, 2: 0.5})[1] == 128  # 1 / (0.25 / 40 + 0.25 / 160)
    assert classes.mixed({2: 1.0, 3: 0.0})[1] == 160


def test_a_class_of_few_frames_has_no_statistics(classes):
    assert classes.numbers.tolist() == [0, 1, 2] and classes.statistics.counts.tolist() == [40, 100, 160]
    with pytest.raises(FitError, match="class 3 had fewer than 16 clean frames"):
        classes.mixed({0: 0.9, 3: 0.1})
    with pytest.raises(FitError, match="class 7"):
        classes.check({7: 1.0})
    classes.check({0: 0.4, 2: 0.6})
    with pytest.raises(FitError, match="as roughly as by 40 frames, since class 0 had 40 clean ones: 64 are needed"):
        classes.check({0: 1.0})


def test_no_class_has_enough_frames(taps, frames):
    assert measured(taps, frames[:20], torch.arange(20)) is None


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda shares: sum(shares) > 0.01))
def test_a_mixed_mean_lies_between_those_of_the_classes(classes, shares):
    mixed, count = classes.mixed(dict(enumerate(shares)))
    for mean, of_classes in zip(mixed.means, classes.statistics.means, strict=True):
        assert (mean <= of_classes.max(0).values + 1e-4).all() and (mean >= of_classes.min(0).values - 1e-4).all()
    assert all((variance >= 0).all() for variance in mixed.variances) and count >= 40


def test_clean_data_keeps_its_classes_and_its_source(taps, frames, labels):
    clean = measure_clean(taps, frames, labels)
    kept = CleanData.of_tensors(clean.tensors(), clean.frames, taps.reference, 3)
    assert torch.equal(kept.classes.numbers, clean.classes.numbers)
    mixed = kept.in_mix({2: 1.0})
    assert mixed.frames == 160 and mixed.source is kept.source and mixed.statistics is not kept.statistics
    assert torch.equal(mixed.statistics.means[0], clean.classes.statistics.means[0][2])

    plain = measure_clean(taps, frames)
    assert CleanData.of_tensors(plain.tensors(), plain.frames, taps.reference, 3).classes is None
    with pytest.raises(FitError, match="not measured class by class"):
        plain.in_mix({0: 1.0})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("class.counts", None),
        ("class.counts", torch.tensor([40, 100])),
        ("class.counts", torch.tensor([40, 100, 3])),
        ("class.counts", torch.tensor([40.0, 100.0, 160.0])),
        ("class.numbers", torch.tensor([0, 2, 1])),
        ("class.numbers", torch.tensor([-1, 1, 2])),
        ("class.numbers", torch.tensor([0.0, 1.0, 2.0])),
        ("class.numbers", torch.zeros(0, dtype=torch.int64)),
        ("class.numbers", torch.tensor(3)),
        ("class.mean.1", torch.zeros(3, 9)),
        ("class.variance.4", None),
        ("class.mean.4", torch.full((3, 4), torch.nan)),
    ],
)
def test_a_file_whose_classes_are_not_whole_is_refused(taps, frames, labels, name, value):
    tensors = measure_clean(taps, frames, labels).tensors()
    assert name in tensors
    if value is None:
        del tensors[name]
    else:
        tensors[name] = value
    with pytest.raises(ValueError):
        CleanData.of_tensors(tensors, 300, taps.reference, 3)
