"""A sequential test of windows of frames whose false alarms are as rare as asked for."""

from __future__ import annotations

import math

# A window adds TILT * (drift - ALLOWANCE) to the evidence, in nats. Over windows of one kind of scene the mean of
# exp(TILT * (drift - ALLOWANCE)) must be at most 1 for the run length to hold, whichever scene stays in view. In 51 h
# of replayed clean windows of CIFAR-10 (two networks), GTSRB, MNIST, X-rays (scenes of 10 s to 10 min of few classes,
# one class, one light or next to no motion), "1 per 90d" had 2 false alarms with 5 and 2.5, none with 5 and 2.75, and
# drifts were told sooner than with 4 and 3.
TILT = 5.0
ALLOWANCE = 2.75  # standard deviations
MIN_WINDOWS = 2  # above the allowance until an alarm: a single window may be a fault of its own


class RunLengthTest:
    """Raises an alarm when windows of frames lie beside the healthy ones, as fast as a false alarm's rate allows.

    A CUSUM (Page 1954) of the logarithms of e-values: the mean of their product over healthy windows is at most 1,
    so the mean number of healthy windows until a false alarm is at least exp(limit) (Lorden 1971; Shin, Ramdas &
    Rinaldo 2022, "E-detectors", theorem 2.4), for windows that depend on each other, too.
    """

    def __init__(self, windows: float):
        """windows: healthy ones on average until a false alarm, at least; more than 1."""
        self.limit = math.log(windows)
        self._evidence = 0.0
        self.alarm = False

    @property
    def evidence(self) -> float:
        """Return the evidence as a share of what raises the alarm, 0 to 1."""
        return self._evidence / self.limit

    def observe(self, drift: float, weight: float = 1.0) -> bool:
        """Take in one window's drift in standard deviations; return whether there is an alarm. NaN counts as drifted.

        weight: of the window as evidence, 0 to 1; the mean of a power of an e-value is at most 1, too. The alarm ends
        when the evidence is gone.
        """
        most = self.limit / MIN_WINDOWS
        gain = most if math.isnan(drift) else weight * min(TILT * (drift - ALLOWANCE), most)
        self._evidence = min(max(self._evidence + gain, 0.0), self.limit)
        self.alarm = self._evidence >= self.limit or (self.alarm and self._evidence > 0)
        return self.alarm

    def reset(self) -> None:
        """Start again without evidence."""
        self._evidence, self.alarm = 0.0, False
