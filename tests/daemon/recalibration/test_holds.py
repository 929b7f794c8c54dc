"""All who hold a sensor are told, and the first of them is the reason that a candidate waits."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from daemon.recalibration.holds import HOLDERS, hold_reason, holds


def told(problem: str = "", pending: bool = False, operator: str | None = "", camera: bool = False) -> tuple[Any, Any]:
    return SimpleNamespace(operator_hold=operator, hold=camera), SimpleNamespace(problem=problem, pending=pending)


@pytest.mark.parametrize(
    ("facts", "holders", "reason"),
    [
        (told(), [], ""),
        (told(problem="no space left"), ["audit"], "the audit log cannot be written: no space left"),
        (told(pending=True), [], "the audit log is being written"),
        (told(pending=True, problem="full"), ["audit"], "the audit log cannot be written: full"),
        (told(operator=None), ["start"], "the audit log is not yet read"),
        (told(operator="a drive"), ["operator"], "a drive; `recald hold --release` ends it"),
        (told(camera=True), ["camera"], "the camera's side holds swaps"),
        (told(problem="full", operator="a drive", camera=True), ["audit", "operator", "camera"], None),
    ],
)
def test_who_holds_and_why(facts, holders, reason):
    found = holds(*facts)
    assert list(found) == holders and set(holders) <= set(HOLDERS) and all(found.values())
    assert hold_reason(*facts) == (found[holders[0]] if reason is None else reason)
