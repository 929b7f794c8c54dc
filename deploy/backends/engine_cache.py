"""Keep what was compiled between starts, and build it again whenever it is not what is needed."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import torch
from torch import nn

from deploy.backends.protocol import Backend, SharesKernels
from deploy.files import write_atomically
from deploy.model.frozen import FrozenModel
from deploy.model.precision import in_precision

FOLDER = "compiled"
DIGEST_SIZE = hashlib.sha256().digest_size
log = logging.getLogger(__name__)


class ModelCache:
    """Φ as `backend` compiles it in this precision, kept in the state directory `state`."""

    def __init__(self, backend: Backend, frozen: FrozenModel, precision: str, state: Path):
        self._backend, self._frozen, self._precision = backend, frozen, precision
        self._example = torch.zeros(1, *frozen.card.input.shape)
        self._path = _path(state, backend, self._example, frozen.digest, precision)

    def holds(self) -> bool:
        return _read(self._path) is not None

    def get(self) -> bytes:
        """What is there intact, else compiled now and kept. Raises ModelError."""
        return _read(self._path) or self._build()

    def _build(self) -> bytes:
        compiled = self._backend.compile(in_precision(self._frozen.module, self._precision), self._example)
        _keep(self._path, compiled)
        return compiled


def compile_homogenizer(backend: Backend, homogenizer: nn.Module, example: torch.Tensor, state: Path) -> bytes:
    """Compiled for images shaped like `example` (N, C, H, W); with the kernels of those before, where it has any.

    A builder may choose others each time, and then more would differ between two homogenizers than was proven.
    Raises ModelError.
    """
    if not isinstance(backend, SharesKernels):
        return backend.compile(homogenizer, example)
    path = _path(state, backend, example, "homogenizer")
    before = _read(path)
    if before is not None:
        return backend.with_weights_of(homogenizer, before)
    compiled = backend.compile(homogenizer, example)
    _keep(path, compiled)
    return compiled


def _path(state: Path, backend: Backend, example: torch.Tensor, *of: str) -> Path:
    """Another one for whatever else leads to other bytes."""
    parts = [*of, list(example.shape[1:]), backend.name, backend.version()]
    return state / FOLDER / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.compiled"


def _keep(path: Path, compiled: bytes) -> None:
    try:
        write_atomically(path, hashlib.sha256(compiled).digest() + compiled)
    except OSError as error:  # a full disk costs the next time some seconds, not this one its service
        log.warning("%s: what was compiled cannot be kept: %s", path, error.strerror)


def _read(path: Path) -> bytes | None:
    """The compiled bytes behind their own SHA-256, None unless the two agree."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s: cannot be read, building again: %s", path, error.strerror)
        return None
    if not is_whole(data):
        log.warning("%s: damaged, building again", path)
        return None
    return data[DIGEST_SIZE:]


def is_whole(data: bytes) -> bool:
    """Whether a file of the cache is as it was written: the compiled bytes behind their own SHA-256."""
    return hashlib.sha256(data[DIGEST_SIZE:]).digest() == data[:DIGEST_SIZE]
