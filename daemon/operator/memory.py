"""What a configuration takes of the machine's memory: frames that are kept, drift checks, and a fit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from calibrate.scoring.scorer import SCORE_CHUNK_FRAMES
from calibrate.search.objective import OBJECTIVE_CHUNK_PIXELS
from daemon.config import Config, SensorConfig
from daemon.levels import WORD_BITS
from daemon.worker.memory import MIB
from deploy.model.card import InputCard
from deploy.model.frozen import FrozenModel

# Measured on fits and drift checks of 64 to 512 frames of 128x128 and 256x256.
# Float32 frames, the part that is fitted to, and its shuffled copy; where a camera needs it two more, with replaced
# pixels and with evened light.
FIT_BYTES_PER_VALUE = 20
FIT_ACTIVATIONS = 3.5  # of a chunk's activations: features, gradients, and what they are computed from
CHECK_BYTES_PER_VALUE = 5
PROCESSES_BYTES = 3 * 300 * 2**20  # the daemon and two workers, with their libraries
WARNING_SHARE = 0.5  # of the memory: other programs, the system and its caches need some
GIB = 2**30


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes. frames: kept by the daemon, all sensors together. check, fit: while a worker is at it.

    more_for_words, more_for_floats: what is added where every camera sends 16 bits, or floats.
    """

    frames: float
    check: float
    fit: float
    more_for_words: float = 0.0
    more_for_floats: float = 0.0

    @property
    def in_all(self) -> float:
        """Bytes of all processes while a fit and a drift check run, with frames of the depth that is configured."""
        return self.frames + self.check + self.fit + PROCESSES_BYTES

    @classmethod
    def of(cls, config: Config, frozen: FrozenModel) -> MemoryNeed:
        """Estimate it. Runs the model once, on one frame."""
        shape, frames, window = frozen.card.input.shape, config.recalibrate.frames, config.drift.window
        values, activations = math.prod(shape), activation_bytes(frozen.module, shape)
        bytes_per_value = [_bytes_per_value(sensor, frozen.card.input) for sensor in config.sensors.values()]
        chunk = max(1, OBJECTIVE_CHUNK_PIXELS // math.prod(shape[1:]))
        received = max(bytes_per_value)

        def more_for(dtype: type[np.generic]) -> float:
            missing = [max(0, np.dtype(dtype).itemsize - size) for size in (*bytes_per_value, received)]
            return sum(missing) * (frames + window) * values

        return cls(
            frames=sum(bytes_per_value) * (frames + window) * values,
            check=window * values * (CHECK_BYTES_PER_VALUE + received) + min(window, SCORE_CHUNK_FRAMES) * activations,
            fit=frames * values * (FIT_BYTES_PER_VALUE + received) + min(frames, chunk) * FIT_ACTIVATIONS * activations,
            more_for_words=more_for(np.uint16),
            more_for_floats=more_for(np.float32),
        )


def _bytes_per_value(sensor: SensorConfig, card: InputCard) -> int:
    """Return 2 for a camera of more than 8 bits, as far as configuration and card say so."""
    return 2 if sensor.bits is not None or card.bits != WORD_BITS else 1


def activation_bytes(module: nn.Module, shape: tuple[int, int, int]) -> int:
    """Return the bytes that the network keeps of one frame (C, H, W) to compute a gradient."""
    weights = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
    sizes: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            sizes[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = module(torch.zeros(1, *shape, requires_grad=True))  # kept until the sizes are added up
    assert output is not None
    return sum(sizes.values())


def describe_need(need: MemoryNeed, sensors: int, available: int) -> str:
    """Return one sentence about what is needed and what is there."""
    parts = f"{_readable(need.frames)} for the frames of {sensors} sensor(s), {_readable(need.fit)} for a fit, "
    parts += f"{_readable(need.check)} for a drift check, {_readable(PROCESSES_BYTES)} for the processes"
    words, floats = need.in_all + need.more_for_words, need.in_all + need.more_for_floats
    depth = "with frames of 8 bits where sensors.ID.bits and the card say no more; "
    depth += f"{_readable(words)} with 16 bits, {_readable(floats)} with floats"
    return f"{_readable(need.in_all)} of memory ({parts}), {depth}; there are {_readable(available)}"


def _readable(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 2 else f"{size / MIB:.0f} MiB"
