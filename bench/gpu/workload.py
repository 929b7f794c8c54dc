"""The networks and frames of one frame size, with each compiled form made once."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from bench.material.large_network import random_homogenizer, resnet50
from deploy.backends.protocol import Backend
from deploy.model.precision import FLOAT32, to_precision
from deploy.model.program import export_program, load_program, save_program

HOMOGENIZER, NETWORK, CHAINED = "homogenizer", "network", "chained"
FRAMES = 4  # of normal noise, like normalised images
SEED = 0
STATISTICS_SHAPE = (4, 3, 128, 128)  # of the noise whose statistics the BatchNorms get


class Workload:
    """ρ and Φ for frames of one size, and a few frames."""

    def __init__(self, network: nn.Module, height: int, width: int):
        self.size = f"{height}x{width}"
        self.shape = (3, height, width)
        self.network = network
        self.homogenizer = random_homogenizer(self.shape, SEED)
        self.frames = list(np.random.default_rng(SEED).standard_normal((FRAMES, 1, *self.shape), np.float32))
        self._example = torch.zeros(1, *self.shape)
        self._compiled: dict[tuple[str, str, str], bytes] = {}

    def compiled(self, backend: Backend, part: str, precision: str) -> bytes:
        """Return the compiled form of HOMOGENIZER or NETWORK; `precision` is the network's, ρ is always float32."""
        key = backend.name, part, precision if part == NETWORK else FLOAT32
        if key not in self._compiled:
            self._compiled[key] = backend.compile(self.module(part, precision), self._example)
        return self._compiled[key]

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """The outputs of the eager networks for all frames, on the CPU in float32."""
        frames = torch.from_numpy(np.concatenate(self.frames))
        with torch.no_grad():
            homogenized = self.homogenizer(frames)
            return {HOMOGENIZER: homogenized, NETWORK: self.network(frames), CHAINED: self.network(homogenized)}

    def module(self, part: str, precision: str) -> nn.Module:
        """Return HOMOGENIZER, or NETWORK in this precision."""
        return to_precision(load_program(self._traced), precision) if part == NETWORK else self.homogenizer

    @cached_property
    def _traced(self) -> bytes:
        """Φ in the form that a model file has."""
        return save_program(export_program(self.network, self._example))


def network() -> nn.Module:
    """Build a network as large as ResNet-50 whose outputs are of the order of 1, although its weights are random.

    Its BatchNorms get the statistics of noise.
    """
    torch.manual_seed(SEED)
    made = resnet50()
    for norm in (module for module in made.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None  # the plain mean over all batches, and there is one
    with torch.no_grad():
        made.train()(torch.randn(STATISTICS_SHAPE))
    return made.eval().requires_grad_(False)
