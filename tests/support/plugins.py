"""Rules about all tests: real data is read in CI, `process` marks what starts a process, torch may be missing.

`make test-fast` leaves out the tests that start processes, so the marker must be right. It is set where a test, one of
its fixtures or a helper that they name starts a process. Any other test fails when it starts one.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from places import DATA, ROOT

TESTS = str(ROOT / "tests")
STARTERS = {"subprocess", "multiprocessing", "fork"}  # names whose use in a test starts a process
EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}  # audit events


def register(config: pytest.Config) -> None:
    config.pluginmanager.register(DataWatch(), "data-watch")
    config.pluginmanager.register(ProcessWatch(), "process-watch")
    if find_spec("torch") is None:
        config.pluginmanager.register(WithoutTorch(), "without-torch")


class DataWatch:
    """Fails a run in CI that has the real data and did not test with it: a silent skip would prove nothing."""

    def __init__(self):
        self._outcomes: dict[str, str] = {}  # of the tests that read real data, by test

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item):
        report = yield
        report.reads_data = item.get_closest_marker("data") is not None  # comes back from parallel workers, too
        return report

    def pytest_runtest_logreport(self, report):
        if report.reads_data and (report.when == "call" or report.skipped):
            self._outcomes[report.nodeid] = report.outcome

    def pytest_sessionfinish(self, session):
        terminal = session.config.pluginmanager.get_plugin("terminalreporter")  # None in a parallel worker
        option = session.config.option
        whole = not (option.markexpr or option.keyword or option.file_or_dir)
        if "CI" in os.environ and DATA.is_dir() and terminal and whole and (message := unread(self._outcomes)):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
            terminal.write_line(message, red=True)


def unread(outcomes: dict[str, str]) -> str:
    """Return why the run does not prove that the real data was tested with, "" if it does."""
    skipped = [test for test, outcome in outcomes.items() if outcome == "skipped"]
    if not outcomes:
        return f"{DATA} exists, and no test that reads it ran"
    return f"{DATA} exists, and these tests did not read it: {', '.join(skipped)}" if skipped else ""


class WithoutTorch:
    """Leaves out what needs torch where it is not installed, and says how much that was; see .ci/py310."""

    REASON = "needs torch, which is not installed"

    @pytest.hookimpl(wrapper=True)
    def pytest_make_collect_report(self, collector):
        report = yield
        if report.failed and "No module named 'torch'" in str(report.longrepr):
            report.outcome, report.longrepr = "skipped", (str(collector.path), None, self.REASON)
        return report

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        report = yield
        if call.excinfo and isinstance(call.excinfo.value, ImportError) and call.excinfo.value.name == "torch":
            report.outcome, report.longrepr = "skipped", (str(item.path), None, self.REASON)
        return report

    def pytest_terminal_summary(self, terminalreporter):
        skipped = [r for r in terminalreporter.stats.get("skipped", []) if self.REASON in str(r.longrepr)]
        files = {report.fspath for report in skipped if isinstance(report, pytest.CollectReport)}
        left_out = f"{len(files)} test files and {len(skipped) - len(files)} tests"
        terminalreporter.write_line(f"left out, since torch is not installed: {left_out}")


class ProcessWatch:
    """Marks the tests that start processes, and fails any other test that starts one."""

    def __init__(self):
        self._guard = ProcessGuard()

    @pytest.hookimpl(tryfirst=True)
    def pytest_collection_modifyitems(self, items):
        for item in items:
            if isinstance(item, pytest.Function) and starts_process(item):
                item.add_marker(pytest.mark.process)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_setup(self, item):
        return (yield from self._watched(item))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item):
        return (yield from self._watched(item))

    def _watched(self, item):
        if item.get_closest_marker("process"):
            return (yield)
        try:
            with self._guard.forbidding():
                result = yield
        finally:
            started = self._guard.started()
        if started:
            pytest.fail(f"this test starts a process, so it needs the marker `process`: {started}")
        return result


def starts_process(item: pytest.Function) -> bool:
    """Return whether the test, a fixture of it or a helper in tests/ that they name starts a process."""
    fixtures = (d.func for found in item._fixtureinfo.name2fixturedefs.values() for d in found)
    return any(_names_starter_once(function) for function in (item.function, *fixtures))


def names_starter(target: Any, seen: set[int] | None = None) -> bool:
    """Return whether a function of the tests names what starts a process; of a class, any of its methods."""
    seen = set() if seen is None else seen
    if id(target) in seen:
        return False
    seen.add(id(target))
    if isinstance(target, type):
        return any(names_starter(member, seen) for member in vars(target).values())
    function = _unwrapped(target)
    if function is None or not function.__code__.co_filename.startswith(TESTS):
        return False
    names = set(_names(function.__code__))
    if names & STARTERS:
        return True
    return any(names_starter(found, seen) for found in _helpers(function, names))


_names_starter_once = cache(names_starter)


def _unwrapped(target: Any) -> FunctionType | None:
    """Return the plain function below decorators, properties and bound methods; None for anything else."""
    target = target.fget if isinstance(target, property) else target
    while hasattr(target, "__wrapped__") or hasattr(target, "__func__"):
        target = getattr(target, "__wrapped__", None) or target.__func__
    return target if isinstance(target, FunctionType) else None


def _names(code: CodeType) -> Iterator[str]:
    """Yield all global and attribute names of a function and of the functions inside it."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _helpers(function: FunctionType, names: set[str]) -> Iterator[Any]:
    for name in names:
        found = function.__globals__.get(name)
        if isinstance(found, ModuleType) and str(getattr(found, "__file__", "")).startswith(TESTS):
            yield from (getattr(found, attribute) for attribute in names if hasattr(found, attribute))
        elif callable(found):
            yield found


class ProcessGuard:
    """Fails a test that starts a process without the marker, whoever catches the error."""

    def __init__(self) -> None:
        self._forbidden = False
        self._started: list[str] = []
        sys.addaudithook(self._hear)  # there is no way to remove it

    @contextmanager
    def forbidding(self) -> Iterator[None]:
        self._forbidden = True
        try:
            yield
        finally:
            self._forbidden = False

    def started(self) -> str:
        """Return what was started since the last call, "" for nothing."""
        started, self._started = self._started, []
        return ", ".join(started)

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._forbidden and event in EVENTS:
            self._started.append(f"{event} {arguments[0] if arguments else ''}".strip())
            raise RuntimeError("this test starts a process: give it the marker `process`")
