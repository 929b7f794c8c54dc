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
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm

from calibrate.errors import RecaldError
from calibrate.features.frame_layout import find_rows_in_sequence, group_by_frame
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


class NoBatchNorm(UnsupportedModel):
    """The network has no BatchNorm layer at all."""


class ForwardPass(NamedTuple):
    """What a feature map returns for frames.

    features: L tensors (N, C_l, ...), for `Taps` the input of each BatchNorm layer. Where a network folds k parts of
    each frame into its batch, they are (N, C_l, k, ...).
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

    def __init__(self, names: Sequence[str], means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
        for name, mean, variance in zip(names, means, variances, strict=True):
            if not (torch.isfinite(mean).all() and torch.isfinite(variance).all()):
                raise UnsupportedModel(
                    f"BatchNorm layer {name!r} ships running statistics that are not finite: its training overflowed "
                    "there; re-estimate them on training images and export again"
                )
        self.names = tuple(names)
        self.reference = FeatureStatistics(self.names, tuple(means), tuple(variances), shipped=True)
        self._rows_in_sequence: dict[int, int] = {}  # by layer, of those that get more rows than there are frames

    def __call__(self, frames: Tensor, depth: int | None = None) -> ForwardPass:
        """Run the network, or with `depth` only as far as the first `depth` layers of `names` need it.

        Raises ValueError for a depth that is not from 1 to the number of layers, and UnsupportedModel if one of the
        layers runs twice or never.
        """
        if depth is not None and not 1 <= depth <= len(self.names):
            raise ValueError(f"depth must be from 1 to the {len(self.names)} BatchNorm layers, got {depth}")
        features, output = self._run(frames, depth)
        return ForwardPass([self._by_frame(layer, f, frames) for layer, f in enumerate(features)], output)

    def _by_frame(self, layer: int, feature: Tensor, frames: Tensor) -> Tensor:
        """Return a layer's input with one row for each frame."""
        if len(feature) == len(frames):
            return feature
        if len(feature) == 0 or len(feature) % len(frames):
            raise _mixes_frames(self.names[layer], f"{len(feature)} rows for {len(frames)} frames")
        if len(frames) == 1:
            return group_by_frame(feature, 1, len(feature))
        if layer not in self._rows_in_sequence:
            self._rows_in_sequence[layer] = self._find_rows_in_sequence(layer, frames)
        return group_by_frame(feature, len(frames), self._rows_in_sequence[layer])

    def _find_rows_in_sequence(self, layer: int, frames: Tensor) -> int:
        probe = torch.randn(2, *frames.shape[1:], generator=torch.Generator().manual_seed(0)).to(frames)
        with torch.no_grad():
            feature, swapped = (self._run(pair, layer + 1).features[layer] for pair in (probe, probe.flip(0)))
        found = find_rows_in_sequence(feature, swapped)
        if found is None:
            raise _mixes_frames(self.names[layer], "rows that mix several frames")
        return found

    def _run(self, frames: Tensor, depth: int | None) -> ForwardPass:
        raise NotImplementedError  # pragma: no cover - _HookTaps and _GraphTaps implement it


def is_batchnorm(module: nn.Module) -> bool:
    """Return whether a layer normalises by running statistics.

    The FrozenBatchNorm2d of torchvision and of detection libraries keeps them as buffers of a plain module.
    """
    buffers = {name for name, _ in module.named_buffers(recurse=False)}
    is_frozen = "FrozenBatchNorm" in type(module).__name__ and {"running_mean", "running_var"} <= buffers
    return is_frozen or isinstance(module, _BatchNorm)


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
        layers = {name: m for name, m in model.named_modules() if is_batchnorm(m)}
        _check_running_statistics(layers)
        _check_evaluation_mode(model)
        self._layers = tuple(layers.values())
        super().__init__(
            tuple(layers),
            [_copy_of(m.running_mean) for m in self._layers],
            [_copy_of(m.running_var) for m in self._layers],
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


def _check_running_statistics(layers: dict[str, nn.Module]) -> None:
    if not layers:
        raise NoBatchNorm(f"the model has no BatchNorm layer: recald needs their statistics; {EXPORT_HINT}")
    for name, layer in layers.items():
        if layer.running_mean is None or layer.running_var is None:
            raise _no_running_statistics(f"BatchNorm layer {name!r}")


def _check_evaluation_mode(model: nn.Module) -> None:
    """Check all modules: a BatchNorm layer in training mode would change its own statistics in every pass."""
    for name, module in model.named_modules():
        if module.training:
            raise UnsupportedModel(f"{name or 'the model'} is in training mode: call model.eval() first")


def _copy_of(buffer: Any) -> Tensor:
    assert isinstance(buffer, Tensor)
    return buffer.detach().float().clone()


class _GraphTaps(Taps):
    """Taps of an exported graph: a copy of the graph that shares the weights and also returns the inputs."""

    def __init__(self, model: GraphModule):
        self._model = model
        self._nodes = _batchnorm_nodes(model.graph)
        names, means, variances = zip(*(_node_statistics(model, node) for node in self._nodes), strict=True)
        for name, count in Counter(names).items():
            if count > 1:
                raise _runs_twice(name)
        super().__init__(names, means, variances)
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
    name = str(_stored(mean).target).rpartition(".")[0] or node.name
    return name, _copy_of(_value(model, mean, name)), _copy_of(_value(model, variance, name))


def _stored(node: Node) -> Node:
    """Find the stored tensor that a statistic is computed from, as in `running_mean.float()`."""
    return node if node.op != "call_function" or not node.all_input_nodes else _stored(node.all_input_nodes[0])


def _value(model: GraphModule, node: Node, layer: str) -> Any:
    """Return a stored tensor, or compute one from stored tensors."""
    if node.op == "placeholder":
        raise UnsupportedModel(
            f"BatchNorm layer {layer!r} normalises by statistics of the frames: recald needs those of the training"
        )
    if node.op == "call_function":
        arguments = map_arg((node.args, node.kwargs), lambda n: _value(model, n, layer))
        with torch.no_grad():
            return node.target(*arguments[0], **arguments[1])  # type: ignore[operator]
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


def _mixes_frames(name: str, what: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"BatchNorm layer {name!r} gets {what}: its statistics cannot be told for single frames; "
        "reshape in the model so that each row comes from one frame"
    )


def _never_runs(name: str) -> UnsupportedModel:
    return UnsupportedModel(
        f"BatchNorm layer {name!r} does not run in a forward pass: remove it from the model, "
        "or export the model: an export leaves out layers that do not run"
    )
