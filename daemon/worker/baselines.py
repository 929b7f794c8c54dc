"""The baselines of all sensors: loaded, or learned from the healthy frames of the drift checks."""

from __future__ import annotations

import logging
import random
from dataclasses import dataclass, field

import torch

from calibrate.baseline.baseline import Baseline, SensorState
from calibrate.baseline.frames import MAX_CHANNELS, FrameStatistics
from calibrate.baseline.learning import MIN_HEALTHY_FRAMES, BaselineError, learn_baseline
from deploy.store.artefacts import FACTORY, StoreError
from deploy.store.baselines import BaselineStore

# Of healthy frames that a baseline is learned from: a random part of all. With 512, drifts of CIFAR-10 and X-rays that
# cost 3 points lay half as many standard deviations above healthy frames.
MAX_POOL_FRAMES = 2048
LEARN_RATIOS = (1, 4, 16)  # of drift.learn, when a baseline is learned: the later ones have seen more scenes
MAX_STEP_S = 60.0  # that the time of healthy frames advances between two checks; more is a camera that had stopped

log = logging.getLogger(__name__)


@dataclass
class FramePool:
    """A random part of all frames that were added (algorithm R: Vitter 1985, "Random sampling with a reservoir")."""

    frames: FrameStatistics | None = None
    added: int = 0
    chance: random.Random = field(default_factory=lambda: random.Random(0))

    def __len__(self) -> int:
        return 0 if self.frames is None else len(self.frames)

    def add(self, frames: FrameStatistics) -> None:
        """Add the statistics of frames, oldest first."""
        places = [self._place(self.added + number) for number in range(len(frames))]
        self.added += len(frames)
        rows = torch.arange(len(frames))
        room = MAX_POOL_FRAMES - len(self)
        grown = [self.frames] if self.frames is not None else []
        self.frames = FrameStatistics.join([*grown, frames[rows < room]])
        kept = [(place, row) for row, place in enumerate(places) if row >= room and place < MAX_POOL_FRAMES]
        for place, row in kept:
            self.frames.put(place, frames, row)

    def _place(self, number: int) -> int:
        return number if number < MAX_POOL_FRAMES else self.chance.randrange(number + 1)


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
    ):
        """channels: of all layers together. classes: 0 for a network that is no classifier."""
        self._store = store
        self._channels, self._classes = min(channels, MAX_CHANNELS), classes
        self._commissioned = commissioned
        self._learners: dict[tuple[str, str], Learner] = {}  # by sensor and version

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
        learner.pool.add(frames[torch.arange(len(frames)) >= len(frames) - fresh])
        learner.advance(now)
        due = learner.healthy_s >= LEARN_RATIOS[learner.learned] * seconds
        if due and len(learner.pool) >= MIN_HEALTHY_FRAMES:
            learner.learned += 1
            self._learn(sensor, version, learner, len(frames))

    def progress(self, sensor: str, version: str, seconds: float) -> float:
        """Return how much of the time and of the frames for the first baseline is there, 0 to 1."""
        learner = self._learners[sensor, version]
        if learner.baseline is not None:
            return 1.0
        return min(1.0, learner.healthy_s / seconds, len(learner.pool) / MIN_HEALTHY_FRAMES)

    def _learn(self, sensor: str, version: str, learner: Learner, size: int) -> None:
        assert learner.pool.frames is not None
        try:
            learner.baseline = learn_baseline(learner.pool.frames, size, self._classes)
            self._store.save(sensor, version, learner.baseline.tensors())
        except (BaselineError, OSError) as error:
            log.warning("%s: %s", sensor, error)
        else:
            log.info(
                "%s: learned a baseline from %d of %d healthy frames", sensor, len(learner.pool), learner.pool.added
            )
        if learner.learned == len(LEARN_RATIOS):
            learner.pool = FramePool()  # gives the memory back

    def _learner(self, sensor: str, version: str, size: int) -> Learner:
        key = sensor, version
        if key not in self._learners:
            known = self._known(sensor, version)
            if known is not None and int(known.size) != size:
                log.warning("%s: its baseline is of %d frames, drift.window has %d", sensor, int(known.size), size)
                known = None
            self._learners[key] = Learner(known, learned=0 if known is None else len(LEARN_RATIOS))
        return self._learners[key]

    def _known(self, sensor: str, version: str) -> Baseline | None:
        """Return the commissioned baseline, or the one on the disk; one that cannot be used is learned again."""
        if version == FACTORY and self._commissioned is not None:
            return self._commissioned
        try:
            return Baseline.of_tensors(self._store.load(sensor, version) or {}, self._channels, self._classes)
        except (StoreError, ValueError) as error:
            log.warning("%s: its baseline cannot be used and is learned again: %s", sensor, error)
            return None
