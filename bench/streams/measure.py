"""Hours of streams that are not i.i.d.: what recald and its alternatives do for accuracy, and what harm."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from bench.material.adaptation import BatchNormAdaptation, Method, Tent
from bench.material.cifar import WEIGHTS, lossless, network, normalise
from bench.report import append_row, read_rows, show
from bench.streams.daemon import Records, SimulatedDaemon
from bench.streams.scenes import RATE, STREAMS, Stream, Tick, play
from daemon.config import DriftConfig, RecalibrateConfig
from daemon.demo import material, networks
from deploy.model.export import export_model

HOURS = 1.0
TICK_S = 8.0  # between two looks of the watch: half of its window of 64 frames is new then
BATCH = 200  # of what adapts by batches, as published on CIFAR-10
BLOCK_S = 300.0  # over which accuracies are compared: 1,200 frames
ERRORS = 3.0  # standard errors of a difference that count as noise: there are 12 blocks in a stream
SEEDS = (10,)  # 0 to 9 are for choosing
REACTS_S = 600.0  # after a change of the camera a recalibration is no false one for so long
METHODS = ("factory", "recald", "BN-adapt", "TENT")

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    default = Path(os.environ.get("RECALD_DATA", "../shared/data"))
    add = parser.add_argument
    add("--data", type=Path, default=default, help="CIFAR-10 and networks (%(default)s)")
    add("--hours", type=float, default=HOURS, help="of each stream (%(default)s)")
    add("--seeds", type=int, nargs="+", default=SEEDS, help="of the streams (%(default)s)")
    add("--only", nargs="+", metavar="NAME", help="streams with all of these words, as drift or view")
    add("--state", type=Path, help="JSON lines: rows are added as they are measured, those there are not run again")
    add("--records", type=Path, help="a folder for what the daemon decided, a JSON file for each stream")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    images, model = lossless(args.data / "cifar10_test.npz"), network(args.data, "resnet20")
    kept = {_key(row): row for row in read_rows(args.state)}
    rows = []
    with tempfile.TemporaryDirectory(prefix="recald-bench-") as folder:
        frozen = _export(args.data, Path(folder))
        for stream, seed in cases(args.only or (), args.seeds):
            row = kept.get((*stream, seed))
            if row is None:
                ticks = list(play(stream, images, seed, TICK_S, args.hours))
                row, records = measure_one(stream, seed, ticks, frozen, model)
                append_row(args.state, row)
                _keep(args.records, row, records)
            _tell(row)
            rows.append(row)
    _table(rows)
    return {
        "settings": {"hours": args.hours, "rate": RATE, "tick_s": TICK_S, "block_s": BLOCK_S, "errors": ERRORS}
        | {"batch": BATCH, "seeds": list(args.seeds), "reacts_s": REACTS_S},
        "rows": rows,
    }


def cases(only: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[Stream, int]]:
    for stream in STREAMS:
        if set(stream) >= set(only):
            yield from ((stream, seed) for seed in seeds)


def _key(row: Row) -> tuple[str, str, int]:
    return row["drift"], row["view"], row["seed"]


def measure_one(stream: Stream, seed: int, ticks: list[Tick], frozen: Path, model: nn.Module) -> tuple[Row, Records]:
    """One stream through the simulated daemon and the others: who names which frame right."""
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
    """Labels by the network alone, and by what adapts it batch by batch."""
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
    """Accuracy of each block of time, %."""
    return [100 * float(part.mean()) for part in _split(right)]


def harm(right: np.ndarray, factory: np.ndarray) -> dict[str, float]:
    """How far below the network alone: in the worst block, and beyond ERRORS standard errors of the same frames."""
    lost = [_lost(mine, its) for mine, its in zip(_split(right), _split(factory), strict=True)]
    return {
        "worst_block": max(points for points, _ in lost),
        "beyond_noise": max(0.0, *(p - ERRORS * e for p, e in lost)),
    }


def _lost(right: np.ndarray, factory: np.ndarray) -> tuple[float, float]:
    """Points lost against the network alone on the same frames, and their standard error."""
    difference = factory.astype(float) - right
    return 100 * float(difference.mean()), 100 * float(difference.std() / np.sqrt(len(difference)))


def _split(right: np.ndarray) -> list[np.ndarray]:
    size = round(BLOCK_S * RATE)
    return [right[i : i + size] for i in range(0, len(right), size)]


def changes(ticks: list[Tick]) -> list[float]:
    """When the camera changed, s."""
    pairs = zip(ticks, ticks[1:], strict=False)
    return [after.time for before, after in pairs if before.strengths != after.strengths]


def counts(records: Records, changed: list[float]) -> Row:
    """How many fits ended in which way, swaps and rollbacks; false: a fit long after the last change of the camera."""
    fits = [(at, details["result"]) for at, event, details in records if event == "fit"]
    fitted = [at for at, result in fits if result in ("accepted", "rejected", "failed")]
    events = Counter(event for _, event, _ in records)
    return {
        "recalibrations": dict(Counter(result for _, result in fits)),
        "false": sum(not any(0 <= at - then <= REACTS_S for then in changed) for at in fitted),
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
        mean=material.IMAGENET_MEAN,
        std=material.IMAGENET_STD,
    )
    return path


def _tell(row: Row) -> None:
    accuracy = ", ".join(f"{name} {value:.1f}" for name, value in row["accuracy"].items())
    lost = ", ".join(f"{name} {value['beyond_noise']:.1f}" for name, value in row["harm"].items())
    fits = f"{row['recalibrations']}, {row['false']} false, {row['swaps']} swaps, {row['rollbacks']} rollbacks"
    print(f"{row['drift']}, {row['view']}, seed {row['seed']}: {accuracy}; harm {lost}; {fits}", flush=True)


def _table(rows: list[Row]) -> None:
    show(
        "accuracy (and harm in the worst five minutes beyond noise), %",
        ("drift", "view", *METHODS, "fits", "false", "swaps"),
        [_line(row) for row in rows],
    )


def _line(row: Row) -> list[object]:
    cells = [f"{row['accuracy'][name]:.1f} ({row['harm'][name]['beyond_noise']:.1f})" for name in METHODS[1:]]
    fits = sum(row["recalibrations"].get(result, 0) for result in ("accepted", "rejected", "failed"))
    return [row["drift"], row["view"], f"{row['accuracy']['factory']:.1f}", *cells, fits, row["false"], row["swaps"]]


def _keep(folder: Path | None, row: Row, records: Records) -> None:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{row['drift']}-{row['view']}-{row['seed']}".replace(" ", "-").replace(".", "")
        (folder / f"{name}.json").write_text(json.dumps({"row": row, "records": records}, indent=1))
