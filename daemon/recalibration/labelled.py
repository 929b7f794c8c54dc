"""Counts frames whose class a user knows: whether the network named that class, behind the ρ that serves now."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from calibrate.scoring.interval import wilson

MAX_ANSWERS = 10_000  # of one sensor that are remembered, the newest: 5 min at 30 frames a second, 2 MiB

RIGHT, WRONG, UNKNOWN, OUTDATED, REPEATED = "right", "wrong", "unknown", "outdated", "repeated"
COUNTED_RESULTS = (RIGHT, WRONG, UNKNOWN, OUTDATED)  # of the metric
LABEL_RESULTS = (*COUNTED_RESULTS, REPEATED)


class Accuracy(NamedTuple):
    """A share, 0 to 1, with the ends of its 95 % interval; NaN where nothing was counted."""

    value: float
    lower: float
    upper: float


class LabelCounts(NamedTuple):
    """How many labelled frames the network was right and wrong about."""

    right: int = 0
    wrong: int = 0

    @property
    def accuracy(self) -> Accuracy:
        """The share of right answers."""
        frames = self.right + self.wrong
        if frames == 0:
            return Accuracy(math.nan, math.nan, math.nan)
        return Accuracy(self.right / frames, *wilson(self.right, frames))


class LabelledFrames:
    """The newest answers of one sensor, and the counts of those that were labelled since the last swap.

    The frame thread alone changes it. Any thread may read `counts`, which is replaced as a whole.
    """

    def __init__(self) -> None:
        self.counts = LabelCounts()
        self._before_drift = LabelCounts()
        # By sequence number, the oldest first: class and version of ρ; None once the frame was counted. Plain tuples:
        # Python's search for garbage leaves them out.
        self._answers: OrderedDict[int, tuple[int | None, str] | None] = OrderedDict()

    @property
    def right(self) -> int:
        """Labelled frames that the network was right about, behind the ρ that serves now, since it came to serve."""
        return self.counts.right

    @property
    def wrong(self) -> int:
        """Those that it was wrong about."""
        return self.counts.wrong

    def answered(self, seq: int, answer: int | None, version: str) -> None:
        """Remember the class that a frame was given, None for none, and the ρ that was in front of the network.

        A number that is used again, as after a restart of the camera, means the newer frame.
        """
        self._answers.pop(seq, None)  # so that it counts as new
        self._answers[seq] = (answer, version)
        if len(self._answers) > MAX_ANSWERS:
            self._answers.popitem(last=False)

    def count(self, labels: Iterable[tuple[int, int]], serving: str) -> dict[str, int]:
        """Count frames by sequence number and true class; return how many had each of LABEL_RESULTS.

        serving: version of the ρ that serves now; frames behind another one are outdated. A frame counts once.
        """
        results = dict.fromkeys(LABEL_RESULTS, 0)
        for seq, label in labels:
            results[self._result(seq, label, serving)] += 1
        self.counts = LabelCounts(self.right + results[RIGHT], self.wrong + results[WRONG])
        return results

    def start_over(self) -> None:
        """Count from zero: another homogenizer serves. The answers stay known, so that none counts twice."""
        self.counts = self._before_drift = LabelCounts()

    def drifted(self) -> None:
        """Take in that the camera has changed: what was counted says nothing of the frames from now on."""
        self._before_drift = self.counts

    @property
    def since_drift(self) -> LabelCounts:
        """What was counted since the last swap and the last drift alarm."""
        counts, before = self.counts, self._before_drift
        return LabelCounts(max(0, counts.right - before.right), max(0, counts.wrong - before.wrong))

    def status(self) -> dict[str, int | float] | None:
        """Return the counts and the accuracy, 0 to 1, JSON-able; None where nothing was counted since the last swap."""
        counts = self.counts  # read once
        if counts == LabelCounts():
            return None
        value, lower, upper = (round(number, 6) for number in counts.accuracy)
        return {**counts._asdict(), "accuracy": value, "lower": lower, "upper": upper}

    def _result(self, seq: int, label: int, serving: str) -> str:
        if seq not in self._answers:
            return UNKNOWN
        known, self._answers[seq] = self._answers[seq], None
        if known is None:
            return REPEATED
        answer, version = known
        if version != serving:
            return OUTDATED
        return RIGHT if answer == label else WRONG
