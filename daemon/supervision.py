"""Notices what goes wrong in a thread: it is logged with its traceback and counted, and no thread dies in silence."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from daemon.metrics import Metrics

log = logging.getLogger(__name__)


class ThreadDied(RuntimeError):
    """A thread of the daemon ended with an exception; only a new process has it again."""


class Supervision:
    """A context in which the end of any thread by an exception is noticed; `check` raises it in the main thread.

    Tasks of a SupervisedExecutor end no thread: they are logged and counted.
    """

    def __init__(self, metrics: Metrics):
        self._metrics = metrics
        self._died = ""  # name of the first thread that did
        self._hook_before = threading.excepthook

    def __enter__(self) -> Supervision:
        self._hook_before, threading.excepthook = threading.excepthook, self._note_death
        return self

    def __exit__(self, *_: object) -> None:
        threading.excepthook = self._hook_before

    def check(self) -> None:
        """Raise ThreadDied when a thread has died."""
        if self._died:
            raise ThreadDied(f"the thread {self._died} died, see the log above")

    def note_fault(self, thread: str, error: BaseException) -> None:
        """Log and count an exception that nothing else has handled."""
        log.critical("an unexpected fault in the thread %s", thread, exc_info=error)
        self._metrics.thread_faults.labels(thread).inc()

    def _note_death(self, args: threading.ExceptHookArgs) -> None:
        thread, error = args.thread, args.exc_value
        if error is None or isinstance(error, SystemExit):
            return
        name = "unknown" if thread is None else thread.name
        self.note_fault(name, error.with_traceback(args.exc_traceback))
        self._died = self._died or name


class SupervisedExecutor(ThreadPoolExecutor):
    """One thread whose tasks cannot fail in silence: nobody asks for their results."""

    def __init__(self, supervision: Supervision, thread_name_prefix: str):
        super().__init__(1, thread_name_prefix)
        self._name, self._supervision = thread_name_prefix, supervision

    def submit(self, do: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        """Queue a call; an exception of it is logged and counted."""
        return super().submit(self._run, do, *given, **named)

    def _run(self, do: Callable[..., Any], *given: Any, **named: Any) -> None:
        try:
            do(*given, **named)
        except Exception as error:  # whatever it is: the next task must be done
            self._supervision.note_fault(self._name, error)
