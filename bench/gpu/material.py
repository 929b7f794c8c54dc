"""The networks and frames of one size, and each compiled form made once."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from bench.overhead import resnet50, some_homogenizer
from deploy.backends.protocol import Backend
from deploy.model.precision import FLOAT32, in_precision
from deploy.model.program import export_program, load_program, save_program

HOMOGENIZER, NETWORK = "homogenizer", "network"
FRAMES = 4  # of normal noise, as normalised images are
SEED = 0
STATISTICS_SHAPE = (4, 3, 128, 128)


class Material:
    def __init__(self, network: nn.Module, height: int, width: int):
        self.size = f"{height}x{width}"
        self.shape = (3, height, width)
        self.network = network
        self.homogenizer = some_homogenizer(self.shape, SEED)
        self.frames = list(np.random.default_rng(SEED).standard_normal((FRAMES, 1, *self.shape), np.float32))
        self._example = torch.zeros(1, *self.shape)
        self._compiled: dict[tuple[str, str, str], bytes] = {}

    def compiled(self, backend: Backend, part: str, precision: str) -> bytes:
        """The homogenizer's form is float32 whatever the precision, which is the network's."""
        key = backend.name, part, precision if part == NETWORK else FLOAT32
        if key not in self._compiled:
            self._compiled[key] = backend.compile(self.module(part, precision), self._example)
        return self._compiled[key]

    @cached_property
    def expected(self) -> dict[str, Tensor]:
        """What the eager networks make of all frames on the processor, in float32."""
        frames = torch.from_numpy(np.concatenate(self.frames))
        with torch.no_grad():
            homogenized = self.homogenizer(frames)
            whole = {HOMOGENIZER: homogenized, NETWORK: self.network(frames), "chained": self.network(homogenized)}
        return whole

    def module(self, part: str, precision: str) -> nn.Module:
        return in_precision(load_program(self._traced), precision) if part == NETWORK else self.homogenizer

    @cached_property
    def _traced(self) -> bytes:
        """Φ in the form in which a model file holds it."""
        return save_program(export_program(self.network, self._example))


def network() -> nn.Module:
    """As large as ResNet-50, its BatchNorms with the statistics of noise: outputs of about 1, whatever the weights."""
    torch.manual_seed(SEED)
    made = resnet50()
    for norm in (module for module in made.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.momentum = None  # the plain mean over all batches, and there is one
    with torch.no_grad():
        made.train()(torch.randn(STATISTICS_SHAPE))
    return made.eval().requires_grad_(False)
