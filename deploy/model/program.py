"""Networks as torch.export programs: for any batch size, stored as .pt2 bytes, read back without pickle."""

from __future__ import annotations

import io
import json
import logging
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pickle import UnpicklingError

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from calibrate.errors import RecaldError

# What a network of someone else's making raises when the input or the tracer does not suit it.
FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError)
# What PyTorch's readers raise besides for bytes they cannot make sense of.
READ_FAULTS = (
    *FAULTS,
    EOFError,
    ArithmeticError,
    UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


class ModelError(RecaldError):
    """A network that cannot be built, read, exported or compiled: what, where, what to do."""


def export_program(module: nn.Module, example: torch.Tensor) -> ExportedProgram:
    """Trace `module` for any number of images of the shape of `example` (N, C, H, W)."""
    batch = torch.cat([example[:1], example[:1]])  # a batch of 1 would be traced as the constant 1
    try:
        with torch.no_grad():
            program = torch.export.export(module, (batch,), dynamic_shapes=({0: Dim("batch")},))
    except FAULTS as error:
        raise ModelError(f"torch.export cannot trace it for any batch size: {first_line(error)}") from error
    for node in program.graph.nodes:  # the paths of this machine, which would also change the bytes' digest
        node.meta.pop("stack_trace", None)
    return program


def export_static(module: nn.Module, example: torch.Tensor, *weights: torch.Tensor) -> ExportedProgram:
    """Trace `module` for one image (1, C, H, W) at a time: a camera's frames have one size, kernels are chosen for it.

    `weights` are further inputs.
    """
    try:
        with torch.no_grad():
            return torch.export.export(module.eval(), (example, *weights))
    except FAULTS as error:
        raise ModelError(f"torch.export cannot trace it: {first_line(error)}") from error


def save_program(program: ExportedProgram) -> bytes:
    program.example_inputs = None  # not needed, and the one part that torch would store as a pickle
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def load_program(data: bytes) -> nn.Module:
    """The traced network in .pt2 bytes, in evaluation mode and without gradients. Raises ModelError."""
    return evaluation_module(read_program(data))


def read_program(data: bytes) -> ExportedProgram:
    """Raises ModelError."""
    with _reading():
        _refuse_pickles(data)
        return torch.export.load(io.BytesIO(data))


def input_shapes(program: ExportedProgram) -> dict[str, tuple[int, ...]]:
    """Of all inputs, in their order, as they were traced."""
    traced = {node.name: node.meta["val"].shape for node in program.graph.find_nodes(op="placeholder")}
    return {str(name): tuple(traced[str(name)]) for name in program.graph_signature.user_inputs}


def evaluation_module(program: ExportedProgram) -> nn.Module:
    """The program's network, in evaluation mode and without gradients. Raises ModelError."""
    with _reading():
        module = program.module()
    for name in ("train", "eval"):  # torch.export makes both raise, also when a surrounding module calls them
        vars(module).pop(name, None)
    return module.eval().requires_grad_(False)


@contextmanager
def _reading() -> Iterator[None]:
    try:
        with quiet("torch.export"):  # its warning is a traceback; the error below says the same in one line
            yield
    except READ_FAULTS as error:
        raise ModelError(f"not a torch.export program that can be read: {first_line(error)}") from error


def run_once(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """One forward pass; raises ModelError unless it gives one finite tensor with a row for each image."""
    shape = tuple(batch.shape)
    try:
        with torch.no_grad():
            output = module(batch)
    except FAULTS as error:
        raise ModelError(f"it does not run on an input of shape {shape}: {first_line(error)}") from error
    if not isinstance(output, torch.Tensor):
        raise ModelError(f"it must return one tensor, not {type(output).__name__}: wrap it")
    if output.ndim == 0 or output.shape[0] != shape[0]:
        raise ModelError(f"it returned shape {tuple(output.shape)} for {shape[0]} images: the first must match")
    if not torch.isfinite(output).all():
        raise ModelError(f"it returned values that are not finite for an input of shape {shape}")
    return output


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest absolute difference, relative to the largest expected magnitude where that is above 1."""
    scale = max(1.0, float(expected.abs().max()))
    return float((output.double() - expected.double()).abs().max()) / scale


def first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def quiet(logger_name: str) -> Iterator[None]:
    """Keep the logger below errors from speaking."""
    logger = logging.getLogger(logger_name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def without_pytree_warning() -> Iterator[None]:
    """torch 2.13 copies its own pytree specs in a way it deprecates itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield


def _refuse_pickles(data: bytes) -> None:
    """Raise unless everything in the archive is JSON or plain tensors.

    torch.export.load unpickles without restriction where the archive asks for it. The JSON is trusted all the
    same (PyTorch compiles expressions from it): what vouches for the file is its digest.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names) or not any(name.endswith("/archive_format") for name in names):
            raise ValueError("not written by torch.export.save of torch 2.8 or later")
        for name in names:
            if name.endswith(".pt"):
                _refuse_pickle(name, archive.read(name))
            elif name.endswith("_config.json"):
                _refuse_objects(name, json.loads(archive.read(name)))


def _refuse_pickle(name: str, record: bytes) -> None:
    try:
        if record:
            torch.load(io.BytesIO(record), weights_only=True)
    except UnpicklingError as error:
        raise ValueError(f"{name} holds more than tensors, which could run code") from error


def _refuse_objects(name: str, config: dict[str, dict[str, dict[str, object]]]) -> None:
    for key, payload in config["config"].items():
        if payload["use_pickle"]:
            raise ValueError(f"{name}: {key} is stored as a pickle, which could run code")
