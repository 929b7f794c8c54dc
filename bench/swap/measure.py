"""A swap delays and loses no frame and hardly takes memory, and each output is of the homogenizer that it names."""

from __future__ import annotations

import argparse
from typing import Any

from bench.material.camera import FPS, ORDER_SEED
from bench.material.daemon_run import DIGITS_SEED, SIZE, digits
from bench.provenance import DAEMON, DEPLOYMENT, MATERIAL, METHOD
from bench.report import show
from bench.swap.during_fits import DRIFTS, FIT_FRAMES, measure_during_fits
from bench.swap.ordered_swaps import AROUND_SWAP_S, BETWEEN_SWAPS_S, HOMOGENIZERS, measure_ordered_swaps
from bench.swap.outputs import TOLERANCE

CODE = (*METHOD, *DEPLOYMENT, *DAEMON, *MATERIAL, "bench/swap/*.py")

TIMES = ("count", "p50_ms", "p99_ms", "max_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--swaps", type=int, default=1000, help="swaps in a row (%(default)d)")
    add("--apart", type=int, default=120, help=f"swaps with {BETWEEN_SWAPS_S:g} s between them (%(default)d)")
    add("--fits", type=int, default=4, help="real fits, during which frames are timed (%(default)d)")
    add("--seconds", type=float, default=20.0, help="rest before each fit (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    material = digits()
    series = measure_ordered_swaps(material, args.swaps, args.apart)
    beside = measure_during_fits(material, args.fits, args.seconds)
    _show_tables(series, beside)
    settings = {"fps": FPS, "backend": "onnx", "size": SIZE, "homogenizers": HOMOGENIZERS, "drifts": DRIFTS}
    settings |= {"between_s": BETWEEN_SWAPS_S, "around_s": AROUND_SWAP_S, "fit_frames": FIT_FRAMES}
    settings |= {"rest_s": args.seconds, "tolerance": TOLERANCE}
    seeds = {"network": DIGITS_SEED, "order": ORDER_SEED, "homogenizers": list(range(HOMOGENIZERS))}
    return {"seeds": seeds, "settings": settings, "series": series, "beside": beside}


def _show_tables(series: dict[str, Any], beside: dict[str, Any]) -> None:
    pauses, apart, stages = series["pauses"], series["apart"], beside["stages"]
    show("a swap, ms", ("what", "swaps", "p50", "p99", "max"), [_row(n, p, 4) for n, p in pauses.items()])
    frames = [
        [*_row("away from swaps", apart["away"]), "-"],
        [*_row("around a swap", apart["around"]), apart["p99_ratio"]],
        ["around no swap", *"----", apart["control_ratio"]],
        [*_row("swaps in a row", series["in_a_row"]), "-"],
        *([*_row(f"fits: {name}", stage), stage["p99_ratio"] or "-"] for name, stage in stages.items()),
    ]
    show("frame in to result out, ms", ("when", "frames", "p50", "p99", "max", "p99 ratio"), frames)
    print("memory:", {name: value for name, value in series["memory"].items() if name != "curve"})
    print("frames across swaps:", series["frames"])
    print("frames during fits:", beside["frames"], beside["fits"])
    print("outputs computed again:", series["outputs"])


def _row(name: str, measured: dict[str, Any], digits: int = 2) -> list[object]:
    count, *times = (measured[column] for column in TIMES)
    return [name, count, *("-" if time is None else f"{time:.{digits}f}" for time in times)]
