"""The GPU backends on a simulated GPU, and on a real one if there is one."""

from __future__ import annotations

import sys
import threading

import numpy as np
import pytest
import torch
from torch import nn

from calibrate.homogenizer import Homogenizer
from calibrate.split import SplitHomogenizer
from daemon.demo.networks import ResNet
from deploy.backends.gpu.backend import ENGINE_KEY, unpack_engine
from deploy.backends.gpu.device import GpuLost
from deploy.backends.gpu.tensorrt_library import error_listener, load_tensorrt_rtx
from deploy.backends.protocol import BackendUnavailable, check_parity, choose_backend, load_backend, open_backend
from deploy.model.precision import PRECISIONS, to_precision
from deploy.model.program import ModelError, export_program, load_program, save_program
from deploy.path import InferencePath

SHAPE = (3, 16, 16)
EXAMPLE = torch.zeros(1, *SHAPE)
BACKENDS = ["cuda", "tensorrt"]
COMPILED: dict[tuple, bytes] = {}


def real(backend: str):
    skip = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no NVIDIA GPU")
    return pytest.param((backend, "real"), marks=[pytest.mark.gpu, skip], id=f"{backend}, real")


@pytest.fixture(params=[*((name, "simulated") for name in BACKENDS), *map(real, BACKENDS)], ids="-".join)
def backend(request):
    name, kind = request.param
    if kind == "simulated":
        request.getfixturevalue("gpu")
    try:
        backend = load_backend(name)
    except BackendUnavailable as error:
        if kind == "simulated":
            raise
        pytest.skip(str(error))
    return backend


def network() -> nn.Module:
    torch.manual_seed(0)
    return ResNet(1).eval()


def homogenizer(seed: int) -> Homogenizer:
    torch.manual_seed(seed)
    module = Homogenizer(*SHAPE).eval().requires_grad_(False)
    for parameter in module.parameters():
        parameter.add_(0.05 * torch.randn_like(parameter))
    return module


def opened(backend, module: nn.Module):
    return backend.load(compiled(backend, module), threads=1)


def compiled(backend, module: nn.Module) -> bytes:
    """Once for all tests, as that takes a second."""
    weights = tuple(float(value.double().sum()) for value in module.state_dict().values())
    key = backend.version(), type(module), weights
    if key not in COMPILED:
        COMPILED[key] = backend.compile(module, EXAMPLE)
    return COMPILED[key]


@pytest.mark.parametrize("module", [network(), homogenizer(1)], ids=["network", "homogenizer"])
def test_it_computes_what_the_eager_network_does(backend, module):
    runner = opened(backend, module)
    for seed in range(3):
        assert (
            check_parity(runner, module, torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))) < 1e-5
        )


def test_an_output_is_the_callers_own(backend):
    runner, frames = opened(backend, homogenizer(1)), np.random.default_rng(0).random((2, 1, *SHAPE), np.float32)
    first = runner.run(frames[0])
    kept = first.copy()
    runner.run(frames[1])
    np.testing.assert_array_equal(first, kept)


def test_the_path_serves_both_networks_without_leaving_the_gpu(backend, monkeypatch):
    model, rho = network(), homogenizer(1)
    path = InferencePath(opened(backend, model))
    golden = np.random.default_rng(0).standard_normal((4, *SHAPE), np.float32)
    path.commit(path.prepare("a" * 64, opened(backend, rho), golden, rho))
    with torch.no_grad():
        expected = model(rho(torch.from_numpy(golden)))
    left = []
    monkeypatch.setattr("deploy.backends.gpu.runner.GpuRunner.run", lambda *_: left.append("the GPU"))
    np.testing.assert_allclose(path.infer(golden[:1]).output, expected[:1], rtol=1e-4, atol=1e-5)
    assert not left


def test_threads_take_turns(backend):
    model, rho = network(), homogenizer(1)
    first, second = opened(backend, rho), opened(backend, model)
    frames = torch.randn(8, 1, *SHAPE, generator=torch.Generator().manual_seed(0))
    wrong: list[float] = []

    def serve(frame: torch.Tensor) -> None:
        with torch.no_grad():
            expected = model(rho(frame)).numpy()
        for _ in range(20):
            chained = second.run_after(first, frame.numpy())
            alone = second.run(first.run(frame.numpy()))
            wrong.extend(float(np.abs(found - expected).max()) for found in (chained, alone))

    threads = [threading.Thread(target=serve, args=(frame,)) for frame in frames]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 2 * 20 * len(frames) and max(wrong) < 1e-4


@pytest.mark.parametrize("shape", [(1, 3, 16, 8), (1, 1, 16, 16), (3, 16, 16)])
def test_frames_of_another_shape_are_refused(backend, shape):
    with pytest.raises(RuntimeError, match=r"takes frames of \(1, 3, 16, 16\), not"):
        opened(backend, homogenizer(1)).run(np.zeros(shape, np.float32))


def test_a_closed_runner_refuses_and_may_be_closed_again(backend):
    first, second = opened(backend, homogenizer(1)), opened(backend, network())
    first.close()
    first.close()
    for run in (first.run, lambda batch: second.run_after(first, batch)):
        with pytest.raises(RuntimeError, match="closed"):
            run(EXAMPLE.numpy())
    assert second.run(EXAMPLE.numpy()).shape == (1, 10)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"junk", lambda data: data[: len(data) // 2]])
def test_foreign_or_damaged_bytes_are_refused(backend, damage):
    with pytest.raises(ModelError):
        backend.load(damage(compiled(backend, homogenizer(1))), threads=1)


def test_homogenizers_share_an_engine_and_keep_their_own_weights(backend):
    engines = {unpack_engine(compiled(backend, homogenizer(seed)))[ENGINE_KEY].numpy().tobytes() for seed in (1, 2)}
    assert len(engines) == 1
    one, other = (opened(backend, homogenizer(seed)) for seed in (1, 2))
    frames = torch.randn(2, *SHAPE)
    for seed, runner in ((1, one), (2, other), (1, one)):
        check_parity(runner, homogenizer(seed), frames)


def test_another_homogenizer_takes_over_the_engine(backend):
    other = backend.with_weights_of(homogenizer(2), compiled(backend, homogenizer(1)))
    assert other == compiled(backend, homogenizer(2))
    check_parity(backend.load(other, threads=1), homogenizer(2), torch.randn(2, *SHAPE))


@pytest.mark.parametrize("parts", [{"defects": True}, {"shading": True}, {"defects": True, "shading": True}])
def test_replaced_pixels_and_shading_compute_what_the_eager_network_does(backend, parts):
    module, frames = homogenizer(1).with_parts(**parts), torch.randn(2, *SHAPE)
    with torch.no_grad():
        for name, value in {"defect_step": 0.7, "gain": 1.3, "black": -1.5}.items():
            if getattr(module, name) is not None:
                getattr(module, name).fill_(value)
    assert check_parity(opened(backend, module), module, frames) < 1e-5


def split(seed: int) -> SplitHomogenizer:
    """The second branch takes the frames whose first channel is bright."""
    rule = torch.zeros(13)
    rule[1] = 1.0
    return SplitHomogenizer.of(rule, homogenizer(seed), homogenizer(seed + 1))


def test_split_homogenizers_share_an_engine_and_choose_frame_by_frame(backend):
    frames = torch.randn(4, *SHAPE) + torch.tensor([-1.0, 1.0, 1.0, -1.0]).view(-1, 1, 1, 1)
    assert split(1).takes_second(frames).tolist() == [False, True, True, False]
    check_parity(opened(backend, split(1)), split(1), frames)
    other = backend.with_weights_of(split(3), compiled(backend, split(1)))
    check_parity(backend.load(other, threads=1), split(3), frames)


@pytest.mark.parametrize("precision", sorted(PRECISIONS.keys() - {"float32"}))
def test_in_lower_precision_frames_and_outputs_stay_float32(gpu, precision):
    model = load_program(save_program(export_program(network(), EXAMPLE)))
    runner = opened(load_backend("cuda"), to_precision(model, precision))
    assert runner.run(EXAMPLE.numpy()).dtype == np.float32
    assert 1e-6 < check_parity(runner, model, torch.randn(2, *SHAPE), PRECISIONS[precision].tolerance)


def test_nvidias_tensorrt_has_every_method_of_the_simulated_one(gpu):
    import tensorrt

    real = load_tensorrt_rtx().api
    for stand_in, name in [
        ("Runtime", "Runtime"),
        ("Engine", "ICudaEngine"),
        ("ExecutionContext", "IExecutionContext"),
    ]:
        offered = {method for method in vars(getattr(tensorrt, stand_in)) if not method.startswith("_")}
        assert offered <= set(dir(getattr(real, name)))


def test_a_graph_whose_runner_was_closed_serves_the_next(gpu, monkeypatch):
    """PyTorch keeps the memory of each deleted graph, so each swap would take more of the GPU's memory."""
    captured = []
    begin = gpu.Graph.capture_begin
    monkeypatch.setattr(gpu.Graph, "capture_begin", lambda self, **mode: (captured.append(self), begin(self, **mode)))
    backend, frames = load_backend("cuda"), torch.randn(1, *SHAPE)
    active = opened(backend, homogenizer(0))
    for seed in range(1, 10):
        candidate = opened(backend, homogenizer(seed))
        check_parity(active, homogenizer(seed - 1), frames)
        active.close()
        check_parity(candidate, homogenizer(seed), frames)
        active = candidate
    assert len(captured) == 2


def test_a_chain_that_breaks_off_leaves_nothing_under_way(gpu):
    backend, frames = load_backend("tensorrt"), torch.randn(2, 1, *SHAPE)
    first, second = opened(backend, homogenizer(1)), opened(backend, network())
    second.close()
    with pytest.raises(RuntimeError, match="closed"):
        second.run_after(first, frames[0].numpy())
    check_parity(first, homogenizer(1), frames[1])
    assert not any(stream._work for stream in list(gpu._streams.values()))


def test_an_engine_without_a_context_is_an_error(gpu, monkeypatch):
    backend = load_backend("tensorrt")
    given = compiled(backend, homogenizer(1))
    monkeypatch.setattr("tensorrt.Engine.create_execution_context", lambda _: None)
    with pytest.raises(ModelError, match="TensorRT gives no context"):
        backend.load(given, threads=1)


@pytest.mark.parametrize("step", ["Runtime.deserialize_cuda_engine", "Engine.create_execution_context"])
def test_a_gpu_without_memory_is_no_fault_of_the_engine(gpu, monkeypatch, step):
    backend = load_backend("tensorrt")
    given = compiled(backend, homogenizer(1))
    heard = []
    monkeypatch.setattr(
        "deploy.backends.gpu.tensorrt_engine.error_listener",
        lambda library: heard.append(error_listener(library)) or heard[-1],
    )

    def fail(*_: object) -> None:
        heard[-1].log(heard[-1].ERROR, "Error Code 2: OutOfMemory (Requested size was 734003200 bytes.)")

    monkeypatch.setattr(f"tensorrt.{step}", fail)
    with pytest.raises(OSError, match="TensorRT .*: Error Code 2: OutOfMemory"):
        backend.load(given, threads=1)


def test_bytes_that_are_no_engine_are_an_error(gpu):
    import safetensors.torch

    packed = safetensors.torch.save({"engine": torch.zeros(8, dtype=torch.uint8)})
    with pytest.raises(ModelError, match="TensorRT cannot load the engine: magic tag does not match"):
        load_backend("tensorrt").load(packed, threads=1)


def test_weights_of_another_engine_are_refused(backend):
    import safetensors.torch

    packed = safetensors.torch.load(compiled(backend, homogenizer(1)))
    without = {name: value for name, value in packed.items() if name != "kernel"}
    with pytest.raises(ModelError, match="do not belong together: kernel"):
        backend.load(safetensors.torch.save(without), threads=1)
    packed["kernel"] = packed["kernel"][:1].clone()
    with pytest.raises(ModelError, match="kernel has shape"):
        backend.load(safetensors.torch.save(packed), threads=1)


def test_work_that_the_gpu_does_not_take_is_an_error(gpu, monkeypatch):
    runner = opened(load_backend("tensorrt"), homogenizer(1))
    monkeypatch.setattr("tensorrt.ExecutionContext.execute_async_v3", lambda *_: False)
    with pytest.raises(RuntimeError, match="the GPU did not take"):
        runner.run(EXAMPLE.numpy())


def test_auto_takes_tensorrt_and_without_it_pytorchs_own_kernels(gpu, monkeypatch):
    assert choose_backend() == ("tensorrt", "there is a simulated GPU")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    monkeypatch.setattr("deploy.backends.gpu.tensorrt_library.RTX_CARRIER", "no_such_wheel")
    assert open_backend("auto").name == "cuda"


def test_kernels_that_cannot_be_captured_are_an_error_of_one_line(gpu, monkeypatch):
    backend = load_backend("cuda")
    given = compiled(backend, homogenizer(1))

    def refuse(self, capture_error_mode):
        raise RuntimeError("operation not permitted when stream is capturing\nat line 3")

    monkeypatch.setattr(gpu.Graph, "capture_begin", refuse)
    with pytest.raises(ModelError, match="cannot be captured into a CUDA graph: operation not permitted") as caught:
        backend.load(given, threads=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fault", "raised"),
    [
        (torch.AcceleratorError("CUDA error: unspecified launch failure\nmore"), GpuLost),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"), OSError),
    ],
)
@pytest.mark.parametrize("name", BACKENDS)
def test_a_fault_of_the_gpu_during_loading_does_not_blame_the_network(gpu, monkeypatch, name, fault, raised):
    backend = load_backend(name)
    given = compiled(backend, homogenizer(1))

    def fail(*_: object, **__: object) -> None:
        raise fault

    monkeypatch.setattr(gpu.TORCH, "empty", fail)
    with pytest.raises(raised, match="the GPU (failed: CUDA error|has no memory left: CUDA out)") as caught:
        backend.load(given, threads=1)
    assert "\n" not in str(caught.value)
