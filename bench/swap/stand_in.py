"""`recald run` as it is, but that a recalibration fits nothing: it lets the next of the stored homogenizers serve.

A fit takes half a minute, so that a thousand swaps would take a working day. All that follows a fit is the
daemon's own: loading what is stored, the proof, the exchange between two frames, closing, the pointer on disk, the
audit log. Nothing is looked at in the shadow or on probation, which would take seconds each.
"""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np

from daemon.cli import main
from daemon.recalibration.controller import Controller
from daemon.recalibration.sensor import Sensor
from daemon.worker.client import WorkerClient

log = logging.getLogger(f"daemon.{__name__}")  # said as loudly as what the daemon says


class Shelf(WorkerClient):
    """Checks drift like any worker, but a fit is answered at once."""

    def __init__(self, model: Path, backend: str, state: Path, threads: int):
        super().__init__(model, backend, state, threads)
        self._versions = _stored(state)

    def call(
        self,
        job: dict[str, Any],
        images: np.ndarray,
        timeout: float,
        on_message: Callable[[dict[str, Any]], None] = lambda message: None,
    ) -> dict[str, Any]:
        if job["job"] != "recalibrate":
            return super().call(job, images, timeout, on_message)
        answer = {"result": "accepted", "reason": "the next on the shelf", "dossier": None}
        return answer | {"version": next(self._versions)}


class TimedUpkeep(Controller):
    """Says how long a swap kept the frame thread, with all that follows it before the next frame."""

    def step(self, sensor: Sensor, now: float) -> None:
        before, began = sensor.path.version, time.perf_counter()
        super().step(sensor, now)
        taken = time.perf_counter() - began
        if sensor.path.version != before:
            log.info("a swap kept frames waiting for %.1f us", 1e6 * taken)


def _stored(state: Path) -> Iterator[str]:
    """The versions in the store, over and over; first read when first asked."""
    manifests = sorted((state / "objects" / "sha256").glob("*/*.json"))
    yield from itertools.cycle(path.parent.name + path.stem for path in manifests)


STAND_INS: dict[str, Any] = {"loop.WorkerClient": Shelf, "loop.Controller": TimedUpkeep, "recalibrator.LOOKS": 0}

if __name__ == "__main__":
    with ExitStack() as patched:
        for name, stand_in in STAND_INS.items():
            patched.enter_context(patch(f"daemon.{name}", stand_in))
        sys.exit(main(["run", *sys.argv[1:]]))
