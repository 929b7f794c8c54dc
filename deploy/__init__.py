"""Deploy a frozen model: from a trained network to a running path whose homogenizer can be exchanged.

Each name below is imported when it is first used. So a command that only reads a configuration does not wait for the
import of torch. This package knows nothing of where frames come from.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploy.backends.engine_cache import ModelCache
    from deploy.backends.protocol import BACKENDS, Backend, BackendUnavailable, Runner, check_parity, load_backend
    from deploy.model.card import InputCard, ModelCard, Normalisation, card_path
    from deploy.model.document import DocumentError, load_document
    from deploy.model.export import export_model
    from deploy.model.frozen import FrozenModel, load_frozen
    from deploy.model.program import ModelError
    from deploy.path import InferencePath, InferenceResult, PreparedHomogenizer, SwapRejected
    from deploy.store.artefacts import FACTORY, Artefact, ArtefactStore, Pointer, StoreError

_NAMES_BY_MODULE = {
    "backends.engine_cache": ("ModelCache",),
    "backends.protocol": ("BACKENDS", "Backend", "BackendUnavailable", "Runner", "check_parity", "load_backend"),
    "model.card": ("InputCard", "ModelCard", "Normalisation", "card_path"),
    "model.document": ("DocumentError", "load_document"),
    "model.export": ("export_model",),
    "model.frozen": ("FrozenModel", "load_frozen"),
    "model.program": ("ModelError",),
    "path": ("InferencePath", "InferenceResult", "PreparedHomogenizer", "SwapRejected"),
    "store.artefacts": ("FACTORY", "Artefact", "ArtefactStore", "Pointer", "StoreError"),
}
_MODULE_BY_NAME = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_BY_NAME:
        raise AttributeError(f"module 'deploy' has no attribute {name!r}")
    return getattr(import_module(f"deploy.{_MODULE_BY_NAME[name]}"), name)


__all__ = [
    "BACKENDS",
    "FACTORY",
    "Artefact",
    "ArtefactStore",
    "Backend",
    "BackendUnavailable",
    "DocumentError",
    "FrozenModel",
    "InferencePath",
    "InferenceResult",
    "InputCard",
    "ModelCache",
    "ModelCard",
    "ModelError",
    "Normalisation",
    "Pointer",
    "PreparedHomogenizer",
    "Runner",
    "StoreError",
    "SwapRejected",
    "card_path",
    "check_parity",
    "export_model",
    "load_backend",
    "load_document",
    "load_frozen",
]
