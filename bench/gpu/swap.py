"""What frames notice of homogenizers that are loaded, proven and exchanged beside them on the GPU, and what stays."""

from __future__ import annotations

import itertools
import time
from array import array
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.gpu.attempt import Budget, attempt, say
from bench.gpu.engines import open_runner
from bench.gpu.material import NETWORK, Material
from bench.overhead import some_homogenizer
from bench.report import percentiles, resident
from bench.swap.latency import p99_ratio
from deploy.backends.protocol import Backend, Runner, SharesKernels, load_backend
from deploy.model.precision import FLOAT32, PARITY_TOLERANCE
from deploy.path import InferencePath, Prepared
from deploy.store.artefacts import FACTORY

HOMOGENIZERS = 8
AROUND_S = 0.02  # on either side of an exchange
REST_S = 0.1  # after an exchange, so that there are frames away from all that a swap does
OPENING_S = 20.0
SETTLED = 20  # swaps after which memory is first compared, and again after each so many
MIB = 2**20

Interval = tuple[float, float]


class Shelf(NamedTuple):
    """Compiled homogenizers, and by frame what Φ makes of each of them, and last without one."""

    compiled: list[bytes]
    expected: list[np.ndarray]  # (HOMOGENIZERS + 1, classes)


def _column() -> array[float]:
    return array("d")  # a list of Python's numbers would be memory that swaps do not take


@dataclass(frozen=True)
class Seen:
    """By frame, and by swap."""

    sent: array[float] = field(default_factory=_column)
    latency: array[float] = field(default_factory=_column)
    own: array[float] = field(default_factory=_column)  # how far the output is from its homogenizer's
    other: array[float] = field(default_factory=_column)  # and from the nearest other's
    loading: list[Interval] = field(default_factory=list)  # from bytes to a proven homogenizer
    exchanged: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)


def measure_swaps(engine: str, material: Material, swaps: int, budget: Budget) -> dict[str, Any]:
    """Frames back to back in this thread, homogenizers prepared by another, as in the daemon."""
    row: dict[str, Any] = {"size": material.size, "engine": engine}
    seen = Seen()
    say(f"swaps, {engine}")
    with attempt(f"swaps, {engine}", row):
        budget.require(OPENING_S)
        _swap(engine, material, swaps, budget, seen)
    return row | _summary(seen) if seen.own else row


def _swap(engine: str, material: Material, swaps: int, budget: Budget, seen: Seen) -> None:
    backend = load_backend(engine)
    backend.check_device()
    with ExitStack() as closing:
        model = open_runner(closing, engine, material, NETWORK, FLOAT32)
        shelf = _stock(backend, model, material)
        background = closing.enter_context(ThreadPoolExecutor(2))  # one prepares, the other closes
        path = InferencePath(model, closer=lambda runner: _close_later(background, runner))
        closing.callback(path.close)
        service = _Service(path, backend, shelf, material.frames, seen)
        closing.callback(service.ended.set)
        loader = background.submit(service.prepare, swaps, budget)
        service.serve(loader)
        loader.result()


def _close_later(background: Executor, runner: Runner) -> None:
    background.submit(runner.close)


def _stock(backend: Backend, model: Any, material: Material) -> Shelf:
    outputs = []
    compiled = _compile(backend, material)
    for form in compiled:
        runner: Any = backend.load(form, threads=1)
        outputs.append([model.run_after(runner, frame)[0] for frame in material.frames])
        runner.close()
    outputs.append([model.run(frame)[0] for frame in material.frames])
    return Shelf(compiled, list(np.stack(outputs, axis=1)))


def _compile(backend: Backend, material: Material) -> list[bytes]:
    """As the daemon's worker does: with the kernels of the first for all, where the backend can."""
    example = torch.zeros(1, *material.shape)
    homogenizers = [some_homogenizer(material.shape, seed) for seed in range(HOMOGENIZERS)]
    first = backend.compile(homogenizers[0], example)
    if isinstance(backend, SharesKernels):
        return [first, *(backend.with_weights_of(other, first) for other in homogenizers[1:])]
    return [first, *(backend.compile(other, example) for other in homogenizers[1:])]


class _Service:
    """One thread calls `serve`, another `prepare`."""

    def __init__(
        self, path: InferencePath, backend: Backend, shelf: Shelf, frames: list[np.ndarray], seen: Seen
    ) -> None:
        self.ended = Event()
        self._path, self._backend, self._shelf, self._frames, self._seen = path, backend, shelf, frames, seen
        self._ready: SimpleQueue[Prepared] = SimpleQueue()

    def prepare(self, swaps: int, budget: Budget) -> None:
        """One homogenizer after the other, until there were enough or time is up."""
        golden = np.concatenate(self._frames)
        self._seen.memory.append(_memory(0))
        for number in range(swaps):
            if self.ended.wait(REST_S) or budget.left() <= 0:
                return
            began, chosen = time.perf_counter(), number % HOMOGENIZERS
            runner = self._backend.load(self._shelf.compiled[chosen], threads=1)
            self._ready.put(self._path.prepare(str(chosen), runner, golden))
            self._seen.loading.append((began, time.perf_counter()))
            if (number + 1) % SETTLED == 0:
                self._seen.memory.append(_memory(number + 1))
        self.ended.wait(REST_S)

    def serve(self, loader: Future[None]) -> None:
        """Until the loader is through, and what it prepared serves."""
        numbers = itertools.cycle(range(len(self._frames)))
        while not (loader.done() and self._ready.empty()):
            self._serve_one(next(numbers))
            self._exchange()

    def _serve_one(self, number: int) -> None:
        began = time.perf_counter()
        self._seen.sent.append(began)
        output, homogenizer = self._path.infer(self._frames[number])
        self._seen.latency.append(time.perf_counter() - began)
        distances = np.abs(self._shelf.expected[number] - output[0]).max(axis=1)
        named = HOMOGENIZERS if homogenizer == FACTORY else int(homogenizer)
        self._seen.own.append(distances[named])
        self._seen.other.append(np.delete(distances, named).min())

    def _exchange(self) -> None:
        try:
            prepared = self._ready.get_nowait()
        except Empty:
            return
        moment, pause = time.perf_counter(), self._path.commit(prepared)
        self._seen.exchanged.append(moment)
        self._seen.pauses.append(pause)


def _memory(swaps: int) -> dict[str, float]:
    """MiB: in tensors, what PyTorch keeps of the card, all that is taken of it, and what the process has elsewhere."""
    free, total = torch.cuda.mem_get_info()
    return {
        "swaps": swaps,
        "allocated": torch.cuda.memory_allocated() / MIB,
        "reserved": torch.cuda.memory_reserved() / MIB,
        "card": (total - free) / MIB,
        "resident": resident("self"),
    }


def _summary(seen: Seen) -> dict[str, Any]:
    latency, own, other = (np.array(column) for column in (seen.latency, seen.own, seen.other))
    sent = np.array(seen.sent)[: len(latency)]
    near = _within(sent, [(moment - AROUND_S, moment + AROUND_S) for moment in seen.exchanged])
    loading = _within(sent, seen.loading)
    away = latency[~near & ~loading]
    attributed = (own <= PARITY_TOLERANCE) & (other > PARITY_TOLERANCE)
    lost = len(seen.sent) - len(latency)
    return {
        "swaps": len(seen.exchanged),
        "load_and_proof": percentiles([ended - began for began, ended in seen.loading]),
        "exchange": percentiles(seen.pauses),
        "frames": {"sent": len(seen.sent), "lost": lost, "attributed": int(attributed.sum())},
        "worst_own": float(own.max()),
        "nearest_other": float(other.min()),
        "away": percentiles(away),
        "around": percentiles(latency[near]) | {"p99_ratio": p99_ratio(latency[near], away)},
        "loading": percentiles(latency[loading]) | {"p99_ratio": p99_ratio(latency[loading], away)},
        "memory": seen.memory,
    }


def _within(moments: np.ndarray, intervals: list[Interval]) -> np.ndarray:
    """Which of the moments lie in one of the intervals, which are in order."""
    if not intervals:
        return np.zeros(len(moments), bool)
    began, ended = np.array(intervals).T
    last = np.searchsorted(began, moments, side="right") - 1
    inside: np.ndarray = (last >= 0) & (moments <= ended[last])
    return inside
