"""Read pictures from a folder or an .npz file, for simulated cameras and for commissioning."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

from calibrate.errors import RecaldError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")
Convert = Callable[[np.ndarray], np.ndarray]


class ImageError(RecaldError):
    """Pictures that cannot be read; the message names the file and says what to do."""


def load_images(
    path: Path, at_most: int | None = None, convert: Convert = lambda image: image
) -> tuple[np.ndarray, np.ndarray | None]:
    """Return pictures (N, H, W, 3) uint8 RGB from a folder or an .npz file, and labels (N,) where the .npz has them.

    at_most: take so many pictures, evenly spaced over all of them. convert: with at_most, is applied to each picture as
    it is read, so that large pictures need not be in memory together. Raises ImageError.
    """
    if path.is_dir():
        return _load_folder(path, at_most, convert), None
    arrays = read_npz(path)
    if "images" not in arrays:
        raise ImageError(f"{path}: has no key 'images', only {', '.join(arrays) or 'nothing'}")
    images, labels = _colour(path, arrays["images"]), arrays.get("labels")
    if labels is not None and labels.shape != (len(images),):
        raise ImageError(f"{path}: {len(images)} images, but labels of shape {labels.shape}")
    if at_most is None:
        return images, labels
    kept = evenly_spaced(len(images), at_most)
    return np.stack([convert(images[i]) for i in kept]), None if labels is None else labels[kept]


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """Return every array of an .npz file, by name. Raises ImageError, also for an array that is a pickle."""
    if path.suffix != ".npz" or not zipfile.is_zipfile(path):
        raise ImageError(f"{path}: is neither a folder of png or jpg files nor an .npz file that is whole")
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


def _load_folder(path: Path, at_most: int | None, convert: Convert) -> np.ndarray:
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ImageError(f"{path}: holds no png or jpg file")
    if at_most is not None:
        files = [files[i] for i in evenly_spaced(len(files), at_most)]
    images, (height, width) = [], _load_file(files[0]).shape[:2]
    for file in files:
        image = _load_file(file)
        if image.shape[:2] != (height, width):
            raise ImageError(
                f"{file}: is {image.shape[1]}x{image.shape[0]}, but {files[0].name} is {width}x{height}: "
                "a camera has one size, scale them to it"
            )
        images.append(convert(image))
    return np.stack(images)


def _load_file(file: Path) -> np.ndarray:
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise ImageError(f"{file}: cannot be decoded; replace or remove it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def _colour(path: Path, images: np.ndarray) -> np.ndarray:
    if images.ndim == 3:  # grey, without a channel axis
        images = np.repeat(images[..., None], 3, axis=3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3 or 0 in images.shape:
        raise ImageError(
            f"{path}: images must be uint8 of shape (N, H, W, 3) or (N, H, W), "
            f"these are {images.dtype} of shape {images.shape}"
        )
    return images
