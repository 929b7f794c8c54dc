"""Which tests start processes: found by reading them, and held while they run.

`make test-fast` leaves these tests out, so the marker `process` must be right. It is set where a test, one of its
fixtures or a helper that they name starts a process. Any other test fails when it starts one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CodeType, FunctionType, ModuleType
from typing import Any

import pytest
from places import ROOT

TESTS = str(ROOT / "tests")
STARTERS = {"subprocess", "multiprocessing", "fork"}  # names whose use in a test starts a process
EVENTS = {"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.system"}  # audit events


def starts_process(item: pytest.Function) -> bool:
    """Return whether the test, a fixture of it or a helper in tests/ that they name starts a process."""
    fixtures = (d.func for found in item._fixtureinfo.name2fixturedefs.values() for d in found)
    seen: set[int] = set()
    return any(_reaches_starter(function, seen) for function in (item.function, *fixtures))


def _reaches_starter(target: Any, seen: set[int]) -> bool:
    if id(target) in seen:
        return False
    seen.add(id(target))
    if isinstance(target, type):
        return any(_reaches_starter(member, seen) for member in vars(target).values())
    function = _unwrapped(target)
    if function is None or not function.__code__.co_filename.startswith(TESTS):
        return False
    names = set(_names(function.__code__))
    if names & STARTERS:
        return True
    return any(_reaches_starter(found, seen) for found in _helpers(function, names))


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
