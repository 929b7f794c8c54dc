"""The section of the results page about the drift alarm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from bench.page.result import Result, Row, blocks, notes, percent, prose, table

BASELINE = "baseline"
TOLD = ("network", "content", "alarm", "drifts", "within 2", "within 10", "told", "most not told")
NAMES = {BASELINE: "recald, baseline", "drift score": "recald, drift score alone"}


def drift(results: Mapping[str, Result]) -> str:
    """Tell how rare false alarms are, and how soon drifts are told."""
    result = results["drift"]
    settings, summary = result["settings"], result["summary"]
    networks = len({row["data"] for row in result["rows"]})
    replayed = f"""Healthy frames of {networks} networks, {settings["held_out"]:,} of each, are replayed in windows of
        {settings["window"]}, as a camera of 30 frames/s delivers them; scenes last 10 s to 10 min. The baseline is
        learned from {settings["healthy"]:,} other frames. Allowed is the configured rate times the time shown.
        Two-sample tests have the level that gives the same rate for independent windows; the detectors of river have
        their own settings."""
    costly = f"""Drifts of `bench drifts` that cost 3 points of accuracy or more, at {settings["rate"]}: the share that
        is told within 2 windows, within 10, and at all in 2 minutes."""
    return blocks(
        table(("alarm", "configured", "content", "million frames", "false alarms", "allowed"), _false(summary)),
        result.provenance(),
        prose(replayed),
        prose(costly),
        table(
            ("network", "content", "alarm", "drifts", "within 2", "within 10", "told", "most not told"), _told(summary)
        ),
        notes(results, "drift"),
    )


def _false(summary: Row) -> Iterator[list[str]]:
    for row in summary["false_alarms"]:
        allowed = "-" if row["allowed"] is None else f"{row['allowed']:.1f}"
        name = NAMES.get(row["alarm"], row["alarm"])
        yield [name, row["rate"] or "-", row["view"], f"{row['frames'] / 1e6:.1f}", f"{row['alarms']}", allowed]


def _told(summary: Row) -> Iterator[list[str]]:
    for row in summary["delays"]:
        shares = [percent(100 * row[key]) for key in ("within_2", "within_10", "told")]
        name = NAMES.get(row["alarm"], row["alarm"])
        yield [row["data"], row["view"], name, str(row["drifts"]), *shares, row["worst_missed"] or "-"]


def watch(results: Mapping[str, Result]) -> str:
    """Tell what drift checks of large frames take, and what they do to the latency of frames."""
    result = results["watch"]
    settings, size = result["settings"], result["settings"]["size"]
    rows = [
        [row["case"], str(row["checks"]), percent(100 * row["core_share"])]
        + [f"{row[key]:.1f}" for key in ("p50_ms", "p99_ms", "max_ms")]
        + [str(row["lost"])]
        for row in result["rows"]
    ]
    text = f"""{settings["fps"]:g} frames/s of {size}x{size}, a small network on one CPU thread, runs of
        {settings["seconds"]:g} s in turns, once the baseline is learned. The share is the processor time of the process
        that checks. Measured with both cores to itself."""
    head = ("run", "checks", "share of a core", "latency p50, ms", "p99", "max", "lost frames")
    return blocks(table(head, rows), result.provenance(), prose(text))
