"""Φ compiled where that takes minutes: in a process of its own, while something else serves.

What it makes is kept in the state directory for the next start, and handed over through a pipe, so that a full disk
costs the next start its time and not this one its service.
"""

from __future__ import annotations

import argparse
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

from daemon.config import Config
from daemon.exit_codes import EX_CONFIG
from daemon.model.served_model import ServedModel, Unservable, open_runner
from daemon.niceness import step_back
from deploy.backends.engine_cache import ModelCache
from deploy.backends.protocol import Runner, load_backend
from deploy.model.frozen import load_frozen
from deploy.model.program import ModelError

WATCH_S = 1.0  # how often it is looked whether the daemon is still there
log = logging.getLogger(__name__)


class EngineBuild:
    """Begins at once. `close` from any thread."""

    def __init__(self, config: Config, model: ServedModel):
        arguments = ["--model", config.model.path, "--backend", model.backend.name]
        arguments += ["--precision", config.model.precision, "--state", config.state.directory, "--daemon", os.getpid()]
        self._config, self._model, self._began = config, model, time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "daemon.model.engine_build", *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for the daemon, which ends it
        )
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="compile")
        self._opened = self._executor.submit(self._open)
        self._taken = False

    @property
    def told(self) -> str:
        """For a person who waits."""
        return f"compiling with {self._model.backend.name} for {time.monotonic() - self._began:.0f} s"

    @property
    def done(self) -> bool:
        return self._opened.done()

    def take(self) -> Runner:
        """What was made, loaded and compared: the caller's to close.

        Unservable where it cannot be made or differs, OSError where the process did not live to make it.
        """
        self._taken = True
        return self._opened.result()

    def close(self) -> None:
        """End it, whatever it does; what nobody took is closed."""
        self._process.kill()
        self._executor.shutdown(wait=True)
        if not self._taken and self._opened.exception() is None:
            self._opened.result().close()

    def _open(self) -> Runner:
        try:
            return open_runner(self._config, self._model.backend, self._model.frozen, self._wait())
        except ModelError as error:
            raise Unservable(str(error)) from error

    def _wait(self) -> bytes:
        made, errors = self._process.communicate()
        said, code = errors.decode(errors="replace").strip(), self._process.returncode
        what, last = f"compiling the model with {self._model.backend.name}", said.rpartition("\n")[2]
        if code == EX_CONFIG:
            raise ModelError(last)
        if code:
            raise OSError(f"{what} ended with {code}: {last or 'it gives no reason'}")
        if said:
            log.warning("%s: %s", what, said)
        return made


def _end_with(daemon: int) -> None:
    """A daemon that is killed cannot end this process, which would go on beside the next one's."""
    while os.getppid() == daemon:
        time.sleep(WATCH_S)
    os._exit(1)


@contextmanager
def _own_output() -> Iterator[BinaryIO]:
    """What was standard output, where libraries may no longer print."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as output:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        yield output


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="started by recald run")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--backend", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--daemon", type=int, required=True, help="whose child it is, and with which it ends")
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s")
    step_back()
    threading.Thread(target=_end_with, args=(args.daemon,), daemon=True).start()
    with _own_output() as output:
        try:
            cache = ModelCache(load_backend(args.backend), load_frozen(args.model), args.precision, args.state)
            output.write(cache.get())
        except ValueError as error:
            print(" ".join(str(error).split()), file=sys.stderr)
            return EX_CONFIG
    return 0


if __name__ == "__main__":
    sys.exit(main())
