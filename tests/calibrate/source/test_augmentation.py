"""A padded crop adds borders of one colour, covers all places evenly, and places the crop by the frame's index."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from calibrate import PaddedCrop
from calibrate.source.augmentation import augment

FILL = (-3.0, 7.0)
HEIGHT, WIDTH = 9, 12

paddings, counts, firsts = st.integers(1, 4), st.integers(1, 20), st.integers(0, 2000)


def noise(count: int) -> torch.Tensor:
    return torch.randn(count, 2, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))


def places(padding: int, count: int, first: int = 0) -> list[tuple[int, int]]:
    """Top and left corner of each crop in the padded frame, read from frames whose pixels hold their own place."""
    y, x = torch.meshgrid(torch.arange(HEIGHT), torch.arange(WIDTH), indexing="ij")
    frames = torch.stack([y, x]).float().expand(count, -1, -1, -1)
    middle = PaddedCrop(padding, (-100.0, -100.0))(frames, first)[:, :, HEIGHT // 2, WIDTH // 2]
    corner = middle - torch.tensor([HEIGHT // 2, WIDTH // 2]) + padding
    return [(int(top), int(left)) for top, left in corner.round().tolist()]


@given(paddings, counts, firsts)
def test_each_frame_is_cut_from_the_padded_one(padding, count, first):
    frames = noise(count)
    cropped = PaddedCrop(padding, FILL)(frames, first)
    assert cropped.shape == frames.shape and cropped.dtype == frames.dtype
    for frame, found, (top, left) in zip(frames, cropped, places(padding, count, first), strict=True):
        channels = zip(frame, FILL, strict=True)
        padded = torch.stack([F.pad(channel, (padding,) * 4, value=fill) for channel, fill in channels])
        torch.testing.assert_close(found, padded[:, top : top + HEIGHT, left : left + WIDTH])


@pytest.mark.parametrize("padding", [1, 3])
def test_only_a_crop_at_the_centre_changes_nothing(padding):
    frames = noise(400)
    cropped = PaddedCrop(padding, FILL)(frames)
    same = [torch.allclose(frame, crop, atol=1e-5) for frame, crop in zip(frames, cropped, strict=True)]
    assert same == [place == (padding, padding) for place in places(padding, 400)]
    assert any(same)


@given(paddings, firsts)
def test_every_place_occurs_evenly_from_any_index_on(padding, first):
    side, each = 2 * padding + 1, 20
    found = places(padding, each * side**2, first)
    times = {place: found.count(place) for place in set(found)}
    assert set(times) == {(top, left) for top in range(side) for left in range(side)}
    assert 0.5 * each < min(times.values()) <= max(times.values()) < 1.5 * each


@given(paddings, st.integers(1, 19))
def test_a_frame_is_cropped_alike_in_any_chunk(padding, size):
    crop, frames = PaddedCrop(padding, FILL), noise(20)
    chunks = [crop(chunk, first) for first, chunk in zip(range(0, 20, size), frames.split(size), strict=True)]
    assert torch.equal(torch.cat(chunks), crop(frames))


def test_a_border_has_exactly_the_fill_colour():
    cropped = PaddedCrop(2, FILL)(torch.zeros(100, 2, HEIGHT, WIDTH))
    outside = [(top < 2, left < 2) for top, left in places(2, 100)]
    for frame, (above, beside) in zip(cropped, outside, strict=True):
        assert (frame[:, 0, 6].tolist() == list(FILL)) == above
        assert (frame[:, 4, 0].tolist() == list(FILL)) == beside


def test_gradients_reach_the_pixels_inside_the_crop():
    frames = noise(30).requires_grad_()
    PaddedCrop(2, FILL)(frames).sum().backward()
    for gradient, (top, left) in zip(frames.grad, places(2, 30), strict=True):
        assert gradient.sum() == 2 * (HEIGHT - abs(top - 2)) * (WIDTH - abs(left - 2))


@pytest.mark.parametrize("padding", [0, -2])
def test_less_than_a_pixel_of_padding_is_refused(padding):
    with pytest.raises(ValueError, match=f"at least 1 pixel, got {padding}"):
        PaddedCrop(padding, FILL)


def test_without_a_crop_the_frames_are_the_same():
    frames = noise(3)
    assert augment(None, frames) is frames
    assert torch.equal(augment(PaddedCrop(1, FILL), frames, 5), PaddedCrop(1, FILL)(frames, 5))
