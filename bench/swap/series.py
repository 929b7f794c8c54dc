"""Many swaps of a daemon that serves: how long each takes, what frames notice, what memory it leaves behind."""

from __future__ import annotations

import re
import sys
import time
from typing import Any, NamedTuple

import numpy as np

from bench.material.camera import FPS, SENSOR, Answer
from bench.material.scene import SIZE, Scene, account, scene
from bench.report import percentiles, resident
from bench.swap.latency import AROUND_S, around_swaps
from bench.swap.outputs import attribution
from bench.swap.shelf import stock
from daemon.config import load_config
from daemon.demo.material import Material
from daemon.operator.control import request
from deploy.model.frozen import load_frozen
from deploy.store.artefacts import ArtefactStore

LEAST_FRAMES = 64  # the fewest that a recalibration may wait for
BETWEEN_S = 2.0  # from a swap to the order of the next, so that there are frames away from both
SWAP_TIMEOUT_S = 60.0
SETTLED = 100  # swaps after which memory is compared
AT_ONCE = {"shadow": 0, "probation": 0, "fits_a_day": 86_400, "swaps_a_day": 86_400}
COMMAND = [sys.executable, "-m", "bench.swap.stand_in"]
EXCHANGED = re.compile(r"serves, pause (\d+) us")
KEPT = re.compile(r"kept frames waiting for ([\d.]+) us")


class Memory(NamedTuple):
    """What the daemon holds after so many swaps."""

    swaps: int
    resident: float  # MiB


def measure_series(digits: Material, swaps: int, apart: int) -> dict[str, Any]:
    """`apart` swaps seconds apart, then `swaps` in a row, with frames at FPS all the while."""
    with scene(digits, SIZE, LEAST_FRAMES, COMMAND, **AT_ONCE) as here:
        versions = stock(ArtefactStore(here.folder.state), load_frozen(here.folder.model))
        here.camera.run_for((LEAST_FRAMES + 1) / FPS)
        spaced, _ = _swap(here, apart, BETWEEN_S)
        in_a_row, memory = _swap(here, swaps, 0.0)
        here.camera.settle()
        return {
            "ordered": apart + swaps,
            "pauses": _pauses(here.folder.log.read_text()),
            "apart": around_swaps(spaced),
            "in_a_row": percentiles([a.latency for a in in_a_row]),
            "memory": _flatness(memory),
            "frames": account(here),
            "outputs": attribution(spaced + in_a_row, here, versions),
        }


def _swap(here: Scene, count: int, pause: float) -> tuple[list[Answer], list[Memory]]:
    """Order `count` swaps, each when the one before has answered a frame and `pause` s are over."""
    memory: list[Memory] = []
    endpoint = load_config(here.folder.config).control.endpoint

    def order() -> None:
        for number in range(1, count + 1):
            time.sleep(pause)
            _recalibrate(endpoint)
            here.camera.swaps.get(timeout=SWAP_TIMEOUT_S)
            memory.append(Memory(number, resident(here.daemon.process.pid)))
        time.sleep(2 * AROUND_S)

    return here.camera.run_during(order), memory


def _recalibrate(endpoint: str) -> None:
    answer = request(endpoint, {"command": "recalibrate", "sensor": SENSOR}, SWAP_TIMEOUT_S)
    assert answer["ok"], answer


def _pauses(log: str) -> dict[str, Any]:
    """Of the exchange, by the daemon's own count, and of the frame thread, with all else it does for a swap."""
    return {
        "exchange": percentiles([1e-6 * float(us) for us in EXCHANGED.findall(log)]),
        "kept_waiting": percentiles([1e-6 * float(us) for us in KEPT.findall(log)]),
    }


def _flatness(memory: list[Memory]) -> dict[str, Any]:
    """MiB after the first swaps and after the last, and what a swap adds in between, by least squares."""
    swaps, resident = np.array(memory).T
    settled = min(SETTLED, len(memory) // 10)
    slope = np.polyfit(swaps[settled:], resident[settled:], 1)[0]
    return {
        "settled_at": settled,
        "settled_mib": float(resident[settled]),
        "end_mib": float(resident[-1]),
        "kib_per_swap": 1024 * float(slope),
        "curve": [tuple(m) for m in memory[:: max(1, len(memory) // 20)]],
    }
