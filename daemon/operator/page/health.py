"""Whether recald lives (`/healthz`) and whether it does its work for every sensor (`/readyz`), in one line each."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

from daemon.operator.page.snapshot import Snapshot
from daemon.web.site import Reply, line

MAX_BEAT_AGE_S = 10.0  # the loop shows itself once a second; twice input.max_age, below the watchdog's 15 s


def health(snapshot: Snapshot | None, now: float) -> Reply:
    """Answer whether the process lives and its loop beats."""
    silence = beat_problem(snapshot, now)
    return line(silence, HTTPStatus.SERVICE_UNAVAILABLE) if silence else line("ok: the loop beats")


def readiness(snapshot: Snapshot | None, now: float) -> Reply:
    """Answer whether the model serves and drift checks run for every sensor, with one line for each that is wrong."""
    problems = [beat_problem(snapshot, now), *(_problems(snapshot) if snapshot else ())]
    if any(problems):
        return line("\n".join(filter(None, problems)), HTTPStatus.SERVICE_UNAVAILABLE)
    count = len(snapshot.status["sensors"]) if snapshot else 0
    return line(f"ready: the model serves, and the drift checks of {count} sensor(s) run")


def beat_problem(snapshot: Snapshot | None, now: float) -> str:
    """Return why the loop does not count as alive, or ""."""
    if snapshot is None:
        return "recald is starting"
    silence = now - snapshot.at
    return f"the loop has not reported for {silence:.0f} s" if silence > MAX_BEAT_AGE_S else ""


def _problems(snapshot: Snapshot) -> Iterator[str]:
    for name, sensor in snapshot.status["sensors"].items():
        if name in snapshot.broken:
            yield f"{name}: {_one_line(sensor['last_refusal']['text'])}"
        if sensor["drift_checks"] == "failing":
            yield f"{name}: {_one_line(sensor['reason'])}"


def _one_line(text: str) -> str:
    return " ".join(text.split())
