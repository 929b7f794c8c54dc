"""Run `recald run` with one change: a recalibration fits nothing, and the next stored homogenizer serves.

A fit takes half a minute, so a thousand swaps with fits would take a working day. Everything after a fit is the
daemon's own: loading from disk, the proof, the exchange between two frames, closing, the pointer on disk, the audit
log. There are no looks in the shadow or on probation, which would take seconds each.

The daemon's log has the times of each swap in lines like EXCHANGE_LINE and WAIT_LINE.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from daemon import loop
from daemon.cli import main
from daemon.recalibration import state_machine
from daemon.recalibration.controller import Controller
from daemon.recalibration.sensor import Sensor
from daemon.worker.client import WorkerClient
from daemon.worker.memory import MemoryLimit
from deploy.path import InferencePath, PreparedHomogenizer

EXCHANGE_LINE = "bench: the exchange took {:.1f} us"
WAIT_LINE = "bench: a swap kept the frame thread for {:.1f} us"

log = logging.getLogger(f"daemon.{__name__}")  # below "daemon", so that the daemon's log level holds for it


class StoredHomogenizers(WorkerClient):
    """Checks drift as any worker does, but answers a fit at once with the next stored homogenizer."""

    def __init__(self, model: Path, digest: str, backend: str, state: Path, *arguments: Any, **options: Any):
        super().__init__(model, digest, backend, state, *arguments, **options)
        self._versions = _stored_versions(state)

    def call(
        self,
        job: dict[str, Any],
        images: Sequence[np.ndarray],
        timeout: float,
        on_message: Callable[[dict[str, Any]], None] = lambda message: None,
        memory: MemoryLimit | None = None,
    ) -> dict[str, Any]:
        if job["job"] != "recalibrate":
            return super().call(job, images, timeout, on_message, memory)
        answer = {"result": "accepted", "reason": "the next stored homogenizer", "dossier": None}
        return answer | {"version": next(self._versions)}


class TimedController(Controller):
    """Logs how long a swap keeps the frame thread, with everything that follows it before the next frame."""

    def step(self, sensor: Sensor, now: float) -> None:
        before, began = sensor.path.version, time.perf_counter()
        super().step(sensor, now)
        seconds = time.perf_counter() - began
        if sensor.path.version != before:
            log.info(WAIT_LINE.format(1e6 * seconds))


class TimedPath(InferencePath):
    """Logs the pause of each exchange, as the path itself measures it."""

    def commit(self, prepared: PreparedHomogenizer) -> float:
        pause = super().commit(prepared)
        log.info(EXCHANGE_LINE.format(1e6 * pause))
        return pause


def _stored_versions(state: Path) -> Iterator[str]:
    """Yield the versions in the store, over and over; they are read when the first is needed."""
    manifests = sorted((state / "objects" / "sha256").glob("*/*.json"))
    yield from itertools.cycle(path.parent.name + path.stem for path in manifests)


# Module, name in it, replacement. `patch.object` raises where the name does not exist.
REPLACED: list[tuple[Any, str, Any]] = [
    (loop, "WorkerClient", StoredHomogenizers),
    (loop, "Controller", TimedController),
    (loop, "InferencePath", TimedPath),
    (state_machine, "MIN_COMPARISONS", 0),
]


def run(arguments: list[str]) -> int:
    """Run the daemon with these replacements; return its exit code."""
    with ExitStack() as patched:
        for module, name, replacement in REPLACED:
            patched.enter_context(patch.object(module, name, replacement))
        return main(["run", *arguments])


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
