"""Rewrite a program that overwrites its own values into one that computes the same and overwrites nothing.

`x += f(bn(x))` overwrites what the BatchNorm layer was given. Neither its statistics nor a gradient can then be read.
The model's file stays as it is: programs are rewritten when they are loaded.
"""

from __future__ import annotations

import operator

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node

DROPOUTS = (
    torch.ops.aten.dropout.default,
    torch.ops.aten.dropout_.default,
    torch.ops.aten.feature_dropout.default,
    torch.ops.aten.feature_dropout_.default,
    torch.ops.aten.alpha_dropout.default,
    torch.ops.aten.alpha_dropout_.default,
    torch.ops.aten.feature_alpha_dropout.default,
    torch.ops.aten.feature_alpha_dropout_.default,
)


def functional_module(program: ExportedProgram) -> GraphModule:
    """Make the program's network without in-place operators. It writes neither into its input nor into its buffers.

    Raises what PyTorch raises for a program that it cannot rewrite.
    """
    _remove_dropout(program)
    module = program.run_decompositions({torch.ops.aten.copy.default: _copy}).module()
    assert isinstance(module, GraphModule)
    for node in list(module.graph.nodes):
        if node.target is torch.ops.aten._native_batch_norm_legit_no_training.default:
            _restore_batchnorm(node)
        elif node.target is torch.ops.aten.view.default:
            node.target = torch.ops.aten.reshape.default  # the strides of the trace are not those of every precision
        elif node.target is torch.ops.aten.copy_.default:  # what the network wrote into its input and its buffers
            module.graph.erase_node(node)
    module.recompile()
    return module


def _remove_dropout(program: ExportedProgram) -> None:
    """Remove what in evaluation mode returns its input: PyTorch's rewriting takes its result for other memory."""
    for node in list(program.graph.nodes):
        if node.target in DROPOUTS and not node.args[2] and all(user.op != "output" for user in node.users):
            node.replace_all_uses_with(node.args[0])
            program.graph.erase_node(node)
    program.graph_module.recompile()


def _copy(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    """Return `source` with the type and shape of `target`; PyTorch's own operator for it has no gradient."""
    return source.to(target.dtype).expand(target.shape)


def _restore_batchnorm(node: Node) -> None:
    """Replace the operator's decomposed form, which returns three tensors, by the one that programs are stored with."""
    frames, weight, bias, mean, variance, momentum, epsilon = node.args
    arguments = (frames, weight, bias, mean, variance, False, momentum, epsilon, True)
    graph = node.graph
    with graph.inserting_before(node):
        whole = graph.call_function(torch.ops.aten.batch_norm.default, arguments)
    for user in list(node.users):
        assert user.target is operator.getitem and user.args[1] == 0  # the other two are empty in evaluation mode
        user.replace_all_uses_with(whole)
        graph.erase_node(user)
    graph.erase_node(node)
