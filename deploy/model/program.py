"""Networks as torch.export programs: trace them, store them as .pt2 bytes, and read them without unpickling code."""

from __future__ import annotations

import copy
import io
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
from torch.fx import GraphModule

from calibrate.errors import RecaldError
from calibrate.features.overwrites import overwrites_values
from deploy.model.archive_check import checked_archive
from deploy.model.functional import functional_module

# What a network from elsewhere raises if it does not suit its input or the tracer.
NETWORK_ERRORS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, AttributeError)
# What PyTorch's readers raise in addition for damaged bytes.
READ_ERRORS = (
    *NETWORK_ERRORS,
    EOFError,
    ArithmeticError,
    UnpicklingError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
UNREADABLE = "not a torch.export program that can be read"
NOT_REWRITTEN = (
    "it overwrites values that it reads later (x += y) and cannot be rewritten; build it without and export it again"
)


class ModelError(RecaldError):
    """A network cannot be built, read, exported or compiled. The message says what, where and what to do."""


def export_program(module: nn.Module, example: torch.Tensor) -> ExportedProgram:
    """Trace `module` for any number of images of the shape of `example` (N, C, H, W). Raises ModelError."""
    batch = torch.cat([example[:1], example[:1]])  # torch.export would take a batch of 1 for the constant 1
    try:
        with torch.no_grad():
            program = torch.export.export(module, (batch,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # whatever the network's own code raises, too
        raise ModelError(f"torch.export cannot trace it for any batch size: {_trace_error(error)}") from error
    return _without_history(program)


def export_static(module: nn.Module, example: torch.Tensor, *weights: torch.Tensor) -> ExportedProgram:
    """Trace `module` for one image (1, C, H, W) at a time, with `weights` as further inputs.

    The frames of a camera have one size, so kernels can be chosen for it. Raises ModelError.
    """
    try:
        with torch.no_grad():
            program = torch.export.export(module.eval(), (example, *weights))
    except NETWORK_ERRORS as error:
        raise ModelError(f"torch.export cannot trace it: {first_line(error)}") from error
    return _without_history(program)


def _without_history(program: ExportedProgram) -> ExportedProgram:
    """Remove what names paths and memory addresses of this process; with it equal networks would differ in bytes."""
    for graph in (part.graph for part in program.graph_module.modules() if isinstance(part, GraphModule)):
        for node in graph.nodes:
            for name in ("stack_trace", "from_node", "custom"):
                node.meta.pop(name, None)
    return program


def save_program(program: ExportedProgram) -> bytes:
    """Convert the program to .pt2 bytes without its example inputs."""
    program.example_inputs = None  # nobody needs them, and they are the one part that torch would pickle
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def load_program(data: bytes) -> nn.Module:
    """Read the traced network in .pt2 bytes, in evaluation mode and without gradients. Raises ModelError."""
    return evaluation_module(read_program(data))


def read_program(data: bytes) -> ExportedProgram:
    """Read the program in .pt2 bytes. Raises ModelError, also for bytes that could run code."""
    with _read_errors(UNREADABLE), _without_buffer_warning():
        return torch.export.load(io.BytesIO(checked_archive(data)))


def evaluation_module(program: ExportedProgram) -> nn.Module:
    """Make the program's network, in evaluation mode and without gradients. Raises ModelError.

    It overwrites no value that somebody may still read, whatever the program does.
    """
    with _read_errors(UNREADABLE):
        overwrites = overwrites_values(program.graph)
    with _read_errors(NOT_REWRITTEN if overwrites else UNREADABLE), without_pytree_warning():
        module = functional_module(program) if overwrites else program.module()
    for name in ("train", "eval"):  # torch.export makes both raise, even if a module around this one calls them
        vars(module).pop(name, None)
    return module.eval().requires_grad_(False)


def module_on(module: nn.Module, device: str) -> nn.Module:
    """Copy a network to another device. A traced one also names its device in operators that make tensors."""
    with without_pytree_warning():
        moved = copy.deepcopy(module).to(device)
    for part in moved.modules():
        if isinstance(part, GraphModule):
            for node in part.graph.nodes:
                if "device" in node.kwargs:
                    node.update_kwarg("device", torch.device(device))
            part.recompile()
    return moved


def input_shapes(program: ExportedProgram) -> dict[str, tuple[int, ...]]:
    """List the inputs of the program by name, with the shapes they were traced with, in their order."""
    traced = {node.name: node.meta["val"].shape for node in program.graph.find_nodes(op="placeholder")}
    return {str(name): tuple(traced[str(name)]) for name in program.graph_signature.user_inputs}


def run_once(module: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    """Run `module` on a batch (N, C, H, W). Raises ModelError unless the output is one finite tensor (N, ...)."""
    shape = tuple(batch.shape)
    try:
        with torch.no_grad():
            output = module(batch.clone())  # it may write into its input
    except Exception as error:  # whatever the network's own code raises
        raise ModelError(f"it does not run on an input of shape {shape}: {first_line(error)}") from error
    if not isinstance(output, torch.Tensor):
        raise ModelError(
            f"it must return one tensor, not {_outline(output)}: let the builder wrap it in a module that returns the "
            "one to be served"
        )
    if output.ndim == 0 or output.shape[0] != shape[0]:
        raise ModelError(
            f"it returned shape {tuple(output.shape)} for {shape[0]} images: its first dimension must match "
            "(squeeze() without a dimension removes it)"
        )
    if not torch.isfinite(output).all():
        raise ModelError(f"it returned values that are not finite for an input of shape {shape}")
    return output


def _outline(output: object) -> str:
    """Describe what a network returned, with the shape of each tensor."""
    if isinstance(output, torch.Tensor):
        return str(tuple(output.shape))
    parts = list(output.items()) if isinstance(output, dict) else output if isinstance(output, list | tuple) else []
    shown = [f"{p[0]}: {_outline(p[1])}" if isinstance(output, dict) else _outline(p) for p in list(parts)[:4]]
    return f"{type(output).__name__}" + (f" of {len(parts)} ({', '.join(shown)})" if shown else "")


def _trace_error(error: BaseException) -> str:
    """Return the first line of the error, and what to do about the commonest one."""
    if "data-dependent" not in str(error):
        return first_line(error)
    return (
        "its forward branches on the values of tensors, or a shape depends on them (if, while, .item(), nonzero, masks "
        f"as indices): use torch.where and fixed shapes ({first_line(error)})"
    )


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    """Compute the largest absolute difference, divided by the largest expected magnitude if that is above 1."""
    scale = max(1.0, float(expected.abs().max()))
    return float((output.double() - expected.double()).abs().max()) / scale


def first_line(error: BaseException) -> str:
    """Shorten an error to the first line of its message, or to its type if it has no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


@contextmanager
def quiet_logger(name: str) -> Iterator[None]:
    """Let the logger pass nothing below an error."""
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextmanager
def without_pytree_warning() -> Iterator[None]:
    """Suppress a warning of torch 2.13: it copies its own pytree specs in a way that it has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning)
        yield


@contextmanager
def _without_buffer_warning() -> Iterator[None]:
    """Suppress a warning of torch 2.9 to 2.12: its reader makes tensors of the bytes that it has read itself."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        yield


@contextmanager
def _read_errors(what: str) -> Iterator[None]:
    """Turn every error of reading a program into a ModelError of one line that begins with `what`."""
    try:
        with quiet_logger("torch.export"):  # it warns with a traceback of what the error below says in one line
            yield
    except READ_ERRORS as error:
        raise ModelError(f"{what}: {first_line(error)}") from error
