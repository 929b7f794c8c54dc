"""The rules about all tests, on small projects of their own; tests/support/plugins.py has the rules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import running
from places import ROOT, SUPPORT
from plugins import DATA, names_starter, unread

READS = "import pytest\n@pytest.mark.data\ndef test_reads(): {}\n"
OTHER = "def test_other(): pass\n"
STARTS = "import subprocess, pytest\n{}def test_starts():\n    {}subprocess.run(['true'])\n"
SWALLOWS = "import subprocess\ndef test_swallows():\n    try: subprocess.run(['true'])\n    except Exception: pass\n"


def run(folder: Path, tests: str, *options: str, data: bool = True, ci: bool = True) -> tuple[int, str]:
    """Run these tests under the rules; exit code and output."""
    (folder / "conftest.py").write_text("import plugins\ndef pytest_configure(config): plugins.register(config)\n")
    (folder / "test_some.py").write_text(tests)
    (folder / "pytest.ini").write_text(f"[pytest]\npythonpath = {ROOT} {SUPPORT}\nmarkers =\n data: a\n process: a\n")
    if data:
        (folder / "data").mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("CI", "PYTEST_ADDOPTS")}
    environment |= {"RECALD_DATA": str(folder / "data")} | ({"CI": "true"} if ci else {})
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


# ---- real data


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["one process", "parallel"])
def test_real_data_that_was_skipped_fails_a_run_in_ci(tmp_path, options):
    code, output = run(tmp_path, READS.format("pytest.skip('the file is gone')") + OTHER, *options)
    assert code == 1
    assert f"{tmp_path}/data exists, and these tests did not read it: test_some.py::test_reads" in output


@pytest.mark.parametrize("options", [[], ["-n", "2"]], ids=["one process", "parallel"])
def test_real_data_that_was_read_does_not(tmp_path, options):
    assert run(tmp_path, READS.format("pass") + OTHER, *options)[0] == 0


def test_neither_do_skips_where_there_is_no_data(tmp_path):
    assert run(tmp_path, READS.format("pytest.skip('no data')") + OTHER, data=False)[0] == 0


def test_nor_skips_on_a_developers_machine_or_in_a_part_of_the_tests(tmp_path):
    tests = READS.format("pytest.skip('the file is gone')") + OTHER
    assert run(tmp_path, tests, "-k", "test")[0] == 0
    (tmp_path / "data").rmdir()
    assert run(tmp_path, tests, ci=False)[0] == 0


def test_a_run_without_any_test_of_real_data_fails_in_ci(tmp_path):
    code, output = run(tmp_path, OTHER)
    assert code == 1 and "no test that reads it ran" in output


def test_what_speaks_against_it_is_named():
    assert unread({"a": "passed", "b": "failed"}) == ""  # a failure is told anyway
    assert unread({}) == f"{DATA} exists, and no test that reads it ran"
    assert unread({"a": "passed", "b": "skipped"}).endswith("did not read it: b")


# ---- processes


@pytest.mark.parametrize("tests", [STARTS.format("", ""), SWALLOWS], ids=["plainly", "and hides the error"])
def test_a_test_without_the_marker_may_start_no_process(tmp_path, tests):
    code, output = run(tmp_path, tests, ci=False)
    assert code == 1 and "this test starts a process" in output and "the marker `process`" in output


def test_one_with_the_marker_may(tmp_path):
    assert run(tmp_path, STARTS.format("@pytest.mark.process\n", ""), ci=False)[0] == 0


def helper() -> object:
    return [running.recald("--version") for _ in range(1)]


class Holder:
    @property
    def name(self) -> str:
        return str(helper())


@pytest.fixture
def starts() -> object:
    return helper()


def test_the_marker_is_found_through_helpers_classes_and_fixtures(request, starts):
    assert request.node.get_closest_marker("process"), "by its fixture"
    for function in (helper, Holder, running.Daemon, running.serving, run):
        assert names_starter(function)
    assert not any(names_starter(function) for function in (running.write_config, running.Camera, unread))
