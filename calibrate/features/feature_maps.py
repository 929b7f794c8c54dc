"""What statistics may be taken of: the feature maps that Willis & Oala (2021) compare, by the names of their tables.

| there | here |
| --- | --- |
| NN ALL | `all_layers(model)` |
| NN | `penultimate(model)` |
| RANDOM NN | `random_network(model, seed)` |
| RP | `random_projection(shape)` |

The maps are given frames (N, C, H, W) and let gradients through to them; none changes the network it was made of.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from calibrate.features.statistics import FeatureStatistics
from calibrate.features.taps import Tapped, Taps, UnsupportedModel, tap

PROJECTIONS = 512  # s_RP of the paper
MEASURED_AT_ONCE = 128  # frames, the batch of the paper


class FeatureMap(Protocol):
    """Anything statistics can be taken of; `calibrate.features.taps.Taps` is one.

    names: one for each feature. Called with frames (N, C, H, W) it returns the features, L of (N, C_l, ...), and
    as output the logits (N, K) of the frozen network, or None where it does not run that network.
    """

    @property
    def names(self) -> tuple[str, ...]: ...

    def __call__(self, frames: Tensor) -> Tapped: ...


def all_layers(model: nn.Module) -> Taps:
    """NN ALL: the inputs of all BatchNorm layers, with the statistics shipped for them in `reference`.

    Raises UnsupportedModel as `tap` does.
    """
    return tap(model)


def penultimate(model: nn.Module) -> LastLayer:
    """NN: the input of the last BatchNorm layer, which is the output of the last convolution.

    Raises UnsupportedModel as `tap` does.
    """
    return LastLayer(tap(model))


def random_network(model: nn.Module, seed: int = 0, source: Tensor | None = None) -> RandomNetwork:
    """RANDOM NN: all BatchNorm inputs of the same architecture with weights as before any training.

    The paper's code takes all layers here, as for NN ALL, and lets the BatchNorm layers of the random network
    measure its source data once.
    source: (N, C, H, W) clean frames for that; without them the layers keep mean 0 and variance 1.
    Raises UnsupportedModel where a parameter has no initialisation of its own, as in an exported graph.
    """
    network = _reinitialised(model, seed)
    if source is not None:
        _measure_batchnorm(network, source)
    return RandomNetwork(tap(network))


def random_projection(shape: tuple[int, int, int], width: int = PROJECTIONS, seed: int = 0) -> RandomProjection:
    """RP: projections of the flattened frame on `width` fixed random directions of length one.

    shape: (C, H, W) of the frames. A frame of unit variance gives features of unit variance. Holds
    width * C * H * W floats: 6 MB for 512 of 32x32 colour frames, 300 MB at 224x224.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(width, shape[0] * shape[1] * shape[2], generator=generator)
    return RandomProjection(directions / directions.norm(dim=1, keepdim=True))


def with_logits(feature_map: FeatureMap, model: nn.Module) -> WithLogits:
    """The features of `feature_map` with the output of the frozen `model`, for a map that does not run it."""
    return WithLogits(feature_map, model)


class LastLayer:
    """The last of a network's taps. reference: the statistics shipped for it."""

    def __init__(self, taps: Taps):
        self._taps = taps
        shipped = taps.reference
        self.names = shipped.names[-1:]
        self.reference = FeatureStatistics(self.names, shipped.means[-1:], shipped.variances[-1:], shipped=True)

    def __call__(self, frames: Tensor) -> Tapped:
        features, output = self._taps(frames)
        return Tapped(features[-1:], output)


class RandomNetwork:
    """The taps of a random network without its output, which is no classification."""

    def __init__(self, taps: Taps):
        self._taps = taps
        self.names = taps.names

    def __call__(self, frames: Tensor) -> Tapped:
        return Tapped(self._taps(frames).features, None)


class RandomProjection:
    """directions: (width, C*H*W), one a row. The only feature is (N, width)."""

    names = ("projection",)

    def __init__(self, directions: Tensor):
        self._directions = directions

    def __call__(self, frames: Tensor) -> Tapped:
        return Tapped([frames.flatten(1) @ self._directions.T], None)


class WithLogits:
    """See `with_logits`."""

    def __init__(self, feature_map: FeatureMap, model: nn.Module):
        self._feature_map, self._model = feature_map, model
        self.names = feature_map.names

    def __call__(self, frames: Tensor) -> Tapped:
        return Tapped(self._feature_map(frames).features, self._model(frames))


def _reinitialised(model: nn.Module, seed: int) -> nn.Module:
    _refuse_without_initialisation(model)
    network = copy.deepcopy(model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for module in _initialising(network):
            module.reset_parameters()  # type: ignore[operator]
    return network.eval().requires_grad_(False)


def _initialising(model: nn.Module) -> Iterator[nn.Module]:
    return (module for module in model.modules() if callable(getattr(module, "reset_parameters", None)))


def _refuse_without_initialisation(model: nn.Module) -> None:
    known = {id(p) for module in _initialising(model) for p in module.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known:
            raise UnsupportedModel(
                f"parameter {name!r} cannot be initialised anew: no module that holds it has reset_parameters; "
                "a random network needs the model itself, not its exported graph"
            )


def _measure_batchnorm(network: nn.Module, source: Tensor) -> None:
    """One pass of the source in batches; every batch weighs the same."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # the plain average over batches
    network.train()
    with torch.no_grad():
        for batch in source.split(MEASURED_AT_ONCE):
            network(batch)
    network.eval()
