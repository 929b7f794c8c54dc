"""Bookkeeping of the demo: which frames the cameras showed, what the daemon answered, and how much of it was right."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deploy.store.artefacts import FACTORY

RECENT_ANSWERS = 90  # for the accuracy and the rate of now: 3 s at 30 frames per second
ANSWER_TIMEOUT_S = 1.0  # a frame without an answer for longer will not get one

BEFORE, DRIFTED, RECOVERED = "before", "drifted", "recovered"
PHASES = (BEFORE, DRIFTED, RECOVERED)


class ShownFrame(NamedTuple):
    """A frame that waits for its answer."""

    label: int
    drifted: bool
    at: float  # monotonic seconds, as all times here


class ObservedSwap(NamedTuple):
    """The first answer by another homogenizer than the answer before."""

    at: float
    version: str
    lost: int  # frames between the two answers that have none


@dataclass
class AnswerCount:
    """How many answers there were, and how many of them were right."""

    answers: int = 0
    right: int = 0

    @property
    def accuracy(self) -> float | None:
        return self.right / self.answers if self.answers else None


@dataclass(frozen=True)
class SensorStats:
    """What is known about one sensor at one moment."""

    sent: int
    answered: int
    unanswered: int
    rate: float  # answers per second
    recent_accuracy: float | None
    version: str  # of the last answer
    phases: dict[str, AnswerCount]
    swaps: tuple[ObservedSwap, ...]
    header: Mapping[str, Any]  # of the last answer


@dataclass
class _SensorBook:
    """The book of one sensor. It begins with the first answer: before that no daemon had received the frames."""

    sent: int = 0
    answered: int = 0
    last_seq: int | None = None
    version: str = FACTORY
    header: Mapping[str, Any] = field(default_factory=dict)
    waiting: dict[int, ShownFrame] = field(default_factory=dict)  # by seq
    recent: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=RECENT_ANSWERS))  # time, right
    phases: dict[str, AnswerCount] = field(default_factory=lambda: {phase: AnswerCount() for phase in PHASES})
    swaps: list[ObservedSwap] = field(default_factory=list)

    def add_answer(self, seq: int, header: Mapping[str, Any], now: float) -> None:
        if self.last_seq is None:
            self.waiting = {number: frame for number, frame in self.waiting.items() if number >= seq}
            self.sent = len(self.waiting)
        frame = self.waiting.pop(seq, None)
        if frame is None:  # a second answer, or one to a frame from before the first answer
            return
        version = header["homogenizer"]
        if self.last_seq is not None and version != self.version:
            self.swaps.append(ObservedSwap(now, version, seq - self.last_seq - 1))
        self.version, self.last_seq, self.header = version, seq, header
        self.answered += 1
        right = header.get("label") == frame.label
        self.recent.append((now, right))
        count = self.phases[_phase(frame.drifted, version)]
        count.answers, count.right = count.answers + 1, count.right + right

    def unanswered(self, until: float, since: float = 0.0) -> int:
        """Count the frames without an answer that were shown in this time."""
        return sum(since <= frame.at <= until for frame in self.waiting.values())

    def rate(self, now: float) -> float:
        if len(self.recent) < 2 or now - self.recent[-1][0] > ANSWER_TIMEOUT_S:
            return 0.0
        return (len(self.recent) - 1) / max(self.recent[-1][0] - self.recent[0][0], 1e-3)

    def recent_accuracy(self) -> float | None:
        return sum(right for _, right in self.recent) / len(self.recent) if self.recent else None


def _phase(drifted: bool, version: str) -> str:
    if not drifted:
        return BEFORE
    return DRIFTED if version == FACTORY else RECOVERED


class Bookkeeping:
    """The books of all sensors. One thread may write while another reads."""

    def __init__(self, sensors: Sequence[str]) -> None:
        self._books = {sensor: _SensorBook() for sensor in sensors}
        self._lock = threading.Lock()

    def add_shown(self, sensor: str, seq: int, label: int, drifted: bool, now: float) -> None:
        """Add a frame that is being sent."""
        with self._lock:
            book = self._books[sensor]
            book.waiting[seq] = ShownFrame(label, drifted, now)
            book.sent += 1

    def remove_shown(self, sensor: str, seq: int) -> None:
        """Remove a frame that could not be sent."""
        with self._lock:
            book = self._books[sensor]
            if book.waiting.pop(seq, None) is not None:
                book.sent -= 1

    def add_answer(self, sensor: str, header: Mapping[str, Any], now: float) -> None:
        """Add a result; only the first answer to a frame counts."""
        with self._lock:
            self._books[sensor].add_answer(header["seq"], header, now)

    def stats(self, sensor: str, now: float) -> SensorStats:
        """Return a copy of what is known about a sensor now."""
        with self._lock:
            book = self._books[sensor]
            return SensorStats(
                sent=book.sent,
                answered=book.answered,
                unanswered=book.unanswered(now - ANSWER_TIMEOUT_S),
                rate=book.rate(now),
                recent_accuracy=book.recent_accuracy(),
                version=book.version,
                phases={phase: AnswerCount(count.answers, count.right) for phase, count in book.phases.items()},
                swaps=tuple(book.swaps),
                header=dict(book.header),
            )

    def unanswered_around(self, sensor: str, at: float, seconds: float) -> int:
        """Count the frames without an answer that were shown up to `seconds` before or after `at`."""
        with self._lock:
            return self._books[sensor].unanswered(at + seconds, since=at - seconds)
