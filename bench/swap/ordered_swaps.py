"""Order many swaps of a daemon that serves: their pauses, the latency of frames, memory, and who made each output."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.material.camera import FPS, SENSOR, Answer
from bench.material.daemon_run import SIZE, DaemonRun, daemon_run
from bench.report import p99_ratio, percentiles, resident_mib
from bench.swap.daemon_without_fits import EXCHANGE_LINE, WAIT_LINE
from bench.swap.outputs import attribution
from calibrate.homogenizer import Homogenizer
from daemon.config import load_config
from daemon.demo.datasets import Dataset
from daemon.operator.control import request
from deploy.backends.protocol import load_backend
from deploy.model.frozen import FrozenModel, load_frozen
from deploy.store.artefacts import ArtefactStore

HOMOGENIZERS = 16
HOMOGENIZER_NOISE = 0.02  # sd, in units of the network's input: no drift, but each one gives another output
MIN_FIT_FRAMES = 64  # the fewest frames that a recalibration may wait for
BETWEEN_SWAPS_S = 2.0  # from a swap to the order of the next, so that some frames are near neither
# On either side of a swap. Loading and the proof come 0.1 s before the swap. In a wider window the one frame that a
# pause can delay would be less than 1 % of all, and the p99 would not show it.
AROUND_SWAP_S = 0.2
SWAP_TIMEOUT_S = 60.0
SETTLED_SWAPS = 100  # swaps before the first comparison of memory
CURVE_POINTS = 20
WITHOUT_WAITING: dict[str, Any] = {"shadow": 0, "probation": 0, "fits_a_day": 86_400, "swaps_a_day": 86_400}
COMMAND = [sys.executable, "-m", "bench.swap.daemon_without_fits"]


class Memory(NamedTuple):
    """The memory of the daemon after so many swaps."""

    swaps: int
    resident: float  # MiB


def measure_ordered_swaps(digits: Dataset, swaps: int, apart: int) -> dict[str, Any]:
    """Order `apart` swaps with BETWEEN_SWAPS_S between them, then `swaps` in a row; frames come at FPS."""
    with daemon_run(digits, SIZE, MIN_FIT_FRAMES, COMMAND, **WITHOUT_WAITING) as run:
        versions = store_homogenizers(ArtefactStore(run.folder.state), load_frozen(run.folder.model))
        run.camera.run_for((MIN_FIT_FRAMES + 1) / FPS)
        spaced, _ = _swap(run, apart, BETWEEN_SWAPS_S)
        in_a_row, memory = _swap(run, swaps, 0.0)
        run.camera.settle()
        log = run.folder.log.read_text()
        return {
            "ordered": apart + swaps,
            "pauses": {"exchange": _logged(log, EXCHANGE_LINE), "kept_waiting": _logged(log, WAIT_LINE)},
            "apart": latency_around_swaps(spaced),
            "in_a_row": percentiles([a.latency for a in in_a_row]),
            "memory": _memory_growth(memory),
            "frames": run.frame_counts(),
            "outputs": attribution(spaced + in_a_row, run, versions),
        }


def store_homogenizers(store: ArtefactStore, frozen: FrozenModel) -> list[str]:
    """Put homogenizers close to the identity into the store, as a worker stores fitted ones; return their versions."""
    backend, example = load_backend("onnx"), torch.zeros(1, *frozen.card.input.shape)
    versions = []
    for seed in range(HOMOGENIZERS):
        homogenizer = _homogenizer(frozen, seed)
        compiled = backend.compile(homogenizer, example)
        versions.append(store.put(homogenizer, {"model": frozen.digest}, compiled, backend.name))
    return versions


def _homogenizer(frozen: FrozenModel, seed: int) -> Homogenizer:
    generator = torch.Generator().manual_seed(seed)
    homogenizer = Homogenizer(*frozen.card.input.shape).eval()
    with torch.no_grad():
        for parameter in (homogenizer.curve, homogenizer.offset, homogenizer.bias):
            parameter.add_(HOMOGENIZER_NOISE * torch.randn(parameter.shape, generator=generator))
    return homogenizer


def _swap(run: DaemonRun, count: int, pause: float) -> tuple[list[Answer], list[Memory]]:
    """Order `count` swaps, each `pause` s after the swap before has answered its first frame."""
    memory: list[Memory] = []
    endpoint = load_config(run.folder.config).control.endpoint

    def order() -> None:
        for number in range(1, count + 1):
            time.sleep(pause)
            answer = request(endpoint, {"command": "recalibrate", "sensor": SENSOR}, SWAP_TIMEOUT_S)
            assert answer["ok"], answer
            run.camera.swaps.get(timeout=SWAP_TIMEOUT_S)
            memory.append(Memory(number, resident_mib(run.daemon.process.pid)))
        time.sleep(2 * AROUND_SWAP_S)

    return run.camera.run_during(order), memory


def _logged(log: str, line: str) -> dict[str, Any]:
    """Return the percentiles of the microseconds in lines of this form in the daemon's log."""
    before, after = line.split("{:.1f}")
    found = re.findall(rf"{re.escape(before)}([\d.]+){re.escape(after)}", log)
    return percentiles([1e-6 * float(microseconds) for microseconds in found])


def latency_around_swaps(answers: Sequence[Answer]) -> dict[str, Any]:
    """Return latencies around swaps and away from them.

    `control_ratio` is the ratio around the middle between two swaps, where nothing happens: it shows what is chance.
    """
    sent, latency = np.array([(a.sent, a.latency) for a in answers]).T
    swaps = np.array([b.sent for a, b in pairwise(answers) if a.homogenizer != b.homogenizer])
    near = _near(sent, swaps)
    middle = _near(sent, (swaps[:-1] + swaps[1:]) / 2)
    return {
        "swaps": len(swaps),
        "around": percentiles(latency[near]),
        "away": percentiles(latency[~near]),
        "p99_ratio": p99_ratio(latency[near], latency[~near]),
        "control_ratio": p99_ratio(latency[middle], latency[~near & ~middle]),
    }


def _near(sent: np.ndarray, moments: np.ndarray) -> np.ndarray:
    near: np.ndarray = (np.abs(sent[:, None] - moments) <= AROUND_SWAP_S).any(axis=1)
    return near


def _memory_growth(memory: Sequence[Memory]) -> dict[str, Any]:
    """Return MiB after the first swaps and after the last, and the growth per swap between, by least squares."""
    swaps, resident = np.array(memory).T
    settled = min(SETTLED_SWAPS, len(memory) // 10)
    slope = np.polyfit(swaps[settled:], resident[settled:], 1)[0]
    return {
        "settled_at": settled,
        "settled_mib": float(resident[settled]),
        "end_mib": float(resident[-1]),
        "kib_per_swap": 1024 * float(slope),
        "curve": [tuple(m) for m in memory[:: max(1, len(memory) // CURVE_POINTS)]],
    }
