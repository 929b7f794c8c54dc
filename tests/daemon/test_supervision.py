"""No thread dies in silence: its exception is logged and counted, and ends the daemon with a code of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from running import recald_here, write_config

from daemon.exit_codes import EX_SOFTWARE
from daemon.metrics import Metrics
from daemon.supervision import SupervisedExecutor, Supervision, ThreadDied


def broken() -> None:
    raise KeyError("a fault")


def run(target: Callable[[], Any]) -> None:
    thread = threading.Thread(target=target, name="intake")
    thread.start()
    thread.join()


def faults(registry: CollectorRegistry, thread: str) -> float | None:
    return registry.get_sample_value("recald_thread_faults_total", {"thread": thread})


def test_a_thread_that_dies_is_logged_counted_and_ends_the_daemon(caplog: pytest.LogCaptureFixture):
    registry, before = CollectorRegistry(), threading.excepthook
    with Supervision(Metrics(registry)) as supervision:
        run(lambda: None)
        supervision.check()
        run(broken)
        with pytest.raises(ThreadDied, match="^the thread intake died, see the log above$"):
            supervision.check()
    assert threading.excepthook is before
    assert faults(registry, "intake") == 1
    assert "KeyError: 'a fault'" in caplog.text and "in broken" in caplog.text


def test_a_background_task_that_fails_is_logged_and_counted_and_the_next_one_is_done(caplog: pytest.LogCaptureFixture):
    registry, done = CollectorRegistry(), threading.Event()
    with Supervision(Metrics(registry)) as supervision, SupervisedExecutor(supervision, "background") as background:
        background.submit(broken)
        background.submit(done.set)
    assert done.is_set() and faults(registry, "background") == 1
    assert "KeyError: 'a fault'" in caplog.text
    supervision.check()


def test_the_daemon_then_ends_with_its_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run_until_a_thread_dies(daemon: Any) -> None:
        raise ThreadDied("the thread intake died, see the log above")

    monkeypatch.setattr("daemon.loop.Daemon.run", run_until_a_thread_dies)
    done = recald_here("run", "--config", write_config(tmp_path, tmp_path / "model.pt2"))
    assert (done.returncode, done.stderr) == (
        EX_SOFTWARE,
        "recald run: the thread intake died, see the log above\n",
    )
