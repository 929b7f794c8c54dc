"""What a GPU makes of recald: latency of both networks, copies, throughput against the card's limits, and swaps."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any, NamedTuple

import torch

from bench.gpu.attempt import Budget, attempt, say
from bench.gpu.ceilings import measure_ceilings, measure_copies
from bench.gpu.engines import BACKENDS
from bench.gpu.latency import OPENING_S, measure_latency
from bench.gpu.material import FRAMES, Material, network
from bench.gpu.swap import AROUND_S, REST_S, measure_swaps
from bench.gpu.tables import show_tables
from bench.gpu.throughput import measure_throughput
from bench.gpu.weights import measure_weights
from bench.overhead import CLAIM
from bench.report import save
from deploy.backends.gpu.device import describe_gpu, require_gpu
from deploy.model.precision import PARITY_TOLERANCE, PRECISIONS

SIZES = ((224, 224), (640, 640), (1080, 1920))
LATER_S = 160.0  # what comes after the latencies
RATE_SHARE = 0.25  # of the time of a latency, which is enough for a rate

Row = dict[str, Any]


class Bench(NamedTuple):
    args: argparse.Namespace
    budget: Budget
    materials: list[Material]
    results: dict[str, Any]  # of the sections before

    def contests(self) -> list[tuple[Material, str]]:
        return list(product(self.materials, PRECISIONS))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sizes", type=_size, nargs="+", default=SIZES, metavar="HxW", help="of frames")
    parser.add_argument("--seconds", type=float, default=8.0, help="of each size and precision (%(default)g)")
    parser.add_argument("--swaps", type=int, default=200, help="under load (%(default)d)")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds for all of it (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Raises BackendUnavailable where there is no GPU; whatever else fails is noted in its row."""
    require_gpu("cuda")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    results: dict[str, Any] = {"settings": _settings(args)}
    _save(args, results)  # where nothing can be written, that is better known now
    model = network()
    bench = Bench(args, Budget(args.budget), [Material(model, *size) for size in args.sizes], results)
    for name, section in SECTIONS.items():
        say(name)
        rows = results[name] = []
        for row in _noted(name, section(bench)):
            rows.append(row)
            _save(args, results)  # whatever comes next, this is not lost
    show_tables(results)
    return results


def _noted(name: str, rows: Iterator[Row]) -> Iterator[Row]:
    """The rows, and where the section itself fails a last one that says so."""
    failure: Row = {}
    with attempt(name, failure):
        yield from rows
    if failure:
        yield failure


def _save(args: argparse.Namespace, results: dict[str, Any]) -> None:
    if args.json is not None:
        save(args.name, results, args.json)


def _settings(args: argparse.Namespace) -> dict[str, Any]:
    asked = {name: getattr(args, name) for name in ("sizes", "seconds", "swaps", "budget")}
    fixed = {"frames": FRAMES, "around_s": AROUND_S, "rest_s": REST_S, "tolerance": PARITY_TOLERANCE, "claim": CLAIM}
    return asked | fixed | {"gpu": describe_gpu(), "cudnn": torch.backends.cudnn.version(), "tf32": False}


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.split("x"))
    return height, width


def _ceilings(bench: Bench) -> Iterator[Row]:
    yield from measure_ceilings()


def _copies(bench: Bench) -> Iterator[Row]:
    for material in bench.materials:
        yield from measure_copies(material.shape)


def _latency(bench: Bench) -> Iterator[Row]:
    contests = bench.contests()
    for later, (material, precision) in zip(reversed(range(len(contests))), contests, strict=True):
        after = LATER_S + later * (bench.args.seconds + OPENING_S)
        yield from measure_latency(material, precision, bench.args.seconds, bench.budget, after)


def _swap(bench: Bench) -> Iterator[Row]:
    for engine in BACKENDS:
        yield measure_swaps(engine, bench.materials[0], bench.args.swaps, bench.budget)


def _weights(bench: Bench) -> Iterator[Row]:
    yield from measure_weights(bench.materials[0], bench.budget)


def _throughput(bench: Bench) -> Iterator[Row]:
    ceilings, copies = bench.results["ceilings"], bench.results["copies"]
    for material, precision in bench.contests():
        yield measure_throughput(material, precision, RATE_SHARE * bench.args.seconds, bench.budget, ceilings + copies)


SECTIONS: dict[str, Callable[[Bench], Iterator[Row]]] = {
    "ceilings": _ceilings,
    "copies": _copies,
    "latency": _latency,
    "swap": _swap,
    "weights": _weights,
    "throughput": _throughput,
}
