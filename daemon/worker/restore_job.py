"""An operator's order to bring a stored homogenizer back: check it, and compile it again where that is needed."""

from __future__ import annotations

import logging
from typing import Any

import torch

from daemon.states import Result
from daemon.worker.context import WorkerContext
from deploy.backends.protocol import same_backend_version
from deploy.model.program import ModelError
from deploy.store.artefacts import Artefact
from deploy.store.compiled import compile_proven, input_shape, open_compiled
from deploy.store.golden import golden_noise

log = logging.getLogger(__name__)


def restore_stored(context: WorkerContext, job: dict[str, Any]) -> dict[str, Any]:
    """Make the version in job["restore"] ready to serve; nothing judges it, the shadow run and its probation do.

    Raises StoreError, ModelError or ParityError.
    """
    version = job["restore"]
    artefact = context.store.get(version, context.frozen.digest)
    if not _compiled_is_usable(context, artefact):
        _compile(context, artefact)
    reason = f"homogenizer {version[:12]} is brought back by an operator"
    return {"result": Result.RECALLED.value, "reason": reason, "version": version, "dossier": None}


def _compiled_is_usable(context: WorkerContext, artefact: Artefact) -> bool:
    """Check that there is a compiled form, of the present libraries, that computes what the weights say."""
    if artefact.compiled is None or not same_backend_version(context.backend, artefact.manifest):
        return False
    try:
        open_compiled(context.backend, artefact, artefact.compiled).close()
    except ModelError as error:
        log.warning("%s; it is built again", error)
        return False
    return True


def _compile(context: WorkerContext, artefact: Artefact) -> None:
    """Compile it for this backend, check it, and store it under the version that it has."""
    golden = torch.from_numpy(golden_noise(input_shape(artefact)))
    compiled = compile_proven(context.backend, artefact.homogenizer, golden, context.store.root)
    versions = {**artefact.manifest.get("versions", {}), "backend": context.backend.version()}
    context.store.put(artefact.homogenizer, artefact.manifest | {"versions": versions}, compiled, context.backend.name)
