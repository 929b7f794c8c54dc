"""Sections of docs/results.md about time and memory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.intake.measure import MIN_BARE_RATIO
from bench.page.result import Result, blocks, find, notes, percent, prose, table

Results = Mapping[str, Result]

TIMES = ("count", "p50_ms", "p99_ms", "max_ms")
TIME_HEAD = ("frames", "p50, ms", "p99, ms", "max, ms")
PHASES = {
    "bare": "bare model, without the daemon",
    "idle": "daemon",
    "during_fit": "daemon, during a fit",
    "across_swap": "daemon, within a second of a swap",
}
HANDOVER_PHASES = {"unwatched": "no checks, no fit", "beside": "the same, beside a program that computes as a fit does"}
HANDOVER_PHASES |= {"watched": "drift checks", "handover": "frames go to a fit"}
GPU_FILES = ("gpu", "gpu-h200")
STAGES = {"rest": "at rest", "beside": "fit, judgement or compile", "fitting": "fit", "judging": "judgement"}
STAGES |= {"compiling": "compile"}


def latency(results: Results) -> str:
    """Return the section about latency."""
    result = results["latency"]
    rows: list[list[str]] = []
    frames = {"sent": 0, "processed": 0, "lost": 0}
    for size, measured in result["sizes"].items():
        for phase, phase_name in PHASES.items():
            if measured[phase]["count"]:
                rows.append([size, phase_name, *_times(measured[phase])])
        for key in frames:
            frames[key] += measured["frames"][key]
    added = " and ".join(f"{m['overhead_p50_ms']:.1f} ms at {size}" for size, m in result["sizes"].items())
    text = [
        f"""A camera sends raw RGB frames at {result["settings"]["fps"]:g} a second over ipc to a real `recald run`; the
        time runs from the send call until the result is read. In the same run the same compiled model is called bare,
        in a loop, in halves before and after. The daemon and two sockets add {added} (medians). {frames["lost"]} frames
        were lost: {frames["processed"]:,} of {frames["sent"]:,} were answered.""",
        """The network is the demo's digit network at two input sizes. At 32x32 the fit was too short to tell idle and
        fit apart. At 224x224 it is only a load: on two CPU cores it takes longer than the bench waits, so no swap is
        measured there. Measured with both cores to itself.""",
    ]
    return blocks(table(("size", "phase", *TIME_HEAD), rows), result.provenance(), *map(prose, text))


def handover(results: Results) -> str:
    """Return the section about drift checks and the frames that go to a fit."""
    result = results["handover"]
    rows, text = [], []
    for size, measured in result["sizes"].items():
        rows += [[size, name, *_times(measured[phase])] for phase, name in HANDOVER_PHASES.items()]
        text.append(
            f"""At {size} the latest frame came {_later(measured, "beside")} than the latest beside that program (claim:
            at most {result["settings"]["claim_ms"]:g} ms later), and {_later(measured, "unwatched")} than the latest
            without checks and fits. The reservoir held {measured["reservoir_mb"]:.0f}
            MB."""
        )
    settings = result["settings"]
    head = f"""A network of one layer, so that the daemon and not the network decides the time. A hand-over is the
        {settings["after_order_s"]:g} s after an order to fit, {settings["handovers"]} orders at each size: all frames
        of the reservoir go to the worker, which then computes beside the daemon."""
    return blocks(table(("size", "phase", *TIME_HEAD), rows), result.provenance(), *map(prose, (head, *text)))


def _later(measured: Mapping[str, Any], phase: str) -> str:
    """Compare the latest frame of checks and hand-overs with the latest of this phase."""
    difference = max(measured["watched"]["max_ms"], measured["handover"]["max_ms"]) - measured[phase]["max_ms"]
    return f"{abs(difference):.1f} ms {'later' if difference > 0 else 'earlier'}"


def _times(measured: Mapping[str, Any], digits: int = 1) -> list[str]:
    count, *times = (measured[key] for key in TIMES)
    return [f"{count:,}", *("-" if time is None else f"{time:.{digits}f}" for time in times)]


def attack(results: Results) -> str:
    """Return the section about senders that mean harm."""
    result = results["attack"]
    rows = []
    for row in result["rows"]:
        ratio = f"{row['ratio']:.2f}" if row.get("ratio") else "-"
        lost = f"{row['superseded'] + row['lost']:,}"
        rows.append([row["attack"], *_times(row), ratio, lost, f"{row['resident_mib']:,}"])
    worst = max((row["ratio"], row["attack"]) for row in result["rows"] if row.get("ratio"))
    longest = max(row["max_ms"] or 0 for row in result["rows"])
    kept = [row["attack"] for row in result["rows"] if 0 < (row.get("ratio") or 0) <= result["settings"]["claim"]]
    text = f"""A camera sends 224x224 frames at {result["settings"]["fps"]:g} a second over tcp, while a program on the
        same machine attacks the daemon in the name of another sensor. The ratio is its p99 over that of the same camera
        while the same attack goes to another program (`endless`, `parts`, `subscriptions`: while a program uses a
        core), so that it shows the daemon's share. {len(kept)} of {len(result["rows"]) - 1} attacks stay within
        {result["settings"]["claim"]:g}; the worst is `{worst[1]}` with {worst[0]:.1f}. `parts` costs the frames of one
        stall, here of {longest / 1000:.1f} s; then its sender is not let in for a while."""
    head = ("attack", *TIME_HEAD, "ratio", "frames not answered", "resident, MiB")
    return blocks(table(head, rows), result.provenance(), prose(text))


def swap(results: Results) -> str:
    """Return the section about swaps."""
    result = results["swap"]
    series, beside, settings = result["series"], result["beside"], result["settings"]
    size = settings["size"]
    pauses, apart, memory, outputs = (series[key] for key in ("pauses", "apart", "memory", "outputs"))
    swaps = [
        ["exchange between two frames", *_times(pauses["exchange"], 3)],
        ["frame thread busy with all that follows it", *_times(pauses["kept_waiting"], 3)],
    ]
    rows = [
        ["away from swaps", *_times(apart["away"]), "1"],
        [f"within {settings['around_s']:g} s of a swap", *_times(apart["around"]), f"{apart['p99_ratio']:.2f}"],
        ["the same around no swap", "-", "-", "-", "-", f"{apart['control_ratio']:.2f}"],
        ["swaps in a row", *_times(series["in_a_row"]), "-"],
    ]
    for stage, stage_name in STAGES.items():
        measured = beside["stages"][stage]
        if measured["count"]:
            rows.append([f"real fits: {stage_name}", *_times(measured), f"{measured['p99_ratio']:.2f}"])
    frames = [part["frames"] for part in (series, beside)]
    processed, sent = (sum(counts[key] for counts in frames) for key in ("processed", "sent"))
    fits = ", ".join(f"{count} {name}" for name, count in beside["fits"].items())
    text = [
        f"""{series["ordered"]:,} swaps under load, {settings["fps"]:g} frames a second, {size}x{size}.
        {processed:,} of {sent:,} frames were answered, and {outputs["attributed"]:,} of
        {outputs["checked"]:,} outputs that were computed again are of exactly the ρ that they name, to
        {settings["tolerance"]:g}. Between the first {memory["settled_at"]} swaps of a long row and the last, the daemon
        gained {memory["end_mib"] - memory["settled_mib"]:.0f} MiB ({memory["settled_mib"]:.0f} to
        {memory["end_mib"]:.0f} MiB, {memory["kib_per_swap"]:.1f} KiB a swap).""",
        f"""Two daemons. The first is `recald run` in which the fit is replaced: the next of {settings["homogenizers"]}
        stored homogenizers serves; {apart["swaps"]} swaps {settings["between_s"]:g} s apart, then
        {series["ordered"] - apart["swaps"]:,} in a row, each ordered when the one before has answered a frame. All but
        the fit is the daemon's own: loading, the proof, the exchange, closing, the pointer on disk. The second is
        `recald run`: the camera drifts, and the daemon fits and swaps by itself ({fits}). The ratio is that of the 99th
        percentiles, to frames away from swaps and to frames at rest; around the middle between two swaps, where
        nothing happens, it shows what is chance. Measured with both cores to itself.""",
    ]
    head = ("when", *TIME_HEAD, "p99 ratio")
    tables = (table(("swap", "swaps", *TIME_HEAD[1:]), swaps), table(head, rows))
    return blocks(*tables, result.provenance(), *map(prose, text))


def intake(results: Results) -> str:
    """Return the section about receiving frames."""
    result = results["intake"]
    rows = []
    for row in result["throughput"]:
        if row["installed"]:
            cells = [row["load"], row["transport"], row["reader"], f"{row['frames_per_second']:.0f}"]
            cells += [f"{row[key]:.2f}" for key in ("gigabytes_per_second", "of_bare", "of_bare_kept", "cpu_ms")]
            rows.append([*cells, *(f"{row['age'][key]:.1f}" for key in ("p50_ms", "p99_ms"))])
    head = (
        "load",
        "transport",
        "reader",
        "frames/s",
        "GB/s",
        "of bare",
        "of kept",
        "CPU ms a frame",
        "age p50",
        "p99, ms",
    )
    reached = []
    for row in result["throughput"]:
        if (row["reader"], row["load"]) == ("recald", "limit"):
            verdict = "reached" if row["of_bare"] >= MIN_BARE_RATIO else "not reached"
            reached.append(f"{row['of_bare']:.2f} over {row['transport']} ({verdict})")
    none = [row["encoding"] for row in result["copies"] if not row["pixels"]]
    copied = [f"{row['encoding']} ({row['why']})" for row in result["copies"] if row["pixels"]]
    settings = result["settings"]
    text = [
        f"""The claim of {MIN_BARE_RATIO:g} of the bare loop's rate: {", ".join(reached)}. Copied once on the way to the
        model's input: {", ".join(copied)}; not copied: {", ".join(none)}.""",
        f"""Raw 1080p frames ({settings["frame"]}, 6.2 MB) from a sender in another process, as fast as it can (*limit*)
        or {settings["camera_fps"]:g} a second (*camera*). Each reader has {settings["rounds"]} turns between those of
        the others, each in a process of its own; rates are medians. *bare pyzmq* is the shortest loop that receives
        without a copy; *bare pyzmq, memory kept* has malloc set as recald sets it, which separates that part of the
        difference from the rest. imagezmq is 1.2.0. The age of a frame runs from just before the send call. Copies are
        counted by `tracemalloc`: an allocation of at least a byte a pixel between socket and input image is one.
        Measured with both cores to itself.""",
    ]
    return blocks(table(head, rows), result.provenance(), *map(prose, text), _cost_table(result))


def _cost_table(result: Result) -> str:
    rows = []
    for row in result["cost"]:
        times = [f"{row[stage][key]:.2f}" for stage in ("decode", "preprocess") for key in ("p50_ms", "p99_ms")]
        rows.append([row["size"], row["encoding"], *times])
    head = ("frame", "encoding", "decode p50, ms", "p99", f"preprocess to {result['settings']['input']} p50, ms", "p99")
    return table(head, rows)


def overhead(results: Results) -> str:
    """Return the section about the overhead of the homogenizer."""
    result = results["overhead"]
    claim = result["settings"]["claim"]
    rows, verdicts = [], []
    for row in result["rows"]:
        parts = [f"{row[part]['p50_ms']:.1f}" for part in ("homogenizer", "network", "both")]
        rows.append([row["backend"], *parts, percent(100 * row["share"])])
        verdicts.append(f"{row['backend']}: {'reached' if row['share'] <= claim else 'not reached'}")
    counted = result["counted"]
    work = " and ".join(
        f"{counted[part]['multiplications'] / 1e6:,.0f} million for the {part}" for part in ("homogenizer", "network")
    )
    size = "x".join(map(str, result["settings"]["shape"][1:]))
    text = f"""The claim of {percent(100 * claim)} is {"; ".join(verdicts)}. One frame of {size} on one thread, ρ in
    front of a network with the layers of ResNet-50, in turns. Multiplications of one frame: {work}. Measured
    with both cores to itself."""
    head = ("backend", "homogenizer p50, ms", "network p50, ms", "both p50, ms", "homogenizer / network")
    return blocks(table(head, rows), result.provenance(), prose(text))


def speed(results: Results) -> str:
    """Return the section about the speed of a fit."""
    result = results["speed"]
    rows = []
    for row in result["summary"]:
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in row["stage_seconds"].items())
        times = [f"{row['seconds']:.1f}", f"{row['seconds_per_pass']:.2f}", stages]
        rows.append([row["precision"], row["layout"], percent(row["restored"]), *times])
    text = prose(
        """The same fits as in `bench fit`, all four combinations in turns. On a CPU that computes in bfloat16 recald
        uses it; models stay contiguous."""
    )
    head = ("precision", "layout", "restored", "s", "s a pass", "s by stage")
    return blocks(table(head, rows), result.provenance(), text)


def precision(results: Results) -> str:
    """Return the section about lower precision."""
    result = results["precision"]
    rows = []
    changes: dict[str, dict[str, float]] = {}
    for row in result["rows"]:
        full = find(result["rows"], network=row["network"], precision="float32")
        rows.append([row["network"], row["precision"], f"{row['noise']:.1e}", f"{row['frames']:.1e}"])
        rows[-1] += [str(row["labels_changed"]), percent(row["clean"]), percent(row["restored"])]
        most = changes.setdefault(row["precision"], {"clean": 0.0, "restored": 0.0})
        for key in most:
            most[key] = max(most[key], abs(row[key] - full[key]))
    settings = result["settings"]
    most_changed = "; ".join(
        f"`{name}` by at most {most['clean']:.2f} points on clean frames and {most['restored']:.2f} behind ρ"
        for name, most in changes.items()
        if name != "float32"
    )
    text = f"""Accuracy changes with {most_changed}. Φ in `model.precision` against float32 on the CPU: float16 by ONNX
    Runtime, which rounds every output to it and sums in float32, as GPUs do; bfloat16 by PyTorch. The published
    networks on {settings["images"]:,} CIFAR-10 test images, and on noise as in golden frames. Errors are the largest of
    an output, relative to the largest output. *Restored* are the same images under the paper's perturbation, behind a
    ρ that was fitted to {settings["frames"]} others in float32."""
    head = ("network", "precision", "error, noise", "error, frames", "labels changed", "clean", "restored")
    return blocks(table(head, rows), result.provenance(), prose(text))


def gpu(results: Results) -> str:
    """Return the section about a GPU."""
    sections = [_gpu_fits(results["gpu"])]
    for name in GPU_FILES:
        sections.append(_gpu_latency(results[name]))
    text = prose(
        """A frame's way is from an array in host memory to the result there, by the same pinned copies for all engines,
        which take turns frame by frame. ρ computes in float32, Φ in the given precision; TF32 is off. The files also
        hold copies, throughput against the card's limits, swaps and the time from weights to a runner."""
    )
    return blocks(*sections, text, notes(results, "gpu"))


def _gpu_fits(result: Result) -> str:
    rows = []
    for row in result["fit"]:
        cells = [row["network"], str(row["draw"]), row["device"]]
        if "not_run" in row:
            rows.append([*cells, "not run: " + row["not_run"].partition(".")[0], "", "", "", "", ""])
            continue
        stages = row["stage_seconds"]
        starts, source = f"{stages['starts']:.2f}", f"{stages['source']:.2f}"
        launches = f"{row['launches']:,}" if "launches" in row else ""
        accuracies = [percent(row["distorted"]), percent(row["restored"])]
        rows.append([*cells, f"{row['seconds']:.2f}", source, starts, launches, *accuracies])
    head = ("network", "draw", "device", "fit, s", "source, s", "starts, s", "launches", "before", "after")
    return blocks(
        prose("Fits to 512 frames under the paper's perturbation; the fastest of three after a first one:"),
        table(head, rows),
        result.provenance(),
    )


def _gpu_latency(result: Result) -> str:
    rows = []
    for row in (row for row in result["latency"] if "not_run" not in row):
        cells = [row["size"], row["precision"], row["engine"]]
        times = [f"{row[part]['p50_ms']:.2f}" for part in ("homogenizer", "network", "chained")]
        rows.append([*cells, *times, f"{row['chained']['p99_ms']:.2f}", percent(100 * row["added"])])
    head = ("size", "precision", "engine", "ρ p50, ms", "Φ p50, ms", "both p50, ms", "p99, ms", "added by ρ")
    missing = ", ".join(dict.fromkeys(row["engine"] for row in result["latency"] if "not_run" in row))
    text = f"{result['settings']['gpu']}; not run: {missing or 'none'}."
    return blocks(prose(text), table(head, rows), result.provenance())
