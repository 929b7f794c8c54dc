"""Behind a drift and another mix of classes a fit that expects it mostly comes near clean accuracy; others may harm.

A real camera changes with its site, and the mix of classes with it (`python -m bench cameras`). Here both are known.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bench.arguments import add_data
from bench.fit import CODE as FIT_CODE
from bench.material.subjects import SUBJECTS, Subject
from bench.report import print_row, show
from calibrate import CleanData, fit, measure_clean, tap
from daemon.simulation.drifts import Drift, parse_drift

CODE = (*FIT_CODE, "bench/mixes.py")

NETWORKS = ("X-rays", "blood cells", "CIFAR-10", "GTSRB")
DRIFTS = ("exposure=-1", "haze=0.35", "gamma=1.8")  # one for each seed, in turn
REPORTED_SEEDS = (10, 11, 12)  # of the mix, the drift, the frames and the fit
FRAMES = 300
CLEAN_FRAMES = 1024
CONCENTRATION = 0.5  # of the Dirichlet distribution that a mix is drawn from: a few classes make up most of it
MIX_OF_TWO = (0.85, 0.15)
FITS = ("shipped", "commissioned", "stated")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_data(parser)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS, help="default: all")
    parser.add_argument("--runs", type=int, default=len(REPORTED_SEEDS), help="seeds (%(default)s)")


def measure(args: argparse.Namespace) -> dict[str, Any]:
    rows, seeds = [], REPORTED_SEEDS[: args.runs]
    for name in args.networks:
        subject = SUBJECTS[name](args.data)
        for number, seed in enumerate(seeds):
            drift = parse_drift(DRIFTS[number % len(DRIFTS)], seed)
            rows.append({"data": name, "seed": seed, "drift": str(drift)} | _Camera(subject, drift, seed).measure())
            print_row(rows[-1])
    columns = ("data", "drift", "largest", "clean", "drifted", *FITS)
    show("balanced accuracy in %", columns, [[row[column] for column in columns] for row in rows])
    return {
        "seeds": {"mix": seeds, "drift": seeds, "fit": seeds},
        "settings": {"frames": FRAMES, "clean_frames": CLEAN_FRAMES, "concentration": CONCENTRATION}
        | {"mix_of_two": MIX_OF_TWO},
        "rows": rows,
    }


class _Camera:
    """A drifting camera with a mix of classes drawn by the seed; half of the scene's images are clean ones."""

    def __init__(self, subject: Subject, drift: Drift, seed: int):
        random = np.random.default_rng(seed)
        self._subject, self._drift, self._seed = subject, drift, seed
        self._labels = subject.scene.labels.numpy()
        self._classes = int(subject.test.labels.max()) + 1
        order = random.permutation(len(self._labels))
        clean, shown = order[: len(order) // 2][:CLEAN_FRAMES], order[len(order) // 2 :]
        self._clean = measure_clean(
            tap(subject.network), subject.normalise(subject.scene.images[clean]), subject.scene.labels[clean]
        )
        self._rows = self._mixed(random, shown)

    def measure(self) -> dict[str, Any]:
        """Return the largest share of a class, and the balanced accuracies on test images of all classes, in %."""
        counts = np.bincount(self._labels[self._rows], minlength=self._classes)
        shares = dict(enumerate((counts / counts.sum()).tolist()))
        test = self._subject.test.images
        drifted, frames = self._film(test), self._film(self._subject.scene.images[self._rows])
        aims: dict[str, CleanData | None] = dict.fromkeys(FITS)
        aims |= {"commissioned": self._clean, "stated": self._clean.in_mix(shares)}
        restored = {name: self._balanced(drifted, self._fit(frames, aim)) for name, aim in aims.items()}
        at_home = {"clean": self._balanced(self._subject.normalise(test)), "drifted": self._balanced(drifted)}
        return {"frames": len(self._rows), "largest": max(shares.values())} | at_home | restored

    def _mixed(self, random: np.random.Generator, pool: np.ndarray) -> np.ndarray:
        """Return rows of the pool in a random mix of the classes that have clean statistics."""
        assert self._clean.classes is not None
        known = np.isin(np.arange(self._classes), self._clean.classes.numbers.numpy())
        two = random.permutation(MIX_OF_TWO)
        mix = two if self._classes == len(MIX_OF_TWO) else random.dirichlet([CONCENTRATION] * self._classes)
        mix = np.where(known, mix, 0)
        wanted = np.round(FRAMES * mix / mix.sum()).astype(int)
        rows = [random.permutation(pool[self._labels[pool] == label])[:count] for label, count in enumerate(wanted)]
        return random.permutation(np.concatenate(rows))

    def _film(self, images: np.ndarray) -> Tensor:
        """Return images (N, H, W[, 3]) as the camera takes them, (N, C, H, W)."""
        channels_last = images.reshape(*images.shape[:3], -1)
        taken = np.stack([self._drift(image, number) for number, image in enumerate(channels_last)])
        return self._subject.normalise(taken.reshape(images.shape))

    def _fit(self, frames: Tensor, aim: CleanData | None) -> nn.Module:
        subject, reference, source = self._subject, aim and aim.statistics, aim and aim.source
        fitted = fit(subject.network, frames, reference, source=source, limits=subject.limits, seed=self._seed)
        return fitted.homogenizer

    def _balanced(self, frames: Tensor, homogenizer: Callable[[Tensor], Tensor] | None = None) -> float:
        labels, network = self._subject.test.labels, self._subject.network
        with torch.no_grad():
            parts = frames.split(128)
            named = torch.cat([network(homogenizer(p) if homogenizer else p).argmax(1) for p in parts])
        right = [float((named[labels == label] == label).double().mean()) for label in labels.unique()]
        return 100 * float(np.mean(right))
