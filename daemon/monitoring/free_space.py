"""Measures the free space of the state directory in the background: a disk that hangs must not hold up a frame."""

from __future__ import annotations

import logging
import math
import shutil
from concurrent.futures import Executor
from pathlib import Path

from daemon.metrics import Metrics

log = logging.getLogger(__name__)


class FreeSpace:
    """`ask` queues one measurement at most; its values appear in the metrics when the disk has answered."""

    def __init__(self, directory: Path, metrics: Metrics, background: Executor):
        self._directory = directory
        self._metrics = metrics
        self._background = background
        self._asked = False
        self._export(math.nan, math.nan)

    def ask(self) -> None:
        """Measure in the background, unless an earlier measurement has not ended."""
        if not self._asked:
            self._asked = True
            self._background.submit(self._measure)

    def _measure(self) -> None:
        try:
            usage = shutil.disk_usage(self._directory)
        except OSError as error:  # the directory is gone: the audit writer tells it
            log.debug("%s: %s", self._directory, error)
            self._export(math.nan, math.nan)
        else:
            self._export(usage.free, usage.total)
        self._asked = False

    def _export(self, free: float, size: float) -> None:
        self._metrics.state_directory_free_bytes.set(free)
        self._metrics.state_directory_size_bytes.set(size)
