"""Show the rows of a GPU run as tables."""

from __future__ import annotations

from typing import Any

from bench.gpu.attempt import NOT_RUN
from bench.report import show

# By section: the title, and for each column the path of its value in a row.
TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "fit": (
        "a fit, s",
        {
            "network": "network",
            "draw": "draw",
            "device": "device",
            "seconds": "seconds",
            "first": "first_seconds",
            "source": "stage_seconds.source",
            "starts": "stage_seconds.starts",
            "launches": "launches",
            "kernels, ms": "kernels_ms",
            "evaluations": "evaluations",
            "distorted": "distorted",
            "restored": "restored",
            "same bits": "same_bits",
        },
    ),
    "beside_fit": (
        "frames while another process fits, ms",
        {
            "rate": "rate",
            "away p50": "away.p50_ms",
            "p99": "away.p99_ms",
            "frames": "during.count",
            "during p50": "during.p50_ms",
            "during p99": "during.p99_ms",
            "ratio": "during.p99_ratio",
        },
    ),
    "ceilings": (
        "limits of the card",
        {"what": "what", "TFLOP/s": "teraflops", "GB/s": "gigabytes_per_second"},
    ),
    "copies": (
        "one frame",
        {"size": "size", "direction": "direction", "pinned": "pinned", "ms": "ms", "GB/s": "gigabytes_per_second"},
    ),
    "latency": (
        "one frame, there and back, ms",
        {
            "size": "size",
            "precision": "precision",
            "engine": "engine",
            "turns": "chained.count",
            "ρ p50": "homogenizer.p50_ms",
            "Φ p50": "network.p50_ms",
            "chained p50": "chained.p50_ms",
            "p99": "chained.p99_ms",
            "unchained p50": "unchained.p50_ms",
            "ρ / Φ": "share",
            "added": "added",
            "error": "error.chained",
        },
    ),
    "throughput": (
        "frames a second",
        {
            "size": "size",
            "precision": "precision",
            "one thread": "one_thread.frames_per_second",
            "two": "two_threads.frames_per_second",
            "limit": "roofline.frames_per_second",
            "by": "roofline.limit",
            "share, one": "one_thread.share",
            "two ": "two_threads.share",
        },
    ),
    "weights": (
        "from weights to a runner, s",
        {
            "engine": "engine",
            "compile": "rebuild.compile_s",
            "load": "rebuild.load_s",
            "weights": "exchange.weights_s",
            "load ": "exchange.load_s",
        },
    ),
    "swap": (
        "swaps during frames, ms",
        {
            "engine": "engine",
            "swaps": "swaps",
            "exchange p99": "exchange.p99_ms",
            "load and proof p50": "load_and_proof.p50_ms",
            "away p99": "away.p99_ms",
            "around": "around.p99_ms",
            "loading": "loading.p99_ms",
            "frames": "frames.sent",
            "lost": "frames.lost",
            "attributed": "frames.attributed",
        },
    ),
}
REASON_WIDTH = 40  # characters


def show_tables(results: dict[str, Any]) -> None:
    """Print a table for each section of the results."""
    for section, (title, columns) in TABLES.items():
        rows = []
        for row in results.get(section, []):
            reason = str(row.get(NOT_RUN, ""))[:REASON_WIDTH]
            rows.append([*(_cell(row, path) for path in columns.values()), reason])
        show(title, [*columns, "not run"], rows)


def _cell(row: Any, path: str) -> object:
    for name in path.split("."):
        row = row.get(name, "-") if isinstance(row, dict) else "-"
    return f"{row:.3g}" if isinstance(row, float) else row
