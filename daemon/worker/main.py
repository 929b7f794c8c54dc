"""The worker process: runs drift checks and fits, apart from the frames. `python -m daemon.worker.main`.

It is a process of its own, because exports and compiles hold Python's lock for hundreds of milliseconds, and because
a crash, a leak or a hang in here must not cost a frame. It reads jobs from a connection and answers on it, and it ends
when the daemon ends.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrate.errors import RecaldError
from calibrate.source.class_mix import Shares
from daemon.exit_codes import EX_CONFIG
from daemon.log_limit import log_to_stderr
from daemon.worker.context import WorkerContext
from daemon.worker.fit_job import JOB_ERRORS, FitJob, Send, failure
from daemon.worker.ipc import receive_message, send_message
from daemon.worker.observe_job import observe
from daemon.worker.restore_job import restore_stored
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import ArtefactStore

log = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> int:
    """Load the model, say that the worker is ready, and serve jobs until the daemon ends."""
    args = _parser().parse_args(argv)
    log_to_stderr("%(levelname)s worker: %(message)s")
    logging.getLogger("daemon.worker").setLevel(logging.INFO)  # such as where a fit computes
    torch.set_num_threads(args.threads)
    with Connection(args.connection) as connection:
        stated, _ = receive_message(connection)  # too much for the command line where there are many classes
        frozen, store = load_frozen(args.model, args.sha256), ArtefactStore(args.state)
        mixes = _numbered(stated["class_mixes"])
        try:
            context = WorkerContext(frozen, args.backend, store, args.fit_device, mixes)
        except RecaldError as error:  # the clean frames were measured anew since the daemon started
            send_message(connection, {"failed": str(error)})
            return EX_CONFIG
        try:
            send_message(connection, {"ready": True})
            serve(context, connection)
        except ConnectionError:
            log.warning("the daemon ended while a job was running")
    return 0


def serve(context: WorkerContext, connection: Connection) -> None:
    """Answer jobs until the daemon closes its end. Raises ConnectionError if it does so during a job."""

    def send(message: dict[str, Any]) -> None:
        send_message(connection, message)

    while True:
        began = time.process_time()
        try:
            job, images = receive_message(connection)
        except EOFError:
            return
        assert images is not None
        try:
            answer(context, job, images, send, began)
        except ConnectionError:  # an OSError, but nobody is left to receive the failure
            raise
        except JOB_ERRORS as error:
            send(concluded(context, failure(job, error)))


def answer(context: WorkerContext, job: dict[str, Any], images: np.ndarray, send: Send, began: float) -> None:
    """Run one job; the last message that it sends has "done": true.

    began: processor time of this process when it began to read the job, s.
    """
    if job["job"] == "observe":
        scores = observe(context, job, images)
        send(concluded(context, scores | {"cpu_s": time.process_time() - began}))
    elif job["job"] == "restore":
        send(concluded(context, restore_stored(context, job)))
    else:
        send(concluded(context, FitJob(context, job, images, send).run()))


def concluded(context: WorkerContext, result: dict[str, Any]) -> dict[str, Any]:
    """Return the last message of a job: its result, and the faults that were handled since the last one."""
    message = {"done": True, **result, "faults": list(context.faults)}
    context.faults.clear()
    return message


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="started by recald run")
    parser.add_argument("--connection", type=int, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--sha256", required=True, help="of the model that the daemon serves")
    parser.add_argument("--backend", required=True)
    parser.add_argument("--state", type=Path, required=True)
    parser.add_argument("--fit-device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    return parser


def _numbered(mixes: dict[str, dict[str, float]]) -> dict[str, Shares]:
    return {sensor: {int(number): share for number, share in mix.items()} for sensor, mix in mixes.items()}


if __name__ == "__main__":
    sys.exit(main())
