"""The demo's accounts: what each camera showed, what was answered, and how much of that was right."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deploy.store.artefacts import FACTORY

ROLLING = 90  # answers in the rolling accuracy and the rate: 3 s at 30 frames a second
GRACE_S = 1.0  # a picture without an answer for longer will not get one

BEFORE, DRIFTED, RECOVERED = "before", "drifted", "recovered"
PHASES = (BEFORE, DRIFTED, RECOVERED)


class Shown(NamedTuple):
    """A picture that waits for its answer."""

    label: int
    drifted: bool
    at: float  # monotonic seconds, as all times here


class Swap(NamedTuple):
    """The first answer by another homogenizer than the one before."""

    at: float
    version: str
    lost: int  # pictures between the two answers that have none


@dataclass
class Tally:
    """Answers, and the right ones among them."""

    answers: int = 0
    right: int = 0

    @property
    def accuracy(self) -> float | None:
        return self.right / self.answers if self.answers else None


@dataclass(frozen=True)
class Reading:
    """An account as it stands at one moment."""

    sent: int
    answered: int
    unanswered: int
    rate: float  # answers a second
    rolling: float | None  # accuracy of the last answers
    version: str
    phases: dict[str, Tally]
    swaps: tuple[Swap, ...]
    header: Mapping[str, Any]  # of the last answer


@dataclass
class DossierBuilder:
    """One sensor's account. It opens with the first answer: no daemon had met the pictures before that."""

    sent: int = 0
    answered: int = 0
    last_seq: int | None = None
    version: str = FACTORY
    header: Mapping[str, Any] = field(default_factory=dict)
    waiting: dict[int, Shown] = field(default_factory=dict)
    recent: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=ROLLING))
    phases: dict[str, Tally] = field(default_factory=lambda: {phase: Tally() for phase in PHASES})
    swaps: list[Swap] = field(default_factory=list)

    def enter(self, seq: int, header: Mapping[str, Any], now: float) -> None:
        if self.last_seq is None:
            self.waiting = {other: shown for other, shown in self.waiting.items() if other >= seq}
            self.sent = len(self.waiting)
        shown = self.waiting.pop(seq, None)
        if shown is None:  # from before the account was opened
            return
        self._note_version(seq, header["homogenizer"], now)
        self.answered, self.last_seq, self.header = self.answered + 1, seq, header
        right = header.get("label") == shown.label
        self.recent.append((now, right))
        tally = self.phases[_phase(shown.drifted, self.version)]
        tally.answers, tally.right = tally.answers + 1, tally.right + right

    def _note_version(self, seq: int, version: str, now: float) -> None:
        if self.last_seq is not None and version != self.version:
            self.swaps.append(Swap(now, version, seq - self.last_seq - 1))
        self.version = version

    def unanswered(self, until: float, since: float = 0.0) -> int:
        return sum(since <= shown.at <= until for shown in self.waiting.values())

    def rate(self, now: float) -> float:
        if len(self.recent) < 2 or now - self.recent[-1][0] > GRACE_S:
            return 0.0
        return (len(self.recent) - 1) / max(self.recent[-1][0] - self.recent[0][0], 1e-3)

    def rolling(self) -> float | None:
        return sum(right for _, right in self.recent) / len(self.recent) if self.recent else None


def _phase(drifted: bool, version: str) -> str:
    if not drifted:
        return BEFORE
    return DRIFTED if version == FACTORY else RECOVERED


class Ledger:
    """The accounts of all sensors; one thread may write while another reads."""

    def __init__(self, sensors: Sequence[str]) -> None:
        self._accounts = {sensor: DossierBuilder() for sensor in sensors}
        self._lock = threading.Lock()

    def shown(self, sensor: str, seq: int, label: int, drifted: bool, now: float) -> None:
        with self._lock:
            account = self._accounts[sensor]
            account.waiting[seq] = Shown(label, drifted, now)
            account.sent += 1

    def withdrawn(self, sensor: str, seq: int) -> None:
        """Take back a picture that could not be sent."""
        with self._lock:
            account = self._accounts[sensor]
            if account.waiting.pop(seq, None) is not None:
                account.sent -= 1

    def answered(self, sensor: str, header: Mapping[str, Any], now: float) -> None:
        """Enter a result; each picture's first answer counts."""
        with self._lock:
            self._accounts[sensor].enter(header["seq"], header, now)

    def read(self, sensor: str, now: float) -> Reading:
        with self._lock:
            account = self._accounts[sensor]
            return Reading(
                sent=account.sent,
                answered=account.answered,
                unanswered=account.unanswered(now - GRACE_S),
                rate=account.rate(now),
                rolling=account.rolling(),
                version=account.version,
                phases={phase: Tally(t.answers, t.right) for phase, t in account.phases.items()},
                swaps=tuple(account.swaps),
                header=dict(account.header),
            )

    def unanswered_around(self, sensor: str, at: float, seconds: float) -> int:
        """Pictures without an answer that were shown up to so many seconds before or after."""
        with self._lock:
            return self._accounts[sensor].unanswered(at + seconds, since=at - seconds)
