"""What a restart must know of a sensor, written in the background: which homogenizer serves, which were taken back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial

from deploy.store.artefacts import ArtefactStore, StoreError

log = logging.getLogger(__name__)
Write = Callable[[], None]


class StateWriter:
    """Called on the frame thread; `background`, one thread, writes. What fails is kept for `retry`."""

    def __init__(self, store: ArtefactStore, model: str, background: Executor):
        self._store = store
        self._model = model
        self._background = background
        self._lock = threading.Lock()
        self._wanted: dict[tuple[str, str], Write] = {}  # by kind and sensor: the newest alone matters
        self._failing = False

    def serves(self, sensor: str, version: str) -> None:
        """`version` serves the sensor from now on."""
        self._want("serving homogenizer", sensor, partial(self._store.point, sensor, version, self._model, time.time()))

    def withdrawn(self, sensor: str, versions: set[str]) -> None:
        """These versions shall not be tried again."""
        self._want("withdrawn homogenizers", sensor, partial(self._store.withdraw, sensor, sorted(versions)))

    def retry(self) -> None:
        """Write again what could not be written."""
        if self._failing:
            self._failing = False
            for kind, sensor in list(self._wanted):
                self._background.submit(self._write, kind, sensor)

    def _want(self, kind: str, sensor: str, write: Write) -> None:
        with self._lock:
            self._wanted[kind, sensor] = write
        self._background.submit(self._write, kind, sensor)

    def _write(self, kind: str, sensor: str) -> None:
        with self._lock:
            write = self._wanted.get((kind, sensor))
        if write is None:
            return
        try:
            write()
        except (OSError, StoreError) as error:
            log.warning("%s: a restart will not know the %s: %s", sensor, kind, error)
            self._failing = True
            return
        with self._lock:
            if self._wanted.get((kind, sensor)) is write:  # else a newer one is on its way
                del self._wanted[kind, sensor]
