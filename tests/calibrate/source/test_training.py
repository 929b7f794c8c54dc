"""The first layer of a network tells mean colour, covariance and crop of its training frames."""

import pytest
import torch
from coloured import BLACK, COVARIANCE, MEAN, SHAPE, coloured, distance, network
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from calibrate import PaddedCrop, measured_source, tap
from calibrate.source.description import Source
from calibrate.source.training import detect_crop, pink_noise, shipped_source


class Shift(nn.Module):
    """A normalisation inside the network."""

    def forward(self, frames):
        return frames * 2 - 1


def shipped(module: nn.Module, crop: PaddedCrop | None = None) -> Source | None:
    return shipped_source(tap(module), SHAPE, crop=crop)


@pytest.fixture(scope="module")
def frames():
    return coloured(512, 0)


def test_the_description_has_the_same_bits_each_time(frames):
    """Whatever is in the memory that PyTorch takes: its default solver reads some of it."""
    taps, found = tap(network(frames)), []
    for number in range(8):
        rubbish = [torch.full((size,), number * 7 + 1, dtype=torch.int32) for size in range(1, 9)]
        del rubbish
        found.append(shipped_source(taps, SHAPE))
    assert all(torch.equal(source.mean, found[0].mean) for source in found)
    assert all(torch.equal(source.profile.density, found[0].profile.density) for source in found)


@pytest.mark.parametrize("exponent", [1.0, 2.0])
def test_mean_and_covariance_are_found_from_the_first_layers_statistics(exponent):
    frames = coloured(512, 1, exponent)
    found, true = shipped(network(frames)), measured_source(frames)
    assert torch.allclose(found.mean, MEAN, atol=0.05)
    assert distance(found.covariance, COVARIANCE) < 0.1
    assert distance(found.profile.density[0], true.profile.density[0]) < 0.3
    assert distance(found.profile.density[1:], true.profile.density[1:]) < 0.3


def test_a_strided_first_layer_is_enough(frames):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 8, 5, stride=2, bias=False), nn.BatchNorm2d(8, momentum=None))
    with torch.no_grad():
        module(frames)
    found = shipped(module.eval())
    assert torch.allclose(found.mean, MEAN, atol=0.08)
    assert distance(found.covariance, COVARIANCE) < 0.15


def test_one_channel_is_enough(frames):
    grey = frames[:, :1]
    true, taps = measured_source(grey), tap(network(grey))
    for source in (true, shipped_source(taps, (1, 16, 16))):
        assert source.mean.item() == pytest.approx(MEAN[0].item(), abs=0.05)
        assert source.covariance.shape == (1, 1)
        assert source.covariance.item() == pytest.approx(COVARIANCE[0, 0].item(), rel=0.1)
        assert source.profile.at(16, 16).shape == (16, 16, 1, 1)


def test_the_same_seed_gives_the_same_source(frames):
    first, second = shipped(network(frames)), shipped(network(frames))
    # Not to the last bit: the order of sums in a linear algebra library depends on memory addresses.
    torch.testing.assert_close(second.mean, first.mean, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(second.covariance, first.covariance, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("first", [nn.ReLU(), nn.MaxPool2d(2)])
def test_a_first_layer_that_is_not_linear_gives_no_source_and_no_crop(frames, first):
    cropped = PaddedCrop(2, BLACK)(frames)
    taps = tap(network(cropped, first, filters=24))
    assert shipped_source(taps, SHAPE) is None
    assert detect_crop(taps, SHAPE, torch.tensor(BLACK)) is None


def test_normalisation_before_the_first_layer_is_linear_too(frames):
    assert torch.allclose(shipped(network(frames, Shift())).mean, MEAN, atol=0.05)


def test_measured_frames_are_described_as_they_are(frames):
    found = measured_source(frames)
    assert torch.allclose(found.mean, MEAN, atol=0.05)
    assert distance(found.covariance, COVARIANCE) < 0.05
    assert distance(found.covariance, torch.cov(frames.transpose(0, 1).flatten(1))) < 1e-4
    spread = found.profile.at(16, 16).mean((0, 1))
    assert distance(spread, COVARIANCE) < 0.1  # the window weights the middle of a frame more


@pytest.mark.parametrize("fill", [BLACK, (2.0, -2.0, 0.0)])
@pytest.mark.parametrize("filters", [16, 32])
@pytest.mark.parametrize("before", [(), (Shift(),)])
def test_borders_of_any_colour_are_detected_in_the_statistics(frames, fill, filters, before):
    cropped = PaddedCrop(2, fill)(frames)
    found = detect_crop(tap(network(cropped, *before, filters=filters)), SHAPE, torch.tensor(fill))
    assert found.padding == 2
    assert found.fill == pytest.approx(fill)


def test_borders_of_random_crops_are_detected(frames):
    torch.manual_seed(3)
    crop, order = PaddedCrop(2, BLACK), torch.randint(10_000, (len(frames),)).tolist()
    cropped = torch.cat([crop(frame[None], first) for frame, first in zip(frames, order, strict=True)])
    assert detect_crop(tap(network(cropped, filters=16)), SHAPE, torch.tensor(BLACK)).padding == 2


@settings(max_examples=20)
@given(st.integers(0, 1000), st.sampled_from([16, 24, 40]))
def test_no_crop_is_detected_for_whole_frames(seed, filters):
    whole = coloured(256, seed)
    assert detect_crop(tap(network(whole, filters=filters)), SHAPE, torch.tensor(BLACK)) is None


def test_no_crop_is_detected_with_too_few_filters_or_too_small_frames(frames):
    cropped = PaddedCrop(2, BLACK)(frames)
    assert detect_crop(tap(network(cropped, filters=3)), SHAPE, torch.tensor(BLACK)) is None
    assert detect_crop(tap(network(cropped[..., :7], filters=24)), (3, 16, 7), torch.tensor(BLACK)) is None


def test_the_source_describes_the_frames_before_the_crop(frames):
    crop = PaddedCrop(2, BLACK)
    module = network(crop(frames), filters=24)
    found, naive = shipped(module, crop), shipped(module)
    assert torch.allclose(found.mean, MEAN, atol=0.06)
    assert distance(found.covariance, COVARIANCE) < 0.2
    assert not torch.allclose(naive.mean, MEAN, atol=0.2)
    assert distance(naive.covariance, COVARIANCE) > 2 * distance(found.covariance, COVARIANCE)


def test_the_detected_crop_is_as_good_as_the_true_one(frames):
    taps = tap(network(PaddedCrop(2, BLACK)(frames), filters=32))
    found = shipped_source(taps, SHAPE, crop=detect_crop(taps, SHAPE, torch.tensor(BLACK)))
    assert torch.allclose(found.mean, MEAN, atol=0.06)
    assert distance(found.covariance, COVARIANCE) < 0.2


@pytest.mark.parametrize("shape", [(16, 16), (9, 20)])
def test_pink_noise_has_unit_variance_and_no_mean(shape):
    noise = pink_noise(100, shape, 1.5, torch.Generator().manual_seed(0))
    assert noise.shape == (100, *shape)
    assert float(noise.mean()) == pytest.approx(0, abs=1e-5) and float(noise.std()) == pytest.approx(1, abs=1e-5)
