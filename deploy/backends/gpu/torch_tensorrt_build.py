"""Build an engine from a torch.export program with torch-tensorrt 2.8 to 2.14, without ONNX in between.

Only its function for one serialized engine is used: no partitioning, no runtime, no engine cache of torch-tensorrt.
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

# An engine must not be built without these. torch-tensorrt ignores a keyword that it does not know.
REQUIRED_SETTINGS = {
    "disable_tf32": True,
    "immutable_weights": True,
    "require_full_compilation": True,
    "min_block_size": 1,
}
# Cached engines are pickles, and their keys leave out shapes and arguments. 2.8 has no cache for this function.
NO_CACHE_SETTINGS = {"cache_built_engines": False, "reuse_cached_engines": False}
# Names of keywords.
TIMING_CACHE = "timing_cache_path"
INPUT_NAMES = "arg_input_binding_names"  # from 2.14 on
# Up to 2.12 an engine has the precisions of the program only with STRONG_TYPING, from 2.13 on always.
WEAK_TYPING, STRONG_TYPING = "enabled_precisions", "use_explicit_typing"

TORCH_TENSORRT_LOGGERS = ("torch_tensorrt", "torch_tensorrt [TensorRT Conversion Context]")
_build_lock = threading.Lock()  # the settings of torch-tensorrt, warnings and standard output are process-wide

log = logging.getLogger(__name__)


def load_torch_tensorrt() -> ModuleType | None:
    """Import torch-tensorrt; None if it is not installed, cannot be imported, or is the build for TensorRT-RTX."""
    if importlib.util.find_spec("torch_tensorrt") is None or _is_for_rtx():
        return None
    try:
        with _captured_errors():
            return importlib.import_module("torch_tensorrt")
    except Exception as error:  # without its libraries or a GPU it raises errors of any type
        log.warning("torch-tensorrt is installed but cannot be imported: %s", first_line(error))
        return None


def build_with_torch_tensorrt(torch_tensorrt: Any, program: ExportedProgram, inputs: Sequence[str]) -> bytes:
    """Build an engine whose inputs have the names `inputs`, in the precisions of the program, without TF32.

    Raises ModelError. It names the operator if torch-tensorrt has no converter for one.
    """
    with _captured_errors() as errors:
        try:
            with tempfile.TemporaryDirectory() as directory:
                return _build(torch_tensorrt, program, inputs, os.path.join(directory, "timing"))
        except Exception as error:  # converters raise errors of any type; up to 2.12 each ends as a NameError
            reason = next(iter(errors), first_line(error))
            raise ModelError(f"torch-tensorrt {torch_tensorrt.__version__} cannot build it: {reason}") from error


def _build(torch_tensorrt: Any, program: ExportedProgram, inputs: Sequence[str], timing_cache: str) -> bytes:
    convert = torch_tensorrt.dynamo.convert_exported_program_to_serialized_trt_engine
    known = inspect.signature(convert).parameters
    settings = _settings(known, {field.name for field in fields(torch_tensorrt.dynamo.CompilationSettings)})
    # The default is a file in /tmp with a fixed name, which any user could create first.
    settings |= {TIMING_CACHE: timing_cache} | _input_names(known, program, inputs)
    assert program.example_inputs is not None  # torch.export.export stores them
    arguments, _ = program.example_inputs
    # torch-tensorrt removes nodes from the graph it is given, and the ONNX parser may need that graph next.
    engine = convert(copy.deepcopy(program), arg_inputs=arguments, **settings)
    if not isinstance(engine, bytes) or not engine:
        raise RuntimeError(f"it returned {type(engine).__name__}, not an engine")
    return engine


def _settings(parameters: Mapping[str, Any], fields: set[str]) -> dict[str, Any]:
    """Choose the keywords that have an effect in this version, and check that none of REQUIRED_SETTINGS is ignored.

    A keyword has an effect if it is a parameter of the function and a setting of the compiler. Raises ValueError.
    """
    known = parameters.keys() & fields
    required = REQUIRED_SETTINGS | ({STRONG_TYPING: True} if WEAK_TYPING in known else {})
    missing = sorted({*required, TIMING_CACHE} - known)
    if missing:
        raise ValueError(f"this version would ignore {', '.join(missing)}")
    return required | {name: value for name, value in NO_CACHE_SETTINGS.items() if name in known}


def _input_names(parameters: Mapping[str, Any], program: ExportedProgram, inputs: Sequence[str]) -> dict[str, Any]:
    """Choose the keyword that names the engine's inputs. Raises ValueError if they would have other names.

    Up to 2.13 there is no such keyword. An input then has the name of its placeholder, which torch.export takes from
    the arguments of forward.
    """
    if INPUT_NAMES in parameters:
        return {INPUT_NAMES: tuple(inputs)}
    if tuple(program.graph_signature.user_inputs) != tuple(inputs):
        raise ValueError(f"the inputs would be named {', '.join(map(str, program.graph_signature.user_inputs))}")
    return {}


def _is_for_rtx() -> bool:
    """Look for the distribution with the same module for TensorRT-RTX. Its import replaces the module `tensorrt`."""
    try:
        importlib.metadata.distribution("torch-tensorrt-rtx")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


class _ErrorCollector(logging.Handler):
    """Keeps the first line of each logged error. An attached exception is preferred: a message may be a whole graph."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        raised = record.exc_info[1] if record.exc_info else None
        self.errors.append(first_line(raised or RuntimeError(record.getMessage())))


@contextmanager
def _captured_errors() -> Iterator[list[str]]:
    """Collect the errors that torch-tensorrt logs, and suppress all that it logs, warns and prints."""
    with _build_lock, warnings.catch_warnings(), redirect_stdout(io.StringIO()), _captured_logs() as errors:
        warnings.simplefilter("ignore")
        yield errors


@contextmanager
def _captured_logs() -> Iterator[list[str]]:
    collector = _ErrorCollector()
    before = {logger: logger.propagate for logger in map(logging.getLogger, TORCH_TENSORRT_LOGGERS)}
    for logger in before:
        logger.addHandler(collector)
        logger.propagate = False
    try:
        yield collector.errors
    finally:
        for logger, propagate in before.items():
            logger.removeHandler(collector)
            logger.propagate = propagate
