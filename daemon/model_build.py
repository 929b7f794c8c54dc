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
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from daemon.config import Config
from daemon.priority import step_back
from deploy.backend import load_backend
from deploy.cache import ModelCache
from deploy.frozen import load_frozen
from deploy.program import ModelError

REFUSED = 78  # as `recald run` ends where no restart helps
log = logging.getLogger(__name__)


class ModelBuild:
    """Begins at once. `close` from any thread."""

    def __init__(self, config: Config, backend: str):
        model = config.model
        arguments = ["--model", model.path, "--backend", backend, "--precision", model.precision]
        self._backend = backend
        self._process = subprocess.Popen(
            [sys.executable, "-m", "daemon.model_build", *map(str, arguments), "--state", str(config.state.directory)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C in a terminal is for the daemon, which ends it
        )

    def wait(self) -> bytes:
        """What was made. ModelError where it cannot be made, OSError where the process did not live to make it."""
        made, errors = self._process.communicate()
        said = errors.decode(errors="replace").strip()
        code = self._process.returncode
        if code == REFUSED:
            raise ModelError(said.splitlines()[-1])
        if code:
            raise OSError(f"the process that compiles the model with {self._backend} ended with {code}: {said[-500:]}")
        if said:
            log.warning("compiling the model with %s: %s", self._backend, said)
        return made

    def close(self) -> None:
        """End it, whatever it does."""
        self._process.kill()


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
    args = parser.parse_args(argv)
    logging.basicConfig(format="%(levelname)s %(message)s")
    step_back()
    with _own_output() as output:
        try:
            cache = ModelCache(load_backend(args.backend), load_frozen(args.model), args.precision, args.state)
            output.write(cache.get())
        except ValueError as error:
            print(" ".join(str(error).split()), file=sys.stderr)
            return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main())
