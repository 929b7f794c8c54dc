import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.model.preprocess import Preprocessor
from daemon.serving.message import build_frame, decode, parse_frame
from deploy.model.card import InputCard, ModelCard, Normalisation

MEAN, STD = [0.48, 0.45, 0.4], [0.22, 0.23, 0.25]
IMAGE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)


def preprocessor(channels: int, height: int, width: int) -> Preprocessor:
    card = ModelCard(
        v=1,
        name="test",
        sha256="0" * 64,
        input=InputCard(channels=channels, height=height, width=width),
        normalisation=Normalisation(mean=MEAN[:channels], std=STD[:channels]),
        classes=None,
        exported={},
    )
    return Preprocessor(card)


def test_an_image_of_the_right_size_is_copied_not_kept():
    image = preprocessor(3, 16, 24).to_input_image(IMAGE)
    np.testing.assert_array_equal(image, IMAGE)
    assert not np.shares_memory(image, IMAGE)


@pytest.mark.parametrize("image", [IMAGE[:, :, ::-1], IMAGE[:, :, 0]], ids=["reversed", "grey"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_view_in_any_order_is_copied_too(image, channels):
    assert not np.shares_memory(preprocessor(channels, 16, 24).to_input_image(image), IMAGE)


@pytest.mark.parametrize("size", [(16, 24), (4, 6), (32, 48)])
@pytest.mark.parametrize("channels", [1, 3])
def test_channels_that_run_backwards_in_memory_are_recognised(channels, size):
    backwards = np.ascontiguousarray(IMAGE[:, :, ::-1])[:, :, ::-1]  # the same picture, blue first
    expected = preprocessor(channels, *size).to_input_image(IMAGE)
    np.testing.assert_array_equal(preprocessor(channels, *size).to_input_image(backwards), expected)


def test_16_bits_stay_16():
    image = np.array([[0, 128], [129, 65535]], np.uint16)
    given = preprocessor(1, 2, 2).to_input_image(image)
    assert given.dtype == np.uint16
    np.testing.assert_array_equal(given[:, :, 0], image)
    shrunk = preprocessor(3, 1, 1).to_input_image(image)
    assert shrunk.dtype == np.uint16 and (shrunk == (0 + 128 + 129 + 65535) // 4).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_every_depth_means_the_same_to_the_model(channels):
    """A value and its neighbour differ by one 65,535th; the same picture in 8, 16 bits and floats is the same input."""
    prepare = preprocessor(channels, 16, 24)
    eight = prepare.to_input_image(IMAGE)
    expected = prepare.normalise(eight[None])
    deep = IMAGE.astype(np.uint16) * 257
    for image in (deep, IMAGE.astype(np.float32)):
        given = prepare.to_input_image(image)
        assert given.dtype == image.dtype
        np.testing.assert_allclose(prepare.normalise(given[None]), expected, atol=0.01 if channels == 1 else 2e-6)
    black, step, white = (
        float(prepare.normalise(np.full((1, 16, 24, channels), value, np.uint16))[0, 0, 0, 0])
        for value in (0, 1, 65535)
    )
    assert (black, white) == pytest.approx((-MEAN[0] / STD[0], (1 - MEAN[0]) / STD[0]), abs=1e-6)
    assert step - black == pytest.approx(1 / 65535 / STD[0], rel=0.02)


def test_bytes_are_normalised_as_ever_to_the_last_bit():
    """The certified path: (v / 255 - mean) / std as one multiplication and one addition in float32."""
    images = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    scale, offset = np.float32(1 / (255 * STD[0])), np.float32(-MEAN[0] / STD[0])
    expected = images.transpose(0, 3, 1, 2) * scale + offset
    assert preprocessor(1, 16, 16).normalise(images).tobytes() == expected.tobytes()


@pytest.fixture
def peak():
    """Return what a call allocates at most, in bytes; numpy's and OpenCV's arrays count."""
    tracemalloc.start()

    def peak(call: Callable[[], object]) -> int:
        before = tracemalloc.get_traced_memory()[0]
        tracemalloc.reset_peak()
        call()
        return tracemalloc.get_traced_memory()[1] - before

    yield peak
    tracemalloc.stop()


HEIGHT, WIDTH = 540, 960
PICTURE = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


@pytest.mark.parametrize(
    ("encoding", "image", "needed"),  # bytes of buffers as large as the frame
    [
        ("rgb8", PICTURE, 0),
        ("bgr8", PICTURE, 0),
        ("mono8", PICTURE[:, :, 0], 0),
        ("mono16", PICTURE[:, :, 0].astype(np.uint16), 0),
        ("32FC3", PICTURE.astype("<f4"), 4 * PICTURE.size),  # clipped before it is averaged
        ("32FC3-bgr", PICTURE.astype("<f4"), 4 * PICTURE.size),
        ("jpeg", PICTURE, PICTURE.size),  # what is decoded must be somewhere
        ("png", PICTURE, PICTURE.size),
        ("png", PICTURE.astype(np.uint16), 2 * PICTURE.size),
    ],
)
def test_no_frame_is_copied_without_need_up_to_the_input(encoding, image, needed, peak):
    parts = build_frame("front", image, seq=0, timestamp=0, encoding=encoding)
    prepare = preprocessor(3, 32, 32)

    def way() -> None:
        frame = parse_frame(parts, sensors={"front"}, now_ns=0, received=0.0, max_age=1.0)
        prepare.normalise(prepare.to_input_image(decode(frame))[np.newaxis])

    assert needed <= peak(way) < needed + HEIGHT * WIDTH / 2


def test_shrinking_averages_areas():
    image = preprocessor(3, 4, 6).to_input_image(IMAGE)
    blocks = IMAGE.reshape(4, 4, 6, 4, 3).mean(axis=(1, 3))
    assert np.abs(image - blocks).max() <= 0.5


def test_growing_stays_within_the_range_of_the_image():
    image = preprocessor(1, 64, 96).to_input_image(IMAGE[:, :, 0])
    assert image.shape == (64, 96, 1)
    assert IMAGE[:, :, 0].min() <= image.min() and image.max() <= IMAGE[:, :, 0].max()


def test_grey_becomes_three_equal_channels():
    image = preprocessor(3, 16, 24).to_input_image(IMAGE[:, :, 0])
    np.testing.assert_array_equal(image, np.dstack([IMAGE[:, :, 0]] * 3))


def test_colour_becomes_luminance_in_the_order_rgb():
    image = preprocessor(1, 16, 24).to_input_image(IMAGE)
    assert np.abs(image[:, :, 0] - IMAGE @ [0.299, 0.587, 0.114]).max() <= 1


def test_float_images_stay_floats_and_are_held_in_range():
    image = np.array([[-3.0, 0.4], [127.6, 300.0]], np.float32)
    kept = preprocessor(1, 2, 2).to_input_image(image)
    assert kept.dtype == np.float32 and not np.shares_memory(kept, image)
    np.testing.assert_array_equal(kept[:, :, 0], np.float32([[0, 0.4], [127.6, 255]]))


def test_padded_read_only_rows_are_accepted():
    padded = np.zeros((16, 30, 3), np.uint8)
    padded[:, :24] = IMAGE
    padded.flags.writeable = False
    for shape in [(16, 24), (8, 12)]:
        given = preprocessor(3, *shape).to_input_image(padded[:, :24])
        np.testing.assert_array_equal(given, preprocessor(3, *shape).to_input_image(IMAGE))


@settings(deadline=None)
@given(
    st.sampled_from([1, 3]),
    st.sampled_from([np.uint8, np.uint16, np.float32]),
    *[st.integers(1, 40)] * 4,
)
def test_any_image_comes_out_as_the_card_says(channels, dtype, height, width, in_height, in_width):
    image = preprocessor(channels, height, width).to_input_image(np.full((in_height, in_width), 77, dtype))
    assert image.shape == (height, width, channels) and image.dtype == dtype
    np.testing.assert_allclose(image, 77, rtol=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_follows_the_card(channels):
    images = np.stack([IMAGE, IMAGE[::-1]])[..., :channels]
    normalised = preprocessor(channels, 16, 24).normalise(images)
    expected = (images / 255 - MEAN[:channels]) / STD[:channels]
    assert normalised.dtype == np.float32 and normalised.flags.c_contiguous
    np.testing.assert_allclose(normalised, expected.transpose(0, 3, 1, 2), atol=2e-6)
