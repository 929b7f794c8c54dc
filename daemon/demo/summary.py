"""The summary of a demo run: what was measured, and whether every promise of the demo was kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from daemon.demo.bookkeeping import PHASES, SensorStats
from daemon.demo.display import percent, short_version
from deploy.store.artefacts import FACTORY

MIN_RECOVERED_RATIO = 0.8  # of the accuracy that the drift took
MIN_ACCURACY_LOSS = 0.05  # when the drift took less, the recovered share says nothing


class PromiseCheck(NamedTuple):
    """A promise, whether it was kept, and the measured value."""

    promise: str
    kept: bool
    value: str


@dataclass(frozen=True)
class Summary:
    """Everything measured. The camera `drifting` drifted; the daemon must not have changed the others."""

    drifting: str
    drift: str
    seed: int
    stats: dict[str, SensorStats]
    superseded: dict[str, int]  # frames that the daemon dropped for a newer one, by sensor
    seconds_to_recover: float | None  # from the drift to the first answer by a fitted homogenizer
    swap_pause_seconds: float | None
    missing_around_swap: int  # frames without an answer, shown within a second of the swap
    digest_before: str
    digest_after: str
    exit_code: int | None  # None: the daemon did not end in time
    stop_seconds: float
    total_seconds: float

    def accuracies(self) -> dict[str, float | None]:
        return {phase: self.stats[self.drifting].phases[phase].accuracy for phase in PHASES}

    def recovered_share(self) -> float | None:
        """Return the share of the lost accuracy that came back; 1 is all of it. None when it is not known."""
        before, drifted, recovered = self.accuracies().values()
        if before is None or drifted is None or recovered is None or before - drifted < MIN_ACCURACY_LOSS:
            return None
        return (recovered - drifted) / (before - drifted)

    def checks(self) -> list[PromiseCheck]:
        unchanged = self.digest_before == self.digest_after
        return [
            self._check_recovery(),
            self._check_swap(),
            PromiseCheck("the model file is unchanged", unchanged, f"sha256 {short_version(self.digest_after)}"),
            self._check_other_cameras(),
            self._check_exit(),
        ]

    def _check_recovery(self) -> PromiseCheck:
        share = self.recovered_share()
        promise = f"at least {MIN_RECOVERED_RATIO:.0%} of the lost accuracy came back"
        return PromiseCheck(promise, share is not None and share >= MIN_RECOVERED_RATIO, percent(share))

    def _check_swap(self) -> PromiseCheck:
        stats = self.stats[self.drifting]
        lost = sum(swap.lost for swap in stats.swaps)
        value = f"{lost} of {stats.sent}" if stats.swaps else "there was no swap"
        return PromiseCheck("no frame was lost to the swap", bool(stats.swaps) and lost == 0, value)

    def _check_other_cameras(self) -> PromiseCheck:
        others = {sensor: stats for sensor, stats in self.stats.items() if sensor != self.drifting}
        kept = all(stats.version == FACTORY and not stats.swaps for stats in others.values())
        value = ", ".join(short_version(stats.version) for stats in others.values())
        return PromiseCheck(f"{' and '.join(others)} kept the factory homogenizer", kept, value)

    def _check_exit(self) -> PromiseCheck:
        after = f"after {self.stop_seconds:.1f} s"
        value = f"still there {after}" if self.exit_code is None else f"exit {self.exit_code} {after}"
        return PromiseCheck("SIGTERM ended recald cleanly", self.exit_code == 0, value)

    def passed(self) -> bool:
        return all(check.kept for check in self.checks())

    def document(self) -> dict[str, Any]:
        """Return the content of summary.json."""
        return {
            "passed": self.passed(),
            "checks": [check._asdict() for check in self.checks()],
            "drift": self.drift,
            "seed": self.seed,
            "accuracy": self.accuracies(),
            "recovered_share": self.recovered_share(),
            "seconds_to_recover": self.seconds_to_recover,
            "swap_pause_seconds": self.swap_pause_seconds,
            "missing_around_swap": self.missing_around_swap,
            "frames": {sensor: self._frame_counts(sensor) for sensor in self.stats},
            "model_sha256": self.digest_after,
            "stop_seconds": self.stop_seconds,
            "total_seconds": self.total_seconds,
        }

    def _frame_counts(self, sensor: str) -> dict[str, int]:
        stats = self.stats[sensor]
        counts = {"sent": stats.sent, "answered": stats.answered, "unanswered": stats.unanswered}
        return counts | {"superseded": self.superseded[sensor]}

    def render(self) -> Group:
        """Return the summary for the terminal."""
        pause = self.swap_pause_seconds
        measured = Table.grid(padding=(0, 2))
        for phase, accuracy in self.accuracies().items():
            measured.add_row(f"{self.drifting}, {phase}", f"{percent(accuracy)} right")
        recovery = "-" if self.seconds_to_recover is None else f"{self.seconds_to_recover:.1f} s"
        measured.add_row("drift to recovery", recovery)
        measured.add_row("pause of the swap", "-" if pause is None else f"{pause * 1e6:.0f} µs")
        for sensor in self.stats:
            counts = ", ".join(f"{number} {name}" for name, number in self._frame_counts(sensor).items())
            measured.add_row(f"{sensor}, frames", counts)
        promises = Table.grid(padding=(0, 2))
        for check in self.checks():
            mark = Text("kept", "green") if check.kept else Text("FAILED", "bold red")
            promises.add_row(mark, check.promise, check.value)
        return Group(measured, Text(), promises)
