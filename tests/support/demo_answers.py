"""Answers of a daemon in the demo's tests."""

from __future__ import annotations

from typing import Any

from deploy.store.artefacts import FACTORY

FITTED = "f" * 64  # the version of a fitted homogenizer


def answer(seq: int, label: int, version: str = FACTORY) -> dict[str, Any]:
    """The header of a result."""
    return {"seq": seq, "label": label, "homogenizer": version, "drift_score": 1.0}
