"""Raw payloads: the encodings of ROS, each against a picture that is known."""

import cv2
import numpy as np
import pytest

from daemon.levels import PixelError
from daemon.serving.pixels import RAW_LAYOUTS, check_raw_size, pack, unpack_raw

HEIGHT, WIDTH = 16, 24
# Smooth, so that neither mosaics nor shared colours lose anything; of three colours that differ everywhere.
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH]
PICTURE = np.stack([60 + 6 * COLUMNS, 200 - 5 * ROWS, 30 + 2 * (ROWS + COLUMNS)], 2).astype(np.uint8)
MOSAICS = {"rggb": [[0, 1], [1, 2]], "bggr": [[2, 1], [1, 0]], "gbrg": [[1, 2], [0, 1]], "grbg": [[1, 0], [2, 1]]}


def mosaic(picture: np.ndarray, first_pixels: str) -> np.ndarray:
    """What a sensor behind such a colour filter sees, (H, W): names of its first two rows, as in bayer_rggb8."""
    channel = np.tile(MOSAICS[first_pixels], (HEIGHT // 2, WIDTH // 2))
    return np.take_along_axis(picture, channel[:, :, None], 2)[:, :, 0]


def yuv_422(luma_first: bool) -> np.ndarray:
    """The picture as (H, W, 2): light of each pixel, colour of two in turn."""
    # OpenCV converts to all its YUV kinds but this from RGB; planar 4:2:0 gives light and colours of limited range.
    i420 = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2YUV_I420)
    light, colours = i420[:HEIGHT], i420[HEIGHT:].reshape(2, HEIGHT // 2, WIDTH // 2).repeat(2, 1)
    in_turn = colours.transpose(1, 2, 0).reshape(HEIGHT, WIDTH)
    return np.dstack([light, in_turn] if luma_first else [in_turn, light])


def yuv_420(blue_first: bool) -> np.ndarray:
    """The picture as (H * 3/2, W): the light, then colours of four pixels each in turn."""
    i420 = cv2.cvtColor(PICTURE, cv2.COLOR_RGB2YUV_I420)
    colours = i420[HEIGHT:].reshape(2, -1)[:: 1 if blue_first else -1]
    return np.vstack([i420[:HEIGHT], colours.T.reshape(HEIGHT // 2, WIDTH)])


def alpha(picture: np.ndarray) -> np.ndarray:
    return np.dstack([picture, np.full((HEIGHT, WIDTH), 77, picture.dtype)])


DEEP = PICTURE.astype(np.uint16) * 257
SENT = {  # by encoding: the array that is sent
    "rgba8": alpha(PICTURE),
    "bgra8": alpha(PICTURE[:, :, ::-1]),
    "rgb16": DEEP,
    "rgba16": alpha(DEEP),
    "bgra16": alpha(DEEP[:, :, ::-1]),
    "yuv422": yuv_422(luma_first=False),
    "uyvy": yuv_422(luma_first=False),
    "yuv422_yuy2": yuv_422(luma_first=True),
    "yuyv": yuv_422(luma_first=True),
    "nv12": yuv_420(blue_first=True),
    "nv21": yuv_420(blue_first=False),
} | {
    f"bayer_{name}{depth}": mosaic(picture, name)
    for name in MOSAICS
    for depth, picture in (("8", PICTURE), ("16", DEEP))
}


def unpacked(encoding: str, array: np.ndarray, padding: int = 0) -> np.ndarray:
    payload, step = pack(array, encoding)
    rows = np.frombuffer(payload, np.uint8).reshape(-1, step)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=99)
    check_raw_size(encoding, WIDTH, HEIGHT, step + padding, padded.size)
    return unpack_raw(memoryview(padded.tobytes()), encoding, WIDTH, HEIGHT, step + padding)


@pytest.mark.parametrize("padding", [0, 7])
@pytest.mark.parametrize("encoding", SENT)
def test_each_encoding_shows_the_picture_in_its_depth(encoding, padding):
    image = unpacked(encoding, SENT[encoding], padding)
    expected = DEEP if "16" in encoding else PICTURE
    assert image.dtype == expected.dtype and image.shape == expected.shape
    error = np.abs(image.astype(float) - expected) / (257 if image.dtype == np.uint16 else 1)
    if encoding.startswith("bayer"):
        assert error[2:-2, 2:-2].max() <= 6  # a border is guessed
    else:
        assert error.max() <= (0 if "rgb" in encoding or "bgr" in encoding else 10)  # two or four share their colour


def test_every_encoding_that_is_converted_was_looked_at():
    assert {encoding for encoding, layout in RAW_LAYOUTS.items() if layout.conversion} <= SENT.keys()


@pytest.mark.parametrize(
    ("encoding", "width", "height", "said"),
    [
        ("yuyv", 5, 4, "even width, not 5"),
        ("uyvy", 5, 4, "even width, not 5"),
        ("nv12", 5, 4, "even width, not 5"),
        ("nv12", 4, 5, "even height, not 5"),
        ("nv21", 4, 5, "even height, not 5"),
        ("bayer_rggb8", 2, 8, "3 x 3 pixels at least"),
        ("bayer_grbg16", 8, 2, "3 x 3 pixels at least"),
    ],
)
def test_a_size_that_the_encoding_cannot_have_is_refused(encoding, width, height, said):
    layout = RAW_LAYOUTS[encoding]
    step = width * layout.pixel_bytes
    with pytest.raises(PixelError, match=said) as caught:
        check_raw_size(encoding, width, height, step, step * layout.rows(height))
    assert caught.value.reason == "size"


def test_the_rows_of_colour_count():
    check_raw_size("nv12", 4, 4, 4, 24)
    with pytest.raises(PixelError, match=r"16 bytes of payload, step \* height \* 3/2 is 24"):
        check_raw_size("nv12", 4, 4, 4, 16)


def test_a_mosaic_may_have_odd_sides():
    check_raw_size("bayer_rggb8", 5, 3, 5, 15)
    image = unpack_raw(memoryview(bytes([77] * 15)), "bayer_rggb8", 5, 3, 5)
    assert image.shape == (3, 5, 3) and (image == 77).all()


ODD_ARRAYS = {
    "a row": np.zeros(9, np.uint8),
    "a number": np.array(3, np.uint8),
    "two channels": np.zeros((4, 4, 2), np.uint8),
    "five channels": np.zeros((4, 4, 5), np.uint8),
    "a stack": np.zeros((2, 4, 4, 3), np.uint8),
    "nothing": np.zeros((0, 4, 3), np.uint8),
    "no column": np.zeros((4, 0), np.uint8),
    "doubles": np.zeros((4, 4, 3)),
    "texts": np.full((4, 4), "a"),
}


@pytest.mark.parametrize("encoding", [*RAW_LAYOUTS, "jpeg", "png", "bmp"])
@pytest.mark.parametrize("image", ODD_ARRAYS.values(), ids=ODD_ARRAYS)
def test_what_an_encoding_cannot_hold_is_refused_in_one_line(image, encoding):
    if encoding in ("uyvy", "yuyv", "yuv422", "yuv422_yuy2") and image.shape == (4, 4, 2):
        return
    with pytest.raises(ValueError, match="cannot hold an image of shape") as caught:
        pack(image, encoding)
    assert str(caught.value).count("\n") == 0


def test_16_bits_do_not_become_8_in_a_jpeg():
    with pytest.raises(ValueError, match="jpeg cannot hold"):
        pack(DEEP, "jpeg")


def test_packing_a_size_that_the_encoding_cannot_have_is_refused():
    with pytest.raises(ValueError, match="even width"):
        pack(np.zeros((4, 5, 2), np.uint8), "uyvy")
    with pytest.raises(ValueError, match="3 x 3 pixels"):
        pack(np.zeros((2, 2), np.uint8), "bayer_rggb8")
