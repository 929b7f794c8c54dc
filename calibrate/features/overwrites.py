"""Find in a traced graph the in-place operators that overwrite a value which something else still needs."""

from __future__ import annotations

import torch
from torch._ops import HigherOrderOperator
from torch.fx import Graph, Node

# Operators that return memory of their own, and whose gradient does not read what they returned. The usual
# `nn.ReLU(inplace=True)` behind one of them overwrites nothing that anybody needs.
RETURNS_UNSHARED = frozenset(
    {
        torch.ops.aten.batch_norm.default,
        torch.ops.aten.conv1d.default,
        torch.ops.aten.conv2d.default,
        torch.ops.aten.conv2d.padding,
        torch.ops.aten.conv3d.default,
        torch.ops.aten.linear.default,
        torch.ops.aten.add.Tensor,
        torch.ops.aten.add_.Tensor,
    }
)


def overwrites_values(graph: Graph) -> bool:
    """Return whether an operator may overwrite a value that another operator, or the gradient of one, still reads.

    False only where that is certain. Also true for a graph with graphs inside, which are not searched.
    """
    calls = [node for node in graph.nodes if node.op == "call_function"]
    return any(isinstance(n.target, HigherOrderOperator) or any(map(_is_shared, _written(n))) for n in calls)


def _written(node: Node) -> list[Node]:
    """List the values that the operator overwrites."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return []
    given = {a.name: value for a, value in zip(schema.arguments, node.args, strict=False)} | node.kwargs
    written = [given.get(a.name) for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return [value for value in written if isinstance(value, Node)]


def _is_shared(value: Node) -> bool:
    return len(value.users) > 1 or value.target not in RETURNS_UNSHARED
