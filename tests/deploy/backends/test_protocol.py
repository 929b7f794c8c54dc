"""Every backend computes what the eager network computes, and a closed runner computes nothing."""

from __future__ import annotations

import functools
import logging
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from calibrate.homogenizer import Homogenizer
from deploy.backends import protocol as backends
from deploy.backends.protocol import (
    AUTO,
    BACKENDS,
    GPU_BACKENDS,
    Backend,
    BackendUnavailable,
    ParityError,
    check_parity,
    load_backend,
    open_backend,
)
from deploy.model.program import ModelError, export_program, load_program, save_program

SHAPE = (3, 8, 10)
EXAMPLE = torch.zeros(1, *SHAPE)


@functools.cache
def frozen() -> nn.Module:
    """Φ as it is loaded: the graph of an exported program."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(192, 5))
    module(torch.randn(16, *SHAPE))
    return load_program(save_program(export_program(module.eval(), EXAMPLE)))


def homogenizer() -> nn.Module:
    torch.manual_seed(1)
    module = Homogenizer(*SHAPE, kernel_size=5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


CPU_BACKENDS = [name for name in BACKENDS if name not in GPU_BACKENDS]
NETWORKS = {"frozen": frozen, "homogenizer": homogenizer}


class Compiled:
    def __init__(self, backend: Backend, module: nn.Module) -> None:
        self.backend, self.module = backend, module
        self.bytes = backend.compile(module, EXAMPLE)


@pytest.fixture(scope="module", params=[(b, n) for b in CPU_BACKENDS for n in NETWORKS], ids="-".join)
def compiled(request: pytest.FixtureRequest) -> Compiled:
    backend, network = request.param
    return Compiled(load_backend(backend), NETWORKS[network]())


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Messages of all loggers, warnings and worse. PyTorch's loggers do not pass theirs to the root logger."""
    messages: list[str] = []

    def handle(self: logging.Logger, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            messages.append(record.getMessage())

    monkeypatch.setattr(logging.Logger, "handle", handle)
    return messages


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_it_computes_what_the_eager_network_does_for_any_batch(compiled, batch):
    runner = compiled.backend.load(compiled.bytes, threads=1)
    frames = torch.randn(batch, *SHAPE)
    with torch.no_grad():
        expected = compiled.module(frames).numpy()
    assert runner.run(frames.numpy()) == pytest.approx(expected, rel=1e-5, abs=1e-5)
    assert check_parity(runner, compiled.module, frames) < 1e-5


def test_the_output_is_float32_of_its_own(compiled):
    runner = compiled.backend.load(compiled.bytes, threads=1)
    frame = np.zeros((1, *SHAPE), np.float32)
    output = runner.run(frame)
    before = output.copy()
    frame[:] = 7.0
    runner.run(frame)
    assert output.dtype == np.float32
    assert np.array_equal(output, before)


def test_a_read_only_frame_is_accepted(compiled):
    frame = np.frombuffer(bytes(4 * EXAMPLE.numel()), np.float32).reshape(1, *SHAPE)
    assert np.isfinite(compiled.backend.load(compiled.bytes, threads=1).run(frame)).all()


def test_several_threads_may_run_it_at_once(compiled):
    runner = compiled.backend.load(compiled.bytes, threads=1)
    frames = [np.full((1, *SHAPE), value, np.float32) for value in range(4)]
    expected = [runner.run(frame) for frame in frames]
    wrong: list[int] = []

    def repeat(index: int) -> None:
        if not all(np.array_equal(runner.run(frames[index]), expected[index]) for _ in range(50)):
            wrong.append(index)

    threads = [threading.Thread(target=repeat, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_closed_runner_does_not_run(compiled):
    runner = compiled.backend.load(compiled.bytes, threads=1)
    runner.close()
    runner.close()
    with pytest.raises(RuntimeError, match="closed"):
        runner.run(np.zeros((1, *SHAPE), np.float32))


@pytest.mark.parametrize("frame", [np.zeros((1, 3, 8, 9), np.float32), np.zeros((3, 8, 10), np.float32)])
def test_a_frame_of_another_shape_is_a_runtime_error(compiled, frame):
    with pytest.raises(RuntimeError, match="failed: ") as caught:
        compiled.backend.load(compiled.bytes, threads=1).run(frame)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"junk", lambda data: data[: len(data) // 2]])
def test_foreign_or_damaged_bytes_are_refused(compiled, damage):
    with pytest.raises(ModelError) as caught:
        compiled.backend.load(damage(compiled.bytes), threads=1)
    assert "\n" not in str(caught.value)


def test_compiling_is_quiet_repeats_and_names_no_path_of_this_machine(compiled, capfd, logged):
    again = compiled.backend.compile(compiled.module, EXAMPLE)
    assert again == compiled.bytes
    assert str(Path(torch.__file__).parent).encode() not in again
    assert capfd.readouterr() == ("", "")
    assert not logged


def test_compiling_leaves_the_network_as_it_was(compiled):
    images = torch.randn(2, *SHAPE)
    training = [part.training for part in compiled.module.modules()]
    state = {name: tensor.clone() for name, tensor in compiled.module.state_dict().items()}
    compiled.backend.compile(compiled.module, images)
    assert [part.training for part in compiled.module.modules()] == training
    assert all(torch.equal(tensor, state[name]) for name, tensor in compiled.module.state_dict().items())


class FixedBatch(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(2, -1)


class NotInOnnx(nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.linalg.eigvalsh(images[..., :8] + images[..., :8].transpose(-1, -2))


@pytest.mark.parametrize("name", CPU_BACKENDS)
def test_a_network_for_one_batch_size_cannot_be_compiled(name):
    with pytest.raises(ModelError, match="any batch size"):
        load_backend(name).compile(FixedBatch(), EXAMPLE)


def test_an_operator_that_onnx_lacks_is_an_error_of_one_line(capfd):
    with pytest.raises(ModelError, match="cannot be expressed in ONNX: .*node %") as caught:
        load_backend("onnx").compile(NotInOnnx(), EXAMPLE)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_version_names_the_library_that_decides_the_result():
    assert torch.__version__ in load_backend("eager").version()
    assert onnxruntime.__version__ in load_backend("onnx").version()


def test_onnx_runtime_uses_the_cores_it_is_given_and_does_not_spin():
    backend = load_backend("onnx")
    runner = backend.load(backend.compile(homogenizer(), EXAMPLE), threads=2)
    options = runner._session.get_session_options()
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (2, 1)
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert runner._session.get_providers() == ["CPUExecutionProvider"]


def test_eager_uses_the_cores_it_is_given_and_a_homogenizer_takes_none_away(monkeypatch):
    """A restored homogenizer is loaded with one, after the model, in the same thread."""
    monkeypatch.setattr("deploy.backends.eager.EagerBackend._threads", 1)
    backend = load_backend("eager")
    compiled, before = backend.compile(homogenizer(), EXAMPLE), torch.get_num_threads()
    try:
        for threads in (before + 1, 1):
            backend.load(compiled, threads)
            assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_an_unknown_backend_is_answered_with_those_known():
    with pytest.raises(BackendUnavailable, match="'vulkan' is not known: choose one of cuda, eager, onnx"):
        load_backend("vulkan")


def test_an_absent_library_is_answered_with_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "lacking_backend.py").write_text("import no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(BACKENDS, "lacking", "lacking_backend:Backend")
    with pytest.raises(BackendUnavailable, match="'lacking' needs no_such_library.*: pip install no_such_library"):
        load_backend("lacking")


class OnGpu:
    """A GPU backend that this machine can run, or a reason why it cannot."""

    def __init__(self, name: str, refusal: str | None) -> None:
        self.name, self._refusal = name, refusal

    def check_device(self) -> None:
        if self._refusal is not None:
            raise BackendUnavailable(self._refusal)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch):
    """Pretend that there is a GPU, with these backends, each with a reason why it cannot run or None."""

    def pretend(**refusals: str | None) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Orin")
        monkeypatch.setattr(backends, "GPU_BACKENDS", tuple(refusals))
        monkeypatch.setattr(backends, "load_backend", lambda name: OnGpu(name, refusals.get(name)))

    return pretend


def test_auto_takes_the_first_that_suits_the_gpu_and_says_so(gpu, caplog):
    gpu(first="no engine for it", second=None, third=None)
    with caplog.at_level("INFO"):
        assert open_backend(AUTO).name == "second"
    assert caplog.messages == ["backend auto: second, because there is Orin"]


def test_auto_says_why_it_does_without_the_gpu(gpu, caplog):
    gpu(first="no library", second="too old")
    with caplog.at_level("INFO"):
        assert open_backend(AUTO).name == "onnx"
    assert caplog.messages == ["backend auto: onnx, because no library; too old"]


def test_auto_needs_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert open_backend(AUTO).name == "onnx"


def test_a_backend_that_was_asked_for_is_never_replaced(gpu):
    gpu(first="no library")
    with pytest.raises(BackendUnavailable, match="no library"):
        open_backend("first")


class Answer:
    """A runner that answers with what the test wants."""

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def run(self, batch: np.ndarray) -> np.ndarray:
        return np.asarray(self.answer(batch), np.float32)

    def close(self) -> None: ...


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda batch: batch + 2e-4, "differ by 2.0e-04, tolerance 1.0e-04"),
        (lambda batch: batch[:, :2], "compiled output has shape"),
        (lambda batch: batch * np.float32("nan"), "the compiled output has values that are not finite"),
    ],
)
def test_parity_is_refused(answer, reason):
    with pytest.raises(ParityError, match=reason):
        check_parity(Answer(answer), nn.Identity(), EXAMPLE)


def test_parity_is_refused_where_the_eager_network_is_not_finite():
    with pytest.raises(ParityError, match="the eager output has values that are not finite"):
        check_parity(Answer(np.zeros_like), nn.Identity(), EXAMPLE + torch.inf)


def test_parity_runs_one_frame_at_a_time_each_after_a_wait():
    seen = []

    def answer(batch: np.ndarray) -> np.ndarray:
        seen.append(len(batch))
        return batch

    check_parity(Answer(answer), nn.Identity(), torch.ones(3, *SHAPE), before_each=lambda: seen.append("wait"))
    assert seen == ["wait", 1] * 3


def test_parity_gives_the_error_relative_to_the_largest_output():
    golden = torch.full((1, *SHAPE), 200.0)
    assert check_parity(Answer(lambda batch: batch + 0.01), nn.Identity(), golden) == pytest.approx(5e-5, rel=0.01)
