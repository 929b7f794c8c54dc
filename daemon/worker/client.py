"""The daemon's side of a worker process: starts it, sends it a job, receives its messages, ends it."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from socket import SO_SNDTIMEO, SOL_SOCKET, socketpair
from types import MappingProxyType
from typing import Any

import numpy as np

from daemon.child_process import python_command
from daemon.worker.ipc import receive_message, send_message
from daemon.worker.machine_memory import PROC
from daemon.worker.memory import MemoryLimit
from daemon.worker.process_times import cpu_seconds

WORKER_START_TIMEOUT_S = 120.0  # importing torch and loading a model takes 3 s on a PC, far more from a cold flash
WORKER_LOOK_S = 0.25  # between two looks at a worker that is busy: a fit that grows takes seconds to fill the memory
KILLED_ADVICE = " (killed; if the kernel's log says that memory ran out, take fewer recalibrate.frames)"
JOB_SEND_TIMEOUT_S = 10  # a worker that works reads its next job at once
EXIT_GRACE_S = 2.0  # for a worker that closed its connection: to write its traceback and exit with its own code
WORKER_ENVIRONMENT = {
    "OMP_WAIT_POLICY": "passive",  # no spinning on cores that frames need
    "CUDA_MPS_CLIENT_PRIORITY": "1",  # below the daemon's, where NVIDIA's MPS shares the GPU between processes
}
DEFAULT_FIT_DEVICE = "auto"  # as in the configuration; only fits ask for it
KILL_TIMEOUT_S = 5.0  # a process inside a broken driver does not even end when killed


class WorkerError(RuntimeError):
    """The worker died, hung or did not start. The next job starts a new one."""


class WorkerTimeout(WorkerError):
    """The job took longer than allowed, and the worker was killed."""


class WorkerClient:
    """One worker process, which the first job starts. One job at a time; `close` may come from any thread.

    digest: SHA-256 of the model that the daemon serves; the worker refuses a file that was exchanged since.
    class_mixes: shares of the classes by their numbers, for the sensors for which they are stated.
    """

    def __init__(
        self,
        model: Path,
        digest: str,
        backend: str,
        state: Path,
        threads: int,
        fit_device: str = DEFAULT_FIT_DEVICE,
        on_fault: Callable[[str], None] = lambda part: None,
        proc: Path = PROC,
        class_mixes: Mapping[str, Mapping[int, float]] = MappingProxyType({}),
    ):
        """on_fault: called for each fault that the worker handled, with a label of recald_handled_faults_total."""
        self._arguments = ["--model", model, "--sha256", digest, "--backend", backend, "--state", state]
        self._arguments += ["--threads", threads, "--fit-device", fit_device]
        self._class_mixes = dict(class_mixes)
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection | None = None
        self._closing = threading.Event()
        self.starts = 0  # processes so far
        self._on_fault = on_fault
        self._proc = proc
        self._ended_cpu_s = 0.0  # of the processes that have ended
        self._killed = (0, 0.0)  # number of a process, and its processor time before `kill`, s

    @property
    def cpu_s(self) -> float:
        """Processor time of all processes so far, s. It may fall for a moment while a process ends."""
        return self._ended_cpu_s + self._cpu_s_of(self.pid)

    def _cpu_s_of(self, pid: int | None) -> float:
        killed, noted = self._killed
        return max(cpu_seconds(pid, self._proc), noted if pid == killed else 0.0)

    @property
    def pid(self) -> int | None:
        """The number of the process; None while none runs."""
        process = self._process  # the thread of `call` may set it to None at the same time
        return None if process is None else process.pid

    def start(self) -> None:
        """Start the worker unless it runs. Raises WorkerError."""
        if self._connection is None:
            with self._ending_on_failure():
                self._start()

    def call(
        self,
        job: dict[str, Any],
        images: Sequence[np.ndarray],
        timeout: float,
        on_message: Callable[[dict[str, Any]], None] = lambda message: None,
        memory: MemoryLimit | None = None,
    ) -> dict[str, Any]:
        """Run a job and return its last message; give the earlier ones to `on_message`. memory: what it may take.

        images: (h, w, C) each. timeout: s. Raises WorkerTimeout or WorkerError.
        """
        self.start()
        with self._ending_on_failure():
            return self._run(job, images, timeout, on_message, memory)

    def finish(self) -> None:
        """End the worker after its job; the next job starts a new one. Only for the thread that uses `call`."""
        self._end()

    def close(self) -> None:
        """Kill the worker at once, and start no other."""
        self._closing.set()
        self.kill()

    def kill(self) -> None:
        """Kill the worker at once; the job that it runs fails, and the next one starts another. From any thread."""
        process = self._process  # the thread of `call` may set it to None at the same time
        if process is not None:
            self._killed = process.pid, self._cpu_s_of(process.pid)  # /proc forgets it: `kill` waits for a dead one
            process.kill()

    @contextmanager
    def _ending_on_failure(self) -> Iterator[None]:
        """End the process when the body fails, and raise a WorkerError."""
        try:
            yield
        except WorkerError:
            self._end()
            raise
        except BlockingIOError as error:
            self._end()
            raise WorkerTimeout("the worker did not read its job and was killed") from error
        except (EOFError, OSError) as error:
            code = self._end(EXIT_GRACE_S)
            advice = KILLED_ADVICE if code == -signal.SIGKILL and not self._closing.is_set() else ""
            reason = f"the worker process ended with {code}: {str(error) or 'no answer'}{advice}"
            raise WorkerError(reason) from error

    def _start(self) -> None:
        if self._closing.is_set():
            raise WorkerError("the daemon is stopping")
        ours, theirs = socketpair()
        ours.setsockopt(SOL_SOCKET, SO_SNDTIMEO, struct.pack("ll", JOB_SEND_TIMEOUT_S, 0))
        self._connection = Connection(ours.detach())
        with theirs:
            arguments = [*map(str, self._arguments), "--connection", str(theirs.fileno())]
            self._process = subprocess.Popen(
                [*python_command("daemon.worker.main"), *arguments],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is for the daemon, which ends its workers
                env=os.environ | WORKER_ENVIRONMENT,
            )
        self.starts += 1
        send_message(self._connection, {"class_mixes": self._class_mixes})
        answer = self._receive(self._connection, time.monotonic() + WORKER_START_TIMEOUT_S)
        if "failed" in answer:
            raise WorkerError(answer["failed"])

    def _run(
        self,
        job: dict[str, Any],
        images: Sequence[np.ndarray],
        timeout: float,
        on_message: Callable[[dict[str, Any]], None],
        memory: MemoryLimit | None,
    ) -> dict[str, Any]:
        assert self._connection is not None
        deadline = time.monotonic() + timeout
        send_message(self._connection, job, images)
        while not (message := self._receive(self._connection, deadline, memory)).get("done"):
            on_message(message)
        for part in message.get("faults", ()):
            self._on_fault(part)
        return message

    def _receive(self, connection: Connection, deadline: float, memory: MemoryLimit | None = None) -> dict[str, Any]:
        self._look(deadline, memory)  # also while one message follows the other
        while not connection.poll(min(WORKER_LOOK_S, max(0.0, deadline - time.monotonic()))):
            self._look(deadline, memory)
        return receive_message(connection)[0]

    def _look(self, deadline: float, memory: MemoryLimit | None) -> None:
        """Raise WorkerError for a worker that takes too much memory, WorkerTimeout for one that takes too long."""
        process = self._process
        if memory is not None and process is not None and (excess := memory.exceeded_by(process.pid)):
            raise WorkerError(excess)
        if self._closing.is_set():
            raise WorkerError("the daemon is stopping")
        if time.monotonic() >= deadline:
            raise WorkerTimeout("the worker took too long and was killed")

    def _end(self, grace: float = 0.0) -> int | None:
        """Wait `grace` s, then kill the worker. Returns its exit code, or None when it cannot be killed."""
        process, self._process = self._process, None  # first, so that `cpu_s` counts no time twice
        self._ended_cpu_s += self._cpu_s_of(None if process is None else process.pid)
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
        if process is None:
            return None
        for timeout in (grace, KILL_TIMEOUT_S):
            try:
                return process.wait(timeout)
            except subprocess.TimeoutExpired:
                process.kill()
        return None
