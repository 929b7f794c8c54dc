"""An operator's order to bring a stored homogenizer back: check it, and compile it where the libraries have changed."""

from __future__ import annotations

from typing import Any

import torch

from daemon.model.served_model import golden_noise
from daemon.states import Result
from daemon.worker.context import WorkerContext
from deploy.backends.engine_cache import compile_homogenizer
from deploy.backends.protocol import check_parity, same_backend_version
from deploy.store.artefacts import Artefact


def restore_stored(context: WorkerContext, job: dict[str, Any]) -> dict[str, Any]:
    """Make the version in job["restore"] ready to serve; nothing judges it, the shadow run and its probation do.

    Raises StoreError, ModelError or ParityError.
    """
    version = job["restore"]
    artefact = context.store.get(version, context.frozen.digest)
    if artefact.compiled is None or not same_backend_version(context.backend, artefact.manifest):
        _compile(context, artefact)
    reason = f"homogenizer {version[:12]} is brought back by an operator"
    return {"result": Result.RECALLED.value, "reason": reason, "version": version, "dossier": None}


def _compile(context: WorkerContext, artefact: Artefact) -> None:
    """Compile it for this backend, check it, and store it under the version that it has."""
    golden = torch.from_numpy(golden_noise(context.frozen.card.input.shape))
    compiled = compile_homogenizer(context.backend, artefact.homogenizer, golden[:1], context.store.root)
    runner = context.backend.load(compiled, threads=1)
    try:
        check_parity(runner, artefact.homogenizer, golden)
    finally:
        runner.close()
    versions = {**artefact.manifest.get("versions", {}), "backend": context.backend.version()}
    context.store.put(artefact.homogenizer, artefact.manifest | {"versions": versions}, compiled, context.backend.name)
