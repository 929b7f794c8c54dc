"""A program: inject every fault at every step of what a daemon writes, and print one line of JSON for each.

It is a program of its own because it forks for each case, and a process that forks must have no threads.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import Any

import device
import faults
import torch

from daemon.state import audit_writer

NEW, NEXT = 6, 7  # homogenizers of the front camera after the swap with the fault, and after the next swap
STARTS = {"used": faults.FAULTS, "new": ("torn", "power cut")}  # the other faults are tested enough with "used"


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["TMPDIR"] = str(folder / "device")  # so that temporary files are steps, too
    logging.disable(logging.WARNING)  # every fault causes warnings; only errors are checked
    audit_writer.MIN_KEPT_RECORDS = 0
    (folder / "new").mkdir()
    device.used(folder / "used")
    for name, kinds in STARTS.items():
        start, state = folder / name, folder / "device"
        steps = _run(start, state).steps
        for fault, (at, step) in itertools.product(kinds, enumerate(steps)):
            if faults.applies(fault, step):
                case = {"start": name, "fault": fault, "call": step.call, "at": at}
                print(json.dumps(case | _found(start, state, fault, at)))


def _run(start: Path, state: Path, fault: str = "", at: int = -1) -> faults.Run:
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(start, state)
    return faults.run(partial(device.work, state, NEW), state, fault, at)


def _found(start: Path, state: Path, fault: str, at: int) -> dict[str, Any]:
    """Describe what the start after the fault finds, and what the start after one more swap finds."""
    run = _run(start, state, fault, at)
    damage = device.damage(state)
    served, errors = device.served_after_a_start(state)
    swaps, wrong = device.audited(state)
    device.work(state, NEXT)
    return {
        "path": run.steps[-1].path,
        "met": run.met,
        "ended_well": run.ended_well,
        "served": served,
        "recorded": swaps.get("front", {}).get("number", 0),
        "wrong": errors + wrong + damage,
        "served_next": device.served_after_a_start(state)[0],
        "wrong_next": device.audited(state)[1] + device.damage(state),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
