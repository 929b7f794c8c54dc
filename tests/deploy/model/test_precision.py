"""Φ in float16 and bfloat16: close to float32, and BatchNorm is folded before its statistics lose their bits."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn

from daemon.demo.networks import ResNet
from deploy.backends.protocol import ParityError, check_parity, load_backend
from deploy.model.precision import PRECISIONS, to_precision
from deploy.model.program import ModelError, export_program, load_program, relative_error, run_once, save_program

SHAPE = (3, 16, 16)
LOWER = sorted(PRECISIONS.keys() - {"float32"})


def traced(network: nn.Module) -> nn.Module:
    """As Φ is loaded."""
    return load_program(save_program(export_program(network.eval(), torch.zeros(2, *SHAPE))))


def trained(network: nn.Module) -> nn.Module:
    """With the statistics of some frames in every BatchNorm."""
    torch.manual_seed(0)
    with torch.no_grad():
        for _ in range(5):
            network.train()(frames(16))
    return network.eval()


def frames(count: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE)


class ManyForms(nn.Module):
    """BatchNorm behind convolutions with and without bias and weights, in front of one, behind one used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.biased = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, groups=4), nn.BatchNorm2d(8, affine=False), nn.ReLU())
        self.before = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1))
        self.shared, self.norm = nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8, eps=1e-3)
        self.last = nn.Linear(8, 4)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        deep = self.before(self.biased(self.plain(batch)))
        used_twice = self.shared(deep)
        return self.last((self.norm(used_twice) + used_twice).mean((2, 3)))


NETWORKS = {"resnet": lambda: ResNet(2), "many forms": ManyForms}


@functools.cache
def frozen(name: str) -> nn.Module:
    torch.manual_seed(0)
    return traced(trained(NETWORKS[name]()))


@pytest.mark.parametrize("name", LOWER)
@pytest.mark.parametrize("network", NETWORKS)
def test_it_computes_nearly_the_same_and_leaves_the_network_as_it_is(network, name):
    whole, batch = frozen(network), frames(8)
    expected = run_once(whole, batch)
    lower = to_precision(whole, name)
    output = run_once(lower, batch)
    assert output.dtype == torch.float32
    assert 1e-6 < relative_error(output, expected) < PRECISIONS[name].tolerance
    assert torch.equal(run_once(whole, batch), expected)


@pytest.mark.parametrize("name", LOWER)
def test_every_weight_has_the_precision(name):
    lower = to_precision(frozen("many forms"), name)
    kinds = {tensor.dtype for tensor in [*lower.parameters(), *lower.buffers()] if tensor.is_floating_point()}
    assert kinds == {PRECISIONS[name].dtype}


@pytest.mark.parametrize("name", LOWER)
def test_weights_that_were_folded_are_removed(name):
    whole = frozen("resnet")
    statistics = sum(tensor.numel() for key, tensor in whole.state_dict().items() if "running" in key)
    lower = to_precision(whole, name)
    kept = sum(tensor.numel() for tensor in [*lower.parameters(), *lower.buffers()])
    # of each BatchNorm with its scale, shift and two statistics one bias is left
    assert kept <= sum(tensor.numel() for tensor in whole.state_dict().values()) - statistics


def test_float32_is_the_network_itself():
    whole = traced(ResNet(1))
    assert to_precision(whole, "float32") is whole


@pytest.mark.parametrize("name", LOWER)
def test_a_variance_too_small_for_the_precision_is_folded_in_float32(name):
    """The smallest float16 number is 6e-8. A channel that hardly varied in training has a smaller variance."""
    network = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-12))
    with torch.no_grad():
        network[0].weight *= 1e-5
        network[1].running_var.fill_(1e-9)
    whole, batch = traced(network), frames(4)
    assert relative_error(run_once(to_precision(whole, name), batch), run_once(whole, batch)) < 1e-2


@pytest.mark.parametrize("backend", ["eager", "onnx"])
def test_backends_compile_it_and_parity_finds_another_network(backend):
    whole = frozen("resnet")
    opened = load_backend(backend)
    runner = opened.load(opened.compile(to_precision(whole, "float16"), frames(1)), threads=1)
    golden = frames(2)
    assert check_parity(runner, whole, golden, PRECISIONS["float16"].tolerance) > 1e-6
    with pytest.raises(ParityError, match="differ by"):
        check_parity(runner, whole, golden, 1e-6)
    torch.manual_seed(1)
    with pytest.raises(ParityError, match="differ by"):
        check_parity(runner, traced(trained(ResNet(2)).apply(redrawn)), golden, PRECISIONS["bfloat16"].tolerance)


def redrawn(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight)


def test_a_backend_without_this_precision_says_so():
    opened = load_backend("onnx")
    compiled = opened.compile(to_precision(traced(ResNet(1)), "bfloat16"), frames(1))
    with pytest.raises(ModelError, match="ONNX Runtime cannot load"):
        opened.load(compiled, threads=1)


class Strict(nn.Module):
    """Asks for float32 in the middle, as some exported networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(batch).to(torch.float32))


def test_a_network_that_insists_on_float32_is_refused():
    lower = to_precision(traced(Strict()), "float16")
    with pytest.raises(ModelError, match="cannot trace it|does not run"):
        load_backend("onnx").compile(lower, frames(1))
