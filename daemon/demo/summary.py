"""What a run of the demo showed, and whether that is what was promised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from daemon.demo.ledger import PHASES, Reading
from daemon.demo.show import percent, short
from deploy.store.artefacts import FACTORY

REQUIRED_RECOVERY = 0.8  # of the accuracy that drift took
LEAST_LOSS = 0.05  # of accuracy; a share of less says nothing


class Check(NamedTuple):
    """A promise, whether it was kept, and the value behind it."""

    promise: str
    kept: bool
    value: str


@dataclass(frozen=True)
class Summary:
    """Everything measured. The camera of `drifting` drifted; all others must have been left alone."""

    drifting: str
    drift: str
    seed: int
    readings: dict[str, Reading]
    superseded: dict[str, int]  # frames that the daemon dropped for a newer one, by sensor
    seconds_to_recover: float | None  # from the drift to the first answer by a fitted homogenizer
    swap_pause_seconds: float | None
    missing_around_swap: int  # pictures without an answer, shown within a second of the swap
    digest_before: str
    digest_after: str
    exit_code: int | None  # None: it did not end in time
    stop_seconds: float
    total_seconds: float

    def accuracies(self) -> dict[str, float | None]:
        return {phase: self.readings[self.drifting].phases[phase].accuracy for phase in PHASES}

    def recovered_share(self) -> float | None:
        """How much of what drift took came back: 1 is all of it. None where that cannot be said."""
        before, drifted, recovered = self.accuracies().values()
        if before is None or drifted is None or recovered is None or before - drifted < LEAST_LOSS:
            return None
        return (recovered - drifted) / (before - drifted)

    def checks(self) -> list[Check]:
        return [
            self._check_recovery(),
            self._check_swap(),
            Check(
                "the model file is unchanged",
                self.digest_before == self.digest_after,
                f"sha256 {short(self.digest_after)}",
            ),
            self._check_others(),
            self._check_exit(),
        ]

    def _check_recovery(self) -> Check:
        share = self.recovered_share()
        promise = f"at least {REQUIRED_RECOVERY:.0%} of the lost accuracy came back"
        return Check(promise, share is not None and share >= REQUIRED_RECOVERY, percent(share))

    def _check_swap(self) -> Check:
        swaps = self.readings[self.drifting].swaps
        lost = sum(swap.lost for swap in swaps)
        value = f"{lost} of {self.readings[self.drifting].sent}" if swaps else "there was no swap"
        return Check("no frame was lost to the swap", bool(swaps) and lost == 0, value)

    def _check_others(self) -> Check:
        others = {sensor: r for sensor, r in self.readings.items() if sensor != self.drifting}
        kept = all(reading.version == FACTORY and not reading.swaps for reading in others.values())
        value = ", ".join(short(reading.version) for reading in others.values())
        return Check(f"{' and '.join(others)} kept the factory homogenizer", kept, value)

    def _check_exit(self) -> Check:
        took = f"after {self.stop_seconds:.1f} s"
        value = f"still there {took}" if self.exit_code is None else f"exit {self.exit_code} {took}"
        return Check("SIGTERM ended recald cleanly", self.exit_code == 0, value)

    def passed(self) -> bool:
        return all(check.kept for check in self.checks())

    def document(self) -> dict[str, Any]:
        """The summary as JSON holds it."""
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
            "frames": {sensor: self._frames(sensor) for sensor in self.readings},
            "model_sha256": self.digest_after,
            "stop_seconds": self.stop_seconds,
            "total_seconds": self.total_seconds,
        }

    def _frames(self, sensor: str) -> dict[str, int]:
        reading = self.readings[sensor]
        counts = {"sent": reading.sent, "answered": reading.answered, "unanswered": reading.unanswered}
        return counts | {"superseded": self.superseded[sensor]}

    def render(self) -> Group:
        """The summary as the terminal shows it."""
        return Group(self._measured(), Text(), self._checked())

    def _measured(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for phase, accuracy in self.accuracies().items():
            table.add_row(f"{self.drifting}, {phase}", f"{percent(accuracy)} right")
        table.add_row("drift to recovery", seconds(self.seconds_to_recover))
        table.add_row("pause of the swap", microseconds(self.swap_pause_seconds))
        for sensor in self.readings:
            counts = ", ".join(f"{number} {name}" for name, number in self._frames(sensor).items())
            table.add_row(f"{sensor}, frames", counts)
        return table

    def _checked(self) -> Table:
        table = Table.grid(padding=(0, 2))
        for check in self.checks():
            mark = Text("kept", "green") if check.kept else Text("FAILED", "bold red")
            table.add_row(mark, check.promise, check.value)
        return table


def seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1e6:.0f} µs"
