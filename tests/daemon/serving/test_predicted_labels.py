"""Each class that the model names counts in a series of its own, up to a limit, and exists at 0 before."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from daemon.metrics import Metrics
from daemon.serving.predicted_labels import MAX_PREDICTED_LABELS, OTHER_LABEL, PredictedLabels, series_labels


class Counted:
    def __init__(self, class_count: int | None, names: list[str] | None = None) -> None:
        self.registry = CollectorRegistry()
        self.predicted = PredictedLabels(Metrics(self.registry), class_count, names)

    def of(self, sensor: str) -> dict[str, float]:
        (family,) = (f for f in self.registry.collect() if f.name == "recald_predicted_frames")
        totals = [s for s in family.samples if s.name.endswith("_total") and s.labels["sensor"] == sensor]
        return {sample.labels["label"]: sample.value for sample in totals}


def test_classes_count_by_name_and_by_sensor_from_0():
    counted = Counted(3, ["cat", "dog", "owl"])
    counted.predicted.open("front")
    assert counted.of("front") == {"cat": 0, "dog": 0, "owl": 0} and counted.of("rear") == {}
    for label in (1, 1, 2, None, 3):  # a number that is no class counts nowhere
        counted.predicted.count("front", label)
    counted.predicted.count("rear", 0)
    assert counted.of("front") == {"cat": 0, "dog": 2, "owl": 1}
    assert counted.of("rear") == {"cat": 1, "dog": 0, "owl": 0}


@pytest.mark.parametrize("classes", [MAX_PREDICTED_LABELS, MAX_PREDICTED_LABELS + 1, 1000])
def test_a_network_of_many_classes_has_64_series(classes):
    counted = Counted(classes)
    counted.predicted.open("front")
    assert len(counted.of("front")) == MAX_PREDICTED_LABELS
    assert (OTHER_LABEL in counted.of("front")) is (classes > MAX_PREDICTED_LABELS)
    for label in range(classes):
        counted.predicted.count("front", label)
    series = counted.of("front")
    assert sum(series.values()) == classes
    assert series.pop(OTHER_LABEL, 1) == classes - len(series) or classes == MAX_PREDICTED_LABELS
    assert set(series.values()) == {1}


def test_two_classes_of_one_name_are_told_apart():
    assert series_labels(4, ["crane", "owl", "crane", OTHER_LABEL]) == ["crane (0)", "owl", "crane (2)", "other (3)"]
    many = ["crane", *map(str, range(MAX_PREDICTED_LABELS)), "crane"]
    assert series_labels(len(many), many)[0] == "crane (0)"


def test_a_number_behind_a_name_makes_no_name_of_another_class():
    assert series_labels(3, ["a", "a", "a (0)"]) == ["a (0) (0)", "a (1)", "a (0)"]
    labels = series_labels(6, ["a", "a (0)", "a", "a (0)", "a (0) (0)", "a"])
    assert len({*labels}) == 6, labels


def test_a_network_that_is_no_classifier_has_no_series():
    counted = Counted(None)
    counted.predicted.open("front")
    counted.predicted.count("front", None)
    assert counted.of("front") == {}
