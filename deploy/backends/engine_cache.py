"""Keep compiled networks between starts, and build them again when anything they depend on has changed."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import torch
from torch import nn

from deploy.backends.protocol import Backend, SharesKernels
from deploy.files import read_regular, write_atomically
from deploy.model.frozen import FrozenModel
from deploy.model.precision import to_precision

CACHE_FOLDER = "compiled"  # below the state directory
MAX_KEPT = 16  # model and homogenizers of the parts that a device meets, by two backends, of two releases
CHECKSUM_BYTES = hashlib.sha256().digest_size

log = logging.getLogger(__name__)


class ModelCache:
    """Φ as `backend` compiles it in this precision, kept in the state directory `state`."""

    def __init__(self, backend: Backend, frozen: FrozenModel, precision: str, state: Path):
        self._backend, self._frozen, self._precision = backend, frozen, precision
        self._example = torch.zeros(1, *frozen.card.input.shape)  # (1, C, H, W)
        self._path = _cache_path(state, backend, self._example, frozen.digest, precision)

    def is_cached(self) -> bool:
        """Check that an intact compiled form is in the cache."""
        return _read(self._path) is not None

    def discard(self) -> None:
        """Forget the compiled form, so that the next one is built anew. Raises OSError."""
        self._path.unlink(missing_ok=True)

    def get(self) -> bytes:
        """Read the compiled form from the cache, or compile Φ now and keep the result. Raises ModelError."""
        cached = _read(self._path)
        if cached:
            return cached
        compiled = self._backend.compile(to_precision(self._frozen.module, self._precision), self._example)
        _keep(self._path, compiled)
        return compiled


def compile_homogenizer(
    backend: Backend, homogenizer: nn.Module, example: torch.Tensor, state: Path, *, anew: bool = False
) -> bytes:
    """Compile ρ for images shaped like `example` (N, C, H, W). Raises ModelError.

    anew: do not use the engine that is kept, and keep the new one instead.

    A builder may choose other kernels each time. A backend that shares kernels therefore builds one engine for all ρ
    of one shape and of the same parts, so that two of them differ in nothing but their weights.
    """
    if not isinstance(backend, SharesKernels):
        return backend.compile(homogenizer, example)
    parts = (name for name, _ in homogenizer.named_parameters())
    path = _cache_path(state, backend, example, "homogenizer", *parts)
    cached = None if anew else _read(path)
    if cached is not None:
        return backend.with_weights_of(homogenizer, cached)
    compiled = backend.compile(homogenizer, example)
    _keep(path, compiled)
    return compiled


def prune_cache(state: Path, keep: int = MAX_KEPT) -> int:
    """Remove all but the `keep` compiled forms that were used last; returns their number.

    A new version of a library, a driver or a model leaves those behind that were built for the old one.
    """
    found = []
    for path in (state / CACHE_FOLDER).glob("*.compiled"):
        with suppress(OSError):
            found.append((path.stat().st_mtime_ns, path))
    removed = 0
    for _, path in sorted(found, reverse=True)[keep:]:
        with suppress(OSError):  # a read-only disk: it does no harm
            path.unlink()
            removed += 1
    return removed


def is_intact(data: bytes) -> bool:
    """Check a file of the cache: the SHA-256 of the compiled bytes, then these bytes."""
    return hashlib.sha256(data[CHECKSUM_BYTES:]).digest() == data[:CHECKSUM_BYTES]


def _cache_path(state: Path, backend: Backend, example: torch.Tensor, *key: str) -> Path:
    """Name the file by a hash of everything that the compiled bytes depend on."""
    parts = [*key, list(example.shape[1:]), backend.name, backend.version()]
    return state / CACHE_FOLDER / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()}.compiled"


def _keep(path: Path, compiled: bytes) -> None:
    try:
        write_atomically(path, hashlib.sha256(compiled).digest() + compiled)
    except OSError as error:  # with a full disk the next start compiles again; this one serves all the same
        log.warning("%s: the compiled network cannot be kept: %s", path, error.strerror)


def _read(path: Path) -> bytes | None:
    """Read the compiled bytes; None if there are none that are intact."""
    try:
        data = read_regular(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("%s: cannot be read, building again: %s", path, error.strerror)
        return None
    if not is_intact(data):
        log.warning("%s: damaged, building again", path)
        return None
    with suppress(OSError):  # a read-only disk, where nothing is pruned either
        os.utime(path)  # shows prune_cache() that it is in use
    return data[CHECKSUM_BYTES:]
