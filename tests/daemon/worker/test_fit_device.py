"""A fit runs on the device that the configuration asks for, and says so; without memory it goes on in smaller steps."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from torch import nn

from daemon.worker import fit_device
from daemon.worker.fit_device import MIN_CHUNK_FRAMES, MIN_FREE_BYTES, check_fit_device, fit_on_device
from deploy.backends.protocol import BackendUnavailable

FRAMES = torch.zeros(64, 3, 8, 8)


class Gpu:
    """A GPU on which a fit needs room for `largest` frames at once; it can also break."""

    def __init__(self, monkeypatch, free: int = MIN_FREE_BYTES, chunk: int = 64, largest: int = 64) -> None:
        self.fits: list[tuple[str, int | None]] = []
        self.error: Exception | None = None
        self._largest = largest
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (free, 8 * free))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(fit_device, "CUDA", "cpu:0")  # what is moved there stays on the processor
        monkeypatch.setattr(fit_device, "describe_gpu", lambda: "a GPU")
        monkeypatch.setattr(fit_device, "tap", lambda model: None)
        monkeypatch.setattr(fit_device, "affordable_chunk", lambda taps, frames: chunk)
        monkeypatch.setattr(fit_device, "fit", self._fit)

    def _fit(self, model: nn.Module, frames: torch.Tensor, chunk: int | None = None, **options: object) -> object:
        self.fits.append(("processor" if chunk is None else "GPU", chunk))
        if chunk is not None and self.error:
            raise self.error
        if chunk is not None and chunk > self._largest:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return SimpleNamespace(homogenizer=nn.Identity(), options=options)


def fitted(asked: str, backend: str = "cuda") -> str:
    result, device = fit_on_device(asked, backend, nn.Identity(), FRAMES, seed=3)
    assert result.options == {"seed": 3}
    return device


def test_auto_takes_the_gpu_that_the_backend_uses(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    gpu = Gpu(monkeypatch, free=0)
    assert fitted("auto") == "cpu:0, a GPU, at most 64 frames at once" and gpu.fits == [("GPU", 64)]
    assert "the backend cuda uses it too" in caplog.text


@pytest.mark.parametrize(("free", "where"), [(MIN_FREE_BYTES, "GPU"), (MIN_FREE_BYTES - 1, "processor")])
def test_auto_takes_a_gpu_that_nobody_uses_only_if_it_has_room(monkeypatch, free, where):
    gpu = Gpu(monkeypatch, free)
    assert ("2.0 GiB of the GPU are free" in fitted("auto", "onnx")) is (where == "processor")
    assert [place for place, _ in gpu.fits] == [where]


def test_without_a_gpu_auto_takes_the_processor_and_says_why(monkeypatch):
    gpu = Gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert fitted("auto").startswith("cpu, there is no NVIDIA GPU") and gpu.fits == [("processor", None)]


def test_the_processor_is_taken_where_it_is_asked_for(monkeypatch):
    gpu = Gpu(monkeypatch)
    assert fitted("cpu") == "cpu, the configuration says so" and gpu.fits == [("processor", None)]


@pytest.mark.parametrize("asked", ["auto", "cuda"])
def test_a_fit_that_runs_out_of_memory_goes_on_with_fewer_frames_at_once(monkeypatch, caplog, asked):
    monkeypatch.setattr(fit_device, "CPU", "cpu")
    gpu = Gpu(monkeypatch, largest=17)
    device = fitted("cpu:0" if asked == "cuda" else asked)
    assert gpu.fits == [("GPU", 64), ("GPU", 32), ("GPU", 16)] and device.endswith("at most 16 frames at once")
    assert "32 frames at once are too many for the GPU: CUDA out of memory" in caplog.text


@pytest.mark.parametrize("chunk", [0, MIN_CHUNK_FRAMES - 1, 64])
def test_without_any_memory_auto_ends_on_the_processor_and_cuda_fails(monkeypatch, caplog, chunk):
    gpu = Gpu(monkeypatch, chunk=chunk, largest=0)
    assert "cpu, the GPU could not: the GPU's free memory is too small" in fitted("auto")
    assert gpu.fits[-1] == ("processor", None) and "fitting on cpu" in caplog.text
    before = len(gpu.fits)
    with pytest.raises(torch.OutOfMemoryError, match="too small for 4 frames at once"):
        fitted("cpu:0")  # as CUDA is called here
    assert ("processor", None) not in gpu.fits[before:]


@pytest.mark.parametrize(
    "error",
    [
        torch.AcceleratorError("CUDA error: unspecified launch failure\nmore"),
        RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED\nmore"),
        RuntimeError("Expected all tensors to be on the same device"),
        torch.linalg.LinAlgError("cusolver error: CUSOLVER_STATUS_INTERNAL_ERROR"),
    ],
)
def test_a_gpu_that_breaks_leaves_the_fit_to_the_processor(monkeypatch, caplog, error):
    gpu = Gpu(monkeypatch)
    gpu.error = error
    said = "the GPU could not: " + str(error).splitlines()[0]
    assert fitted("auto") == f"cpu, {said}" and f"fitting on cpu: {said}" in caplog.text
    assert gpu.fits == [("GPU", 64), ("processor", None)]
    with pytest.raises(type(error)):
        fitted("cpu:0")  # as CUDA is called here
    assert gpu.fits[2:] == [("GPU", 64)]


def test_a_gpu_that_does_not_tell_its_memory_is_not_taken(monkeypatch):
    gpu = Gpu(monkeypatch)
    monkeypatch.setattr(torch.cuda, "mem_get_info", Mock(side_effect=RuntimeError("CUDA error: device is busy")))
    assert fitted("auto", "onnx") == "cpu, the GPU could not: CUDA error: device is busy"
    assert gpu.fits == [("processor", None)]


def test_a_fault_of_the_fit_is_no_fault_of_the_gpu(monkeypatch):
    gpu = Gpu(monkeypatch)
    gpu.error = ValueError("frames")
    with pytest.raises(ValueError, match="frames"):
        fitted("auto")
    assert gpu.fits == [("GPU", 64)]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an NVIDIA GPU")
def test_cuda_without_a_gpu_is_an_error_of_one_line():
    with pytest.raises(BackendUnavailable, match=r"fit\.device: cuda needs an NVIDIA GPU: ") as raised:
        check_fit_device("cuda")
    assert "\n" not in str(raised.value)
    check_fit_device("auto")
    check_fit_device("cpu")
