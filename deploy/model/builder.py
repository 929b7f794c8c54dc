"""Build a trained network from its builder and its weights file.

A builder is a function without arguments that returns the network. It is named "package.module:function". Builders and
networks are not recald's code: whatever they raise becomes one line.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import nn

from deploy.files import open_regular
from deploy.model.program import READ_ERRORS, ModelError, first_line

MAX_NAMES_SHOWN = 3  # in an error text
WRAPPERS = {  # attribute that holds the network itself, by the name of what training wraps around it
    "OptimizedModule": "_orig_mod",  # torch.compile
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "AveragedModel": "module",
}
WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # that wrappers put before every name of a state dict
COUNTER_SUFFIX = ".num_batches_tracked"  # a counter that inference does not need, and that some exporters leave out


def build_module(builder: str, weights: Path | None) -> nn.Module:
    """Call the builder "package.module:function" and load all of `weights`; returns the network in evaluation mode.

    Wrappers of training are removed. Raises ModelError.
    """
    with _current_folder_importable():
        function = _import_builder(builder)
        with foreign_code(f"builder {builder!r}"):
            built = function()
    module = _unwrapped(_checked_network(builder, built))
    if weights is not None:
        _load_weights(module, weights)
    with foreign_code("its eval()"):
        module.eval()  # its result is not used: a network may override train() and forget to return itself
        module.cpu()
    return module


@contextmanager
def foreign_code(what: str) -> Iterator[None]:
    """Turn whatever code that is not recald's raises into a ModelError of one line."""
    try:
        yield
    except ModelError:
        raise
    except (Exception, SystemExit) as error:
        raise ModelError(f"{what} raised {type(error).__name__}: {first_line(error)}") from error


def shorten(names: Iterable[str]) -> str:
    """List the first names, and count the others."""
    listed = list(names)
    more = len(listed) - MAX_NAMES_SHOWN
    return ", ".join(listed[:MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


@contextmanager
def _current_folder_importable() -> Iterator[None]:
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _import_builder(builder: str) -> Callable[[], object]:
    module_name, _, function_name = builder.partition(":")
    if not module_name or not function_name:
        raise ModelError(f"builder {builder!r}: write it as package.module:function")
    with foreign_code(f"builder {builder!r}: importing {module_name}"):
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            own = error.name is not None and f"{module_name}.".startswith(f"{error.name}.")
            advice = "run from the folder that holds it, or install it" if own else "its module needs it: install it"
            raise ModelError(f"builder {builder!r}: {first_line(error)}: {advice}") from error
        function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelError(f"builder {builder!r}: {module_name} has no function {function_name!r}")
    return function


def _checked_network(builder: str, built: object) -> nn.Module:
    if built is None:
        raise ModelError(f"builder {builder!r} returned nothing: it must return the network; is its `return` missing?")
    if isinstance(built, type) and issubclass(built, nn.Module):
        raise ModelError(f"builder {builder!r} returned the class {built.__name__}, not a network: call it")
    if not isinstance(built, nn.Module):
        raise ModelError(f"builder {builder!r} returned {type(built).__name__}: it must return a torch.nn.Module")
    if any(isinstance(part, torch.jit.ScriptModule) for part in built.modules()):
        raise ModelError(
            f"builder {builder!r} returned a network that was scripted or traced (torch.jit), which cannot be "
            "exported: return the Python network with the same weights"
        )
    return built


def _unwrapped(module: nn.Module) -> nn.Module:
    """Remove torch.compile, DataParallel and the like around the network."""
    inner = getattr(module, WRAPPERS.get(type(module).__name__, ""), None)
    return _unwrapped(inner) if isinstance(inner, nn.Module) else module


def _load_weights(module: nn.Module, path: Path) -> None:
    given = _read_state(path)
    own = module.state_dict()
    shared = own.keys() & given.keys()
    names_by_fault = {
        "missing": [name for name in own if name not in given and not name.endswith(COUNTER_SUFFIX)],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [name for name in own if name in shared and own[name].shape != given[name].shape],
    }
    faults = [f"{len(names)} {fault} ({shorten(names)})" for fault, names in names_by_fault.items() if names]
    if faults:
        raise ModelError(f"{path}: the weights are not those of the builder's network: {', '.join(faults)}")
    with foreign_code("loading the weights"):
        module.load_state_dict(given, strict=False)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = _read_file(path)
    except OSError as error:
        advice = ": recald downloads nothing, give a file" if ":/" in str(path) else ""
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}{advice}") from error
    except UnpicklingError as error:
        raise ModelError(
            f"{path}: damaged, or holds more than tensors: save only the network's state_dict()"
        ) from error
    except (safetensors.SafetensorError, *READ_ERRORS) as error:
        raise ModelError(f"{path}: not a weights file that can be read: {first_line(error)}") from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise ModelError(f"{path}: expected a state_dict of tensors, or one under the key 'state_dict'")
    return {_without_prefix(str(name)): tensor for name, tensor in state.items()}


def _without_prefix(name: str) -> str:
    for prefix in WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _read_file(path: Path) -> Any:
    open_regular(path).close()  # to read a FIFO would wait for ever
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch about damaged files, which are refused or load whole
        return torch.load(path, map_location="cpu", weights_only=True)
