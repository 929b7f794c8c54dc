"""Exports what the GPU says of itself. A thread of its own asks: a driver that hangs delays no frame and no scrape."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple

from prometheus_client import Gauge

from daemon.metrics import Metrics
from daemon.monitoring.gpu_jetson import open_jetson
from daemon.monitoring.gpu_nvml import open_nvml
from daemon.monitoring.gpu_state import THROTTLE_REASONS, GpuSource, GpuState

ASK_S = 5.0  # between two questions: three for each scrape of 15 s; one takes the driver about 1 ms
STALE_S = 20.0  # an older answer is not shown: the driver hangs
RETRY_S = 60.0  # after a driver that is not there, or that failed
CLOSE_S = 1.0  # a driver that hangs must not hold up the end of recald
OpenSource = Callable[[], GpuSource | None]
SeriesValues = dict[tuple[str, ...], float]  # by the values of a series' labels
GPU_SOURCES: tuple[OpenSource, ...] = (open_nvml, open_jetson)  # the first that tells anything is asked

log = logging.getLogger(__name__)


class GpuAnswer(NamedTuple):
    """The states of all GPUs, by number. at: when they were told, s of the monotonic clock."""

    at: float
    states: Mapping[str, GpuState]


class GpuWatch:
    """`start` begins to ask; `export`, for one thread, puts the newest answer into the metrics."""

    def __init__(
        self,
        metrics: Metrics,
        sources: Sequence[OpenSource] = GPU_SOURCES,
        clock: Callable[[], float] = time.monotonic,
        ask_s: float = ASK_S,
    ):
        """sources: none of them is asked where there are none. clock: monotonic, s."""
        self._metrics = metrics
        self._sources = sources
        self._clock = clock
        self._ask_s = ask_s
        self._answer: GpuAnswer | None = None  # replaced as a whole, by the thread
        self._exported: GpuAnswer | None = None
        self._shown: dict[Gauge, set[tuple[str, ...]]] = {}  # labels of the series that exist
        self._fault = ""  # the newest that the log names
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gpu", daemon=True)  # it may hang in the driver

    def start(self) -> None:
        """Begin to ask in the background, if there is anything to ask."""
        if self._sources:
            self._thread.start()

    def close(self) -> None:
        """Stop asking; wait for the driver for at most CLOSE_S."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(CLOSE_S)

    def export(self) -> None:
        """Show the newest answer, and nothing while there is none or it is too old."""
        answer = self._answer
        if answer is not None and self._clock() - answer.at > STALE_S:
            answer = None
        if answer is not self._exported:
            self._exported = answer
            self._export({} if answer is None else answer.states)

    # ---- the thread

    def _run(self) -> None:
        while not self._stopping.is_set():
            source = self._open()
            if source is not None:
                self._ask_until_it_fails(source)
            self._stopping.wait(RETRY_S)

    def _open(self) -> GpuSource | None:
        for open_source in self._sources:
            try:
                source = open_source()
            except Exception as error:  # whatever a driver does: frames go on without its numbers
                self._note(error)
                continue
            if source is not None:
                return source
        return None

    def _ask_until_it_fails(self, source: GpuSource) -> None:
        try:
            while not self._stopping.is_set():
                self._answer = GpuAnswer(self._clock(), source.read())
                self._fault = ""  # the same error is news again
                self._stopping.wait(self._ask_s)
        except Exception as error:  # as above
            self._note(error)
            self._answer = None
        finally:
            with suppress(Exception):  # a driver that is gone cannot be let go
                source.close()

    def _note(self, error: Exception) -> None:
        self._metrics.count_fault("gpu")
        text = f"{type(error).__name__}: {error}"
        if text != self._fault:  # it is asked again each minute
            log.warning("the GPU does not tell its state: %s", text)
        self._fault = text

    # ---- the metrics

    def _export(self, states: Mapping[str, GpuState]) -> None:
        metrics = self._metrics
        plain = {
            metrics.gpu_utilization_ratio: {gpu: state.utilization for gpu, state in states.items()},
            metrics.gpu_memory_used_bytes: {gpu: state.memory_used for gpu, state in states.items()},
            metrics.gpu_memory_total_bytes: {gpu: state.memory_total for gpu, state in states.items()},
            metrics.gpu_temperature_celsius: {gpu: state.temperature for gpu, state in states.items()},
        }
        for gauge, values in plain.items():
            self._show(gauge, {(gpu,): value for gpu, value in values.items() if value is not None})
        throttled = {gpu: state.throttled for gpu, state in states.items() if state.throttled is not None}
        flags: SeriesValues = {}
        for gpu, found in throttled.items():
            flags |= {(gpu, reason): float(reason in found) for reason in THROTTLE_REASONS}
        self._show(metrics.gpu_throttled, flags)

    def _show(self, gauge: Gauge, values: SeriesValues) -> None:
        """Set these series, and remove those that were shown and are none of them."""
        for labels in self._shown.get(gauge, set()) - values.keys():
            gauge.remove(*labels)
        for labels, value in values.items():
            gauge.labels(*labels).set(value)
        self._shown[gauge] = set(values)
