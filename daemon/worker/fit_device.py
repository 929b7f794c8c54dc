"""Choose where a fit computes, and fit there: on the GPU with as many frames at once as its memory allows."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn

from calibrate.features.taps import tap
from calibrate.fitting import FitResult, fit
from calibrate.search.memory import affordable_chunk
from deploy.backends.gpu.device import describe_gpu, require_gpu
from deploy.backends.protocol import AUTO, GPU_BACKENDS, NO_GPU_REASON
from deploy.model.program import first_line, module_on

CPU, CUDA = "cpu", "cuda"  # of the configuration, beside AUTO
MIN_FREE_BYTES = 2 * 2**30  # on a GPU that the backend does not use: PyTorch alone takes a quarter of it
MIN_CHUNK_FRAMES = 4  # fewer at once are no faster than the processor

log = logging.getLogger(__name__)


def check_fit_device(asked: str) -> None:
    """Check that this machine has the device of the configuration. Raises BackendUnavailable."""
    if asked == CUDA:
        require_gpu("fit.device: cuda")


def fit_on_device(asked: str, backend: str, model: nn.Module, frames: Tensor, **options: Any) -> tuple[FitResult, str]:
    """Fit on the device of the configuration; returns the result, on the processor, and the device in words.

    backend: of the daemon. options: of calibrate.fitting.fit. With AUTO a fit for which the GPU has no memory, or in
    which it fails, is made again on the processor. Raises what `fit` raises, and with CUDA what the GPU does.
    """
    device, reason = _choose(asked, backend)
    log.info("fitting on %s: %s", device, reason)
    if device == CUDA:
        try:
            return _fit_on_gpu(model, frames, options)
        except RuntimeError as error:  # PyTorch raises it for the GPU, its libraries, and tensors on another device
            if asked == CUDA:
                raise
            reason = f"the GPU could not: {first_line(error)}"
            log.warning("fitting on cpu: %s", reason)
    return fit(model, frames, **options), f"cpu, {reason}"


def _choose(asked: str, backend: str) -> tuple[str, str]:
    """Return the device, and why it."""
    if asked != AUTO:
        return asked, "the configuration says so"
    if not torch.cuda.is_available():
        return CPU, NO_GPU_REASON
    if backend in GPU_BACKENDS:
        return CUDA, f"the backend {backend} uses it too"
    try:
        free, _ = torch.cuda.mem_get_info()
    except RuntimeError as error:
        return CPU, f"the GPU could not: {first_line(error)}"
    return (CUDA if free >= MIN_FREE_BYTES else CPU), f"{free / 2**30:.1f} GiB of the GPU are free"


def _fit_on_gpu(model: nn.Module, frames: Tensor, options: dict[str, Any]) -> tuple[FitResult, str]:
    """Fit on the GPU, with fewer frames at once where memory runs out after all. Raises torch.OutOfMemoryError."""
    try:
        model, frames = module_on(model, CUDA), frames.to(CUDA)
        chunk = affordable_chunk(tap(model), frames)
        while chunk >= MIN_CHUNK_FRAMES:
            try:
                result = fit(model, frames, chunk=chunk, **options)
            except torch.OutOfMemoryError as error:
                log.warning("%d frames at once are too many for the GPU: %s", chunk, first_line(error))
                chunk //= 2
                torch.cuda.empty_cache()
                continue
            result.homogenizer.cpu()
            return result, f"{CUDA}, {describe_gpu()}, at most {chunk} frames at once"
        raise torch.OutOfMemoryError(f"the GPU's free memory is too small for {MIN_CHUNK_FRAMES} frames at once")
    finally:
        torch.cuda.empty_cache()  # the memory is for the frames
