"""Counts the classes that the model names, so that a camera that sees one class alone is noticed."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Mapping, Sequence

from prometheus_client import Counter

from daemon.metrics import Metrics

MAX_PREDICTED_LABELS = 64  # series of a sensor; a network of 1000 classes must not flood the scrape
OTHER_LABEL = "other"  # all classes that have no series of their own


def series_labels(class_count: int | None, names: Sequence[str] | None) -> list[str]:
    """Return the label of the series that each class counts in: its name where no other class has it, or its number.

    class_count: None for a network that is no classifier, which has none. Beyond MAX_PREDICTED_LABELS the classes with
    the highest numbers count as OTHER_LABEL.
    """
    count = class_count or 0
    own = count if count <= MAX_PREDICTED_LABELS else MAX_PREDICTED_LABELS - 1
    named = list(names or map(str, range(count)))
    taken = Tally([*named, OTHER_LABEL])
    labels = [name if taken[name] == 1 else _numbered(name, number, taken) for number, name in enumerate(named[:own])]
    return labels + [OTHER_LABEL] * (count - own)


def _numbered(name: str, number: int, taken: Mapping[str, int]) -> str:
    """Return the name with the number of its class behind it, twice where that is itself the name of a class."""
    while name in taken:
        name = f"{name} ({number})"
    return name


class PredictedLabels:
    """Counts on the frame thread: one look-up and one addition a frame."""

    def __init__(self, metrics: Metrics, class_count: int | None, names: Sequence[str] | None):
        self._metrics = metrics
        self._labels = series_labels(class_count, names)
        self._counters: dict[str, list[Counter]] = {}  # by sensor, one for each class

    def open(self, sensor: str) -> list[Counter]:
        """Make all series of a sensor exist, at 0; return the one that each class counts in."""
        counters = [self._metrics.predicted_frames.labels(sensor, label) for label in self._labels]
        self._counters[sensor] = counters
        return counters

    def count(self, sensor: str, label: int | None) -> None:
        """Count a frame. label: number of the class; None where the model named none."""
        counters = self._counters.get(sensor) or self.open(sensor)
        if label is not None and label < len(counters):
            counters[label].inc()
