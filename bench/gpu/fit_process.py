"""A process that fits on the GPU when asked to, as the daemon's worker does: `python -m bench.gpu.fit_process`.

It says when it is ready, and answers each line with the monotonic times (s) at which a fit began and ended.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench.gpu.fit import drifted_images
from bench.material.cifar import LIMITS
from daemon.niceness import lower_priority
from daemon.worker.fit_device import fit_on_device

READY = "ready"


def main() -> None:
    """Fit once, so that libraries are loaded, and then once for each line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--network", required=True)
    parser.add_argument("--draw", type=int, required=True)
    args = parser.parse_args()
    lower_priority()
    drifted = drifted_images(args.data, args.network, args.draw)
    fit_on_device("cuda", "cuda", drifted.model, drifted.frames, limits=LIMITS)
    print(READY, flush=True)
    for _ in sys.stdin:
        began = time.monotonic()
        fit_on_device("cuda", "cuda", drifted.model, drifted.frames, limits=LIMITS)
        print(began, time.monotonic(), flush=True)


if __name__ == "__main__":
    main()
