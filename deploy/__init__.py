"""From a network to a running path whose homogenizer can be exchanged; knows nothing of frames' origin.

A name below is imported when it is first used, so that a command which only reads a configuration
(deploy.model.document, deploy.model.card) need not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOME = {
    "backend": (
        "BACKENDS",
        "Backend",
        "BackendUnavailable",
        "ParityError",
        "Runner",
        "check_parity",
        "load_backend",
    ),
    "cache": ("ModelCache",),
    "card": ("InputCard", "ModelCard", "Normalisation", "card_path"),
    "document": ("DocumentError", "load_document"),
    "frozen": ("FrozenModel", "ModelError", "digest_file", "export_model", "load_frozen"),
    "path": ("InferencePath", "Prepared", "Served", "SwapRejected"),
    "store": ("FACTORY", "Artefact", "ArtefactStore", "Pointer", "StoreError", "write_atomically"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
    return getattr(import_module(f"deploy.{_MODULE_OF[name]}"), name)
