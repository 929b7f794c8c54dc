"""Read CSV files of labels: on each line what is labelled, and its class."""

from __future__ import annotations

import csv
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from calibrate.errors import RecaldError
from deploy.files import read_regular


class LabelLine(NamedTuple):
    """A line of a file, numbered from 1: what is labelled, and its class."""

    line: int
    key: str
    label: str


class LabelFormat(NamedTuple):
    """What the lines of a file are.

    key: name of the first column; the second is `label`. example: of a key. largest: file, bytes. too_large: what to do
    with a larger one.
    """

    key: str
    example: str
    largest: int
    too_large: str


def read_label_lines(path: Path, expected: LabelFormat) -> list[LabelLine]:
    """Return the lines of a CSV file, one at least. Raises RecaldError with the line of the first mistake.

    The line of the columns' names may come first; empty lines are left out.
    """
    lines = list(_lines(path, expected))
    if not lines:
        raise RecaldError(f"{path}: holds no labels: write lines such as {expected.example},cat")
    return lines


def _lines(path: Path, expected: LabelFormat) -> Iterator[LabelLine]:
    for number, line in enumerate(_read_text(path, expected).split("\n"), 1):
        cells = _cells(path, number, line)
        if not cells or (number == 1 and [cell.lower() for cell in cells] == [expected.key, "label"]):
            continue
        if len(cells) != 2:
            advice = f"write {expected.key},label, such as {expected.example},cat, and put a name that holds a comma in"
            raise RecaldError(f"{path}:{number}: has {len(cells)} column(s): {advice} quotes")
        yield LabelLine(number, *cells)


def _cells(path: Path, number: int, line: str) -> list[str]:
    """Return the columns of a line. Each line is read alone, so that a quote cannot swallow others."""
    if not line.strip():
        return []
    try:
        return [cell.strip() for cell in next(csv.reader([line.strip()], strict=True, skipinitialspace=True))]
    except csv.Error as error:
        raise RecaldError(f"{path}:{number}: no line of a CSV file: {error}") from error


def _read_text(path: Path, expected: LabelFormat) -> str:
    try:
        return read_regular(path, expected.largest).decode("utf-8-sig")  # spreadsheets write a byte order mark
    except UnicodeDecodeError as error:
        raise RecaldError(f"{path}: not UTF-8 text at byte {error.start}: save it as CSV in UTF-8") from error
    except OSError as error:
        advice = f": {expected.too_large}" if error.errno == errno.EFBIG else ""
        raise RecaldError(f"{path}: the labels cannot be read: {error.strerror}{advice}") from error
