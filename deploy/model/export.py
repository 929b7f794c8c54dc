"""Export a trained float network to a model file and its card, and refuse networks the method cannot use.

A builder is a function without arguments that returns the network. It is named "package.module:function".
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import safetensors
import safetensors.torch
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from deploy.files import digest_file, write_atomically
from deploy.model.card import CommissionCard, ModelCard, card_path
from deploy.model.document import DocumentError, load_document
from deploy.model.frozen import check_class_count
from deploy.model.mistakes import describe_mistake
from deploy.model.program import (
    READ_ERRORS,
    ModelError,
    export_program,
    first_line,
    load_program,
    relative_error,
    run_once,
    save_program,
)

MODEL_SUFFIX = ".pt2"
EXPORT_TOLERANCE = 1e-5  # the traced program runs the same float32 operators; a larger error is another computation
CHECK_BATCH_SIZE = 3  # differs from the batch size of the trace, which is 2
MAX_NAMES_SHOWN = 3  # in an error text
DATA_PARALLEL_PREFIX = "module."  # nn.DataParallel puts it before every name
COUNTER_SUFFIX = ".num_batches_tracked"  # a counter that inference does not need, and that some exporters leave out

log = logging.getLogger(__name__)


def export_model(
    builder: str,
    weights: Path | None,
    output: Path,
    *,
    input_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    name: str | None = None,
) -> ModelCard:
    """Write the model file `output` (.pt2) and its card, from a builder and its trained weights.

    `input_shape` is (channels, height, width); `mean` and `std` are those of Normalisation. Raises ModelError for a
    network that cannot be exported, OSError if a file cannot be written.
    """
    if output.suffix != MODEL_SUFFIX:
        raise ModelError(f"{output}: a model file is named *{MODEL_SUFFIX}")
    draft = _draft_card(name or output.stem, input_shape, mean, std, classes)
    try:
        module = build_module(builder, weights)
        check_batchnorm(module)
        data = _export(module, draft)
    except ModelError as error:
        raise ModelError(f"{builder}: {error}") from error
    exported = {  # stored on the card: these keys and texts must not change
        "factory": builder,
        "weights": digest_file(weights) if weights is not None else "from the factory",
        "torch": str(torch.__version__),
    }
    card = draft.model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "exported": exported})
    card = card.model_copy(update={"commissioned": _commission_before(output, card)})
    write_atomically(output, data)  # after a kill between the two writes the old card refuses the new model
    write_atomically(card_path(output), card.to_yaml().encode())
    return card


def _commission_before(output: Path, card: ModelCard) -> CommissionCard | None:
    """Return the measurement that the card before names, if it holds for the new one; say so where it is dropped."""
    try:
        before = load_document(card_path(output), ModelCard) if card_path(output).exists() else None
    except DocumentError:  # it names nothing that could be used
        return None
    if before is None or before.commissioned is None:
        return None
    if (before.sha256, before.input, before.normalisation) == (card.sha256, card.input, card.normalisation):
        return before.commissioned
    frames, advice = before.commissioned.frames, "commission this one with `recald commission`"
    log.warning("%s: the measurement of %d clean frames was of the model before: %s", output, frames, advice)
    return None


def build_module(builder: str, weights: Path | None) -> nn.Module:
    """Call the builder "package.module:function" and load all of `weights`; returns it in evaluation mode.

    Raises ModelError.
    """
    with _current_folder_importable():
        module = _import_builder(builder)()
    if not isinstance(module, nn.Module):
        raise ModelError(f"builder {builder!r} returned {type(module).__name__}: it must return a torch.nn.Module")
    if weights is not None:
        _load_weights(module, weights)
    return module.eval()


def check_batchnorm(module: nn.Module) -> None:
    """Check that there are BatchNorm layers, and that all have trained running statistics. Raises ModelError."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    if not layers:
        raise ModelError(_explain_missing_batchnorm(module))
    without = [name for name, layer in layers.items() if layer.running_mean is None]
    if without:
        raise ModelError(
            f"BatchNorm without running statistics: {_shorten(without)}: build it with track_running_stats=True "
            "and train it, or re-estimate the statistics on training images, then export again"
        )
    if all(_is_untrained(layer) for layer in layers.values()):
        raise ModelError(
            "every BatchNorm layer still has the running statistics it starts with (mean 0, variance 1): "
            "give the trained weights"
        )


def _draft_card(
    name: str,
    input_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None,
) -> ModelCard:
    """Make a card without digest, so that wrong arguments are refused before the network is built."""
    channels, height, width = input_shape
    try:
        return ModelCard.model_validate(
            {
                "v": 1,
                "name": name,
                "sha256": "0" * 64,
                "input": {"channels": channels, "height": height, "width": width},
                "normalisation": {"mean": list(mean), "std": list(std)},
                "classes": None if classes is None else list(classes),
                "exported": {},
            }
        )
    except ValidationError as error:
        places = [(".".join(map(str, detail["loc"])), describe_mistake(detail)) for detail in error.errors()]
        raise ModelError("; ".join(": ".join(filter(None, place)) for place in places)) from error


def _export(module: nn.Module, card: ModelCard) -> bytes:
    """Trace the network, and check that the stored program computes what the network computes."""
    images = torch.randn(CHECK_BATCH_SIZE, *card.input.shape, generator=torch.Generator().manual_seed(0))
    expected = run_once(module, images)
    check_class_count(expected, card)
    data = save_program(export_program(module, images))
    error = relative_error(run_once(load_program(data), images), expected)
    if not error <= EXPORT_TOLERANCE:
        raise ModelError(
            f"the exported program differs from the network by {error:.1e}: its forward must depend on "
            "nothing but the images (no random numbers, no Python state)"
        )
    return data


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
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ModelError(
            f"builder {builder!r}: {first_line(error)}: run from the folder that holds it, or install it"
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ModelError(f"builder {builder!r}: {module_name} has no function {function_name!r}")
    return function


def _load_weights(module: nn.Module, path: Path) -> None:
    given = _read_state(path)
    own = module.state_dict()
    shared = own.keys() & given.keys()
    names_by_fault = {
        "missing": [name for name in own if name not in given and not name.endswith(COUNTER_SUFFIX)],
        "unexpected": [name for name in given if name not in own],
        "of another shape": [name for name in own if name in shared and own[name].shape != given[name].shape],
    }
    faults = [f"{len(names)} {fault} ({_shorten(names)})" for fault, names in names_by_fault.items() if names]
    if faults:
        raise ModelError(f"{path}: the weights are not those of the builder's network: {', '.join(faults)}")
    module.load_state_dict(given, strict=False)


def _read_state(path: Path) -> dict[str, torch.Tensor]:
    try:
        state = _read_file(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror or error}") from error
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
    return {name.removeprefix(DATA_PARALLEL_PREFIX): tensor for name, tensor in state.items()}


def _read_file(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return safetensors.torch.load_file(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of torch about damaged files, which are refused or load whole
        return torch.load(path, map_location="cpu", weights_only=True)


def _explain_missing_batchnorm(module: nn.Module) -> str:
    if any(_looks_folded(name, layer) for name, layer in module.named_modules()):
        return "its BatchNorm layers were folded into the convolutions: export the unfused float model"
    return (
        "no BatchNorm layer found: the method needs the running statistics such layers carry "
        "(if they were folded into the convolutions, export the unfused float model)"
    )


def _looks_folded(name: str, layer: nn.Module) -> bool:
    """Check for the traces of folding: quantized layers, or an identity with the name of a norm."""
    last = name.rpartition(".")[2].lower()
    kind = type(layer).__module__
    is_quantized = ".intrinsic" in kind or ".quantized" in kind
    return is_quantized or (isinstance(layer, nn.Identity) and ("bn" in last or "norm" in last))


def _is_untrained(layer: _BatchNorm) -> bool:
    assert layer.running_mean is not None and layer.running_var is not None
    return bool((layer.running_mean == 0).all() and (layer.running_var == 1).all())


def _shorten(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - MAX_NAMES_SHOWN
    return ", ".join(listed[:MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
