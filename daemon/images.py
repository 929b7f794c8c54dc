"""Read pictures from a folder or an .npz file, for simulated cameras and for commissioning."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from calibrate.errors import RecaldError
from daemon.compressed import decode_file
from daemon.levels import PixelError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
Convert = Callable[[np.ndarray], np.ndarray]


class ImageError(RecaldError):
    """Pictures that cannot be read; the message names the file and says what to do."""


def load_images(
    path: Path, at_most: int | None = None, convert: Convert = lambda image: image
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return pictures (N, H, W, 3) RGB, uint8 or uint16, from a folder or an .npz file, and the labels (N,) of an .npz.

    They are decoded as frames are: an orientation in the file is not applied. Hidden files are no pictures.
    at_most: take so many pictures, evenly spaced over all of them. convert: is applied to each picture as it is read,
    so that large pictures need not be in memory together. Raises ImageError, also for a PixelError of `convert`.
    """
    if path.is_dir():
        return _load_folder(path, at_most, convert), None
    arrays = read_npz(path)
    if "images" not in arrays:
        raise ImageError(f"{path}: has no key 'images', only {', '.join(arrays) or 'nothing'}")
    images, labels = _colour(path, arrays["images"]), arrays.get("labels")
    if labels is not None and labels.shape != (len(images),):
        raise ImageError(f"{path}: {len(images)} images, but labels of shape {labels.shape}")
    kept = evenly_spaced(len(images), len(images) if at_most is None else at_most)
    converted = np.stack([_converted(path, images[i], convert) for i in kept])
    return converted, None if labels is None else labels[kept]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return every array of an .npz file, by name. Raises ImageError, also for an array that is a pickle."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        raise ImageError(f"{path}: is neither a folder of png, jpg or tif files nor an .npz file that is whole")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            arrays = {key: data[key] for key in data}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ImageError(f"{path}: cannot be read as .npz: {error}") from error
    return {key: array for key, array in arrays.items() if isinstance(array, np.ndarray)}


def evenly_spaced(count: int, at_most: int) -> np.ndarray:
    """Return evenly spaced indices below `count`, at most so many of them."""
    wanted = min(count, at_most)
    return np.arange(wanted) * count // wanted


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures of a folder in the order in which they are read. Raises ImageError where there are none."""
    files = sorted(file for file in folder.iterdir() if _is_picture(file))
    if not files:
        raise ImageError(f"{folder}: holds no png, jpg or tif file")
    return files


def _load_folder(path: Path, at_most: int | None, convert: Convert) -> np.ndarray:
    files = picture_files(path)
    if at_most is not None:
        files = [files[i] for i in evenly_spaced(len(files), at_most)]
    images, first = [], _load_file(files[0])
    for file in files:
        image = _load_file(file)
        _check_alike(file, image, files[0], first)
        images.append(_converted(file, image, convert))
    return np.stack(images)


def _is_picture(file: Path) -> bool:
    """Return whether the name is a picture's. macOS writes a ._IMG.jpg that is none beside each IMG.jpg."""
    return file.suffix.lower() in IMAGE_SUFFIXES and not file.name.startswith(".")


def _load_file(file: Path) -> np.ndarray:
    """Return the picture (H, W, 3) RGB, uint8 or uint16."""
    try:
        image = decode_file(file.read_bytes())
    except OSError as error:
        raise ImageError(f"{file}: cannot be read: {error.strerror}") from error
    except PixelError as error:
        raise ImageError(f"{file}: cannot be decoded: {error}; replace or remove it") from error
    if image.dtype not in (np.uint8, np.uint16):
        raise ImageError(f"{file}: holds {image.dtype} values; save it with 8 or 16 bits")
    return cv2.cvtColor(image, cv2.COLOR_GRAY2RGB) if image.ndim == 2 else np.ascontiguousarray(image)


def _check_alike(file: Path, image: np.ndarray, first_file: Path, first: np.ndarray) -> None:
    """Raise ImageError where a picture is not of the size and the depth of the first."""
    (height, width), (first_height, first_width) = image.shape[:2], first.shape[:2]
    if (height, width) != (first_height, first_width):
        raise ImageError(
            f"{file}: is {width}x{height}, but {first_file.name} is {first_width}x{first_height}: "
            "a camera has one size, scale them to it"
        )
    if image.dtype != first.dtype:
        raise ImageError(f"{file}: is {image.dtype}, but {first_file.name} is {first.dtype}: a camera has one depth")


def _converted(file: Path, image: np.ndarray, convert: Convert) -> np.ndarray:
    try:
        return convert(image)
    except PixelError as error:
        raise ImageError(f"{file}: {error}") from error


def _colour(path: Path, images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:  # grey, without a channel axis
        images = np.repeat(images[..., None], 3, axis=3)
    is_image = images.ndim == 4 and images.shape[3] == 3 and 0 not in images.shape
    if not is_image or images.dtype not in (np.uint8, np.uint16):
        raise ImageError(
            f"{path}: images must be uint8 or uint16 of shape (N, H, W, 3) or (N, H, W), "
            f"these are {images.dtype} of shape {images.shape}"
        )
    return images
