"""Read the inputs of the BatchNorm layers of a frozen network while it runs.

Works on any `nn.Module` by forward hooks, and on the graph of an exported program (`.pt2`) by a rewritten
graph, so that no source code of the network is needed. Both can stop at a layer, which makes early
statistics cheap.
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
from calibrate.features.statistics import FeatureStatistics

HOW_TO_EXPORT = "export the float model before BatchNorm is folded into the convolutions"


class UnsupportedModel(RecaldError):
    """The network carries no BatchNorm statistics that a fit could aim at."""


class Tapped(NamedTuple):
    features: list[Tensor]  # input of each BatchNorm layer, (N, C, ...)
    output: Tensor | None  # the network's output, or None where the forward pass was cut short


class Taps:
    """A frozen network whose BatchNorm inputs can be read. Call it with frames (N, C, H, W).

    names: the BatchNorm layers: of an exported program in the order they run; of a module, which does not tell
    before it runs, in the order they were registered, mostly the same.
    reference: the running mean and variance shipped in each of them.
    """

    names: tuple[str, ...]
    reference: FeatureStatistics

    def __call__(self, frames: Tensor, depth: int | None = None) -> Tapped:
        """Run the network, or with `depth` only as far as the first `depth` of `names` need it.

        Raises UnsupportedModel where one of these layers runs twice or never.
        """
        if depth is not None and not 1 <= depth <= len(self.names):
            raise ValueError(f"depth must be from 1 to the {len(self.names)} BatchNorm layers, got {depth}")
        return self._run(frames, depth)

    def _run(self, frames: Tensor, depth: int | None) -> Tapped:
        raise NotImplementedError  # pragma: no cover - the two kinds below


def tap(model: nn.Module) -> Taps:
    """Taps at the BatchNorm inputs of a module or of an exported program's module.

    Raises UnsupportedModel if there is no BatchNorm layer, one without running statistics or in training mode.
    """
    if isinstance(model, GraphModule) and _batchnorm_nodes(model.graph):
        return _GraphTaps(model)
    return _HookTaps(model)


def reference_statistics(model: nn.Module) -> FeatureStatistics:
    """The running mean and variance shipped in the BatchNorm layers of `model`."""
    return tap(model).reference


class _ReachedDepth(Exception):
    """Leaves a forward pass early; never seen by a caller."""


class _HookTaps(Taps):
    """Taps of an `nn.Module`: a forward pre-hook on each BatchNorm layer, only while a call runs."""

    def __init__(self, model: nn.Module):
        self._model = model
        layers = {name: m for name, m in model.named_modules() if isinstance(m, _BatchNorm)}
        _refuse_without_statistics(layers)
        _refuse_training(model)
        self._layers = tuple(layers.values())
        self.names = tuple(layers)
        self.reference = FeatureStatistics(
            self.names,
            tuple(_kept(m.running_mean) for m in self._layers),
            tuple(_kept(m.running_var) for m in self._layers),
            shipped=True,
        )

    def _run(self, frames: Tensor, depth: int | None) -> Tapped:
        wanted: dict[nn.Module, str] = dict(zip(self._layers[:depth], self.names[:depth], strict=True))
        features: dict[nn.Module, Tensor] = {}

        def keep(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            if layer in features:
                raise _runs_twice(wanted[layer])
            features[layer] = inputs[0]
            if depth is not None and len(features) == depth:
                raise _ReachedDepth

        output = None
        handles = [layer.register_forward_pre_hook(keep) for layer in wanted]
        try:
            output = self._model(frames)
        except _ReachedDepth:
            pass
        finally:
            for handle in handles:
                handle.remove()
        for layer, name in wanted.items():
            if layer not in features:
                raise _never_runs(name)
        return Tapped([features[layer] for layer in wanted], output)


class _GraphTaps(Taps):
    """Taps of an exported graph: a copy of the graph, its weights shared, that also returns the inputs."""

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
        self._cut: dict[int | None, GraphModule] = {}

    def _run(self, frames: Tensor, depth: int | None) -> Tapped:
        if depth not in self._cut:
            self._cut[depth] = _with_taps(self._model, self._nodes[:depth], whole=depth is None)
        features, output = self._cut[depth](frames)
        return Tapped(list(features), output)


def _kept(buffer: Tensor | None) -> Tensor:
    assert buffer is not None
    return buffer.detach().clone()


def _refuse_without_statistics(layers: dict[str, _BatchNorm]) -> None:
    if not layers:
        raise UnsupportedModel(f"the model has no BatchNorm layer: recald needs their statistics; {HOW_TO_EXPORT}")
    bare = [name for name, layer in layers.items() if layer.running_mean is None or layer.running_var is None]
    if bare:
        raise UnsupportedModel(
            f"BatchNorm layer {bare[0]!r} keeps no running statistics (track_running_stats=False): "
            "train or re-estimate the model with track_running_stats=True and export it again"
        )


def _refuse_training(model: nn.Module) -> None:
    """Any part of it: a BatchNorm layer in training mode would change its own statistics at every pass."""
    for name, module in model.named_modules():
        if module.training:
            raise UnsupportedModel(f"{name or 'the model'} is in training mode: call model.eval() first")


def _runs_twice(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"BatchNorm layer {name!r} runs more than once in a forward pass: its statistics mix what each run sees; "
        "train the model with a layer of its own for each"
    )


def _never_runs(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"BatchNorm layer {name!r} does not run in a forward pass: take it out of the model, "
        "or export the model, which leaves out what does not run"
    )


_BATCHNORM_OPS = {
    torch.ops.aten.batch_norm.default: 5,  # where the `training` argument stands
    torch.ops.aten._native_batch_norm_legit_no_training.default: None,
    torch.ops.aten._native_batch_norm_legit.default: 5,
    torch.ops.aten.native_batch_norm.default: 5,
    torch.ops.aten.cudnn_batch_norm.default: 5,
}


def _batchnorm_nodes(graph: Graph) -> list[Node]:
    return [n for n in graph.nodes if n.op == "call_function" and n.target in _BATCHNORM_OPS]


def _node_statistics(model: GraphModule, node: Node) -> tuple[str, Tensor, Tensor]:
    """Name, running mean and running variance of one BatchNorm node."""
    mean, variance = node.args[3], node.args[4]
    training = _BATCHNORM_OPS[node.target]  # type: ignore[index]
    if training is not None and node.args[training]:
        raise UnsupportedModel(
            f"BatchNorm {node.name!r} was exported without running statistics or in training mode: "
            "export after model.eval(), with track_running_stats=True"
        )
    if not (isinstance(mean, Node) and isinstance(variance, Node)):
        raise UnsupportedModel(
            f"BatchNorm {node.name!r} keeps no running statistics (track_running_stats=False): "
            "train or re-estimate the model with track_running_stats=True and export it again"
        )
    name = str(mean.target).rpartition(".")[0] or node.name
    return name, _kept(_attribute(model, mean)), _kept(_attribute(model, variance))


def _attribute(model: GraphModule, node: Node) -> Any:
    value: Any = model
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value


def _with_taps(model: GraphModule, nodes: Sequence[Node], whole: bool) -> GraphModule:
    """A graph over the same weights that returns (inputs of `nodes`, output or None)."""
    graph = Graph()
    copies: dict[Node, Node] = {}
    for node in model.graph.nodes:
        if node.op == "call_module":  # the exporter's shape guards
            continue
        if node.op == "output":
            output = node.args[0]
            break
        copies[node] = graph.node_copy(node, lambda n: copies[n])
    output = output[0] if isinstance(output, (tuple, list)) else output
    inputs = [n.args[0] for n in nodes]
    assert all(isinstance(node, Node) for node in inputs)
    graph.output(([copies[n] for n in inputs if isinstance(n, Node)], copies[output] if whole else None))
    graph.eliminate_dead_code()
    return GraphModule(model, graph)
