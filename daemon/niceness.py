"""What a process does not to be in the way of the daemon, whose child it is."""

from __future__ import annotations

import logging
import os
from pathlib import Path

NICENESS = 10  # a serving thread gets about nine times this process's share of a contended core
OUT_OF_MEMORY_SCORE = 500  # where memory runs out, the kernel shall take the child and leave the daemon

log = logging.getLogger(__name__)


def step_back() -> None:
    """Leave processor and memory to the daemon wherever they are short."""
    os.nice(NICENESS)
    try:
        Path("/proc/self/oom_score_adj").write_text(str(OUT_OF_MEMORY_SCORE))
    except OSError as error:  # a container may show /proc read-only
        log.warning("if memory runs out, the daemon may be taken before its child: %s", error)
