"""Replace the FrozenBatchNorm2d layers of detection libraries by BatchNorm layers of the same numbers.

They compute a scale and a shift by plain arithmetic. In a traced graph nothing shows any more that it was BatchNorm.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibrate.features.taps import is_batchnorm


def restore_batchnorm_layers(module: nn.Module) -> None:
    """Replace such layers inside `module`, which computes the same afterwards to float32 rounding."""
    for parent in list(module.modules()):
        for name, layer in list(parent.named_children()):
            if is_batchnorm(layer) and not isinstance(layer, _BatchNorm):
                setattr(parent, name, _restored(layer))


def _restored(layer: nn.Module) -> nn.BatchNorm2d:
    numbers = dict(layer.named_buffers(recurse=False)) | dict(layer.named_parameters(recurse=False))
    epsilon = getattr(layer, "eps", 0.0)  # the oldest ones had none
    restored = nn.BatchNorm2d(len(numbers["running_mean"]), eps=float(epsilon))
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            if name in numbers:
                getattr(restored, name).copy_(numbers[name])
    return restored.eval()
