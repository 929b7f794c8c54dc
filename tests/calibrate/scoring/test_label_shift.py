"""A label shift differs from a drift by its layers, by the confidence and by the number of classes."""

from dataclasses import replace

import pytest

from calibrate.scoring.accuracy import AccuracyProxy
from calibrate.scoring.drift import DriftScore
from calibrate.scoring.label_shift import has_label_shift

ONE_CLASS = AccuracyProxy(0.97, 0.95, top_share=0.9, confidence_error=0.01, classes=1.5, known=10)
LAST_LAYER = DriftScore(3.0, (3.0, 2.0, 2.0, 3.0, 8.0))
ALL_LAYERS = DriftScore(8.0, (9.0, 8.0, 7.0, 8.0, 9.0))


def test_a_scene_of_one_class_is_a_label_shift():
    assert has_label_shift(LAST_LAYER, ONE_CLASS)
    assert has_label_shift(LAST_LAYER, replace(ONE_CLASS, classes=1.1, known=2))


@pytest.mark.parametrize(
    ("drift", "proxy"),
    [
        (ALL_LAYERS, ONE_CLASS),  # a drift after which the network gives all frames one label, with high confidence
        (LAST_LAYER, replace(ONE_CLASS, confidence=0.8)),
        (LAST_LAYER, replace(ONE_CLASS, classes=5.0)),
        (LAST_LAYER, replace(ONE_CLASS, classes=1.5, known=2)),  # one of two classes may always be rare
        (DriftScore(6.5, (6.0, 6.4, 6.4, 6.6, 12.0)), replace(ONE_CLASS, classes=1.0, known=2)),  # blind by a drift
        (DriftScore(9.9, (6.3, 7.0, 7.3, 8.0, 19.2)), ONE_CLASS),  # too far away in all layers for any clean scene
        (LAST_LAYER, None),  # no classifier
    ],
)
def test_anything_else_is_no_label_shift(drift, proxy):
    assert not has_label_shift(drift, proxy)
