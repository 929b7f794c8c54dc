"""Whether few classes fill the view: then frames are unlike the statistics of all classes, and nothing has drifted.

Classes show in the last layers. What happens to a camera shows in all of them, often most in the first.
"""

from __future__ import annotations

from statistics import median

from calibrate.scoring.accuracy import AccuracyProxy
from calibrate.scoring.drift import DriftScore

# Windows of 64 on CIFAR-10 and traffic signs: clean scenes of 1 to 3 classes have 1.0 to 4.6 effective classes, and a
# last layer that scores 2.0 to 7 times the median layer. Of frames of all classes under 11 drifts, those with 4
# effective classes or fewer (the network calls all alike, often surely) have 1.0 to 1.1 times.
FEW = 4.0  # effective classes
FEW_SHARE = 0.4  # of all that the network knows: of two classes one may always be rare
LATE = 1.75  # times the median layer's score
SURE = 0.85  # mean confidence: below it more is amiss than what is in view


def has_label_shift(drift: DriftScore, proxy: AccuracyProxy | None) -> bool:
    """Few classes fill the view, the network is sure of them, and the frames differ mostly where classes show."""
    if proxy is None or proxy.confidence < SURE or proxy.classes > min(FEW, FEW_SHARE * proxy.known):
        return False
    return drift.layers[-1] >= LATE * median(drift.layers)
