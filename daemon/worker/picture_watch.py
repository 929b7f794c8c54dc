"""Reads out what happened to a camera, from its pictures while it was healthy and since the drift alarm."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from calibrate.readouts.picture_statistics import CHANNELS, MIN_SIDE, PictureStatistics
from calibrate.readouts.read_out import ReadOut
from calibrate.readouts.reading import read_outs
from calibrate.readouts.words import describe
from daemon.levels import to_levels
from deploy.store.artefacts import StoreError
from deploy.store.baselines import BaselineStore

PICTURES_KEY = "pictures"  # in the store, where others have the version of a homogenizer
MIN_HEALTHY_PICTURES = 512
MAX_HEALTHY_PICTURES = 4096  # on 2,000 pictures, read-outs were within 15 % of what was simulated (`bench readouts`)
RECENT_PICTURES = 512  # since the alarm, that a read-out is taken of
PICTURES_OF_CHECK = 16  # of a healthy window, evenly; more would cost as much as the check itself
MAX_PIXELS_READ = 256 * 256  # a read-out of larger pictures takes more than 6 s of a core
REPEAT_S = 300.0  # between two read-outs while an alarm lasts; one takes 4 s of a core at 224x224

log = logging.getLogger(__name__)


@dataclass
class Watched:
    """One sensor's pictures without a homogenizer."""

    healthy: PictureStatistics | None = None
    recent: PictureStatistics | None = None
    found: tuple[ReadOut, ...] = ()
    next_reading: float = 0.0  # monotonic, s
    next_healthy: float = -math.inf  # monotonic, s
    saved: int = 0  # healthy pictures on the disk
    words: list[str] = field(default_factory=list)


class PictureWatch:
    """The pictures of all sensors."""

    def __init__(
        self,
        store: BaselineStore,
        commissioned: PictureStatistics | None,
        on_fault: Callable[[str], None] = lambda part: None,
    ):
        """commissioned: statistics of clean pictures, if there are any.

        on_fault: called with a label of recald_handled_faults_total.
        """
        self._on_fault = on_fault
        self._store = store
        self._commissioned = commissioned
        self._watched: dict[str, Watched] = {}

    def add_healthy(self, sensor: str, images: np.ndarray, seconds: float, now: float) -> None:
        """Take in new healthy pictures (N, h, w, C), as the camera sends them; a part, spread over so many seconds.

        now: monotonic, s.
        """
        watched = self._of(sensor)
        if self._commissioned is not None or not len(images) or not can_be_read(images):
            return
        if _count(watched.healthy) < MAX_HEALTHY_PICTURES and now >= watched.next_healthy:
            watched.next_healthy = now + seconds * PICTURES_OF_CHECK / MAX_HEALTHY_PICTURES
            watched.healthy = _add(watched.healthy, images[:: max(1, len(images) // PICTURES_OF_CHECK)])
            self._save(sensor, watched)

    def forget(self, sensor: str) -> None:
        """Forget the healthy pictures of a sensor; those on the disk went with its baselines."""
        self._watched.pop(sensor, None)

    def watch(self, sensor: str, images: np.ndarray, alarm: bool, now: float) -> dict[str, Any]:
        """Take in new pictures (N, h, w, C); return the read-outs ("found") and their "words", none without an alarm.

        Pictures of few classes must be left out: read-outs would take their content for a drift. now: monotonic, s.
        """
        watched = self._of(sensor)
        if not alarm or not can_be_read(images):
            watched.recent, watched.found, watched.words, watched.next_reading = None, (), [], now
        elif len(images) and now >= watched.next_reading and _count(watched.healthy) >= MIN_HEALTHY_PICTURES:
            watched.recent = _add(watched.recent, images)
            if _count(watched.recent) >= RECENT_PICTURES:
                self._read(watched, now)
        return {"found": [one for one in watched.found if one.significant], "words": watched.words}

    def _read(self, watched: Watched, now: float) -> None:
        recent, watched.recent, watched.next_reading = watched.recent, None, now + REPEAT_S  # also where it fails
        assert watched.healthy is not None and recent is not None
        watched.found = read_outs(watched.healthy, recent)
        watched.words = describe(watched.found)

    def _save(self, sensor: str, watched: Watched) -> None:
        assert watched.healthy is not None
        count = _count(watched.healthy)
        if count < max(MIN_HEALTHY_PICTURES, 2 * watched.saved) and count < MAX_HEALTHY_PICTURES:
            return
        try:
            self._store.save(sensor, PICTURES_KEY, watched.healthy.tensors())
            watched.saved = count
        except OSError as error:
            log.warning("%s: the statistics of its healthy pictures are not kept: %s", sensor, error)
            self._on_fault("keeping")

    def _of(self, sensor: str) -> Watched:
        if sensor not in self._watched:
            healthy = self._commissioned or self._load(sensor)
            self._watched[sensor] = Watched(healthy, saved=_count(healthy))
        return self._watched[sensor]

    def _load(self, sensor: str) -> PictureStatistics | None:
        try:
            tensors = self._store.load(sensor, PICTURES_KEY)
            return None if tensors is None else PictureStatistics.of_tensors(tensors)
        except (StoreError, ValueError) as error:
            log.warning("%s: the statistics of its healthy pictures cannot be used: %s", sensor, error)
            self._on_fault("keeping")
            return None


def can_be_read(images: np.ndarray) -> bool:
    """Return whether read-outs understand pictures (N, h, w, C) of this size and number of colours, and soon enough."""
    height, width, channels = images.shape[1:]
    return min(height, width) >= MIN_SIDE and height * width <= MAX_PIXELS_READ and channels in CHANNELS


def _add(statistics: PictureStatistics | None, images: np.ndarray) -> PictureStatistics:
    new = PictureStatistics.of(torch.from_numpy(np.ascontiguousarray(to_levels(images))))
    return new if statistics is None or statistics.totals.shape[1:] != new.totals.shape[1:] else statistics + new


def _count(statistics: PictureStatistics | None) -> int:
    return 0 if statistics is None else int(statistics.frames.sum())
