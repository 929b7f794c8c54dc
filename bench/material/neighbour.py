"""A program that computes beside a daemon as a fit does, but takes no frames of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from daemon.child_process import python_command
from daemon.worker.client import WORKER_ENVIRONMENT

FRAMES = 32  # at a time
THREADS = 2  # more than a drift check has


@contextmanager
def neighbour(size: int) -> Iterator[None]:
    """Let the program run, with the priority of a worker, on frames of size x size pixels."""
    command = [*python_command(__name__), str(size)]
    process = subprocess.Popen(command, env=os.environ | WORKER_ENVIRONMENT, start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def compute(size: int) -> None:
    """Compute gradients of a convolution without end."""
    torch.set_num_threads(THREADS)
    frames, layer = torch.rand(FRAMES, 3, size, size), nn.Conv2d(3, 16, 5, padding=2)
    while True:
        layer(frames).relu().square().mean().backward()


if __name__ == "__main__":
    compute(int(sys.argv[1]))
