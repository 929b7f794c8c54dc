"""The read-outs name the drift of a camera and its size within 15 %, and nothing where there is none."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from bench.arguments import add_data, add_state
from bench.drifts import DRIFTS, STRENGTHS
from bench.material.subjects import SUBJECTS, Labelled, Subject
from bench.provenance import MATERIAL
from bench.report import show_rows
from bench.state_file import append_line, read_lines
from calibrate.readouts.picture_statistics import PictureStatistics
from calibrate.readouts.read_out import KINDS, ReadOut
from calibrate.readouts.reading import read_outs
from calibrate.readouts.words import describe
from daemon.simulation.drifts import Drift, parse_drift
from daemon.simulation.random_drifts import COLOUR_KINDS, film

CODE = ("calibrate/readouts/*.py", *MATERIAL, "bench/drifts.py", "bench/readouts.py")

CHOSEN_ON, REPORTED_ON = range(5), range(10, 15)  # seeds of drifts and of the choice of pictures
NETWORKS_SHOWN = ("CIFAR-10", "GTSRB", "X-rays", "MNIST", "blood cells")  # the light network sees CIFAR-10, too
HEALTHY, RECENT = 2000, 512  # pictures, where there are as many; a third is recent at most
MIN_PICTURES = 48  # of a clean period of few classes
NO_READ_OUT = {"jpeg"}  # kinds that no read-out is for: what they are taken for is shown
MORE_DRIFTS = {
    "black level, lower": ("black-level=-8", "black-level=-16", "black-level=-32"),
    "gamma below 1": ("gamma=0.83", "gamma=0.67", "gamma=0.45"),
}
ALL, ONE, THREE = "all classes", "one class", "three classes"
MIXED, ORDERED = "mixed", "class after class"  # order of the healthy pictures

Row = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "images and networks")
    add_state(parser)
    add = parser.add_argument
    add("--choosing", action="store_true", help="the seeds for choosing, instead of those that are reported")
    add("--seeds", nargs="+", type=int, metavar="N", help="some of the seeds")
    add("--networks", nargs="+", choices=NETWORKS_SHOWN, default=NETWORKS_SHOWN, metavar="NAME", help="some of them")


def measure(args: argparse.Namespace) -> Row:
    torch.set_num_threads(1)
    seeds = args.seeds or list(CHOSEN_ON if args.choosing else REPORTED_ON)
    finished = {(row["data"], row["seed"]): row["rows"] for row in read_lines(args.state)}
    rows: list[Row] = []
    for data in args.networks:
        subject = SUBJECTS[data](args.data)
        for seed in seeds:
            found = finished.get((data, seed))
            if found is None:
                found = [{"data": data, "seed": seed, **row} for row in rows_of(subject, seed)]
                append_line(args.state, {"data": data, "seed": seed, "rows": found})
            rows += found
            print(f"{data}, seed {seed}", flush=True)
    summary = summarise(rows)
    for name, part in summary.items():
        show_rows(name, tuple(part[0]), part)
    settings = {"healthy": HEALTHY, "recent": RECENT, "networks": list(args.networks)}
    return {"seeds": {"drift": seeds}, "settings": settings, "rows": rows, "summary": summary}


class Periods(NamedTuple):
    """Healthy and recent pictures (N, h, w, C) of one camera, none in both, with their classes."""

    healthy: Labelled
    recent: Labelled

    @staticmethod
    def of(scene: Labelled, seed: int) -> Periods:
        """Divide the pictures of a scene at random."""
        images = scene.images if scene.images.ndim == 4 else scene.images[..., None]
        order = np.random.default_rng(seed).permutation(len(images))
        count = min(RECENT, len(images) // 3)
        shuffled = Labelled(images[order], scene.labels[torch.from_numpy(order)])
        recent, rest = shuffled.split(count)
        return Periods(rest.split(HEALTHY)[0], recent)


def rows_of(subject: Subject, seed: int) -> Iterator[Row]:
    """Yield a row for each drift, and for each clean period."""
    periods = Periods.of(subject.scene, seed)
    healthy = statistics(periods.healthy.images)
    for name, strength, text in drifts(grey=subject.channels == 1):
        drift = parse_drift(text, seed)
        found = read_outs(healthy, statistics(film(drift, periods.recent.images)))
        yield {"drift": name, "strength": strength, "text": text, **compare(found, drift, periods.recent.images)}
    for order in (MIXED, ORDERED):
        before = healthy if order == MIXED else statistics(by_class(periods.healthy).images)
        for view, recent in clean_views(periods.recent, seed):
            found = read_outs(before, statistics(recent))
            yield {"view": view, "healthy": order, "pictures": len(recent), **named(found)}


def drifts(grey: bool) -> Iterator[tuple[str, str, str]]:
    """Yield name, strength and text of each drift that a camera can have."""
    for name, texts in (DRIFTS | MORE_DRIFTS).items():
        if not (grey and texts[0].partition("=")[0] in COLOUR_KINDS):
            yield from ((name, strength, text) for strength, text in zip(STRENGTHS, texts, strict=True))


def statistics(images: np.ndarray) -> PictureStatistics:
    """Measure pictures (N, h, w, C)."""
    return PictureStatistics.of(torch.from_numpy(np.ascontiguousarray(images)))


def by_class(pictures: Labelled) -> Labelled:
    """Sort pictures, as of a camera that shows one kind of thing after the other."""
    order = pictures.labels.argsort(stable=True)
    return Labelled(pictures.images[order.numpy()], pictures.labels[order])


def clean_views(recent: Labelled, seed: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield clean recent pictures of all classes, of one and of three of them."""
    yield ALL, recent.images
    counts = recent.labels.bincount().numpy()
    enough = np.flatnonzero(counts >= MIN_PICTURES)
    order = np.random.default_rng([seed, 1]).permutation(enough)
    classes = len(np.flatnonzero(counts))
    for view, chosen in ((ONE, order[:1]), (THREE, order[:3])):
        if len(order) >= len(chosen) == {ONE: 1, THREE: 3}[view] < classes:
            yield view, recent.images[np.isin(recent.labels.numpy(), chosen)]


def compare(found: Sequence[ReadOut], drift: Drift, images: np.ndarray) -> Row:
    """Compare read-outs with what the simulator did."""
    ((kind, strengths),) = drift.strengths.items()
    if kind in NO_READ_OUT:
        return {"kind": kind, "error": None, **named(found)}
    own = [one for one in found if one.kind == kind]
    truths = realised(kind, strengths, drift, images.shape[1:3], images.shape[3])
    neutral = KINDS[kind].neutral
    pairs = [(next((o.value for o in own if o.colour == c), neutral), truth) for c, truth in truths.items()]
    difference = KINDS[kind].difference
    error = max(abs(difference(value) / difference(truth) - 1) for value, truth in pairs)
    row: Row = {"kind": kind, "truth": [truth for _, truth in pairs], "value": [value for value, _ in pairs]}
    row |= {"standard_error": [one.error for one in own], "error": 100 * error}
    return row | {"found": any(one.significant for one in own), **named(found)}


def realised(
    kind: str, strengths: Sequence[float], drift: Drift, sides: tuple[int, ...], channels: int
) -> dict[str, float]:
    """Return what the simulator did, by colour: of random patterns the sd or the share that they happen to have."""
    if kind == "gain":
        return {"red": strengths[0], "blue": strengths[2]}
    grey = np.full((*sides, 3), 128, np.float32)
    changed = (film(drift, grey[None].astype(np.uint8)).astype(float)[0] - 128)[..., :channels]
    if kind == "dead-pixels":
        return {"": float((changed != 0).all(2).mean())}
    if kind in ("fixed-pattern", "row-banding", "column-banding"):
        return {"": float(changed.std())}
    return {"": strengths[0]}


def named(found: Sequence[ReadOut]) -> Row:
    """Return the significant kinds, the strongest first, and the words for them."""
    order = sorted((one for one in found if one.significant), key=lambda one: -one.strength)
    return {"kinds": list(dict.fromkeys(one.kind for one in order)), "words": describe(found)}


def summarise(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Return tables: by drift and strength, by data, what else was named, and clean periods."""
    drifted = [row for row in rows if row.get("error") is not None]
    clean = [row for row in rows if "view" in row]
    names = dict.fromkeys((row["drift"], row["strength"]) for row in drifted)
    by_drift: list[Row] = [
        {"drift": name, "strength": strength}
        | _errors([row for row in drifted if (row["drift"], row["strength"]) == (name, strength)])
        for name, strength in names
    ]
    data = dict.fromkeys(row["data"] for row in drifted)
    stronger = [row for row in drifted if row["strength"] != STRENGTHS[0]]
    by_data: list[Row] = [{"data": name, **_errors([r for r in stronger if r["data"] == name])} for name in data]
    by_data.append({"data": "all", **_errors(stronger)})
    return {"by drift": by_drift, "medium and strong, by data": by_data, "clean": _clean(clean)}


def _errors(rows: Sequence[Row]) -> Row:
    errors = np.array([row["error"] for row in rows])
    also = Counter(kind for row in rows for kind in row["kinds"] if kind != row["kind"])
    return {
        "cameras": len(rows),
        "median": float(np.median(errors)),
        "worst": float(errors.max()),
        "within_15": float((errors <= 15).mean()),
        "found": float(np.mean([row["found"] for row in rows])),
        "first": float(np.mean([row["kinds"][:1] == [row["kind"]] for row in rows])),
        "also": ", ".join(f"{kind} {count}" for kind, count in also.most_common(3)),
    }


def _clean(rows: Sequence[Row]) -> list[Row]:
    tables = []
    for view, order in dict.fromkeys((row["view"], row["healthy"]) for row in rows):
        part = [row for row in rows if (row["view"], row["healthy"]) == (view, order)]
        kinds = Counter(kind for row in part for kind in row["kinds"])
        found = {"recent": view, "healthy": order, "cameras": len(part), "named": sum(bool(r["kinds"]) for r in part)}
        tables.append(found | {"kinds": ", ".join(f"{kind} {count}" for kind, count in kinds.most_common(4))})
    return tables
