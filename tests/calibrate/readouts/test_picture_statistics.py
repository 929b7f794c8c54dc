"""Statistics of pictures add up whatever the batches, keep the order of time, and damaged ones are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from scenes import scenes

from calibrate.readouts.picture_statistics import (
    BLOCKS,
    MIN_SIDE,
    PictureStatistics,
    folded_power,
    pixels_of_rings,
    squared_radius,
)

PICTURES = torch.from_numpy(scenes(64, 0))
CHANNELS = (1, 3)


def measured(*sizes: int) -> PictureStatistics:
    """Measure the first pictures in batches of these sizes."""
    parts = [PictureStatistics.of(batch) for batch in PICTURES[: sum(sizes)].split(list(sizes))]
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5))
def test_batches_add_up_to_the_whole(sizes):
    whole, parts = PictureStatistics.of(PICTURES[: sum(sizes)]), measured(*sizes)
    assert 1 <= len(parts.frames) <= BLOCKS
    for name, tensor in whole.tensors().items():
        torch.testing.assert_close(parts.tensors()[name].sum(0), tensor.sum(0), rtol=1e-5, atol=1e-2, msg=name)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=5))
def test_blocks_are_periods_in_order_of_time(sizes):
    statistics, first = measured(*sizes), 0
    for frames, total in zip(statistics.frames.int().tolist(), statistics.totals, strict=True):
        period = PICTURES[first : first + frames].permute(0, 3, 1, 2).float()
        torch.testing.assert_close(total, period.sum(0))
        first += frames
    assert first == sum(sizes)


def test_many_batches_leave_blocks_of_about_the_same_length():
    assert measured(16, 16).frames.tolist() == [4] * BLOCKS
    statistics = measured(*[2] * 32)
    assert len(statistics.frames) == BLOCKS and statistics.frames.max() <= 3 * statistics.frames.min()


@pytest.mark.parametrize("channels", CHANNELS)
def test_histograms_count_pixels_and_squares_of_pixels(channels):
    pictures = PICTURES[:8, ..., :channels]
    whole = PictureStatistics.of(pictures)
    counts = whole.histograms.sum(0)
    for colour in range(channels):
        for level in (0, 60, 110, 255):
            assert counts[0, colour, level] == (pictures[..., colour] == level).sum()
    assert counts.sum(2)[:, 0].tolist() == [8 * 32**2, 8 * 16**2, 8 * 8**2, 8 * 4**2]
    torch.testing.assert_close(whole.rings.sum((0, 1)), counts[0])


def test_rings_lie_around_the_middle():
    radius = squared_radius(20, 30).flatten()
    rings = [radius[pixels] for pixels in pixels_of_rings(20, 30)]
    assert all(inner.max() <= outer.min() for inner, outer in zip(rings[:-1], rings[1:], strict=True))
    assert radius.max() == pytest.approx(1) and sum(map(len, rings)) == 600


@pytest.mark.parametrize("sides", [(32, 32), (17, 24)])
def test_white_noise_has_its_variance_at_each_frequency(sides):
    noise = 5 * torch.randn(2000, *sides, generator=torch.Generator().manual_seed(0))
    power = folded_power(noise) / len(noise)
    assert power.shape == (sides[0] // 2 + 1, sides[1] // 2 + 1)
    torch.testing.assert_close(power, torch.full_like(power, 25), rtol=0.2, atol=0)


def test_floats_are_measured_like_whole_levels():
    whole, floats = PictureStatistics.of(PICTURES[:4]), PictureStatistics.of(PICTURES[:4].float())
    assert all(torch.equal(tensor, floats.tensors()[name]) for name, tensor in whole.tensors().items())


def test_a_file_keeps_everything():
    whole = PictureStatistics.of(PICTURES)
    again = PictureStatistics.of_tensors(load(save(whole.tensors())))
    assert all(torch.equal(tensor, again.tensors()[name]) for name, tensor in whole.tensors().items())


@pytest.mark.parametrize("name", PictureStatistics.of(PICTURES[:9]).tensors())
@pytest.mark.parametrize("damage", ["missing", "shape", "nan", "negative", "integers"])
def test_damaged_statistics_are_refused(name, damage):
    tensors = PictureStatistics.of(PICTURES[:9]).tensors()
    if damage == "missing":
        del tensors[name]
    else:
        changes = {"shape": lambda t: t[:-1], "nan": lambda t: t * torch.nan, "negative": lambda t: -t - 1}
        tensors[name] = changes.get(damage, lambda t: t.long())(tensors[name])
    with pytest.raises(ValueError, match="picture statistics"):
        PictureStatistics.of_tensors(tensors)


def test_a_block_without_pictures_is_refused():
    tensors = PictureStatistics.of(PICTURES[:9]).tensors()
    with pytest.raises(ValueError, match="without pictures"):
        PictureStatistics.of_tensors(tensors | {"frames": torch.zeros(8, dtype=torch.float64)})


@pytest.mark.parametrize(
    "pictures",
    [
        PICTURES[0],
        PICTURES[:0],
        PICTURES[..., :2],
        PICTURES.int(),
        PICTURES.float() * torch.nan,
        PICTURES[:, : MIN_SIDE - 1],
    ],
    ids=["one", "none", "two colours", "int32", "nan", "small"],
)
def test_other_pictures_are_refused(pictures):
    with pytest.raises(ValueError, match="pictures must be"):
        PictureStatistics.of(pictures)


def test_pictures_of_another_shape_are_not_added():
    with pytest.raises(ValueError, match="32x32 pixels in 3 colours and of 32x32 pixels in 1"):
        PictureStatistics.of(PICTURES[:2]) + PictureStatistics.of(PICTURES[:2, ..., :1])
