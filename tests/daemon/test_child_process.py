"""Workers run the daemon's installation, whatever the current folder and the environment hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from daemon.child_process import INSTALLATION, import_path, python_command
from daemon.niceness import CHILD_NICENESS, CHILD_OOM_SCORE

LOOK = """
import os, pathlib
print(os.nice(0), pathlib.Path("/proc/self/oom_score_adj").read_text())
group = pathlib.Path("/proc/self/autogroup")
if group.exists() and group.read_text():
    print(*group.read_text().split()[1:])
"""


@pytest.fixture
def trap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder whose files would be taken for libraries, as `python -m` takes them."""
    for name in ("daemon", "torch", "json", "numpy"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong file')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("module", ["daemon.worker.main", "daemon.model.engine_build"])
def test_a_process_imports_nothing_from_the_current_folder(trap: Path, module: str):
    done = subprocess.run([*python_command(module), "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "started by recald run" in done.stdout, done.stderr
    wrong = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, timeout=60)
    assert "the wrong file" in wrong.stderr, "else this test shows nothing"


def test_the_priority_is_lowered_before_anything_else_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "look.py").write_text(LOOK)
    command = python_command("look")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, start_new_session=True)
    niceness, oom_score, *autogroup = done.stdout.split()
    assert int(niceness) == min(19, os.nice(0) + CHILD_NICENESS), done.stderr
    assert int(oom_score) >= CHILD_OOM_SCORE
    assert autogroup in ([], ["nice", str(CHILD_NICENESS)])


def test_a_process_has_the_import_path_of_the_daemon_and_its_packages_first_where_it_is_not_installed():
    folder = os.getcwd()
    assert import_path(["", folder, ".", "/usr/lib/python3", "/added"], folder) == [
        str(INSTALLATION),
        "/usr/lib/python3",
        "/added",
    ]
    installed = ["/usr/lib/python3", str(INSTALLATION)]
    assert import_path(installed, "/elsewhere") == installed
    assert json.loads(python_command("daemon.worker.main")[4])
