"""A program: every fault at every step of what a daemon writes, and a line of JSON about each.

A program of its own, because a process that is to be forked for every case must have no threads.
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

NEW, NEXT = 6, 7  # homogenizers of the front camera: after the swap, after the one that follows
STARTS = {"used": faults.FAULTS, "new": ("torn", "power cut")}  # the others are met often enough in one


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    os.environ["TMPDIR"] = str(folder / "device")  # so that its steps count
    logging.disable(logging.WARNING)  # faults are meant to be told of; what is an error is looked at
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
    """What a start finds after the fault, and another one after another swap."""
    run = _run(start, state, fault, at)
    damage = device.damage(state)
    served, complaints = device.served_after_a_start(state)
    swaps, wrong = device.audited(state)
    device.work(state, NEXT)
    return {
        "path": run.steps[-1].path,
        "met": run.met,
        "ended_well": run.ended_well,
        "served": served,
        "told_of": swaps.get("front", {}).get("number", 0),
        "wrong": complaints + wrong + damage,
        "served_next": device.served_after_a_start(state)[0],
        "wrong_next": device.audited(state)[1] + device.damage(state),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
