"""How many frames may go through a network at once on a GPU that also serves frames."""

from __future__ import annotations

import torch
from torch import Tensor

from calibrate.features.feature_maps import FeatureMap
from calibrate.features.statistics import ImageMoments
from calibrate.search.objective import default_chunk

GPU_MEMORY_SHARE = 0.5  # of the free memory of the GPU that a fit may take
MEASURED_FRAMES = 8  # with which the memory of one frame is measured


def affordable_chunk(features: FeatureMap, frames: Tensor) -> int:
    """Return how many frames (N, C, H, W) at once are fast and fit into the GPU's free memory; 0 if not one does.

    A power of two unless it is the number that suits a processor: the last bits of a fit depend on the chunk, and the
    free memory differs a little at each fit.
    """
    free, _ = torch.cuda.mem_get_info(frames.device)
    chunk, affordable = default_chunk(frames), int(GPU_MEMORY_SHARE * free / _bytes_per_frame(features, frames))
    return chunk if affordable >= chunk else 2 ** (affordable.bit_length() - 1) if affordable else 0


def _bytes_per_frame(features: FeatureMap, frames: Tensor) -> float:
    """Measure what a pass forward and backward takes for each frame."""
    before = torch.cuda.memory_allocated(frames.device)
    torch.cuda.reset_peak_memory_stats(frames.device)
    with torch.enable_grad():
        few = frames[:MEASURED_FRAMES].detach().clone().requires_grad_()
        moments = ImageMoments.of(features(few).features)
        torch.autograd.grad([part.sum() for part in (*moments.first, *moments.second)], few)
    return max(1, torch.cuda.max_memory_allocated(frames.device) - before) / len(few)
