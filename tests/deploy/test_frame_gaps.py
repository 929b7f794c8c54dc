"""A proof takes its turns between frames: in a gap that holds it, else seldom; a camera that is still delays none."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

import pytest

from deploy import frame_gaps
from deploy.frame_gaps import FRAMES_BETWEEN_TURNS, FrameGaps


class Serving:
    """Frames that take `work_s` each, with `gap_s` in between, by a clock of its own."""

    def __init__(self, work_s: float, gap_s: float) -> None:
        self.now = 100.0
        self.gaps = FrameGaps(lambda: self.now)
        self._work_s, self._gap_s = work_s, gap_s

    def serve(self, frames: int = 1) -> None:
        for _ in range(frames):
            self.now += self._gap_s
            self.gaps.begin_frame()
            self.now += self._work_s
            self.gaps.end_frame()

    def turns_to_wait(self, monkeypatch: pytest.MonkeyPatch) -> int:
        """Wait for a turn, with a frame in each wait; return how many frames went by."""
        before = self.gaps._frames

        def wait(_: float) -> bool:
            self.serve()
            self.now += self._gap_s
            self.gaps.begin_frame()  # the next one has begun when the waiting thread runs again
            self.now -= self._gap_s
            return True

        monkeypatch.setattr(self.gaps._ended, "wait", wait)
        self.gaps.wait_for_turn()
        return self.gaps._frames - before


@pytest.mark.parametrize(
    ("work_s", "gap_s", "frames"),
    [(0.002, 0.03, 1), (0.002, 0.0031, 1), (0.002, 0.0029, 320), (0.002, 0.0, 320), (0.03, 0.0, 167), (6.0, 0.0, 1)],
)
def test_a_turn_comes_in_a_gap_that_is_long_enough_or_seldom_or_at_last(monkeypatch, work_s, gap_s, frames):
    serving = Serving(work_s, gap_s)
    serving.serve(3)
    assert FRAMES_BETWEEN_TURNS == 320 and frame_gaps.MAX_WAIT_S == 5.0
    assert serving.turns_to_wait(monkeypatch) == frames


def test_without_a_frame_so_far_nobody_waits():
    gaps = FrameGaps()
    gaps._ended = None  # type: ignore[assignment]
    gaps.wait_for_turn()


def test_a_camera_that_is_still_keeps_no_proof_waiting():
    gaps = FrameGaps(lambda: 0.0)  # no time passes that would end the wait
    gaps.begin_frame()
    gaps.end_frame()
    gaps.wait_for_turn()


def test_a_turn_follows_the_end_of_a_frame(monkeypatch):
    monkeypatch.setattr(frame_gaps, "QUIET_S", 60.0)
    monkeypatch.setattr(frame_gaps, "GAP_MARGIN", 0.0)
    gaps, order = FrameGaps(), []
    gaps.begin_frame()
    gaps.end_frame()
    proof = threading.Thread(target=_wait_for_turn(gaps, order))
    gaps.begin_frame()
    proof.start()
    time.sleep(0.05)
    order.append("frame")
    gaps.end_frame()
    proof.join()
    assert order == ["frame", "turn"]


def _wait_for_turn(gaps: FrameGaps, order: list[str]) -> Callable[[], None]:
    def wait() -> None:
        gaps.wait_for_turn()
        order.append("turn")

    return wait
