"""Convert Φ to fewer bits for speed, and say how far its output may then be from float32."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.utils.fusion import fuse_conv_bn_weights

from deploy.model.program import without_pytree_warning

FLOAT32 = "float32"
# Largest relative error of a compiled float32 network. Float32 numbers that are summed in another order differ by about
# 1e-6; TF32, or a wrong weight, makes a difference of 1e-3 and more.
PARITY_TOLERANCE = 1e-4

aten = torch.ops.aten


class Precision(NamedTuple):
    """A precision that Φ may compute in.

    tolerance: largest relative error of the compiled output against eager float32 (see `check_parity`).
    """

    dtype: torch.dtype
    tolerance: float


# The outputs of ResNet-20 to -56 differ by up to 0.0014 in float16 and 0.019 in bfloat16 (bench precision). Five times
# that leaves room for other networks; a wrong layer makes a difference of about 1.
PRECISIONS = {
    FLOAT32: Precision(torch.float32, PARITY_TOLERANCE),
    "float16": Precision(torch.float16, 1e-2),
    "bfloat16": Precision(torch.bfloat16, 1e-1),
}


def to_precision(module: nn.Module, name: str) -> nn.Module:
    """Convert a traced network to one that computes in the precision `name`; its input and output stay float32.

    `module` is not changed. Raises KeyError for a name that is not in PRECISIONS.
    """
    return module if name == FLOAT32 else _Lower(module, PRECISIONS[name].dtype)


class _Lower(nn.Module):
    """The network in a lower precision. Compiled bytes record the name of this class, so it stays."""

    def __init__(self, module: nn.Module, dtype: torch.dtype):
        super().__init__()
        with without_pytree_warning():
            network = copy.deepcopy(module)
        assert isinstance(network, GraphModule)  # this is how Φ is loaded
        _fold_batchnorms(network)
        self.network = network.to(dtype)
        self._dtype = dtype

    def forward(self, frames: Tensor) -> Tensor:
        output: Tensor = self.network(frames.to(self._dtype))
        return output.float()


def _fold_batchnorms(network: GraphModule) -> None:
    """Fold each BatchNorm into the weights of the convolution before it, while all numbers are still float32.

    A small variance is 0 in float16, so that it has no inverse there.
    """
    for norm in network.graph.find_nodes(op="call_function", target=aten.batch_norm.default):
        convolution: Any = norm.args[0]
        used_once = len(convolution.users) == 1  # else the network would compute the convolution twice
        if convolution.target is aten.conv2d.default and used_once and _weights_are_stored(convolution, norm):
            _fold(network, convolution, norm)
    network.graph.eliminate_dead_code()
    network.recompile()
    _remove_unused_tensors(network)


def _weights_are_stored(convolution: Any, norm: Any) -> bool:
    """Check that the network stores all weights of both layers, and computes none of them."""
    weights = (*convolution.args[1:3], *norm.args[1:5])
    return all(node is None or node.op == "get_attr" for node in weights)


def _fold(network: GraphModule, convolution: Any, norm: Any) -> None:
    frames, weight, bias = (*convolution.args, None)[:3]
    _, scale, shift, mean, variance, _, _, epsilon, _ = norm.args
    nodes = (weight, bias, mean, variance, scale, shift)
    tensors: list[Any] = [None if node is None else getattr(*_owner(network, node.target)) for node in nodes]
    weight, bias, mean, variance, scale, shift = tensors
    folded = fuse_conv_bn_weights(weight, bias, mean, variance, epsilon, scale, shift)
    constants: list[Node] = []
    with network.graph.inserting_before(norm):
        for i, value in enumerate(folded):
            network.register_buffer(f"_{norm.name}_{i}", value.detach())
            constants.append(network.graph.get_attr(f"_{norm.name}_{i}"))
        fused = network.graph.call_function(aten.conv2d.default, (frames, *constants, *convolution.args[3:]))
    norm.replace_all_uses_with(fused)


def _remove_unused_tensors(network: GraphModule) -> None:
    """Remove the weights that were folded into others. Else they would be stored and loaded too."""
    used = {node.target for node in network.graph.find_nodes(op="get_attr")}
    for name in [name for name, _ in (*network.named_parameters(), *network.named_buffers()) if name not in used]:
        delattr(*_owner(network, name))


def _owner(network: GraphModule, name: str) -> tuple[nn.Module, str]:
    """Find the submodule that holds the attribute `name`, and the attribute's name there."""
    path, _, leaf = name.rpartition(".")
    return network.get_submodule(path), leaf
