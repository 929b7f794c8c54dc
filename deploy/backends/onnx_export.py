"""The one intermediate form: what ONNX Runtime and NVIDIA's parser read."""

from __future__ import annotations

import torch
from onnx import ModelProto

from deploy.model.program import ModelError, first_line, quiet_logger, without_pytree_warning


def to_onnx(program: torch.export.ExportedProgram) -> bytes:
    """The program as an ONNX model; always the same bytes for the same program. Raises ModelError."""
    try:
        model = _to_onnx(program)
    except RuntimeError as error:
        raise ModelError(f"it cannot be expressed in ONNX: {first_line(error.__cause__ or error)}") from error
    return model.SerializeToString(deterministic=True)


def _to_onnx(program: torch.export.ExportedProgram) -> ModelProto:
    # That logger reports at each export that torchvision, which is not used, is absent.
    with without_pytree_warning(), quiet_logger("torch.onnx._internal.exporter._registration"):
        exported = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
    assert exported is not None
    return exported.model_proto
