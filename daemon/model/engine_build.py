"""Builds the engine of Φ in a process of its own where that takes minutes, while a stand-in serves Φ.

That process keeps the engine in the state directory for the next start, and also sends it to the daemon through a
pipe. So a full disk costs the next start another build, and this daemon nothing.
"""

from __future__ import annotations

import argparse
import errno
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from daemon.child_process import python_command
from daemon.config import Config
from daemon.exit_codes import EX_CONFIG
from daemon.model.served_model import ServedModel, open_runner
from deploy.backends.engine_cache import ModelCache
from deploy.backends.protocol import Runner, load_backend
from deploy.model.frozen import load_frozen
from deploy.model.program import ModelError

PARENT_CHECK_S = 1.0  # how often the process checks that the daemon still runs

log = logging.getLogger(__name__)


class EngineBuildError(ModelError):
    """The requested backend cannot compile the model, or computes something else. Found while a stand-in serves."""


class BuilderDied(OSError):
    """The process was killed, or the GPU has not enough memory now. A later build may succeed."""


class EngineBuild:
    """One build, from now on; `close` may be called by any thread."""

    def __init__(self, config: Config, model: ServedModel):
        arguments = ["--model", config.model.path, "--sha256", model.digest, "--backend", model.backend.name]
        arguments += ["--precision", config.model.precision, "--state", config.state.directory, "--daemon", os.getpid()]
        self._config, self._model, self._began = config, model, time.monotonic()
        self._process = subprocess.Popen(
            [*python_command("daemon.model.engine_build"), *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for the daemon, which ends this process
        )
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._runner = self._executor.submit(self._open)
        self._taken = False

    @property
    def progress(self) -> str:
        """Progress text for `systemctl status`."""
        return f"compiling with {self._model.backend.name} for {time.monotonic() - self._began:.0f} s"

    @property
    def done(self) -> bool:
        """Whether `take` returns or raises at once."""
        return self._runner.done()

    def take(self) -> Runner:
        """Return the built engine, loaded and compared with the model; the caller closes it.

        Raises EngineBuildError where the model cannot be built or differs, BuilderDied where another build may succeed.
        """
        self._taken = True
        return self._runner.result()

    def close(self) -> None:
        """End the build; close its runner where nobody took it."""
        self._process.kill()
        self._executor.shutdown(wait=True)
        if not self._taken and self._runner.exception() is None:
            self._runner.result().close()

    def _open(self) -> Runner:
        try:
            return open_runner(self._config, self._model.backend, self._model.frozen, self._receive_engine())
        except ModelError as error:
            raise EngineBuildError(str(error)) from error
        except OSError as error:
            if error.errno != errno.ENOMEM:  # such as a GPU that is lost, with which the stand-in is lost, too
                raise
            raise BuilderDied(str(error)) from error

    def _receive_engine(self) -> bytes:
        """Wait for the process to end, and return the engine it wrote to its standard output."""
        engine, errors = self._process.communicate()
        messages, code = errors.decode(errors="replace").strip(), self._process.returncode
        step, last = f"compiling the model with {self._model.backend.name}", messages.rpartition("\n")[2]
        if code == EX_CONFIG:
            raise ModelError(last)
        if code:
            raise BuilderDied(f"{step} ended with {code}: {last or 'it gives no reason'}")
        if messages:
            log.warning("%s: %s", step, messages)
        return engine


# ---- the process


def main(argv: list[str] | None = None) -> int:
    """Build the engine and write it to standard output; return EX_CONFIG where the model cannot be built."""
    parser = argparse.ArgumentParser(description="started by recald run")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sha256", required=True, help="of the model that the daemon serves")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--daemon", type=int, required=True, help="process id of the daemon; this process ends with it")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s")
    threading.Thread(target=_end_with, args=(args.daemon,), daemon=True).start()
    with _exclusive_output() as output:
        try:
            backend, frozen = load_backend(args.backend), load_frozen(args.model, args.sha256)
            cache = ModelCache(backend, frozen, args.precision, args.state)
            output.write(cache.get())
        except ValueError as error:
            print(" ".join(str(error).split()), file=sys.stderr)
            return EX_CONFIG
    return 0


def _end_with(daemon: int) -> None:
    """End this process when the daemon is gone: a killed daemon cannot end it, and it would slow down the next one."""
    while os.getppid() == daemon:
        time.sleep(PARENT_CHECK_S)
    os._exit(1)


@contextmanager
def _exclusive_output() -> Iterator[BinaryIO]:
    """Yield the standard output for the engine alone; whatever libraries print goes to standard error."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as output:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        yield output


if __name__ == "__main__":
    sys.exit(main())
