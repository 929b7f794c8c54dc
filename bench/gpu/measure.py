"""On an NVIDIA GPU the homogenizer adds at most 5 % to the network's time, and a swap delays and loses no frame."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from bench.arguments import add_data
from bench.gpu.attempt import Budget, attempt, log_progress
from bench.gpu.beside_fit import measure_beside_fit
from bench.gpu.ceilings import measure_ceilings, measure_copies
from bench.gpu.engines import BACKENDS
from bench.gpu.fit import measure_fits
from bench.gpu.latency import OPENING_S, measure_latency
from bench.gpu.swap import AROUND_S, REST_S, measure_swaps
from bench.gpu.tables import show_tables
from bench.gpu.throughput import measure_throughput
from bench.gpu.weights import measure_weights
from bench.gpu.workload import FRAMES, SEED, Workload, network
from bench.material.large_network import MAX_ADDED_SHARE
from bench.provenance import DEPLOYMENT
from bench.report import write
from deploy.backends.gpu.device import describe_gpu, require_gpu
from deploy.model.precision import PARITY_TOLERANCE, PRECISIONS

CODE = (
    "calibrate/homogenizer.py",
    *DEPLOYMENT,
    "deploy/backends/gpu/*.py",
    "bench/gpu/*.py",
    "bench/material/large_network.py",
)

SIZES = ((224, 224), (640, 640), (1080, 1920))
AFTER_LATENCIES_S = 160.0  # time of the sections after the latencies
RATE_SHARE = 0.25  # of the time of a latency: enough for a rate

Row = dict[str, Any]


class Run(NamedTuple):
    """What the sections share."""

    args: argparse.Namespace
    budget: Budget
    workloads: list[Workload]
    results: dict[str, Any]  # of the sections so far

    def cases(self) -> list[tuple[Workload, str]]:
        """Return each workload with each precision of Φ."""
        return list(product(self.workloads, PRECISIONS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES, metavar="HxW", help="of frames")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each size and precision (%(default)g)")
    parser.add_argument("--swaps", type=int, default=200, help="under load (%(default)d)")
    parser.add_argument("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS), help="what to measure")
    add_data(parser)
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for all of it (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Measure all sections. Raises BackendUnavailable without a GPU; any other failure is noted in its row."""
    require_gpu("bench gpu")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    results: dict[str, Any] = {"seeds": {"weights": SEED, "frames": SEED}, "settings": _settings(args)}
    _save(args, results)  # a path that cannot be written is found now, not after the run
    model = network()
    run = Run(args, Budget(args.budget), [Workload(model, *size) for size in args.sizes], results)
    for name in args.sections:
        section = SECTIONS[name]
        log_progress(name)
        rows = results[name] = []
        for row in _noted(name, section(run)):
            rows.append(row)
            _save(args, results)  # whatever fails later, this row is kept
    show_tables(results)
    return results


def _noted(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    """Yield the rows; where the section itself fails, the last row gives the reason."""
    failure: Row = {}
    with attempt(name, failure):
        yield from rows
    if failure:
        yield failure


def _save(args: argparse.Namespace, results: dict[str, Any]) -> None:
    if args.json is not None:
        write(args.name, results, args.json, args.provenance)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    asked = {name: getattr(args, name) for name in ("sizes", "seconds", "swaps", "budget")}
    fixed = {
        "frames": FRAMES,
        "around_s": AROUND_S,
        "rest_s": REST_S,
        "tolerance": PARITY_TOLERANCE,
        "claim": MAX_ADDED_SHARE,
    }
    return asked | fixed | {"gpu": describe_gpu(), "cudnn": torch.backends.cudnn.version(), "tf32": False}


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def _ceilings(run: Run) -> Iterator[Row]:
    yield from measure_ceilings()


def _copies(run: Run) -> Iterator[Row]:
    for workload in run.workloads:
        yield from measure_copies(workload.shape)


def _latency(run: Run) -> Iterator[Row]:
    cases = run.cases()
    for remaining, (workload, precision) in zip(reversed(range(len(cases))), cases, strict=True):
        reserve = AFTER_LATENCIES_S + remaining * (run.args.seconds + OPENING_S)
        yield from measure_latency(workload, precision, run.args.seconds, run.budget, reserve)


def _swap(run: Run) -> Iterator[Row]:
    for engine in BACKENDS:
        yield measure_swaps(engine, run.workloads[0], run.args.swaps, run.budget)


def _weights(run: Run) -> Iterator[Row]:
    yield from measure_weights(run.workloads[0], run.budget)


def _throughput(run: Run) -> Iterator[Row]:
    ceilings, copies = run.results["ceilings"], run.results["copies"]
    for workload, precision in run.cases():
        yield measure_throughput(workload, precision, RATE_SHARE * run.args.seconds, run.budget, ceilings + copies)


def _fit(run: Run) -> Iterator[Row]:
    yield from measure_fits(run.args.data, run.budget)


def _beside_fit(run: Run) -> Iterator[Row]:
    yield from measure_beside_fit(run.args.data, run.workloads[0], run.budget)


SECTIONS: dict[str, Callable[[Run], Iterator[Row]]] = {
    "fit": _fit,
    "beside_fit": _beside_fit,
    "ceilings": _ceilings,
    "copies": _copies,
    "latency": _latency,
    "swap": _swap,
    "weights": _weights,
    "throughput": _throughput,
}
