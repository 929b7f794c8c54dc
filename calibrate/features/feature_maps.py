"""The feature maps that Willis & Oala (2021) compare: what statistics can be taken of.

| in the paper's tables | here |
| --- | --- |
| NN ALL | `all_layers(model)` |
| NN | `penultimate(model)` |
| RANDOM NN | `random_network(model, seed)` |
| RP | `random_projection(shape)` |

Every map takes frames (N, C, H, W) and carries gradients back to them. None changes the network it was made from.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from calibrate.features.statistics import FeatureStatistics
from calibrate.features.taps import ForwardPass, Taps, UnsupportedModel, tap

PROJECTION_WIDTH = 512  # number of random directions, s_RP of the paper
SOURCE_BATCH_FRAMES = 128  # frames in a batch for the BatchNorm statistics of a random network, as in the paper


class FeatureMap(Protocol):
    """Anything that statistics can be taken of, such as `calibrate.features.taps.Taps`.

    names: one name for each feature.
    Call it with frames (N, C, H, W). The features are L tensors (N, C_l, ...). The output is the logits (N, K) of the
    frozen network, or None if the map does not run that network.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(self, frames: Tensor) -> ForwardPass: ...


def all_layers(model: nn.Module) -> Taps:
    """Return NN ALL: the inputs of all BatchNorm layers. `reference` holds the statistics shipped for them.

    Raises UnsupportedModel as `tap` does.
    """
    return tap(model)


class LastLayer:
    """The input of a network's last BatchNorm layer. `reference` holds the statistics shipped for it."""

    def __init__(self, taps: Taps):
        self._taps = taps
        shipped = taps.reference
        self.names = shipped.names[-1:]
        self.reference = FeatureStatistics(self.names, shipped.means[-1:], shipped.variances[-1:], shipped=True)

    def __call__(self, frames: Tensor) -> ForwardPass:
        features, output = self._taps(frames)
        return ForwardPass(features[-1:], output)


def penultimate(model: nn.Module) -> LastLayer:
    """Return NN: the input of the last BatchNorm layer, which is the output of the last convolution.

    Raises UnsupportedModel as `tap` does.
    """
    return LastLayer(tap(model))


class RandomNetwork:
    """The BatchNorm inputs of a network with random weights. It gives no output, as its logits mean nothing."""

    def __init__(self, taps: Taps):
        self._taps = taps
        self.names = taps.names

    def __call__(self, frames: Tensor) -> ForwardPass:
        return ForwardPass(self._taps(frames).features, None)


def random_network(model: nn.Module, seed: int = 0, source: Tensor | None = None) -> RandomNetwork:
    """Return RANDOM NN: all BatchNorm inputs of the same architecture with newly initialised weights.

    As in the paper's code, all layers are used, and the BatchNorm layers measure the source data once.
    source: clean frames (N, C, H, W) for this measurement. Without them the layers keep mean 0 and variance 1.
    Raises UnsupportedModel for a parameter without an initialisation of its own, as in an exported graph.
    """
    network = _reinitialise(model, seed)
    if source is not None:
        _measure_batchnorm(network, source)
    return RandomNetwork(tap(network))


class RandomProjection:
    """Project flattened frames on fixed directions (width, C * H * W). The only feature is (N, width)."""

    names = ("projection",)

    def __init__(self, directions: Tensor):
        self._directions = directions

    def __call__(self, frames: Tensor) -> ForwardPass:
        return ForwardPass([frames.flatten(1) @ self._directions.T], None)


def random_projection(shape: tuple[int, int, int], width: int = PROJECTION_WIDTH, seed: int = 0) -> RandomProjection:
    """Return RP: projections of the flattened frame on `width` fixed random directions of length 1.

    shape: (C, H, W) of the frames. Frames of unit variance give features of unit variance.
    Memory: width * C * H * W floats, 6 MB for 512 directions of 32x32 colour frames, 300 MB at 224x224.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(width, shape[0] * shape[1] * shape[2], generator=generator)
    return RandomProjection(directions / directions.norm(dim=1, keepdim=True))


class WithLogits:
    """The features of one feature map with the output of a network; see `with_logits`."""

    def __init__(self, feature_map: FeatureMap, model: nn.Module):
        self._feature_map, self._model = feature_map, model
        self.names = feature_map.names

    def __call__(self, frames: Tensor) -> ForwardPass:
        return ForwardPass(self._feature_map(frames).features, self._model(frames))


def with_logits(feature_map: FeatureMap, model: nn.Module) -> WithLogits:
    """Add the output of the frozen `model` to a feature map that does not run it. A cross-entropy needs the logits."""
    return WithLogits(feature_map, model)


def _reinitialise(model: nn.Module, seed: int) -> nn.Module:
    """Return a copy with new weights, in evaluation mode. Torch's global random state stays as it was."""
    _check_initialisation(model)
    network = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in _resettable_modules(network):
            module.reset_parameters()  # type: ignore[operator]
    return network.eval().requires_grad_(False)


def _check_initialisation(model: nn.Module) -> None:
    resettable = {id(p) for module in _resettable_modules(model) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in resettable:
            raise UnsupportedModel(
                f"parameter {name!r} cannot be initialised anew: no module that holds it has reset_parameters; "
                "a random network needs the model itself, not its exported graph"
            )


def _resettable_modules(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if callable(getattr(module, "reset_parameters", None)))


def _measure_batchnorm(network: nn.Module, source: Tensor) -> None:
    """Let the BatchNorm layers measure source frames (N, C, H, W) in one pass; every batch has the same weight."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain average over batches
    network.train()
    with torch.no_grad():
        for batch in source.split(SOURCE_BATCH_FRAMES):
            network(batch)
    network.eval()
