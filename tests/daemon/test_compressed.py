import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daemon.compressed import MAX_PIXELS, decode_file, image_size, unpack_compressed
from daemon.levels import PixelError
from daemon.serving.pixels import pack

SMOOTH = cv2.resize(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8), (96, 64))
JPEG = pack(SMOOTH, "jpeg")[0]
PNG = pack(SMOOTH, "png")[0]


def refusal(data: bytes, width: int = 96, height: int = 64) -> str:
    with pytest.raises(PixelError) as caught:
        unpack_compressed(memoryview(data), width, height)
    return caught.value.reason


def test_jpeg_comes_back_close_and_in_order():
    decoded = unpack_compressed(memoryview(JPEG), 96, 64)
    assert np.abs(decoded.astype(int) - SMOOTH).mean() < 4
    assert np.abs(decoded[:, :, ::-1].astype(int) - SMOOTH).mean() > 20


@pytest.mark.parametrize("data", [JPEG, PNG])
def test_size_is_read_without_decoding(data):
    assert image_size(memoryview(data[:1000])) == (96, 64)


def progressive(image: np.ndarray) -> bytes:
    done, data = cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_PROGRESSIVE, 1])
    assert done
    return data.tobytes()


def test_a_progressive_jpeg_as_encoders_write_it_is_decoded():
    decoded = unpack_compressed(memoryview(progressive(SMOOTH)), 96, 64)
    assert np.abs(decoded.astype(int) - SMOOTH).mean() < 4


@pytest.mark.parametrize("start", [progressive(SMOOTH), JPEG], ids=["progressive", "baseline"])
def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(start, monkeypatch):
    monkeypatch.setattr("cv2.imdecode", None)
    scan = start[start.rindex(b"\xff\xda") : -2]
    assert refusal(start[:-2] + scan * 50_000 + start[-2:]) == "size"


def test_a_jpeg_that_never_states_its_size_is_refused_at_once():
    for filler in (b"\xff", b"\xff\x01", b"\xff\xe0\x00\x02"):
        began = time.process_time()
        assert refusal(b"\xff\xd8\xff" + filler * (16 << 20) + b"\xff\xd9") == "decode"
        assert time.process_time() - began < 1


@pytest.mark.parametrize("encoding", ["jpeg", "png"])
def test_grey_stays_grey(encoding):
    grey = SMOOTH[:, :, 1]
    assert unpack_compressed(memoryview(pack(grey, encoding)[0]), 96, 64).shape == (64, 96)


def test_16_bit_png_keeps_its_fine_steps():
    image = np.arange(96 * 64, dtype=np.uint16).reshape(64, 96)
    decoded = unpack_compressed(memoryview(pack(image, "png")[0]), 96, 64)
    assert decoded.dtype == np.uint16
    np.testing.assert_array_equal(decoded, image)


def test_png_transparency_is_dropped():
    done, data = cv2.imencode(".png", np.dstack([SMOOTH[:, :, ::-1], np.full((64, 96), 9, np.uint8)]))
    np.testing.assert_array_equal(unpack_compressed(memoryview(data.tobytes()), 96, 64), SMOOTH)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_truncated_jpeg_is_refused_before_opencv_could_fill_it_up(share, monkeypatch):
    monkeypatch.setattr("cv2.imdecode", None)
    assert refusal(JPEG[: int(len(JPEG) * share)]) == "decode"


@pytest.mark.parametrize("share", [0.01, 0.3, 0.6, 0.999])
def test_truncated_png_is_refused(share):
    assert refusal(PNG[: int(len(PNG) * share)]) == "decode"


FOLLOWED_BY = {
    "padding": b"\0" * 9000,
    "fill": b"\xff" * 500,
    "line end": b"\r\n",
    "camera trailer": b"dhav\x59\x19\x01\x00",
    "MJPEG boundary": b"\r\n--frame\r\nContent-Type: image/jpeg\r\n\r\n",
    "motion photo": b"\0\0\0\x18ftypmp42" + np.random.default_rng(0).bytes(100_000),
    "other scans": b"\xff\xda" * 50_000,
    "another picture": JPEG,
}


@pytest.mark.parametrize("rest", FOLLOWED_BY.values(), ids=FOLLOWED_BY)
@pytest.mark.parametrize("data", [JPEG, PNG, progressive(SMOOTH)], ids=["jpeg", "png", "progressive"])
def test_what_follows_a_whole_image_is_ignored(data, rest):
    whole = unpack_compressed(memoryview(data), 96, 64)
    np.testing.assert_array_equal(unpack_compressed(memoryview(data + rest), 96, 64), whole)


@pytest.mark.parametrize("rest", FOLLOWED_BY.values(), ids=FOLLOWED_BY)
@pytest.mark.parametrize("data", [JPEG, PNG, progressive(SMOOTH)], ids=["jpeg", "png", "progressive"])
def test_an_image_that_is_cut_short_is_refused_whatever_follows_it(data, rest):
    """Where a picture follows, its end must not be taken for the end of the first."""
    assert refusal(data[: len(data) * 2 // 3] + rest) == "decode"


@pytest.mark.parametrize("data", [JPEG, PNG])
def test_another_size_than_announced_is_refused(data):
    assert refusal(data, 64, 96) == "size"


def test_rotation_in_the_metadata_is_not_applied():
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + JPEG[2:]
    assert unpack_compressed(memoryview(turned), 96, 64).shape == (64, 96, 3)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize("announced", [(16384, 16384), (96, 64)])
def test_a_png_bomb_is_refused_before_it_is_decoded(announced, monkeypatch):
    width = height = 16384
    assert width * height > MAX_PIXELS
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    rows = zlib.compress(bytes((width // 8 + 1) * height), 9)
    bomb = start + png_chunk(b"IDAT", rows) + png_chunk(b"IEND", b"")
    assert len(bomb) < 100_000
    monkeypatch.setattr("cv2.imdecode", None)
    assert refusal(bomb, *announced) == "size"


def test_a_jpeg_that_never_states_its_size_is_refused():
    assert refusal(b"\xff\xd8" + b"\xff" * 5000 + b"\xff\xd9") == "decode"
    assert refusal(b"\xff\xd8\xff\xe0\x00\x00\xff\xd9") == "decode"


@settings(deadline=None)
@given(st.sampled_from([b"", JPEG[:2], JPEG[:300], PNG[:16], PNG[:60], b"II*\0", b"MM\0*"]), st.binary(max_size=400))
def test_any_bytes_are_a_picture_or_refused(start, rest):
    """Of a file too, which may be a TIFF."""
    for read in (decode_file, lambda data: unpack_compressed(memoryview(data), 96, 64)):
        try:
            assert read(start + rest).ndim in (2, 3)
        except PixelError as error:
            assert error.reason in ("decode", "size")


@settings(deadline=None)
@given(st.binary(max_size=64), st.sampled_from([JPEG, PNG]), st.integers(0, 400), st.integers(0, 64))
def test_damaged_images_decode_or_are_refused(noise, data, at, cut):
    damaged = data[:at] + noise + data[at + cut :]
    try:
        assert unpack_compressed(memoryview(damaged), 96, 64).shape[:2] == (64, 96)
    except PixelError as error:
        assert error.reason in ("decode", "size")
