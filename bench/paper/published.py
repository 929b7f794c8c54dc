"""The numbers that Willis & Oala (2021) report for CIFAR-10; a field is None where no number is known.

Their networks are others: a ResNet-34 with 93.2 % on clean test images, and a ResNet-18 as verifier. The images that
ρ is fitted to (acc) were among the training images of their networks.
"""

from __future__ import annotations

from typing import NamedTuple

PAPER = "the paper, Table 3"
MANY = "their repository, figures/multiple_CIFAR10.csv, mean of several perturbations"
BASELINE = "their repository, figures/reconstruction_CIFAR10_baseline.csv, one perturbation"
ONE = "their repository, figures/unsupervised, one perturbation (52.1 % distorted)"


class Published(NamedTuple):
    """Means over runs, in percent; psnr is in dB and l2 a ratio."""

    source: str
    acc: float | None = None
    acc_val: float | None = None
    acc_ver: float | None = None
    psnr: float | None = None
    ssim: float | None = None
    l2: float | None = None


# By (data set, setting, row).
PUBLISHED = {
    ("cifar10", "baseline", "CLEAN"): Published(BASELINE, acc=99.8, acc_val=93.2),
    ("cifar10", "baseline", "DISTORTED"): Published(BASELINE, acc=26.2),
    ("cifar10", "supervised", "CRITERION"): Published(MANY, acc_val=78.9),
    ("cifar10", "supervised", "NN ALL"): Published(MANY, acc=98.6, acc_val=86.7, psnr=22.6, ssim=95.1),
    ("cifar10", "supervised", "NN ALL CC"): Published(MANY, acc=99.8, acc_val=87.1, psnr=23.2),
    ("cifar10", "unsupervised", "NN"): Published(ONE, acc=85.9, acc_val=81.3, psnr=20.4, ssim=92.5),
    ("cifar10", "unsupervised", "NN ALL"): Published(PAPER, acc=91.8, acc_val=84.5, acc_ver=83.6),
    ("cifar10", "unsupervised", "RANDOM NN"): Published(ONE, acc=82.2, acc_val=79.0),
    ("cifar10", "unsupervised", "RP"): Published(ONE, acc=45.4, acc_val=46.2),
}
