"""What a swap costs: its pause, what frames notice of it and of the fit and compile before it, and its memory."""

from __future__ import annotations

import argparse
from typing import Any

from bench.material.camera import FPS
from bench.material.scene import SIZE, digits
from bench.report import show
from bench.swap.beside import DRIFTS, FIT_FRAMES, measure_beside
from bench.swap.latency import AROUND_S
from bench.swap.outputs import TOLERANCE
from bench.swap.series import BETWEEN_S, measure_series
from bench.swap.shelf import HOMOGENIZERS

COLUMNS = ("count", "p50_ms", "p99_ms", "max_ms")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--swaps", type=int, default=1000, help="in a row (%(default)d)")
    parser.add_argument("--apart", type=int, default=120, help=f"swaps {BETWEEN_S:g} s apart (%(default)d)")
    parser.add_argument("--fits", type=int, default=4, help="real fits, beside which frames are timed (%(default)d)")
    parser.add_argument("--seconds", type=float, default=20.0, help="of rest before each of them (%(default)g)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    material = digits()
    series = measure_series(material, args.swaps, args.apart)
    beside = measure_beside(material, args.fits, args.seconds)
    _tables(series, beside)
    settings = {"fps": FPS, "backend": "onnx", "size": SIZE, "homogenizers": HOMOGENIZERS, "drifts": DRIFTS}
    settings |= {"between_s": BETWEEN_S, "around_s": AROUND_S, "fit_frames": FIT_FRAMES, "rest_s": args.seconds}
    settings |= {"tolerance": TOLERANCE}
    return {"settings": settings, "series": series, "beside": beside}


def _tables(series: dict[str, Any], beside: dict[str, Any]) -> None:
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
    print("frames beside fits:", beside["frames"], beside["fits"])
    print("outputs computed again:", series["outputs"])


def _row(name: str, measured: dict[str, Any], digits: int = 2) -> list[object]:
    count, *times = (measured[column] for column in COLUMNS)
    return [name, count, *("-" if time is None else f"{time:.{digits}f}" for time in times)]
