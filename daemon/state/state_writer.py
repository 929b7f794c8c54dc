"""Writes in the background what a restart must know of a sensor: the active homogenizer and the withdrawn ones."""

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
    """Takes changes on the frame thread; `background`, an executor with one thread, writes them.

    A change that cannot be written is kept for `retry`, until a newer one of the same kind and sensor replaces it.
    """

    def __init__(
        self,
        store: ArtefactStore,
        model: str,
        background: Executor,
        on_fault: Callable[[str], None] = lambda part: None,
    ):
        """model: digest of the frozen model that the homogenizers belong to.

        on_fault: called with a label of recald_handled_faults_total.
        """
        self._on_fault = on_fault
        self._store = store
        self._model = model
        self._background = background
        self._lock = threading.Lock()
        self._unwritten: dict[tuple[str, str], Write] = {}  # by kind and sensor, the newest alone
        self._failing = False
        self._reported: dict[tuple[str, str], str] = {}  # by kind and sensor, the error that the log names

    def save_active(self, sensor: str, version: str) -> None:
        """Save that `version` serves the sensor from now on."""
        self._save("serving homogenizer", sensor, partial(self._store.point, sensor, version, self._model, time.time()))

    def save_withdrawn(self, sensor: str, versions: set[str]) -> None:
        """Save which versions must not be tried again."""
        self._save("withdrawn homogenizers", sensor, partial(self._store.withdraw, sensor, sorted(versions)))

    def retry(self) -> None:
        """Try again to write what could not be written."""
        if self._failing:
            self._failing = False
            for kind, sensor in list(self._unwritten):
                self._background.submit(self._write, kind, sensor)

    def _save(self, kind: str, sensor: str, write: Write) -> None:
        with self._lock:
            self._unwritten[kind, sensor] = write
        self._background.submit(self._write, kind, sensor)

    def _write(self, kind: str, sensor: str) -> None:
        with self._lock:
            write = self._unwritten.get((kind, sensor))
        if write is None:
            return
        try:
            write()
        except (OSError, StoreError) as error:
            if self._reported.get((kind, sensor)) != str(error):  # it is tried again each second
                log.warning("%s: a restart will not know the %s: %s", sensor, kind, error)
            self._on_fault("state")
            self._failing, self._reported[kind, sensor] = True, str(error)
            return
        self._reported.pop((kind, sensor), None)
        with self._lock:
            if self._unwritten.get((kind, sensor)) is write:  # else a newer change waits for its turn
                del self._unwritten[kind, sensor]
