"""Keep the compiled form of Φ between starts, and build it again whenever it is not what is needed."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import torch

from deploy.backend import Backend
from deploy.files import write_atomically
from deploy.frozen import FrozenModel

DIGEST_SIZE = hashlib.sha256().digest_size
log = logging.getLogger(__name__)


def compile_cached(backend: Backend, frozen: FrozenModel, example: torch.Tensor, directory: Path) -> bytes:
    """Φ compiled by `backend` for images shaped like `example`; from `directory` where it is there intact."""
    path = directory / f"{_key(backend, frozen, example)}.compiled"
    cached = _read(path)
    if cached is not None:
        return cached
    compiled = backend.compile(frozen.module, example)
    try:
        write_atomically(path, hashlib.sha256(compiled).digest() + compiled)
    except OSError as error:  # a full disk costs the next start some seconds, not this one its service
        log.warning("%s: the compiled model cannot be kept: %s", path, error.strerror)
    return compiled


def _key(backend: Backend, frozen: FrozenModel, example: torch.Tensor) -> str:
    parts = [frozen.digest, list(example.shape), backend.name, backend.version()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


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
