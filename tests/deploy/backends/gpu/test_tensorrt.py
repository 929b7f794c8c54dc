"""NVIDIA's own parser and builder take ρ and Φ, without a GPU; running what they build needs one."""

from __future__ import annotations

import functools
import importlib.util
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from calibrate.homogenizer import Homogenizer
from daemon.demo.networks import ResNet
from deploy.backends.gpu import tensorrt_library
from deploy.backends.gpu.backend import ENGINE_KEY, unpack_engine
from deploy.backends.gpu.tensorrt import build_engine, parse_network
from deploy.backends.gpu.tensorrt_library import error_listener, load_tensorrt_rtx
from deploy.backends.protocol import BackendUnavailable, check_parity, load_backend
from deploy.model.precision import to_precision
from deploy.model.program import ModelError, export_program, load_program, save_program

SHAPE = (3, 32, 32)
EXAMPLE = torch.zeros(1, *SHAPE)
HAS_GPU = torch.cuda.is_available()

if importlib.util.find_spec("tensorrt_rtx_bindings") is None:
    pytest.skip("TensorRT-RTX is not installed: pip install 'recald[tensorrt-rtx]'", allow_module_level=True)


class Depthwise(nn.Module):
    """As in MobileNet: a pointwise, a depthwise and a pointwise convolution, and around them a shortcut."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.change = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return frames + self.change(frames)


def mobile() -> nn.Module:
    blocks = [nn.Conv2d(3, 8, 3, stride=2, padding=1), Depthwise(8, 32), nn.Hardswish(), Depthwise(8, 32)]
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


class UNet(nn.Module):
    """One step down and one up, for segmentation."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.deep = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.out = nn.Conv2d(16, 5, 1)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        wide = self.down(frames)
        raised = F.interpolate(self.up(self.deep(wide)), size=frames.shape[2:], mode="bilinear")
        return self.out(torch.cat([wide, raised], 1))


NETWORKS = {"resnet": lambda: ResNet(1), "mobile": mobile, "u-net": UNet}
OUTPUTS = {"resnet": (1, 10), "mobile": (1, 10), "u-net": (1, 5, 32, 32), "homogenizer": SHAPE}


@functools.cache
def frozen(name: str) -> nn.Module:
    """Φ as it is loaded: the graph of an exported program."""
    torch.manual_seed(0)
    return load_program(save_program(export_program(NETWORKS[name]().eval(), EXAMPLE)))


def homogenizer(seed: int, **parts: bool) -> Homogenizer:
    torch.manual_seed(seed)
    module = Homogenizer(*SHAPE, **parts)
    with torch.no_grad():
        if module.defect_step is not None:
            module.defect_step.fill_(0.7)
        for parameter in module.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return module


@pytest.fixture(scope="module")
def backend():
    return load_backend("tensorrt-rtx")


@pytest.fixture(scope="module")
def library():
    return load_tensorrt_rtx()


@pytest.fixture(scope="module")
def build(backend):
    """Compile a network in a precision, once: what was packed, and the ONNX model that NVIDIA's builder was given."""

    @functools.cache
    def build(name: str, precision: str = "float32") -> tuple[dict[str, torch.Tensor], bytes]:
        with patch("deploy.backends.gpu.tensorrt.build_engine", wraps=build_engine) as builder:
            packed = unpack_engine(backend.compile(to_precision(frozen(name), precision), EXAMPLE))
        return packed, builder.call_args.args[1]

    return build


@pytest.fixture(scope="module")
def of_homogenizer(backend) -> bytes:
    """What `homogenizer(1)` is compiled to."""
    return backend.compile(homogenizer(1), EXAMPLE)


def definition(library, model: bytes):
    """NVIDIA's definition of the network in an ONNX model, with what must live as long."""
    heard = error_listener(library)
    builder = library.api.Builder(heard)
    return parse_network(library, builder, model), builder, heard


@pytest.mark.parametrize("name", NETWORKS)
def test_a_frozen_network_becomes_an_engine(build, name):
    packed, _ = build(name)
    assert set(packed) == {ENGINE_KEY} and packed[ENGINE_KEY].numel() > 10_000


@pytest.mark.parametrize("name", NETWORKS)
def test_inputs_outputs_and_precision_are_those_of_the_network(build, library, name):
    network, *_ = definition(library, build(name)[1])
    assert [tuple(network.get_input(i).shape) for i in range(network.num_inputs)] == [(1, *SHAPE)]
    assert [tuple(network.get_output(i).shape) for i in range(network.num_outputs)] == [OUTPUTS[name]]
    outputs = [network.get_layer(i).get_output(0).dtype for i in range(network.num_layers)]
    whole_numbers = {library.api.DataType.INT32, library.api.DataType.INT64, library.api.DataType.BOOL}
    assert set(outputs) - whole_numbers == {library.api.DataType.FLOAT}


@pytest.mark.parametrize(
    ("name", "precision", "kind"), [*((name, "float16", "HALF") for name in NETWORKS), ("resnet", "bfloat16", "BF16")]
)
def test_in_lower_precision_every_convolution_has_it(build, library, name, precision, kind):
    packed, model = build(name, precision)
    assert packed[ENGINE_KEY].numel() > 10_000
    network, *_ = definition(library, model)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    convolutions = {layer.get_output(0).dtype.name for layer in layers if layer.type.name == "CONVOLUTION"}
    assert convolutions == {kind}
    assert network.get_input(0).dtype.name == network.get_output(0).dtype.name == "FLOAT"


@pytest.mark.parametrize(("name", "said"), [("mobile", "read it: operator HardSwish"), ("u-net", "build it: .*deconv")])
def test_an_operator_without_this_precision_is_an_error_of_one_line(backend, name, said, capfd):
    with pytest.raises(ModelError, match=f"TensorRT-RTX cannot {said}") as caught:
        backend.compile(to_precision(frozen(name), "bfloat16"), EXAMPLE)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


def test_all_homogenizers_of_a_kind_are_one_engine_with_other_weights(backend, of_homogenizer):
    one, other = unpack_engine(of_homogenizer), unpack_engine(backend.compile(homogenizer(2), EXAMPLE))
    assert torch.equal(one.pop(ENGINE_KEY), other.pop(ENGINE_KEY))
    assert set(one) == {"curve", "offset", "kernel", "bias"}
    for name, value in homogenizer(1).named_parameters():
        assert torch.equal(one[name], value.detach()) and not torch.equal(one[name], other[name])


@pytest.mark.parametrize("parts", [{}, {"defects": True}, {"shading": True}, {"defects": True, "shading": True}])
def test_the_homogenizers_engine_is_built_from_what_computes_the_same(backend, monkeypatch, parts):
    """The engine cannot run here; the ONNX model that it is built of can."""
    import onnxruntime

    models: list[bytes] = []
    monkeypatch.setattr("deploy.backends.gpu.tensorrt.build_engine", lambda _, model: models.append(model) or b"engine")
    module = homogenizer(1, **parts)
    packed = unpack_engine(backend.compile(module, EXAMPLE))
    session = onnxruntime.InferenceSession(models[0], providers=["CPUExecutionProvider"])
    assert {tensor.name for tensor in session.get_inputs()} == {"frames", *packed} - {ENGINE_KEY}
    frames = torch.randn(1, *SHAPE)
    given = {name: value.numpy() for name, value in packed.items() if name != ENGINE_KEY}
    (found,) = session.run(None, {"frames": frames.numpy()} | given)
    np.testing.assert_allclose(found, module(frames).detach().numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("parts", [{"defects": True}, {"shading": True}])
def test_an_engine_takes_the_weights_of_each_part(backend, of_homogenizer, parts):
    packed = unpack_engine(backend.compile(homogenizer(1, **parts), EXAMPLE))
    assert set(packed) == {ENGINE_KEY, *homogenizer(1, **parts).state_dict()}
    assert not torch.equal(packed[ENGINE_KEY], unpack_engine(of_homogenizer)[ENGINE_KEY])


def test_the_same_network_gives_the_same_bytes_and_nothing_is_printed(backend, capfd):
    network = frozen("mobile")
    assert backend.compile(network, EXAMPLE) == backend.compile(network, EXAMPLE)
    assert capfd.readouterr() == ("", "")


class Drawing(nn.Module):
    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        return torch.bernoulli(frames.sigmoid())


def test_an_operator_that_it_does_not_know_is_named(backend, capfd):
    with pytest.raises(
        ModelError, match=r"TensorRT-RTX cannot read it: operator Bernoulli \(.+\), UNSUPPORTED_NODE"
    ) as e:
        backend.compile(Drawing(), EXAMPLE)
    assert "\n" not in str(e.value) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("model", [b"", b"junk"])
def test_what_is_no_onnx_model_is_refused(library, model, capfd):
    with pytest.raises(ModelError, match="TensorRT-RTX cannot (read|build) it: ") as caught:
        build_engine(library, model)
    assert "\n" not in str(caught.value) and capfd.readouterr() == ("", "")


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: b"junk", lambda data: data[: len(data) // 2]])
def test_foreign_or_damaged_bytes_are_refused(of_homogenizer, damage):
    with pytest.raises(ModelError, match="not an engine that recald has built"):
        unpack_engine(damage(of_homogenizer))


def test_the_version_names_the_library(backend, library):
    assert f"TensorRT-RTX {library.version}" in backend.version()


@pytest.mark.skipif(HAS_GPU, reason="there is an NVIDIA GPU")
@pytest.mark.parametrize("name", ["tensorrt-rtx"])
def test_without_a_gpu_it_says_so_before_anything_is_built(of_homogenizer, name):
    backend = load_backend(name)
    with pytest.raises(BackendUnavailable, match=f"backend '{name}' needs an NVIDIA GPU"):
        backend.check_device()
    with pytest.raises(BackendUnavailable, match=f"backend '{name}' needs an NVIDIA GPU"):
        backend.load(of_homogenizer, threads=1)


@pytest.mark.parametrize(("name", "module"), [("tensorrt", "tensorrt"), ("tensorrt-rtx", "tensorrt_rtx")])
def test_a_library_whose_import_fails_is_an_error_of_one_line(tmp_path, monkeypatch, name, module):
    """What NVIDIA's packages raise without a driver is no ImportError."""
    (tmp_path / f"{module}.py").write_text("raise Exception('Could not find libnvinfer.so')\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(importlib.sys.modules, module, raising=False)
    with pytest.raises(BackendUnavailable, match=rf"'{name}' needs NVIDIA's .*\(Could not find libnvinfer.so\): ") as e:
        load_backend(name)
    assert "\n" not in str(e.value)


def test_bindings_without_their_library_say_what_to_install(monkeypatch):
    monkeypatch.setattr(tensorrt_library, "RTX_CARRIER", "no_such_wheel")
    with pytest.raises(BackendUnavailable, match=r"no_such_wheel.*pip install 'recald\[tensorrt-rtx\]'"):
        load_tensorrt_rtx()


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="there is no NVIDIA GPU")
@pytest.mark.parametrize("backend_name", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("name", [*NETWORKS, "homogenizer"])
def test_an_engine_computes_what_the_eager_network_does(backend_name, name):
    try:
        backend = load_backend(backend_name)
    except BackendUnavailable as error:
        pytest.skip(str(error))
    module = homogenizer(1) if name == "homogenizer" else frozen(name)
    runner = backend.load(backend.compile(module, EXAMPLE), threads=1)
    assert check_parity(runner, module, torch.randn(3, *SHAPE)) < 1e-4
