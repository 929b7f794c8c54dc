"""Latency, attribution and memory while homogenizers are loaded, proven and exchanged next to frames on the GPU."""

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

from bench.gpu.attempt import Budget, attempt, log_progress
from bench.gpu.engines import open_runner
from bench.gpu.workload import NETWORK, Workload
from bench.material.large_network import random_homogenizer
from bench.report import p99_ratio, percentiles, resident_mib
from deploy.backends.protocol import Backend, Runner, SharesKernels, load_backend
from deploy.model.precision import FLOAT32, PARITY_TOLERANCE
from deploy.path import InferencePath, PreparedHomogenizer
from deploy.store.artefacts import FACTORY

HOMOGENIZERS = 8
AROUND_S = 0.02  # on either side of an exchange
REST_S = 0.1  # after an exchange, so that some frames are away from all parts of a swap
OPENING_S = 20.0
MEMORY_EVERY_SWAPS = 20
MIB = 2**20

Interval = tuple[float, float]


class CompiledHomogenizers(NamedTuple):
    """Compiled homogenizers, and for each frame the expected outputs of Φ."""

    compiled: list[bytes]
    expected: list[np.ndarray]  # (HOMOGENIZERS + 1, classes) for each frame; the last row is without ρ


def _column() -> array[float]:
    return array("d")  # a list of Python's numbers would take memory that is not the swaps'


@dataclass(frozen=True)
class SwapRecord:
    """The measurements by frame and by swap."""

    sent: array[float] = field(default_factory=_column)
    latency: array[float] = field(default_factory=_column)
    own: array[float] = field(default_factory=_column)  # distance of the output from that of its homogenizer
    other: array[float] = field(default_factory=_column)  # and from that of the nearest other one
    loading: list[Interval] = field(default_factory=list)  # from bytes to a homogenizer that may serve
    exchanged: list[float] = field(default_factory=list)
    pauses: list[float] = field(default_factory=list)
    memory: list[dict[str, float]] = field(default_factory=list)


def measure_swaps(engine: str, workload: Workload, swaps: int, budget: Budget) -> dict[str, Any]:
    """Serve frames back to back in this thread while another thread prepares homogenizers, as in the daemon."""
    row: dict[str, Any] = {"size": workload.size, "engine": engine}
    record = SwapRecord()
    log_progress(f"swaps, {engine}")
    with attempt(f"swaps, {engine}", row):
        budget.require(OPENING_S)
        _swap(engine, workload, swaps, budget, record)
    return row | _summary(record) if record.own else row


def _swap(engine: str, workload: Workload, swaps: int, budget: Budget, record: SwapRecord) -> None:
    backend = load_backend(engine)
    backend.check_device()
    with ExitStack() as closing:
        model = open_runner(closing, engine, workload, NETWORK, FLOAT32)
        homogenizers = _compile_and_run(backend, model, workload)
        background = closing.enter_context(ThreadPoolExecutor(2))  # one prepares, the other closes
        path = InferencePath(model, closer=lambda runner: _close_later(background, runner))
        closing.callback(path.close)
        service = _Service(path, backend, homogenizers, workload.frames, record)
        closing.callback(service.ended.set)
        loader = background.submit(service.prepare, swaps, budget)
        service.serve(loader)
        loader.result()


def _close_later(background: Executor, runner: Runner) -> None:
    background.submit(runner.close)


def _compile_and_run(backend: Backend, model: Any, workload: Workload) -> CompiledHomogenizers:
    outputs = []
    compiled = _compile(backend, workload)
    for form in compiled:
        runner: Any = backend.load(form, threads=1)
        outputs.append([model.run_after(runner, frame)[0] for frame in workload.frames])
        runner.close()
    outputs.append([model.run(frame)[0] for frame in workload.frames])
    return CompiledHomogenizers(compiled, list(np.stack(outputs, axis=1)))


def _compile(backend: Backend, workload: Workload) -> list[bytes]:
    """Compile as the daemon's worker does: all with the kernels of the first one, where the backend can."""
    example = torch.zeros(1, *workload.shape)
    modules = [random_homogenizer(workload.shape, seed) for seed in range(HOMOGENIZERS)]
    first = backend.compile(modules[0], example)
    if isinstance(backend, SharesKernels):
        return [first, *(backend.with_weights_of(other, first) for other in modules[1:])]
    return [first, *(backend.compile(other, example) for other in modules[1:])]


class _Service:
    """Serves frames and prepares homogenizers: one thread calls `serve`, another `prepare`."""

    def __init__(
        self,
        path: InferencePath,
        backend: Backend,
        homogenizers: CompiledHomogenizers,
        frames: list[np.ndarray],
        record: SwapRecord,
    ) -> None:
        self.ended = Event()
        self._path, self._backend, self._record = path, backend, record
        self._homogenizers, self._frames = homogenizers, frames
        self._ready: SimpleQueue[PreparedHomogenizer] = SimpleQueue()

    def prepare(self, swaps: int, budget: Budget) -> None:
        """Prepare one homogenizer after the other, until there were `swaps` or the time is over."""
        golden = np.concatenate(self._frames)
        self._record.memory.append(_memory(0))
        for number in range(swaps):
            if self.ended.wait(REST_S) or budget.left() <= 0:
                return
            began, chosen = time.perf_counter(), number % HOMOGENIZERS
            runner = self._backend.load(self._homogenizers.compiled[chosen], threads=1)
            self._ready.put(self._path.prepare(str(chosen), runner, golden))
            self._record.loading.append((began, time.perf_counter()))
            if (number + 1) % MEMORY_EVERY_SWAPS == 0:
                self._record.memory.append(_memory(number + 1))
        self.ended.wait(REST_S)

    def serve(self, loader: Future[None]) -> None:
        """Serve until the loader has ended and the last homogenizer that it prepared serves."""
        numbers = itertools.cycle(range(len(self._frames)))
        while not (loader.done() and self._ready.empty()):
            self._serve_one(next(numbers))
            self._exchange()

    def _serve_one(self, number: int) -> None:
        began = time.perf_counter()
        self._record.sent.append(began)
        output, homogenizer = self._path.infer(self._frames[number])
        self._record.latency.append(time.perf_counter() - began)
        distances = np.abs(self._homogenizers.expected[number] - output[0]).max(axis=1)
        named = HOMOGENIZERS if homogenizer == FACTORY else int(homogenizer)
        self._record.own.append(distances[named])
        self._record.other.append(np.delete(distances, named).min())

    def _exchange(self) -> None:
        try:
            prepared = self._ready.get_nowait()
        except Empty:
            return
        moment, pause = time.perf_counter(), self._path.commit(prepared)
        self._record.exchanged.append(moment)
        self._record.pauses.append(pause)


def _memory(swaps: int) -> dict[str, float]:
    """Return MiB: in tensors, reserved by PyTorch, in use on the whole card, and resident in the process."""
    free, total = torch.cuda.mem_get_info()
    return {
        "swaps": swaps,
        "allocated": torch.cuda.memory_allocated() / MIB,
        "reserved": torch.cuda.memory_reserved() / MIB,
        "card": (total - free) / MIB,
        "resident": resident_mib("self"),
    }


def _summary(record: SwapRecord) -> dict[str, Any]:
    latency, own, other = (np.array(column) for column in (record.latency, record.own, record.other))
    sent = np.array(record.sent)[: len(latency)]
    near = _within(sent, [(moment - AROUND_S, moment + AROUND_S) for moment in record.exchanged])
    loading = _within(sent, record.loading)
    away = latency[~near & ~loading]
    attributed = (own <= PARITY_TOLERANCE) & (other > PARITY_TOLERANCE)
    lost = len(record.sent) - len(latency)
    return {
        "swaps": len(record.exchanged),
        "load_and_proof": percentiles([ended - began for began, ended in record.loading]),
        "exchange": percentiles(record.pauses),
        "frames": {"sent": len(record.sent), "lost": lost, "attributed": int(attributed.sum())},
        "worst_own": float(own.max()),
        "nearest_other": float(other.min()),
        "away": percentiles(away),
        "around": percentiles(latency[near]) | {"p99_ratio": p99_ratio(latency[near], away)},
        "loading": percentiles(latency[loading]) | {"p99_ratio": p99_ratio(latency[loading], away)},
        "memory": record.memory,
    }


def _within(moments: np.ndarray, intervals: list[Interval]) -> np.ndarray:
    """Tell which of the moments lie in one of the intervals, which are sorted."""
    if not intervals:
        return np.zeros(len(moments), bool)
    began, ended = np.array(intervals).T
    last = np.searchsorted(began, moments, side="right") - 1
    inside: np.ndarray = (last >= 0) & (moments <= ended[last])
    return inside
