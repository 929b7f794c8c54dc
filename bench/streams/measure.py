"""On hours of streams that are not i.i.d. recald helps a drifted camera and does no harm beyond noise."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.arguments import add_data, add_state
from bench.material.adaptation import BatchNormAdaptation, Method, Tent
from bench.material.cifar import WEIGHTS, Images, lossless, network, normalise
from bench.provenance import DAEMON, DEPLOYMENT, MATERIAL, METHOD
from bench.report import show
from bench.state_file import append_line, read_lines
from bench.streams.daemon import Records, SimulatedDaemon
from bench.streams.stream import RATE, STREAMS, Stream, Tick, play
from daemon.config import DriftConfig, RecalibrateConfig
from daemon.demo import datasets, networks
from daemon.operator.commissioning.commission import commission
from deploy.model.export import export_model

CODE = (*METHOD, "calibrate/baseline/*.py", *DEPLOYMENT, *DAEMON, *MATERIAL, "bench/streams/*.py")

HOURS = 1.0
TICK_S = 8.0  # between two drift checks: half of their window of 64 frames is new then
BATCH = 200  # frames, of methods that adapt batch by batch, as published on CIFAR-10
BLOCK_S = 300.0  # over which accuracies are compared: 1,200 frames
NOISE_ERRORS = 3.0  # standard errors of a difference that count as noise: there are 12 blocks in a stream
COMMISSIONED = 2048  # pictures, as many as `recald commission` takes
SEEDS = (10,)  # 0 to 9 are for choosing
REACTION_S = 600.0  # a fit within this time after a change of the camera is not counted as false
METHODS = ("factory", "recald", "BN-adapt", "TENT")

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    add_state(parser)
    add = parser.add_argument
    add("--hours", type=float, default=HOURS, help="of each stream (%(default)s)")
    add("--seeds", type=int, nargs="+", default=SEEDS, help="of the streams (%(default)s)")
    add("--only", nargs="+", metavar="NAME", help="streams whose drift and view have all of these names")
    add("--commissioned", action="store_true", help=f"commission the model on {COMMISSIONED} other pictures first")
    add("--records", type=Path, help="folder for the daemon's decisions, a JSON file for each stream")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    images, model = lossless(args.data / "cifar10_test.npz"), network(args.data, "resnet20")
    finished = {_key(row): row for row in read_lines(args.state)}
    rows = []
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as folder:
        frozen = _export(args.data, Path(folder))
        if args.commissioned:
            images = _commission(frozen, images)
        for stream, seed in cases(args.only or (), args.seeds):
            row = finished.get((*stream, seed, args.commissioned))
            if row is None:
                ticks = list(play(stream, images, seed, TICK_S, args.hours))
                row, records = measure_one(stream, seed, ticks, frozen, model)
                row["commissioned"] = args.commissioned
                append_line(args.state, row)
                _write_records(args.records, row, records)
            _print(row)
            rows.append(row)
    _show_table(rows)
    return {
        "seeds": {"stream": list(args.seeds), "fit": list(args.seeds)},
        "settings": {"hours": args.hours, "rate": RATE, "tick_s": TICK_S, "block_s": BLOCK_S, "errors": NOISE_ERRORS}
        | {"batch": BATCH, "seeds": list(args.seeds), "reacts_s": REACTION_S},
        "rows": rows,
    }


def cases(only: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[Stream, int]]:
    """Yield the streams that have all of these names, each with every seed."""
    for stream in STREAMS:
        if set(stream) >= set(only):
            yield from ((stream, seed) for seed in seeds)


def _key(row: Row) -> tuple[str, str, int, bool]:
    return row["drift"], row["view"], row["seed"], row.get("commissioned", False)


def _commission(frozen: Path, images: Images) -> Images:
    """Commission the model on the first pictures; return the others, for the streams."""
    pictures = frozen.with_name("clean.npz")
    np.savez(pictures, images=images.pictures[:COMMISSIONED])
    commission(frozen, pictures, COMMISSIONED)
    return Images(images.pictures[COMMISSIONED:], images.labels[COMMISSIONED:])


def measure_one(stream: Stream, seed: int, ticks: list[Tick], frozen: Path, model: nn.Module) -> tuple[Row, Records]:
    """Serve one stream by the simulated daemon and by the other methods; return the row and the daemon's records."""
    began = time.perf_counter()
    labels = np.concatenate([tick.labels for tick in ticks])
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as state:
        daemon = _daemon(frozen, Path(state), seed)
        named = {"recald": np.concatenate([daemon.tick(tick.time, tick.images) for tick in ticks])}
        daemon.close()
    named |= _alternatives(model, ticks)
    right = {name: named[name] == labels for name in METHODS}
    row = {"drift": stream.drift, "view": stream.view, "seed": seed, "frames": len(labels)}
    row |= {"accuracy": {name: 100 * float(right[name].mean()) for name in METHODS}}
    row |= {"harm": {name: harm(right[name], right["factory"]) for name in METHODS[1:]}}
    row |= counts(daemon.records, changes(ticks)) | {"blocks": {name: blocks(right[name]) for name in METHODS}}
    return row | {"seconds": time.perf_counter() - began}, daemon.records


def _daemon(frozen: Path, state: Path, seed: int) -> SimulatedDaemon:
    return SimulatedDaemon(frozen, state, DriftConfig(interval=TICK_S), RecalibrateConfig(), seed)


def _alternatives(model: nn.Module, ticks: list[Tick]) -> dict[str, np.ndarray]:
    """Return the labels by the network alone and by methods that adapt it batch by batch."""
    methods: dict[str, Method] = {
        "factory": Method(model),
        "BN-adapt": BatchNormAdaptation(model),
        "TENT": Tent(model),
    }
    frames = np.concatenate([tick.images for tick in ticks])
    batches = [frames[i : i + BATCH] for i in range(0, len(frames), BATCH)]
    return {
        name: torch.cat([method.predict(normalise(batch)).argmax(1) for batch in batches]).numpy()
        for name, method in methods.items()
    }


def blocks(right: np.ndarray) -> list[float]:
    """Return the accuracy in each block of time, in percent."""
    return [100 * float(part.mean()) for part in _split(right)]


def harm(right: np.ndarray, factory: np.ndarray) -> dict[str, float]:
    """Return the points lost against the network alone: in the worst block, and beyond NOISE_ERRORS standard errors."""
    lost = [_lost(*block) for block in zip(_split(right), _split(factory), strict=True)]
    return {
        "worst_block": max(points for points, _ in lost),
        "beyond_noise": max(0.0, *(p - NOISE_ERRORS * e for p, e in lost)),
    }


def _lost(right: np.ndarray, factory: np.ndarray) -> tuple[float, float]:
    """Return the points lost against the network alone on the same frames, and their standard error."""
    difference = factory.astype(float) - right
    return 100 * float(difference.mean()), 100 * float(difference.std() / np.sqrt(len(difference)))


def _split(right: np.ndarray) -> list[np.ndarray]:
    size = round(BLOCK_S * RATE)
    return [right[i : i + size] for i in range(0, len(right), size)]


def changes(ticks: list[Tick]) -> list[float]:
    """Return the times at which the camera changed, s."""
    pairs = zip(ticks, ticks[1:], strict=False)
    return [after.time for before, after in pairs if before.strengths != after.strengths]


def counts(records: Records, changed: list[float]) -> Row:
    """Count fits by result, swaps and rollbacks; a false fit is one long after the last change of the camera."""
    fits = [(at, details["result"]) for at, event, details in records if event == "fit"]
    fitted = [at for at, result in fits if result in ("accepted", "rejected", "failed")]
    events = Counter(event for _, event, _ in records)
    return {
        "recalibrations": dict(Counter(result for _, result in fits)),
        "false": sum(not any(0 <= at - change <= REACTION_S for change in changed) for at in fitted),
        "swaps": events["swap"],
        "rollbacks": events["rollback"],
    }


def _export(data: Path, folder: Path) -> Path:
    path = folder / "resnet20.pt2"
    export_model(
        f"{networks.__name__}:cifar_resnet20",
        data / "models" / WEIGHTS["resnet20"],
        path,
        input_shape=(3, 32, 32),
        mean=datasets.IMAGENET_MEAN,
        std=datasets.IMAGENET_STD,
        kind="logits",
    )
    return path


def _print(row: Row) -> None:
    accuracy = ", ".join(f"{name} {value:.1f}" for name, value in row["accuracy"].items())
    lost = ", ".join(f"{name} {value['beyond_noise']:.1f}" for name, value in row["harm"].items())
    fits = f"{row['recalibrations']}, {row['false']} false, {row['swaps']} swaps, {row['rollbacks']} rollbacks"
    print(f"{row['drift']}, {row['view']}, seed {row['seed']}: {accuracy}; harm {lost}; {fits}", flush=True)


def _show_table(rows: list[Row]) -> None:
    show(
        "accuracy (and harm in the worst five minutes beyond noise), %",
        ("drift", "view", *METHODS, "fits", "false", "swaps"),
        [_line(row) for row in rows],
    )


def _line(row: Row) -> list[object]:
    cells = [f"{row['accuracy'][name]:.1f} ({row['harm'][name]['beyond_noise']:.1f})" for name in METHODS[1:]]
    fits = sum(row["recalibrations"].get(result, 0) for result in ("accepted", "rejected", "failed"))
    return [row["drift"], row["view"], f"{row['accuracy']['factory']:.1f}", *cells, fits, row["false"], row["swaps"]]


def _write_records(folder: Path | None, row: Row, records: Records) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{row['drift']}-{row['view']}-{row['seed']}".replace(" ", "-").replace(".", "")
        (folder / f"{name}.json").write_text(json.dumps({"row": row, "records": records}, indent=1))
