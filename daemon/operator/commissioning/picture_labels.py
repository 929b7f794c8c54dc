"""Read the true classes of clean pictures, for `recald commission --labels`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from calibrate.errors import RecaldError
from daemon.images import evenly_spaced, picture_files, read_npz
from daemon.operator.label_lines import LabelFormat, read_label_lines

PICTURE_LABELS = LabelFormat("picture", "0001.png", 64 << 20, "pictures are at most --count: keep their lines alone")

ClassNumber = Callable[[str], int]  # of a class, by its name or its number; raises RecaldError


def read_picture_labels(path: Path, pictures: Path, at_most: int, class_number: ClassNumber) -> np.ndarray:
    """Return the class numbers (N,) int64 of the pictures that daemon.images.load_images takes of a folder or .npz.

    path: a CSV file with a line `picture,label` for each picture of a folder, by the name of its file; or an .npz file
    with an array `labels`, for an .npz of pictures usually the same. Raises RecaldError.
    """
    if pictures.is_dir():
        classes = _read_csv(path, class_number)
        files = picture_files(pictures)
        names = [files[i].name for i in evenly_spaced(len(files), at_most)]
        missing = [name for name in names if name not in classes]
        if missing:
            raise RecaldError(
                f"{path}: has no class for {len(missing)} of the pictures, the first is {missing[0]}: add a line "
                f"{missing[0]},CLASS, or remove the picture"
            )
        return np.array([classes[name] for name in names])
    return _read_array(path, len(read_npz(pictures).get("images", ())), at_most, class_number)


def _read_csv(path: Path, class_number: ClassNumber) -> dict[str, int]:
    """Return the class numbers by the names of the files."""
    if path.suffix == ".npz":
        raise RecaldError(f"{path}: labels of a folder are a CSV file with a line picture,label for each picture")
    classes: dict[str, int] = {}
    for line, name, label in read_label_lines(path, PICTURE_LABELS):
        try:
            classes[name] = class_number(label)
        except RecaldError as error:
            raise RecaldError(f"{path}:{line}: {error}") from error
    return classes


def _read_array(path: Path, count: int, at_most: int, class_number: ClassNumber) -> np.ndarray:
    """Return the labels of so many pictures out of an .npz file."""
    labels = read_npz(path).get("labels")
    if labels is None or labels.shape != (count,) or labels.dtype.kind not in "iu":
        found = "no array labels" if labels is None else f"labels of shape {labels.shape} and type {labels.dtype}"
        raise RecaldError(f"{path}: has {found}; wanted are {count} integers, one for each picture")
    kept = labels[evenly_spaced(count, at_most)]
    for label in np.unique(kept):
        try:
            class_number(str(label))
        except RecaldError as error:
            raise RecaldError(f"{path}: labels: {error}") from error
    return kept.astype(np.int64)
