"""The baselines of all sensors: loaded, or learned from the healthy frames of the drift checks."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import torch

from calibrate.baseline.baseline import Baseline, SensorState
from calibrate.baseline.frames import MAX_CHANNELS, FrameStatistics
from calibrate.baseline.learning import BaselineError, frames_needed, learn_baseline
from deploy.store.artefacts import FACTORY, StoreError
from deploy.store.baselines import BaselineStore

# Of healthy frames that a baseline is learned from: a random part of all. With 512, drifts of CIFAR-10 and X-rays that
# cost 3 points lay half as many standard deviations above healthy frames.
MAX_POOL_FRAMES = 2048
LEARN_RATIOS = (1, 4, 16)  # of drift.learn, when a baseline is learned: the later ones have seen more scenes
LEARNED = "learned"  # name of a tensor in the file: how many of these times are past
MAX_STEP_S = 300.0  # that the time of healthy frames advances between two checks; more is a camera that had stopped

log = logging.getLogger(__name__)


@dataclass
class FramePool:
    """A random part of all frames that were added (algorithm R: Vitter 1985, "Random sampling with a reservoir")."""

    most: int = MAX_POOL_FRAMES  # frames that are kept
    frames: FrameStatistics | None = None
    added: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def __len__(self) -> int:
        return 0 if self.frames is None else len(self.frames)

    def add(self, frames: FrameStatistics) -> None:
        """Add the statistics of frames, oldest first."""
        room = self.most - len(self)
        if room > 0:
            grown = [self.frames] if self.frames is not None else []
            self.frames = FrameStatistics.join([*grown, frames[torch.arange(len(frames)) < room]])
        for row in range(max(room, 0), len(frames)):
            place = self.chance.randrange(self.added + row + 1)
            if place < self.most:
                assert self.frames is not None
                self.frames.put(place, frames, row)
        self.added += len(frames)


@dataclass
class Learner:
    """One sensor's frames as one homogenizer serves them, and their baseline once it is known."""

    baseline: Baseline | None
    pool: FramePool = field(default_factory=FramePool)
    healthy_s: float = 0.0  # time in which healthy frames came
    learned: int = 0  # how many of LEARN_RATIOS are past
    last_time: float | None = None  # monotonic, s

    def advance(self, now: float) -> None:
        """Count the time since the last check with healthy frames."""
        if self.last_time is not None:
            self.healthy_s += min(now - self.last_time, MAX_STEP_S)
        self.last_time = now


class Baselines:
    """The baseline of each sensor and of each homogenizer that has served it."""

    def __init__(
        self,
        store: BaselineStore,
        channels: int,
        classes: int,
        commissioned: Baseline | None,
        on_fault: Callable[[str], None] = lambda part: None,
    ):
        """channels: of all layers together. classes: 0 for a network that is no classifier.

        on_fault: called with a label of recald_handled_faults_total.
        """
        self._on_fault = on_fault
        self._store = store
        self._channels, self._classes = min(channels, MAX_CHANNELS), classes
        self._commissioned = commissioned
        self._learners: dict[tuple[str, str], Learner] = {}  # by sensor and version
        self._forgotten: set[str] = set()  # sensors of which nothing on the disk is used

    def compare(self, sensor: str, version: str, frames: FrameStatistics) -> SensorState | None:
        """Compare a window of frames as `version` serves them with healthy ones; None where there is no baseline."""
        baseline = self._learner(sensor, version, len(frames)).baseline
        return None if baseline is None else baseline.compare(frames)

    def learn(self, sensor: str, version: str, frames: FrameStatistics, fresh: int, seconds: float, now: float) -> None:
        """Take in a healthy window, of which the newest `fresh` frames are new, and learn when it is time.

        seconds: in which healthy frames must have come for a baseline. now: monotonic, s.
        """
        learner = self._learner(sensor, version, len(frames))
        if learner.learned == len(LEARN_RATIOS):
            return
        self._forget_pools_of_others(sensor, version)
        learner.pool.add(frames[torch.arange(len(frames)) >= len(frames) - fresh])
        learner.advance(now)
        due = learner.healthy_s >= LEARN_RATIOS[learner.learned] * seconds
        if due and len(learner.pool) >= frames_needed(len(frames)):
            self._learn(sensor, version, learner, len(frames))

    def forget(self, sensor: str) -> None:
        """Forget all that was learned of a sensor; what was commissioned stays. Raises OSError where the disk keeps it.

        Then it is not used until the next start.
        """
        self._learners = {key: learner for key, learner in self._learners.items() if key[0] != sensor}
        self._forgotten.add(sensor)
        self._store.remove(sensor)

    def _forget_pools_of_others(self, sensor: str, version: str) -> None:
        """Give the memory of what served the sensor before back."""
        for (name, other), learner in self._learners.items():
            if name == sensor and other != version and len(learner.pool):
                learner.pool, learner.healthy_s = FramePool(learner.pool.most), 0.0

    def progress(self, sensor: str, version: str, seconds: float, size: int) -> float:
        """Return how much of the time and of the frames for the first baseline is there, 0 to 1.

        size: frames of a window.
        """
        learner = self._learner(sensor, version, size)
        if learner.baseline is not None:
            return 1.0
        return min(1.0, learner.healthy_s / seconds, len(learner.pool) / frames_needed(size))

    def _learn(self, sensor: str, version: str, learner: Learner, size: int) -> None:
        assert learner.pool.frames is not None
        try:
            learner.baseline = learn_baseline(learner.pool.frames, size, self._classes)
        except BaselineError as error:
            learner.healthy_s = 0.0  # tried again after the same time
            log.warning("%s: %s", sensor, error)
            self._on_fault("learning")
            return
        learner.learned += 1
        log.info("%s: learned a baseline from %d of %d healthy frames", sensor, len(learner.pool), learner.pool.added)
        try:
            self._store.save(sensor, version, learner.baseline.tensors() | {LEARNED: torch.tensor(learner.learned)})
        except OSError as error:
            log.warning("%s: its baseline is not kept: %s", sensor, error)
            self._on_fault("keeping")
        if learner.learned == len(LEARN_RATIOS):
            learner.pool = FramePool(learner.pool.most)  # gives the memory back

    def _learner(self, sensor: str, version: str, size: int) -> Learner:
        key = sensor, version
        if key not in self._learners:
            known, learned = self._known(sensor, version, size)
            pool = FramePool(max(MAX_POOL_FRAMES, frames_needed(size)))
            self._learners[key] = Learner(known, pool, learned=learned)
        return self._learners[key]

    def _known(self, sensor: str, version: str, size: int) -> tuple[Baseline | None, int]:
        """Return the commissioned baseline, or the one on the disk, and how often it was learned.

        One that cannot be used, or is of windows of another size, is learned again.
        """
        if version == FACTORY and self._commissioned is not None and int(self._commissioned.size) == size:
            return self._commissioned, len(LEARN_RATIOS)
        if sensor in self._forgotten:
            return None, 0
        try:
            tensors = self._store.load(sensor, version) or {}
            known = Baseline.of_tensors(tensors, self._channels, self._classes)
        except (StoreError, ValueError) as error:
            log.warning("%s: its baseline cannot be used and is learned again: %s", sensor, error)
            self._on_fault("keeping")
            return None, 0
        if known is not None and int(known.size) != size:
            log.warning("%s: its baseline is of %d frames, drift.window has %d", sensor, int(known.size), size)
            known = None
        return known, 0 if known is None else min(int(tensors.get(LEARNED, torch.ones(()))), len(LEARN_RATIOS))
