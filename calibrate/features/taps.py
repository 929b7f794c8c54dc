"""Read the inputs of the BatchNorm layers of a frozen network while it runs.

An `nn.Module` is read by forward hooks, and the graph of an exported program (`.pt2`) by a rewritten graph. Neither
needs the source code of the network. Both can stop at a layer, so that statistics of early layers are cheap.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn.modules.batchnorm import _BatchNorm

from calibrate.errors import RecaldError
from calibrate.features.overwrites import overwrites_values
from calibrate.features.statistics import FeatureStatistics

EXPORT_HINT = "export the float model before BatchNorm is folded into the convolutions"

TRAINING_ARGUMENT_BY_OP = {  # position of the `training` argument of each BatchNorm operator; None if it has none
    torch.ops.aten.batch_norm.default: 5,
    torch.ops.aten._native_batch_norm_legit_no_training.default: None,
    torch.ops.aten._native_batch_norm_legit.default: 5,
    torch.ops.aten._native_batch_norm_legit_functional.default: 5,
    torch.ops.aten.native_batch_norm.default: 5,
    torch.ops.aten.cudnn_batch_norm.default: 5,
}


class UnsupportedModel(RecaldError):
    """The network has no BatchNorm statistics that a fit can aim at, or they cannot be read."""


class ForwardPass(NamedTuple):
    """What a feature map returns for frames.

    features: L tensors (N, C_l, ...), for `Taps` the input of each BatchNorm layer.
    output: the network's output, or None if the pass ended before it.
    """

    features: list[Tensor]
    output: Tensor | None


class Taps:
    """A frozen network whose BatchNorm inputs can be read. Call it with frames (N, C, H, W).

    names: the BatchNorm layers. For an exported program they are in the order in which they run; for a module, in the
    order in which they were registered, which is mostly the same.
    reference: the running mean and variance shipped in each layer.
    """

    names: tuple[str, ...]
    reference: FeatureStatistics

    def __call__(self, frames: Tensor, depth: int | None = None) -> ForwardPass:
        """Run the network, or with `depth` only as far as the first `depth` layers of `names` need it.

        Raises ValueError for a depth that is not from 1 to the number of layers, and UnsupportedModel if one of the
        layers runs twice or never.
        """
        if depth is not None and not 1 <= depth <= len(self.names):
            raise ValueError(f"depth must be from 1 to the {len(self.names)} BatchNorm layers, got {depth}")
        return self._run(frames, depth)

    def _run(self, frames: Tensor, depth: int | None) -> ForwardPass:
        raise NotImplementedError  # pragma: no cover - _HookTaps and _GraphTaps implement it


def tap(model: nn.Module) -> Taps:
    """Return taps at the BatchNorm inputs of a module, or of the module of an exported program.

    Raises UnsupportedModel if there is no BatchNorm layer, or if one has no running statistics, runs twice or is in
    training mode.
    """
    if isinstance(model, GraphModule) and _batchnorm_nodes(model.graph):
        return _GraphTaps(model)
    return _HookTaps(model)


def reference_statistics(model: nn.Module) -> FeatureStatistics:
    """Return the running mean and variance shipped in the BatchNorm layers. Raises UnsupportedModel as `tap` does."""
    return tap(model).reference


class _DepthReached(Exception):
    """Ends a forward pass early; no caller sees it."""


class _HookTaps(Taps):
    """Taps of an `nn.Module`: a forward pre-hook on each BatchNorm layer, only while a call runs."""

    def __init__(self, model: nn.Module):
        self._model = model
        layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        _check_running_statistics(layers)
        _check_evaluation_mode(model)
        self._layers = tuple(layers.values())
        self.names = tuple(layers)
        self.reference = FeatureStatistics(
            self.names,
            tuple(_copy_of(m.running_mean) for m in self._layers),
            tuple(_copy_of(m.running_var) for m in self._layers),
            shipped=True,
        )

    def _run(self, frames: Tensor, depth: int | None) -> ForwardPass:
        wanted: dict[nn.Module, str] = dict(zip(self._layers[:depth], self.names[:depth], strict=True))
        features: dict[nn.Module, Tensor] = {}

        def keep_input(layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            if layer in features:
                raise _runs_twice(wanted[layer])
            given = inputs[0] if inputs else named["input"]
            features[layer] = given.clone()  # an in-place operator behind the layer may overwrite its input
            if depth is not None and len(features) == depth:
                raise _DepthReached
            return (features[layer],), {}

        output = None
        handles = [layer.register_forward_pre_hook(keep_input, with_kwargs=True) for layer in wanted]
        try:
            output = self._model(frames.clone())  # the network may write into its input
        except _DepthReached:
            pass
        finally:
            for handle in handles:
                handle.remove()
        for layer, name in wanted.items():
            if layer not in features:
                raise _never_runs(name)
        return ForwardPass([features[layer] for layer in wanted], output)


def _check_running_statistics(layers: dict[str, _BatchNorm]) -> None:
    if not layers:
        raise UnsupportedModel(f"the model has no BatchNorm layer: recald needs their statistics; {EXPORT_HINT}")
    for name, layer in layers.items():
        if layer.running_mean is None or layer.running_var is None:
            raise _no_running_statistics(f"BatchNorm layer {name!r}")


def _check_evaluation_mode(model: nn.Module) -> None:
    """Check all modules: a BatchNorm layer in training mode would change its own statistics in every pass."""
    for name, module in model.named_modules():
        if module.training:
            raise UnsupportedModel(f"{name or 'the model'} is in training mode: call model.eval() first")


def _copy_of(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer.detach().clone()


class _GraphTaps(Taps):
    """Taps of an exported graph: a copy of the graph that shares the weights and also returns the inputs."""

    def __init__(self, model: GraphModule):
        self._model = model
        self._nodes = _batchnorm_nodes(model.graph)
        statistics = [_node_statistics(model, node) for node in self._nodes]
        self.names = tuple(name for name, _, _ in statistics)
        for name, count in Counter(self.names).items():
            if count > 1:
                raise _runs_twice(name)
        self.reference = FeatureStatistics(
            self.names, tuple(m for _, m, _ in statistics), tuple(v for _, _, v in statistics), shipped=True
        )
        self._overwrites = overwrites_values(model.graph)  # then layers get copies of their inputs
        self._graphs: dict[int | None, GraphModule] = {}  # by depth

    def _run(self, frames: Tensor, depth: int | None) -> ForwardPass:
        if depth not in self._graphs:
            nodes = self._nodes[:depth]
            self._graphs[depth] = _graph_with_taps(self._model, nodes, depth is None, self._overwrites)
        features, output = self._graphs[depth](frames.clone() if self._overwrites else frames)
        return ForwardPass(list(features), output)


def _batchnorm_nodes(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op == "call_function" and n.target in TRAINING_ARGUMENT_BY_OP]


def _node_statistics(model: GraphModule, node: Node) -> tuple[str, Tensor, Tensor]:
    """Return name, running mean and running variance of one BatchNorm node."""
    mean, variance = node.args[3], node.args[4]
    training = TRAINING_ARGUMENT_BY_OP[node.target]  # type: ignore[index]
    if training is not None and node.args[training]:
        raise UnsupportedModel(
            f"BatchNorm {node.name!r} was exported without running statistics or in training mode: "
            "export after model.eval(), with track_running_stats=True"
        )
    if not (isinstance(mean, Node) and isinstance(variance, Node)):
        raise _no_running_statistics(f"BatchNorm {node.name!r}")
    name = str(mean.target).rpartition(".")[0] or node.name
    return name, _copy_of(_attribute(model, mean)), _copy_of(_attribute(model, variance))


def _attribute(model: GraphModule, node: Node) -> Any:
    value: Any = model
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _graph_with_taps(model: GraphModule, nodes: Sequence[Node], whole: bool, copy_inputs: bool) -> GraphModule:
    """Return a graph over the same weights that returns (inputs of `nodes`, output). Not `whole`: output is None.

    copy_inputs: the graph overwrites some of them.
    """
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in model.graph.nodes:
        if node.op == "call_module":  # the shape guards that the exporter adds
            continue
        if node.op == "output":
            output = node.args[0]
            break
        copies[node] = graph.node_copy(node, lambda n: copies[n])
        if copy_inputs and node in nodes:
            _copy_input(copies[node])
    output = output[0] if isinstance(output, (tuple, list)) else output
    graph.output(([copies[n].args[0] for n in nodes], copies[output] if whole else None))
    graph.eliminate_dead_code()
    return GraphModule(model, graph)


def _copy_input(batchnorm: Node) -> None:
    """Hand the layer a copy of its input, which no in-place operator behind it overwrites."""
    frames = batchnorm.args[0]
    with batchnorm.graph.inserting_before(batchnorm):
        batchnorm.update_arg(0, batchnorm.graph.call_function(torch.ops.aten.clone.default, (frames,)))


def _no_running_statistics(layer: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"{layer} keeps no running statistics (track_running_stats=False): "
        "train or re-estimate the model with track_running_stats=True and export it again"
    )


def _runs_twice(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"BatchNorm layer {name!r} runs more than once in a forward pass: its statistics mix what each run sees; "
        "train the model with a layer of its own for each"
    )


def _never_runs(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"BatchNorm layer {name!r} does not run in a forward pass: remove it from the model, "
        "or export the model: an export leaves out layers that do not run"
    )
