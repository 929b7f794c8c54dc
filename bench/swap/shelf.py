"""Homogenizers to swap between, stored as a worker stores fitted ones."""

from __future__ import annotations

import torch

from calibrate.homogenizer import Homogenizer
from deploy.backends.protocol import load_backend
from deploy.model.frozen import FrozenModel
from deploy.store.artefacts import ArtefactStore

HOMOGENIZERS = 16
REACH = 0.02  # in the network's input units: no drift, and yet no two homogenizers give the same output


def stock(store: ArtefactStore, frozen: FrozenModel) -> list[str]:
    """Fill the store with homogenizers close to the identity; returns their versions."""
    return [_put(store, frozen, _homogenizer(frozen, seed)) for seed in range(HOMOGENIZERS)]


def _homogenizer(frozen: FrozenModel, seed: int) -> Homogenizer:
    generator = torch.Generator().manual_seed(seed)
    homogenizer = Homogenizer(*frozen.card.input.shape).eval()
    with torch.no_grad():
        for parameter in (homogenizer.curve, homogenizer.offset, homogenizer.bias):
            parameter.add_(REACH * torch.randn(parameter.shape, generator=generator))
    return homogenizer


def _put(store: ArtefactStore, frozen: FrozenModel, homogenizer: Homogenizer) -> str:
    backend = load_backend("onnx")
    compiled = backend.compile(homogenizer, torch.zeros(1, *frozen.card.input.shape))
    return store.put(homogenizer, {"model": frozen.digest}, compiled, backend.name)
