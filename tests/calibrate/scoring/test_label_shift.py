"""Few classes in view are told from a drift by where frames differ, and by what the network says of them."""

from dataclasses import replace

import pytest

from calibrate.scoring.accuracy import AccuracyProxy
from calibrate.scoring.drift import DriftScore
from calibrate.scoring.label_shift import has_label_shift

ONE_CLASS = AccuracyProxy(0.97, 0.95, top_share=0.9, confidence_error=0.01, classes=1.5, known=10)
LATE = DriftScore(3.0, (3.0, 2.0, 2.0, 3.0, 8.0))
EVERYWHERE = DriftScore(8.0, (9.0, 8.0, 7.0, 8.0, 9.0))


def test_a_scene_of_one_class_is_narrow():
    assert has_label_shift(LATE, ONE_CLASS)


@pytest.mark.parametrize(
    ("drift", "proxy"),
    [
        (EVERYWHERE, ONE_CLASS),  # a drift that makes the network call all alike, and surely
        (LATE, replace(ONE_CLASS, confidence=0.8)),
        (LATE, replace(ONE_CLASS, classes=5.0)),
        (LATE, replace(ONE_CLASS, classes=1.0, known=2)),  # one of two classes may be rare for ever
        (LATE, None),  # no classifier
    ],
)
def test_what_is_not(drift, proxy):
    assert not has_label_shift(drift, proxy)
