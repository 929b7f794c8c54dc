"""Read the true classes that a user gives for served frames, by name or by number, and refuse what is no class."""

from __future__ import annotations

import reprlib
from collections import defaultdict
from collections.abc import Sequence

from calibrate.errors import RecaldError

MAX_LABELS = 2000  # in one request: to count them keeps a frame waiting for 0.5 ms
MAX_NUMBER_DIGITS = 9  # of a class number that is given as text; no network has more classes
NO_CLASSES = "the network is no classifier (output: none on its card): its frames have no class to compare with"


class LabelError(RecaldError):
    """A label that is refused, and all of its request with it. entry: its place in the request, from 0."""

    def __init__(self, message: str, entry: int) -> None:
        super().__init__(message)
        self.entry = entry


class ClassNames:
    """The classes of the model, by name or number. Any thread may use it."""

    def __init__(self, class_count: int | None, names: Sequence[str] | None) -> None:
        """class_count: None for a network that is no classifier. names: of the classes; None: the card has none."""
        self._class_count = class_count
        self._names = names or []
        self._numbers: dict[str, list[int]] = defaultdict(list)  # by name; ImageNet has names of two classes
        for number, name in enumerate(self._names):
            self._numbers[name].append(number)

    def check(self) -> None:
        """Raise RecaldError where the network is no classifier."""
        if self._class_count is None:
            raise RecaldError(NO_CLASSES)

    def number(self, label: object) -> int:
        """Return the number of a class, from its name, else its number. Raises RecaldError for what is no class."""
        self.check()
        numbers = self._numbers.get(label, []) if isinstance(label, str) else []
        if len(numbers) > 1:
            several = " or ".join(map(str, numbers))
            raise RecaldError(f"{len(numbers)} classes are named {reprlib.repr(label)}: give the number {several}")
        number = numbers[0] if numbers else _number(label)
        if number is None or not 0 <= number < (self._class_count or 0):
            raise RecaldError(f"{reprlib.repr(label)} is no class of the model: give {self._choice()}")
        return number

    def _choice(self) -> str:
        name = f"a name of its card, such as {self._names[0]!r}, or " if self._names else ""
        return f"{name}a number from 0 to {(self._class_count or 0) - 1}"


class LabelReader:
    """Reads the labels of requests. Any thread may use it."""

    def __init__(self, classes: ClassNames) -> None:
        self._classes = classes

    def read(self, labels: object) -> list[tuple[int, int]]:
        """Return (sequence number, class number) of each entry [seq, label] of a request.

        A label is the name of a class, else its number. Raises LabelError for the first entry that is wrong, and
        RecaldError where all are: then none may be counted.
        """
        self._classes.check()
        if not isinstance(labels, list) or not 1 <= len(labels) <= MAX_LABELS:
            raise RecaldError(f'labels must be a list of 1 to {MAX_LABELS} entries [seq, label], such as [[17, "cat"]]')
        return [self._entry(entry, place) for place, entry in enumerate(labels)]

    def _entry(self, entry: object, place: int) -> tuple[int, int]:
        if not isinstance(entry, list) or len(entry) != 2:
            raise LabelError(f"an entry must be [seq, label], got {reprlib.repr(entry)}", place)
        seq, label = entry
        if type(seq) is not int or seq < 0:  # isinstance would let true pass as 1
            raise LabelError(f"seq must be an integer from 0 on, got {reprlib.repr(seq)}", place)
        try:
            return seq, self._classes.number(label)
        except RecaldError as error:
            raise LabelError(str(error), place) from error


def _number(label: object) -> int | None:
    """Return the class number that a label is, or None."""
    if isinstance(label, str):
        is_number = label.isascii() and label.isdigit() and len(label) <= MAX_NUMBER_DIGITS
        return int(label) if is_number else None
    return label if type(label) is int else None
