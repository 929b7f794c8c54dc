"""Statistics of each class are exact for any chunks, and together give those of all frames."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate import FeatureStatistics
from calibrate.features.class_statistics import ClassStatistics, collect_statistics
from calibrate.features.taps import ForwardPass

COUNT, CLASSES = 24, 3
GENERATOR = torch.Generator().manual_seed(0)
FRAMES = torch.randn(COUNT, 2, 4, 3, generator=GENERATOR) * (1 + torch.arange(COUNT)).view(-1, 1, 1, 1)

labellings = st.permutations([*range(CLASSES), *(i % CLASSES for i in range(5)), *[0] * (COUNT - CLASSES - 5)])


class Pixels:
    """A feature map: the frames themselves and the mean of each channel. sizes: frames in each call."""

    names = ("pixels", "means")

    def __init__(self):
        self.sizes = []

    def __call__(self, frames):
        self.sizes.append(len(frames))
        return ForwardPass([frames, frames.mean((2, 3))], None)


def collect(labels=None, chunk=COUNT):
    return collect_statistics(Pixels(), FRAMES, labels, chunk=chunk)


@given(labellings, st.integers(1, COUNT))
def test_each_class_has_the_statistics_of_its_frames_under_any_chunking(labels, chunk):
    labels = torch.tensor(labels)
    found = collect(labels, chunk)
    assert len(found) == CLASSES and found.counts.tolist() == torch.bincount(labels).tolist()
    for label in range(CLASSES):
        variance, mean = torch.var_mean(FRAMES[labels == label].double(), dim=(0, 2, 3), correction=0)
        one_class = found.of(label)
        torch.testing.assert_close(one_class.means[0].double(), mean, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(one_class.variances[0].double(), variance, rtol=1e-4, atol=1e-4)


@given(labellings)
def test_weighted_by_their_counts_the_classes_are_all_frames(labels):
    found, plain = collect(torch.tensor(labels)), collect()
    share = found.counts / found.counts.sum()
    for means, variances, mean, variance in zip(
        found.means, found.variances, plain.means, plain.variances, strict=True
    ):
        torch.testing.assert_close(share @ means, mean, rtol=1e-4, atol=1e-4)
        within, between = share @ variances, share @ (means - mean).square()
        torch.testing.assert_close(within + between, variance, rtol=1e-3, atol=1e-3)


@given(st.integers(1, COUNT))
def test_without_labels_statistics_are_those_of_all_frames(chunk):
    found = collect(chunk=chunk)
    variance, mean = torch.var_mean(FRAMES.double(), dim=(0, 2, 3), correction=0)
    assert isinstance(found, FeatureStatistics) and found.names == Pixels.names
    torch.testing.assert_close(found.means[0].double(), mean, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.variances[0].double(), variance, rtol=1e-4, atol=1e-4)


def test_no_more_frames_than_a_chunk_go_through_at_once():
    pixels = Pixels()
    collect_statistics(pixels, FRAMES, chunk=10)
    assert pixels.sizes == [10, 10, 4]


def test_no_gradient_is_kept():
    frames = FRAMES.clone().requires_grad_()
    assert not collect_statistics(Pixels(), frames).means[0].requires_grad


def test_a_class_without_a_frame_is_refused_by_number():
    with pytest.raises(ValueError, match="no frame is of class 1"):
        collect(torch.tensor([0, 2] * (COUNT // 2)))


def test_labels_of_other_frames_are_refused():
    with pytest.raises(ValueError, match="24 frames need as many labels"):
        collect(torch.zeros(5, dtype=torch.long))


def test_no_frames_are_refused():
    with pytest.raises(ValueError, match="at least one frame"):
        collect_statistics(Pixels(), FRAMES[:0])


def test_statistics_that_are_not_finite_are_refused_by_name():
    broken = torch.tensor([[0.0], [torch.inf]])
    with pytest.raises(ValueError, match="'layer' are not finite"):
        ClassStatistics(("layer",), (broken,), (torch.ones(2, 1),), torch.tensor([1, 1]))
