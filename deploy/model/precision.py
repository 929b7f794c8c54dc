"""Φ in fewer bits: what may be chosen for speed, and how far from float32 it may come out."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deploy.model.program import without_pytree_warning

# Float32 summed in another order differs by about 1e-6; TF32, or a wrong weight, by 1e-3 and more.
PARITY_TOLERANCE = 1e-4

FLOAT32 = "float32"
aten = torch.ops.aten


class Precision(NamedTuple):
    """`tolerance`: of compiled against eager float32 outputs, as in `check_parity`."""

    dtype: torch.dtype
    tolerance: float


# Outputs of ResNet-20 to -56 differ by up to 0.0014 in float16 and 0.019 in bfloat16 (bench precision).
# Five times that leaves room for other networks; a wrong layer makes a difference of about 1.
PRECISIONS = {
    FLOAT32: Precision(torch.float32, PARITY_TOLERANCE),
    "float16": Precision(torch.float16, 1e-2),
    "bfloat16": Precision(torch.bfloat16, 1e-1),
}


def to_precision(module: nn.Module, name: str) -> nn.Module:
    """The traced network as it computes in this precision, from and to float32; `module` stays as it is."""
    return module if name == FLOAT32 else _Lower(module, PRECISIONS[name].dtype)


class _Lower(nn.Module):
    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        with without_pytree_warning():
            network = copy.deepcopy(module)
        assert isinstance(network, GraphModule)  # as Φ is loaded
        _fold_batchnorms(network)
        self.network = network.to(dtype)
        self._dtype = dtype

    def forward(self, frames: Tensor) -> Tensor:
        output: Tensor = self.network(frames.to(self._dtype))
        return output.float()


def _fold_batchnorms(network: GraphModule) -> None:
    """Make each BatchNorm behind a convolution part of its weights, while they still have all their bits.

    A small variance has no inverse left in float16.
    """
    for node in network.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        convolution: Any = node.args[0]
        alone = len(convolution.users) == 1  # else it would be computed twice
        if convolution.target is aten.conv2d.default and alone and _constants(convolution, node):
            _fold(network, convolution, node)
    network.graph.eliminate_dead_code()
    network.recompile()
    _drop_unused(network)


def _drop_unused(network: GraphModule) -> None:
    """What was folded into others would be stored and loaded as well."""
    used = {node.target for node in network.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in (*network.named_parameters(), *network.named_buffers()) if name not in used]:
        delattr(*_place(network, name))


def _constants(convolution: Any, norm: Any) -> bool:
    """Whether all weights of the two are the network's own, and not computed."""
    weights = (*convolution.args[1:3], *norm.args[1:5])
    return all(given is None or given.op == "get_attr" for given in weights)


def _fold(network: GraphModule, convolution: Any, norm: Any) -> None:
    frames, weight, bias = (*convolution.args, None)[:3]
    _, scale, shift, mean, variance, _, _, epsilon, _ = norm.args
    weight, bias, scale, shift, mean, variance = (
        _tensor(network, given) for given in (weight, bias, scale, shift, mean, variance)
    )
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, scale, shift)
    with network.graph.inserting_before(norm):
        constants = [_constant(network, f"_{norm.name}_{i}", value.detach()) for i, value in enumerate(folded)]
        fused = network.graph.call_function(aten.conv2d.default, (frames, *constants, *convolution.args[3:]))
    norm.replace_all_uses_with(fused)


def _tensor(network: GraphModule, node: Any) -> Any:
    """What the node reads from the network, None where it is None."""
    return None if node is None else getattr(*_place(network, node.target))


def _place(network: GraphModule, name: str) -> tuple[nn.Module, str]:
    """The part of the network that has the attribute, and how it is called there."""
    path, _, leaf = name.rpartition(".")
    return network.get_submodule(path), leaf


def _constant(network: GraphModule, name: str, value: Tensor) -> Node:
    network.register_buffer(name, value)
    return network.graph.get_attr(name)
