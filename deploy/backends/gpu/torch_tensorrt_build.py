"""From a torch.export program to an engine by torch-tensorrt 2.8 to 2.14, without ONNX in between.

Only its function for one serialized engine is used: no partitioning, no runtime and no engine cache of its own.
"""

from __future__ import annotations

import copy
import importlib
import importlib.metadata
import importlib.util
import inspect
import io
import logging
import os.path
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import fields
from types import ModuleType
from typing import Any

from torch.export import ExportedProgram

from deploy.model.program import ModelError, first_line

# What an engine must not be built without; torch-tensorrt swallows a keyword that it does not know.
REQUIRED = {"disable_tf32": True, "immutable_weights": True, "require_full_compilation": True, "min_block_size": 1}
# Cached engines are pickles, under keys that leave out shapes and arguments; 2.8 has no cache here.
NO_CACHE = {"cache_built_engines": False, "reuse_cached_engines": False}
TIMING_CACHE = "timing_cache_path"
# Up to 2.12 the precision is the program's only where this is asked for, from 2.13 on always.
WEAK_TYPING, STRONG_TYPING = "enabled_precisions", "use_explicit_typing"
NAMES = "arg_input_binding_names"  # from 2.14 on

LOGGERS = ("torch_tensorrt", "torch_tensorrt [TensorRT Conversion Context]")
_one_at_a_time = threading.Lock()  # its settings are the whole process's, as are warnings and standard output

log = logging.getLogger(__name__)


def load_torch_tensorrt() -> ModuleType | None:
    """None where it is not installed, cannot be imported, or is the build for TensorRT-RTX."""
    if importlib.util.find_spec("torch_tensorrt") is None or _is_for_rtx():
        return None
    try:
        with _listening():
            return importlib.import_module("torch_tensorrt")
    except Exception as error:  # without its libraries, or without a GPU, it raises whatever it likes
        log.warning("torch-tensorrt is installed but cannot be imported: %s", first_line(error))
        return None


def build_with_torch_tensorrt(torch_tensorrt: Any, program: ExportedProgram, inputs: Sequence[str]) -> bytes:
    """An engine that takes `inputs` by these names, in the precision of the program, without TF32.

    Raises ModelError, which names the operator where it is one without a converter.
    """
    with _listening() as heard:
        try:
            with tempfile.TemporaryDirectory() as directory:
                return _build(torch_tensorrt, program, inputs, os.path.join(directory, "timing"))
        except Exception as error:  # converters raise whatever they like; up to 2.12 all of it ends as a NameError
            reason = next(iter(heard), first_line(error))
            raise ModelError(f"torch-tensorrt {torch_tensorrt.__version__} cannot build it: {reason}") from error


def _build(torch_tensorrt: Any, program: ExportedProgram, inputs: Sequence[str], timing_cache: str) -> bytes:
    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    known = inspect.signature(convert).parameters
    settings = _settings(known, {field.name for field in fields(torch_tensorrt.dynamo.CompilationSettings)})
    # By default the timings are a file in /tmp under a name that anybody may take first.
    settings |= {TIMING_CACHE: timing_cache} | _names(known, program, inputs)
    assert program.example_inputs is not None  # torch.export.export leaves them there
    arguments, _ = program.example_inputs
    # It takes nodes out of the graph that it is given, which would then be another one for the next builder.
    engine = convert(copy.deepcopy(program), arg_inputs=arguments, **settings)
    if not isinstance(engine, bytes) or not engine:
        raise RuntimeError(f"it returned {type(engine).__name__}, not an engine")
    return engine


def _settings(parameters: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
    """Keywords that have an effect in this version: parameters of its function that are settings of its compiler."""
    known = parameters.keys() & fields
    required = REQUIRED | ({STRONG_TYPING: True} if WEAK_TYPING in known else {})
    missing = sorted({*required, TIMING_CACHE} - known)
    if missing:
        raise ValueError(f"this version would ignore {', '.join(missing)}")
    return required | {name: value for name, value in NO_CACHE.items() if name in known}


def _names(parameters: Mapping[str, Any], program: ExportedProgram, inputs: Sequence[str]) -> dict[str, Any]:
    """Up to 2.13 an input has the name of its placeholder, which torch.export takes from the arguments of forward."""
    if NAMES in parameters:
        return {NAMES: tuple(inputs)}
    if tuple(program.graph_signature.user_inputs) != tuple(inputs):
        raise ValueError(f"the inputs would be named {', '.join(map(str, program.graph_signature.user_inputs))}")
    return {}


def _is_for_rtx() -> bool:
    """The same module in another distribution; importing it puts TensorRT-RTX in the place of `tensorrt`."""
    try:
        importlib.metadata.distribution("torch-tensorrt-rtx")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class _Listener(logging.Handler):
    """Keeps the first line of each error, of the exception where one is attached: the message may be a whole graph."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        raised = record.exc_info[1] if record.exc_info else None
        self.errors.append(first_line(raised or RuntimeError(record.getMessage())))


@contextmanager
def _listening() -> Iterator[list[str]]:
    """The errors that torch-tensorrt logs, and nothing of what it logs, warns of and prints goes further."""
    with _one_at_a_time, warnings.catch_warnings(), redirect_stdout(io.StringIO()), _in_place_of_handlers() as heard:
        warnings.simplefilter("ignore")
        yield heard


@contextmanager
def _in_place_of_handlers() -> Iterator[list[str]]:
    listener = _Listener()
    before = {logger: logger.propagate for logger in map(logging.getLogger, LOGGERS)}
    for logger in before:
        logger.addHandler(listener)
        logger.propagate = False
    try:
        yield listener.errors
    finally:
        for logger, propagate in before.items():
            logger.removeHandler(listener)
            logger.propagate = propagate
