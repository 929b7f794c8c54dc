"""Pictures of folders and .npz files are read as frames are decoded, whoever reads them."""

import struct

import cv2
import numpy as np
import pytest

from daemon.compressed import unpack_compressed
from daemon.images import ImageError, load_images
from daemon.levels import PixelValues


def test_a_folder_is_read_in_the_order_of_names_as_rgb(tmp_path):
    for name, colour in (("b.png", (0, 0, 255)), ("a.PNG", (255, 0, 0)), ("notes.txt", None)):
        image = np.full((4, 5, 3), colour or 0, np.uint8)
        (tmp_path / name).write_bytes(cv2.imencode(".png", image)[1].tobytes())
    images, labels = load_images(tmp_path)
    assert images.shape == (2, 4, 5, 3) and labels is None
    assert (images[0] == [0, 0, 255]).all() and (images[1] == [255, 0, 0]).all()  # OpenCV wrote BGR


def test_an_npz_gives_images_and_labels_and_grey_becomes_colour(tmp_path):
    images = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
    np.savez(tmp_path / "set.npz", images=images, labels=np.array([7, 8]))
    loaded, labels = load_images(tmp_path / "set.npz")
    assert loaded.shape == (2, 3, 4, 3) and (loaded == images[..., None]).all()
    assert labels.tolist() == [7, 8]


def test_images_that_cannot_be_shown_are_refused_by_name(tmp_path):
    def refused(path, message):
        with pytest.raises(ImageError) as caught:
            load_images(path)
        assert str(path) in str(caught.value) and message in str(caught.value)

    def npz(name, **given):
        np.savez(tmp_path / name, **given)
        return tmp_path / name

    good = np.zeros((2, 4, 4, 3), np.uint8)
    refused(tmp_path / "absent", "neither a folder")
    refused(npz("nokey.npz", pixels=good), "no key 'images', only pixels")
    refused(npz("float.npz", images=good.astype(float)), "float64")
    refused(npz("empty.npz", images=good[:0]), "shape (0, 4, 4, 3)")
    refused(npz("labels.npz", images=good, labels=np.zeros(3)), "labels of shape (3,)")
    refused(npz("pickle.npz", images=np.array([{}], object)), "cannot be read")
    whole = npz("whole.npz", images=np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[:100])
    refused(tmp_path / "cut.npz", "nor an .npz file that is whole")
    (tmp_path / "bits.npz").write_bytes(whole.replace(b"\x10\x11\x12", b"\x10\xff\x12"))
    refused(tmp_path / "bits.npz", "cannot be read as .npz: Bad CRC-32")
    (folder := tmp_path / "folder").mkdir()
    refused(folder, "no png, jpg or tif")
    cv2.imwrite(str(folder / "a.png"), good[0])
    cv2.imwrite(str(folder / "b.png"), good[0, :2])
    with pytest.raises(ImageError, match=r"b.png: is 4x2, but a.png is 4x4"):
        load_images(folder)
    (folder / "b.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"b.png: cannot be decoded"):
        load_images(folder)


# ---- as frames are decoded

PICTURE = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 4, 3), dtype=np.uint8), (24, 16))
DEEP = PICTURE[:, :, 0].astype(np.uint16) * 200 + 3


def encoded(image, suffix=".jpg"):
    done, data = cv2.imencode(suffix, image if image.ndim == 2 else image[:, :, ::-1])
    assert done
    return data.tobytes()


def turned(jpeg, how):
    """The JPEG with an EXIF orientation, as telephones write it."""
    exif = b"Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0" + bytes([how]) + b"\0" * 6
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


@pytest.mark.parametrize("how", range(1, 9))
def test_an_orientation_in_a_file_is_applied_neither_here_nor_to_frames(tmp_path, how):
    data = turned(encoded(PICTURE), how)
    (tmp_path / "a.jpg").write_bytes(data)
    (read,), _ = load_images(tmp_path)
    assert read.shape == (16, 24, 3)
    np.testing.assert_array_equal(read, unpack_compressed(memoryview(data), 24, 16))


def test_files_that_a_mac_writes_beside_pictures_are_no_pictures(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(PICTURE, ".png"))
    (tmp_path / "._a.png").write_bytes(b"\0\5\x16\7" + b"\0" * 4000)
    (tmp_path / ".hidden.jpg").write_bytes(b"")
    assert load_images(tmp_path)[0].shape == (1, 16, 24, 3)


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("image", [DEEP, np.dstack([DEEP, DEEP // 2, DEEP // 3])], ids=["grey", "colour"])
def test_16_bits_are_read_as_such(tmp_path, suffix, image):
    (tmp_path / f"a{suffix}").write_bytes(encoded(image, suffix))
    (read,), _ = load_images(tmp_path)
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, image if image.ndim == 3 else np.dstack([image] * 3))


def test_a_picture_of_another_depth_is_refused_by_name(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(PICTURE, ".png"))
    (tmp_path / "b.png").write_bytes(encoded(DEEP, ".png"))
    with pytest.raises(ImageError, match=r"b.png: is uint16, but a.png is uint8: a camera has one depth"):
        load_images(tmp_path)


def test_a_picture_that_no_frame_could_be_is_refused_by_name(tmp_path):
    def refused(name, data, message):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ImageError) as caught:
            load_images(tmp_path)
        assert name in str(caught.value) and message in str(caught.value) and "\n" not in str(caught.value)
        (tmp_path / name).unlink()

    refused("cut.jpg", encoded(PICTURE)[:-20], "cut short; replace or remove it")
    refused("cut.png", encoded(PICTURE, ".png")[:-20], "cut short; replace or remove it")
    refused("empty.jpg", b"", "neither JPEG nor PNG")
    refused("float.tif", encoded(DEEP.astype(np.float32), ".tif"), "holds float32 values; save it with 8 or 16 bits")


@pytest.mark.parametrize("at_most", [None, 2])
def test_pictures_of_an_npz_are_converted_too(tmp_path, at_most):
    images = np.arange(3 * 4 * 5 * 3, dtype=np.uint8).reshape(3, 4, 5, 3)
    np.savez(tmp_path / "set.npz", images=images)
    read, _ = load_images(tmp_path / "set.npz", at_most, convert=lambda image: image[:2, :2])
    np.testing.assert_array_equal(read, images[[0, 1, 2] if at_most is None else [0, 1], :2, :2])


def test_a_picture_whose_values_have_too_many_bits_is_named(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(DEEP, ".png"))
    with pytest.raises(ImageError, match=r"a.png: the value \d+ has more than 12 bits"):
        load_images(tmp_path, convert=PixelValues(bits=12).to_full_range)
