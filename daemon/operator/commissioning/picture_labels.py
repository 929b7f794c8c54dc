"""Read the true classes of clean pictures, for `recald commission --labels`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from calibrate.errors import RecaldError
from daemon.images import evenly_spaced, picture_files
from daemon.operator.label_lines import LabelFormat, read_label_lines

PICTURE_LABELS = LabelFormat("picture", "0001.png", 64 << 20, "pictures are at most --count: keep their lines alone")

ClassNumber = Callable[[str], int]  # of a class, by its name or its number; raises RecaldError


def read_picture_labels(
    path: Path, pictures: Path, at_most: int, stored: np.ndarray | None, class_number: ClassNumber
) -> np.ndarray:
    """Return the class numbers (N,) int64 of the pictures that daemon.images.load_images takes of a folder or .npz.

    path: a CSV file with a line `picture,label` for each picture of a folder, by the name of its file; for an .npz of
    pictures the same file. stored: its array `labels` for the pictures that are taken. Raises RecaldError.
    """
    if pictures.is_dir():
        return _of_files(path, pictures, at_most, class_number)
    if path.resolve() != pictures.resolve():
        raise RecaldError(f"{path}: the labels of {pictures.name} are its array labels: give --labels {pictures}")
    if stored is None or stored.dtype.kind not in "iu":
        found = "no array labels" if stored is None else f"labels of the type {stored.dtype}"
        raise RecaldError(f"{path}: has {found}; wanted are integers, one for each picture")
    for label in np.unique(stored):
        try:
            class_number(str(label))
        except RecaldError as error:
            raise RecaldError(f"{path}: labels: {error}") from error
    return stored.astype(np.int64)


def _of_files(path: Path, folder: Path, at_most: int, class_number: ClassNumber) -> np.ndarray:
    """Return the class numbers of the pictures that are taken of a folder, (N,)."""
    classes = _read_csv(path, class_number)
    files = picture_files(folder)
    names = [files[i].name for i in evenly_spaced(len(files), at_most)]
    missing = [name for name in names if name not in classes]
    if missing:
        raise RecaldError(
            f"{path}: has no class for {len(missing)} of the pictures, the first is {missing[0]}: add a line "
            f"{missing[0]},CLASS, or remove the picture"
        )
    return np.array([classes[name] for name in names])


def _read_csv(path: Path, class_number: ClassNumber) -> dict[str, int]:
    """Return the class numbers by the names of the files."""
    classes: dict[str, int] = {}
    for line, name, label in read_label_lines(path, PICTURE_LABELS):
        try:
            number = class_number(label)
        except RecaldError as error:
            raise RecaldError(f"{path}:{line}: {error}") from error
        if classes.setdefault(name, number) != number:
            raise RecaldError(f"{path}:{line}: {name} has another class on an earlier line: keep the right one")
    return classes
