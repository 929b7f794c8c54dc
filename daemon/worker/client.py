"""The daemon's end of a worker process: start it, give it a job, hear its answers, end it."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from socket import SO_SNDTIMEO, SOL_SOCKET, socketpair
from typing import Any, TypeVar

import numpy as np

from daemon.worker.ipc import pack, unpack

START_TIMEOUT = 120.0  # s; importing torch and loading a model takes 3 s on a PC, far more on a cold flash
SEND_TIMEOUT = 10  # s; a worker reads its next job at once, or it hangs
LAST_WORDS = 2.0  # s for a worker that closed its end to write its traceback and leave with its own code
DEATH_TIMEOUT = 5.0  # s; a process inside a broken driver does not even die when killed

T = TypeVar("T")


class WorkerError(RuntimeError):
    """The worker died, hung or could not be started; the next job starts another."""


class WorkerTimeout(WorkerError):
    """The job took longer than it may; the worker was killed."""


class WorkerClient:
    """One worker process, started with its first job. One job at a time; `close` from any thread."""

    def __init__(self, model: Path, backend: str, state: Path, threads: int):
        self._arguments = ["--model", model, "--backend", backend, "--state", state, "--threads", threads]
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._closing = threading.Event()

    def start(self) -> None:
        """Start the worker unless it runs. Raises WorkerError."""
        if self._connection is None:
            self._attempt(self._start)

    def call(
        self,
        job: dict[str, Any],
        images: np.ndarray,
        timeout: float,
        on_message: Callable[[dict[str, Any]], None] = lambda message: None,
    ) -> dict[str, Any]:
        """Do a job and return its last message; the ones before go to `on_message`. Raises WorkerError."""
        self.start()
        return self._attempt(lambda: self._converse(job, images, timeout, on_message))

    def close(self) -> None:
        """End the worker at once, whatever it does, and start no other."""
        self._closing.set()
        process = self._process  # the calling thread may be ending it, too
        if process is not None:
            process.kill()

    def finish(self) -> None:
        """End the worker after its job; the next job starts a fresh one. By the thread that calls `call`."""
        self._end()

    def _attempt(self, step: Callable[[], T]) -> T:
        """Whatever goes wrong in a step, no process is left behind and the error is a WorkerError."""
        try:
            return step()
        except WorkerError:
            self._end()
            raise
        except BlockingIOError as error:
            self._end()
            raise WorkerTimeout("the worker did not take its job and was killed") from error
        except (EOFError, OSError) as error:
            code = self._end(LAST_WORDS)
            raise WorkerError(f"the worker process ended with {code}: {str(error) or 'no answer'}") from error

    def _start(self) -> None:
        if self._closing.is_set():
            raise WorkerError("the daemon is stopping")
        ours, theirs = socketpair()
        ours.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack("ll", SEND_TIMEOUT, 0))
        self._connection = Connection(ours.detach())
        with theirs:
            arguments = [*map(str, self._arguments), "--connection", str(theirs.fileno())]
            self._process = subprocess.Popen(
                [sys.executable, "-m", "daemon.worker.main", *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is for the daemon, which ends its workers
                env=os.environ | {"OMP_WAIT_POLICY": "passive"},  # no spinning on cores that frames need
            )
        self._receive(self._connection, time.monotonic() + START_TIMEOUT)

    def _converse(
        self, job: dict[str, Any], images: np.ndarray, timeout: float, on_message: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        assert self._connection is not None
        deadline = time.monotonic() + timeout
        self._connection.send_bytes(pack(job, images))
        while not (message := self._receive(self._connection, deadline)).get("done"):
            on_message(message)
        return message

    def _receive(self, connection: Connection, deadline: float) -> dict[str, Any]:
        while not connection.poll(min(1.0, max(0.0, deadline - time.monotonic()))):
            if self._closing.is_set():
                raise WorkerError("the daemon is stopping")
            if time.monotonic() >= deadline:
                raise WorkerTimeout("the worker took too long and was killed")
        return unpack(connection.recv_bytes())[0]

    def _end(self, grace: float = 0.0) -> int | None:
        """Kill the worker, after `grace` s in which it may leave by itself; None if it cannot be killed."""
        process, self._process = self._process, None
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        for patience in (grace, DEATH_TIMEOUT):
            try:
                return process.wait(patience)
            except subprocess.TimeoutExpired:
                process.kill()
        return None
