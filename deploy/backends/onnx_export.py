"""Convert programs to ONNX, the form that ONNX Runtime and NVIDIA's parser read."""

from __future__ import annotations

import torch
from onnx import ModelProto

from deploy.model.program import ModelError, first_line, quiet_logger, without_pytree_warning


def to_onnx(program: torch.export.ExportedProgram) -> bytes:
    """Convert the program to an ONNX model. The same program always gives the same bytes. Raises ModelError."""
    try:
        # At each export this logger reports that torchvision is missing, which is not used here.
        with without_pytree_warning(), quiet_logger("torch.onnx._internal.exporter._registration"):
            exported = torch.onnx.export(program, dynamo=True, external_data=False, verbose=False)
    except RuntimeError as error:
        raise ModelError(f"it cannot be expressed in ONNX: {first_line(error.__cause__ or error)}") from error
    assert exported is not None
    model: ModelProto = exported.model_proto
    return model.SerializeToString(deterministic=True)
