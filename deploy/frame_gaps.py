"""Find moments between two frames for other work that needs what frames need: Φ, and the GPU."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

# A gap is long enough if the work of one frame fits into it this many times: the next frame may be early.
GAP_MARGIN = 1.5
# Frames to let pass where no gap is long enough: a turn delays one or two, which is less than 1 % of them.
FRAMES_BETWEEN_TURNS = 320
MAX_WAIT_S = 5.0  # for a turn, so that a proof ends behind a network that takes long
QUIET_S = 0.05  # without a frame: none is delayed


class FrameGaps:
    """The frame thread notes its frames here and never waits. Any other thread can wait for its turn."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self._clock = clock
        self._ended = threading.Event()
        self._frames = 0
        self._begin, self._end = -math.inf, -math.inf
        self._frame_s, self._gap_s = 0.0, math.inf  # of the last frame that ended, and before the last that began

    def begin_frame(self) -> None:
        """Note that a frame begins."""
        self._begin = self._clock()
        self._gap_s = self._begin - self._end

    def end_frame(self) -> None:
        """Note that a frame ends."""
        self._end = self._clock()
        self._frame_s = self._end - self._begin
        self._frames += 1
        self._ended.set()

    def wait_for_turn(self) -> None:
        """Wait until a frame has ended after which work as long as a frame's delays no other, or hardly any."""
        if not self._frames:
            return
        first, deadline = self._frames, self._clock() + MAX_WAIT_S
        while self._clock() < deadline:
            self._ended.clear()
            if not self._ended.wait(QUIET_S) or self._is_turn(self._frames - first):
                return

    def _is_turn(self, waited: int) -> bool:
        # Not from `_begin` and `_end`: the next frame may have begun by now.
        return self._gap_s >= GAP_MARGIN * self._frame_s or waited >= FRAMES_BETWEEN_TURNS
