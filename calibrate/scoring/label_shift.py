"""Detect a label shift: frames of few classes differ from statistics of all classes although nothing has drifted.

Classes change the last layers. A drift of the camera changes all layers, and often the first layers most.
"""

from __future__ import annotations

from statistics import median

from calibrate.scoring.accuracy import AccuracyProxy
from calibrate.scoring.drift import DriftScore

# Measured on windows of 64 frames of CIFAR-10 and of traffic signs. Clean scenes of 1 to 3 classes have 1.0 to 4.6
# effective classes, and the score of their last layer is 2.0 to 7 times that of the median layer. Among frames of all
# classes under 11 drifts, those with 4 effective classes or fewer (the network gives all one label, often with high
# confidence) have 1.0 to 1.1 times.
MAX_EFFECTIVE_CLASSES = 4.0  # effective number of predicted classes
MAX_EFFECTIVE_CLASS_SHARE = 0.4  # of the classes of the network: one of three may always be rare
MIN_LAST_LAYER_RATIO = 1.75  # drift score of the last layer, relative to that of the median layer
# A network of two classes gives all frames one label after many drifts, too. On X-rays the last layer then had 1.9
# times the score of the median layer at most, and in clean scenes of one class 2.4 times at least.
MAX_EFFECTIVE_OF_TWO_CLASSES = 1.4
MIN_LAST_LAYER_RATIO_OF_TWO_CLASSES = 2.2
# Score of the median layer: more is a drift, whatever is in view. Clean scenes of one class had 3.6 at most on digits,
# X-rays and CIFAR-10; overexposed digits, all of which got one label with confidence 1.00, had 7.3.
MAX_MEDIAN_LAYER = 6.0
MIN_CONFIDENCE = 0.85  # mean confidence; below it something other than the mix of classes is wrong


def has_label_shift(drift: DriftScore, proxy: AccuracyProxy | None) -> bool:
    """Return whether frames have few classes, high confidence, and most of their distance in the last layer.

    False for a network that is no classifier (no proxy).
    """
    if proxy is None or proxy.confidence < MIN_CONFIDENCE:
        return False
    last, middle = drift.layers[-1], median(drift.layers)
    if middle > MAX_MEDIAN_LAYER:
        return False
    if proxy.known == 2:
        return proxy.classes <= MAX_EFFECTIVE_OF_TWO_CLASSES and last >= MIN_LAST_LAYER_RATIO_OF_TWO_CLASSES * middle
    few = min(MAX_EFFECTIVE_CLASSES, MAX_EFFECTIVE_CLASS_SHARE * proxy.known)
    return proxy.classes <= few and last >= MIN_LAST_LAYER_RATIO * middle
