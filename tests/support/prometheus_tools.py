"""Prometheus' own programs, as `make system-packages` unpacks them or the machine has them."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from places import ROOT

from bench.dashboard.prometheus import UNPACKED, find_program

MONITORING = ROOT / "deploy" / "monitoring"
RULES = MONITORING / "prometheus"
TEMPLATES = Path("/usr/share/prometheus/alertmanager/default.tmpl")
MISSING = "Prometheus is not installed: make system-packages"


def tool(name: str) -> str:
    """Return the path of one of Prometheus' programs. Without it a test is skipped, and fails in CI."""
    found = find_program(name)
    if found is None and "CI" in os.environ:
        pytest.fail(MISSING)
    if found is None:
        pytest.skip(MISSING)
    return found


@contextmanager
def started(name: str, log: Path, *arguments: str | Path) -> Iterator[None]:
    """`prometheus` or `alertmanager`, ended in any case. AssertionError, with its log, if it ends by itself."""
    within = seeing_its_templates() if name == "alertmanager" else []
    with log.open("wb") as said:
        process = subprocess.Popen([*within, tool(name), *map(str, arguments)], stdout=said, stderr=said)
    try:
        yield
        assert process.poll() is None, log.read_text()
    finally:
        process.kill()
        process.wait()


def seeing_its_templates() -> list[str]:
    """A command that runs Debian's Alertmanager, unpacked alone, where its files lie in /usr/share, as it expects."""
    share = UNPACKED.parent / "share"
    if TEMPLATES.exists() or not share.exists():
        return []
    unshare = ["unshare", "--user", "--map-root-user", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("this user may not mount anything of its own")
    return [*unshare, "sh", "-c", 'mount --bind "$0" /usr/share && exec "$@"', str(share)]


def run_tool(name: str, *arguments: str | Path, given: str | None = None) -> str:
    """Run it to its end with this text on its input; return what it prints. AssertionError unless it exits with 0."""
    command = [tool(name), *map(str, arguments)]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout + done.stderr
