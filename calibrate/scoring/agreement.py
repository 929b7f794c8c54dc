"""Measure how far two homogenizers lead a network to the same answers, beyond what chance would give.

Fits to different frames agree where they are right. Where they are wrong, each is wrong in its own way: what Jiang et
al. (2022, "Assessing generalization of SGD via disagreement") found of two trainings holds of two fits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from statistics import fmean

import torch
from torch import Tensor

from calibrate.scoring.accuracy import ScoredOutput, logits_of

MAX_VALUES = 1024  # of the output for one frame, of a network that is no classifier; bounds memory
NOT_FINITE = -1  # label of a frame whose outputs are not finite
ROUNDING = 3e-7  # of a value in float32 that went through a network
MIN_VARIANCE = 1e-12  # of a quantity that never changes
MAX_QUANTITIES = 32  # values of a frame that may each have a unit of its own, as an angle and a distance have
VALUES_SEED = 0  # selects the values; a fixed stride could always fall into the same column of a picture


def answers_of(outputs: Tensor, kind: ScoredOutput) -> Tensor:
    """Return what a network says of N frames, to be compared with what it says behind another homogenizer.

    Returns labels (N,) int64 of a classifier, NOT_FINITE where outputs are not finite; of another network the same at
    most MAX_VALUES values of each frame's output, (N, M) float32.
    """
    logits = logits_of(outputs, kind)
    if logits is not None:
        usable = torch.isfinite(logits.float().softmax(1)).all(1)  # -inf rules a class out, and leaves the others
        return torch.where(usable, logits.argmax(1), NOT_FINITE)
    values = outputs.detach().reshape(len(outputs), -1).float()
    generator = torch.Generator().manual_seed(VALUES_SEED)
    return values[:, torch.randperm(values.shape[1], generator=generator)[:MAX_VALUES].to(values.device)]


def agreement(first: Tensor, second: Tensor) -> float:
    """Compare two answers of `answers_of` for the same frames: 1 is the same, 0 is what chance would give.

    Labels are compared by kappa (Cohen 1960, "A coefficient of agreement for nominal scales"), values by concordance
    (Lin 1989, "A concordance correlation coefficient to evaluate reproducibility"): the mean over at most
    MAX_QUANTITIES of a frame, else that of all values together, as of a map. Frames that all have one label, and values
    that never change, show nothing: the agreement is 0. It is NaN where an answer is not finite.
    """
    if first.dtype == torch.int64:
        return _kappa(first, second)
    found = [_concordance(*pair) for pair in zip(_quantities(first), _quantities(second), strict=True)]
    telling = [concordance for concordance in found if concordance is not None]
    return fmean(telling) if telling else 0.0


def standard_errors_nearer(first: Tensor, other: Tensor, reference: Tensor) -> float:
    """Return by how many standard errors `first` is nearer to the reference than `other`, counted over frames.

    The sign test of McNemar (1947, "Note on the sampling error of the difference between correlated proportions"):
    frames on which both are as near do not count. 0 if there are no others, infinite if an answer of `other` is not
    finite: what fails on a frame must not serve.
    """
    if not _is_finite(other):
        return math.inf
    distances = [_distances(answers, reference) for answers in (first, other)]
    nearer, farther = int((distances[0] < distances[1]).sum()), int((distances[0] > distances[1]).sum())
    return (nearer - farther) / math.sqrt(nearer + farther) if nearer + farther else 0.0


def _is_finite(answers: Tensor) -> bool:
    return NOT_FINITE not in answers if answers.dtype == torch.int64 else bool(torch.isfinite(answers).all())


def _distances(answers: Tensor, reference: Tensor) -> Tensor:
    """Return how far each answer is from the reference, (N,): 0 or 1 for labels; each quantity in its own units."""
    if answers.dtype == torch.int64:
        return (answers != reference).float()
    distances = torch.zeros(len(answers), dtype=torch.float64, device=answers.device)
    for found, known in zip(_quantities(answers), _quantities(reference), strict=True):
        distances += (found - known).square().mean(1) / known.var(correction=0).clamp_min(MIN_VARIANCE)
    return distances


def _quantities(values: Tensor) -> Iterable[Tensor]:
    """Divide values (N, M) into parts (N, m) of one unit each, in double precision."""
    return values.double().split(1, dim=1) if values.shape[1] <= MAX_QUANTITIES else (values.double(),)


def _kappa(first: Tensor, second: Tensor) -> float:
    if not (_is_finite(first) and _is_finite(second)):
        return math.nan
    classes = 1 + int(torch.cat([first, second]).max())
    shares = [torch.bincount(labels, minlength=classes) / len(labels) for labels in (first, second)]
    by_chance = float((shares[0] * shares[1]).sum())
    agreed = float((first == second).float().mean())
    return (agreed - by_chance) / (1 - by_chance) if by_chance < 1 else 0.0


def _concordance(first: Tensor, second: Tensor) -> float | None:
    """Return the concordance of values (N, m); None where neither ever changes and they are the same."""
    covariance = ((first - first.mean()) * (second - second.mean())).mean()
    spread = first.var(correction=0) + second.var(correction=0) + (first.mean() - second.mean()).square()
    still = max(MIN_VARIANCE, float(ROUNDING * first.mean()) ** 2)  # what rounding alone makes of a constant
    return None if spread <= still else float(2 * covariance / spread)
