"""The sequence numbers of one sensor: which gaps are frames that were lost, and which are no gaps of one camera."""

from __future__ import annotations

from typing import NamedTuple

# Between two frames no camera takes more than this, by its own clock or by the time of arrival. A larger step is
# no loss: time stamps as numbers, a number that was damaged, two senders with one id.
MAX_FRAMES_PER_S = 1000


class SequenceStep(NamedTuple):
    """What the number of a frame says about the frames before it.

    missed: how many were lost. jump: why the number does not follow the one before, "" where it does.
    """

    missed: int = 0
    jump: str = ""


class SequenceCheck:
    """Fed with each frame of one sensor, in the order of their arrival."""

    def __init__(self) -> None:
        self._last: tuple[int, int, float] | None = None

    def step(self, seq: int, timestamp: int, received: float) -> SequenceStep:
        """Take the next frame. timestamp: acquisition, ns. received: monotonic clock, s."""
        last, self._last = self._last, (seq, timestamp, received)
        if last is None or seq == last[0]:  # imagezmq has no numbers: all are 0
            return SequenceStep()
        skipped = seq - last[0] - 1
        if skipped < 0:
            return SequenceStep(jump=f"number {seq} came after {last[0]}: the camera started again, or two send as one")
        elapsed_s = max((timestamp - last[1]) / 1e9, received - last[2])
        if skipped > 1 + MAX_FRAMES_PER_S * elapsed_s:
            text = f"number {seq} came {elapsed_s:.3f} s after {last[0]}: are these time stamps, or do two send as one?"
            return SequenceStep(jump=text)
        return SequenceStep(missed=skipped)
