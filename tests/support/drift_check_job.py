"""What the daemon asks a worker for in a drift check, for the tests."""

from __future__ import annotations

from typing import Any

from deploy.store.artefacts import FACTORY

OBSERVE: dict[str, Any] = {"job": "observe", "sensor": "front", "active": FACTORY, "band": 1.6, "alarm": False}
OBSERVE |= {"fresh": 0, "may_learn": False, "learn": 3600.0, "relearn": False, "now": 0.0}
