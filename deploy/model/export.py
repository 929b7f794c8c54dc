"""Export a trained float network to a model file and its card, and refuse networks that recald could not run."""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Sequence
from contextlib import redirect_stderr
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from calibrate.errors import RecaldError
from calibrate.features.taps import NoBatchNorm, is_batchnorm, tap
from deploy.files import digest_file, write_atomically
from deploy.model.builder import build_module, foreign_code, shorten
from deploy.model.card import CommissionCard, InputCard, ModelCard, card_path
from deploy.model.document import MAX_DOCUMENT_BYTES, DocumentError, load_document
from deploy.model.frozen import check_class_count
from deploy.model.frozen_batchnorm import restore_batchnorm_layers
from deploy.model.mistakes import describe_mistake
from deploy.model.output import OutputKind, stated_output
from deploy.model.program import (
    ModelError,
    export_program,
    load_program,
    relative_error,
    run_once,
    save_program,
)

MODEL_SUFFIX = ".pt2"
EXPORT_TOLERANCE = 1e-5  # the traced program runs the same float32 operators; a larger error is another computation
CHECK_BATCH_SIZE = 3  # differs from the batch size of the trace, which is 2
MAX_MEAN = 1.0  # no mean of values 0..1 is larger
MAX_STD = 10.0  # values 0..1 deviate by less; a larger one is on the scale 0..255
SERVED_TYPES = frozenset(  # of an output: those that numpy and the readers of results have
    (torch.float16, torch.float32, torch.float64, torch.bool, torch.uint8)
    + (torch.int8, torch.int16, torch.int32, torch.int64)
)

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
    kind: OutputKind | None = None,
) -> ModelCard:
    """Write the model file `output` (.pt2) and its card, from a builder and its trained weights.

    `input_shape` is (channels, height, width); `mean` and `std` are those of Normalisation; `kind` says what the
    network's output is, if that is known. Raises ModelError for a network that `recald run` would refuse, OSError if a
    file cannot be written.
    """
    if output.suffix != MODEL_SUFFIX:
        raise ModelError(f"{output}: a model file is named *{MODEL_SUFFIX}")
    check_scale(mean, std)
    before, draft = _card_before(output), _draft_card(name or output.stem, input_shape, mean, std, classes)
    try:
        data, found = _export(build_module(builder, weights), draft, kind)
    except RecaldError as error:
        raise ModelError(f"{builder}: {error}") from error
    exported = {  # stored on the card: these keys and texts must not change
        "factory": builder,
        "weights": digest_file(weights) if weights is not None else "from the factory",
        "torch": str(torch.__version__),
    }
    digest = hashlib.sha256(data).hexdigest()
    card = draft.model_copy(update={"sha256": digest, "exported": exported, "output": found})
    if before is not None:
        card = card.model_copy(update={"input": _with_values_of(before, card.input, output)})
        card = card.model_copy(update={"commissioned": _commission_of(before, card, output)})
    text = card.to_yaml().encode()
    if len(text) > MAX_DOCUMENT_BYTES:
        raise ModelError(f"the card would have {len(text)} bytes, at most {MAX_DOCUMENT_BYTES}: shorten the names")
    write_atomically(output, data)  # after a kill between the two writes the old card refuses the new model
    write_atomically(card_path(output), text)
    return card


def _card_before(output: Path) -> ModelCard | None:
    """Return the card that the export replaces; say so where it cannot be read."""
    try:
        return load_document(card_path(output), ModelCard) if card_path(output).exists() else None
    except DocumentError as error:
        log.warning("the card before cannot be read, so nothing of it is kept: %s", error.problems[0])
        return None


def _with_values_of(before: ModelCard, new: InputCard, output: Path) -> InputCard:
    """Keep what the values of pictures mean, which people write into the card by hand; say so."""
    values = {"bits": before.input.bits, "inverted": before.input.inverted}
    kept = new.model_copy(update=values)
    if kept != new:
        said = ", ".join(f"{name} {value}" for name, value in values.items())
        log.warning("%s: kept from the card before: %s", output, said.lower())
    return kept


def _commission_of(before: ModelCard, card: ModelCard, output: Path) -> CommissionCard | None:
    """Return the measurement that the card before names, if it holds for the new one; say so where it is dropped."""
    commissioned = before.commissioned
    if commissioned is None:
        return None
    read_by = {  # where the measurement does not say it, the card does that names it
        "input": commissioned.input or before.input,
        "normalisation": commissioned.normalisation or before.normalisation,
    }
    differences = commissioned.model_copy(update=read_by).differences(card)
    if before.sha256 != card.sha256:
        differences.append(f"sha256 was {before.sha256[:12]}… and is {card.sha256[:12]}…")
    if not differences:
        return commissioned
    of_what = f"{commissioned.frames} clean frames was of the model before ({'; '.join(differences)})"
    log.warning("%s: the measurement of %s: commission this one with `recald commission`", output, of_what)
    return None


def check_scale(mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that mean and std are those of values 0..1, not of grey levels 0..255. Raises ModelError."""
    if max(map(abs, mean), default=0) <= MAX_MEAN and max(std, default=0) <= MAX_STD:
        return
    as_text = [",".join(f"{value / 255:.4g}" for value in values) for values in (mean, std)]
    raise ModelError(
        f"mean {', '.join(f'{m:g}' for m in mean)} and std {', '.join(f'{s:g}' for s in std)} are on the scale 0..255: "
        f"divide them by 255: --mean {as_text[0]} --std {as_text[1]}"
    )


def check_batchnorm(module: nn.Module) -> None:
    """Check that all BatchNorm layers have trained running statistics, and use them. Raises ModelError."""
    layers = {name: layer for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)}
    without = [name for name, layer in layers.items() if layer.running_mean is None]
    if without:
        raise ModelError(
            f"BatchNorm without running statistics: {shorten(without)}: build it with track_running_stats=True "
            "and train it, or re-estimate the statistics on training images, then export again"
        )
    training = [name for name, layer in layers.items() if layer.training]
    if training:
        raise ModelError(
            f"BatchNorm in training mode after eval(): {shorten(training)}: each frame would change its statistics; "
            "correct the train() of the network that does not reach it"
        )
    if layers and all(_is_untrained(layer) for layer in layers.values()):
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


def _export(module: nn.Module, card: ModelCard, kind: OutputKind | None) -> tuple[bytes, OutputKind]:
    """Trace the network, do with the stored program what `recald run` does; return it, and what its output is."""
    images = torch.randn(CHECK_BATCH_SIZE, *card.input.shape, generator=torch.Generator().manual_seed(0))
    check_batchnorm(module)
    expected = _run_network(module, images)
    check_class_count(expected, card)
    restore_batchnorm_layers(module)
    with redirect_stderr(io.StringIO()):  # torch prints the graph of a network that it cannot trace
        data = save_program(export_program(module, images))
        loaded = load_program(data)
        again = load_program(save_program(export_program(loaded, images)))  # as the backends trace it
    for program in (loaded, again):
        _check_outputs(program, images, expected)
    _check_taps(module, loaded, images)
    return data, stated_output(kind, card.classes is not None, loaded, expected)


def _run_network(module: nn.Module, images: Tensor) -> Tensor:
    """Return the output of the network before the trace; check that it serves single frames, and always alike."""
    try:
        expected = run_once(module, images)
        single = run_once(module, images[:1])
    except ModelError as error:
        types = {t.dtype for t in module.state_dict().values() if t.is_floating_point()} - {torch.float32}
        advice = f"; it keeps weights in {' and '.join(map(str, types))}: call .float() in the builder" if types else ""
        raise ModelError(f"{error}{advice}") from error
    if expected.dtype not in SERVED_TYPES:
        raise ModelError(f"its output is of type {expected.dtype}, which results cannot hold: return .float()")
    if not relative_error(single, expected[:1]) <= EXPORT_TOLERANCE:
        raise ModelError(
            "one image alone gives another output than the same image in a batch, or in the next pass: its forward "
            "must depend on nothing but the images (no random numbers, no counters, no statistics of the batch)"
        )
    return expected


def _check_outputs(program: nn.Module, images: Tensor, expected: Tensor) -> None:
    """Check that a program computes what the network computes, for single frames too. Raises ModelError."""
    for count in (len(images), 1):
        output = run_once(program, images[:count])
        error = relative_error(output, expected[:count]) if output.shape == expected[:count].shape else torch.inf
        if not error <= EXPORT_TOLERANCE:
            raise ModelError(
                f"the exported program differs from the network by {error:.1e}: its forward must depend on "
                "nothing but the images (no random numbers, no Python state)"
            )


def _check_taps(module: nn.Module, program: nn.Module, images: Tensor) -> None:
    """Check that drift checks and fits can read the BatchNorm layers of the program. Raises RecaldError."""
    try:
        taps = tap(program)
    except NoBatchNorm as error:
        raise ModelError(_explain_missing_batchnorm(module)) from error
    frames = images.clone().requires_grad_()
    total = torch.stack([feature.float().square().mean() for feature in taps(frames).features]).sum()
    if total.requires_grad:
        with foreign_code("the gradient of its BatchNorm layers' inputs"):
            total.backward()
    if frames.grad is None or not frames.grad.any():
        raise ModelError(
            "no BatchNorm layer's input depends on the frames by a gradient, which fits need: is it detached?"
        )


def _explain_missing_batchnorm(module: nn.Module) -> str:
    if any(_looks_folded(name, layer) for name, layer in module.named_modules()):
        return "its BatchNorm layers were folded into the convolutions: export the unfused float model"
    idle = [name for name, layer in module.named_modules() if is_batchnorm(layer)]
    if idle:
        return f"its forward runs none of its BatchNorm layers ({shorten(idle)}): call them as layers or F.batch_norm"
    others = {type(layer).__name__: None for layer in module.modules() if "Norm" in type(layer).__name__}
    found = f", only {shorten(others)}, which ships none" if others else ""
    return (
        f"no BatchNorm layer found: the method needs the running statistics such layers carry{found} "
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
