"""Lets a child process of the daemon take only the processor time and memory that the daemon can spare."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path

CHILD_NICENESS = 10  # on a contended core, a thread of the daemon gets about nine times the share of such a child
CHILD_OOM_SCORE = 500  # where memory runs out, the kernel kills the child first and not the daemon
AUTOGROUP = Path("/proc/self/autogroup")

log = logging.getLogger(__name__)


def lower_priority() -> None:
    """Give this process a lower priority than its parent for processor time and memory.

    Call it in a process that leads a session of its own. Where Linux shares the processor between sessions first
    (autogroup, sched(7)), a process's niceness counts only within its session, and the session has one of its own.
    """
    os.nice(CHILD_NICENESS)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):  # no autogroups in this kernel, or /proc is read-only
            AUTOGROUP.write_text(str(CHILD_NICENESS))
    try:
        Path("/proc/self/oom_score_adj").write_text(str(CHILD_OOM_SCORE))
    except OSError as error:  # a container may show /proc read-only
        log.warning("if memory runs out, the kernel may kill the daemon before its child: %s", error)
