"""The judge is right about a network that is no classifier: a small U-Net, 16 kinds of drift, exact masks."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.arguments import add_data, add_state
from bench.drifts import BAND, DRIFTS, FIT_FRAMES, JUDGE_FRAMES, REPLICATE_FRAMES, UNLABELLED
from bench.judge.ground_truth import compare
from bench.material.cifar import LIMITS, normalise
from bench.material.perturbation import Perturbation
from bench.material.segmentation import dice, scenes, trained_unet
from bench.provenance import MATERIAL, METHOD
from bench.report import show_rows
from bench.state_file import append_line, read_lines
from calibrate import FitConfig, fit, tap
from calibrate.judge import Verdict, collect_champions, collect_evidence, judge_evidence, needs_no_fit
from calibrate.scoring.scorer import Scorer
from calibrate.source.description import frame_shape
from daemon.simulation.drifts import parse_drift

CODE = (*METHOD, *MATERIAL, "bench/drifts.py", "bench/dense.py", "bench/judge/ground_truth.py")

TEST_IMAGES = 512
SEEDS = (10, 11)  # 0 to 9 are for choosing
STRENGTHS = (1, 2)  # of DRIFTS: medium and strong
NEGATIVE, PAPER = "negative", "perturbation of the paper"

Row = dict[str, Any]
Drifting = Callable[[np.ndarray, np.ndarray], Tensor]  # images and their numbers to normalised frames


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "CIFAR-10 and MNIST")
    add_state(parser)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS, help="of the drifts (%(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    network, examples = trained_unet(args.data), scenes(args.data, "test", TEST_IMAGES + UNLABELLED)
    finished = {(row["drift"], row["seed"]): row for row in read_lines(args.state)}
    with torch.no_grad():
        clean = dice(network(normalise(examples.images[:TEST_IMAGES])), examples.masks[:TEST_IMAGES])
    rows = []
    for seed in args.seeds:
        for name, drifting in drifts(seed):
            row = finished.get((name, seed))
            if row is None:
                row = {"drift": name, "seed": seed, "clean": clean, **measure_one(network, examples, drifting, seed)}
                append_line(args.state, row)
            print(f"{name}, seed {seed}: {row['drifted']:.1f} to {row['served']:.1f}, {row['verdict']}", flush=True)
            rows.append(row)
    summary = summarise(rows)
    keys = ("drift", "seed", "clean", "drifted", "candidate", "served", "truth", "verdict", "score", "candidate_score")
    show_rows(f"overlap (Dice) in %; {summary}", (*keys, "agreement", "nearer"), rows)
    settings: Row = {"fit_frames": FIT_FRAMES, "replicate_frames": REPLICATE_FRAMES, "judge_frames": JUDGE_FRAMES}
    settings |= {"test_images": TEST_IMAGES, "band": BAND, "fit": vars(FitConfig())}
    return {"seeds": {"drift": list(args.seeds)}, "settings": settings, "rows": rows, "summary": summary}


def drifts(seed: int) -> Iterator[tuple[str, Drifting]]:
    """Yield name and drift: each kind in its stronger forms, the negative, and the paper's perturbation."""
    for texts in DRIFTS.values():
        for text in (texts[strength] for strength in STRENGTHS):
            yield text, partial(_simulated, text, seed)
    yield NEGATIVE, lambda images, _: normalise(255 - images)
    yield PAPER, lambda images, _: Perturbation(seed)(normalise(images))


def _simulated(text: str, seed: int, images: np.ndarray, rows: np.ndarray) -> Tensor:
    drift = parse_drift(text, seed)
    return normalise(np.stack([drift(image, int(row)) for image, row in zip(images, rows, strict=True)]))


def measure_one(network: nn.Module, examples: Any, drifting: Drifting, seed: int) -> Row:
    """Let a camera drift, recalibrate as the daemon does, and measure the overlap before and after."""
    frames = drifting(examples.images, np.arange(len(examples.images)))
    masks, test = examples.masks[:TEST_IMAGES], frames[:TEST_IMAGES]
    *parts, held_out = frames[TEST_IMAGES:].split((FIT_FRAMES, REPLICATE_FRAMES, JUDGE_FRAMES))
    scorer = Scorer.of(tap(network), frame_shape(frames), LIMITS, output="none")
    against = collect_champions(scorer, None, held_out)
    drifted = _overlap(network, None, test, masks)
    row: Row = {"drifted": drifted, "score": against["factory"].score, "seconds": 0.0}
    if needs_no_fit(against, BAND):
        return (
            row
            | dict.fromkeys(("candidate", "candidate_score", "agreement", "nearer"))
            | {
                "served": drifted,
                "verdict": "unneeded",
                "truth": "",
            }
        )
    began = time.perf_counter()
    candidate, replicate = (
        fit(network, part, limits=LIMITS, seed=seed + second).homogenizer.eval() for second, part in enumerate(parts)
    )
    row |= {"seconds": time.perf_counter() - began, "candidate": _overlap(network, candidate, test, masks)}
    found, second = (collect_evidence(scorer, homogenizer, held_out) for homogenizer in (candidate, replicate))
    return row | _describe(judge_evidence(found, against, BAND, second), row)


def _describe(verdict: Verdict, row: Row) -> Row:
    criteria = {criterion.name: criterion for criterion in verdict.criteria}
    return {
        "verdict": "accepted" if verdict.accepted else "rejected",
        "reason": verdict.reason,
        "served": row["candidate"] if verdict.accepted else row["drifted"],
        "truth": compare(row["candidate"], row["drifted"]),
        "candidate_score": verdict.evidence["candidate"].score,
        "agreement": criteria["repeatability"].value,
        "nearer": criteria["agreement"].value,
    }


def _overlap(network: nn.Module, homogenizer: nn.Module | None, frames: Tensor, masks: np.ndarray) -> float:
    with torch.no_grad():
        odds = [network(homogenizer(part) if homogenizer else part) for part in frames.split(128)]
    return dice(torch.cat(odds), masks)


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Count verdicts by truth, and compare what is served with what the candidates would give."""
    judged = [row for row in rows if row["candidate"] is not None]
    counts = {
        f"{truth}_{verdict}": sum(row["truth"] == truth and row["verdict"] == verdict for row in judged)
        for truth in ("good", "neutral", "bad")
        for verdict in ("accepted", "rejected")
    }
    best = sum(max(0.0, row["candidate"] - row["drifted"]) for row in judged)
    served = sum(row["served"] - row["drifted"] for row in judged)
    worst = min((row["served"] - row["drifted"] for row in rows), default=0.0)
    return {**counts, "recovered": served / best if best else None, "worst": worst}
