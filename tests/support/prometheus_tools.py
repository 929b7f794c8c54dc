"""Prometheus' own programs, as `make system-packages` unpacks them or the machine has them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from places import ROOT

from bench.dashboard.prometheus import find_program

MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "prometheus"
MISSING = "Prometheus is not installed: make system-packages"


def tool(name: str) -> str:
    """Return the path of `prometheus`, `promtool` or `amtool`. Without it a test is skipped, and fails in CI."""
    found = find_program(name)
    if found is None and "CI" in os.environ:
        pytest.fail(MISSING)
    if found is None:
        pytest.skip(MISSING)
    return found


def run_tool(name: str, *arguments: str | Path, given: str | None = None) -> str:
    """Run it to its end with this text on its input; return what it prints. AssertionError unless it exits with 0."""
    command = [tool(name), *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
