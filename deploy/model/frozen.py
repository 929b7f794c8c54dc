"""The frozen model Φ: write its file and card once, and load it only when its bytes are those of the card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn

from deploy.files import write_atomically
from deploy.model.builder import build_module, check_batchnorm
from deploy.model.card import ModelCard, card_path
from deploy.model.document import load_document
from deploy.model.program import (
    ModelError,
    export_program,
    load_program,
    relative_error,
    run_once,
    save_program,
)

SUFFIX = ".pt2"
EXPORT_TOLERANCE = 1e-5  # the traced program runs the same float32 operators; more is another computation
CHECK_IMAGES = 3  # a batch size that was not traced


@dataclass(frozen=True)
class FrozenModel:
    """Φ as loaded: `digest` is the SHA-256 of the file's bytes, equal to the card's."""

    module: nn.Module
    digest: str
    card: ModelCard
    path: Path


def digest_file(path: Path) -> str:
    """SHA-256 of the file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def load_frozen(path: Path) -> FrozenModel:
    """Load the model file `path` with the card beside it.

    Raises ModelError, or DocumentError for a card with mistakes. Nothing in the file is interpreted before
    its digest is known to be the card's.
    """
    data = _read(path)
    card = _load_card(path)
    digest = hashlib.sha256(data).hexdigest()
    if digest != card.sha256:
        raise ModelError(
            f"{path}: its SHA-256 is {digest[:12]}…, its card says {card.sha256[:12]}…: "
            "the file was damaged or exchanged; restore it, or export it again"
        )
    try:
        module = load_program(data)
    except ModelError as error:
        raise ModelError(f"{path}: {error} {_versions(card)}") from error
    try:
        _check_output(run_once(module, torch.zeros(1, *card.input.shape)), card)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    return FrozenModel(module, digest, card, path)


def export_model(
    factory: str,
    weights: Path | None,
    output: Path,
    *,
    input_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None = None,
    name: str | None = None,
) -> ModelCard:
    """Write `output` (.pt2) and its card from a factory "package.module:function" and its trained weights.

    `input_shape` is (channels, height, width); `mean` and `std` as in Normalisation. Raises ModelError.
    """
    if output.suffix != SUFFIX:
        raise ModelError(f"{output}: a model file is named *{SUFFIX}")
    draft = _draft_card(name or output.stem, input_shape, mean, std, classes)
    try:
        module = build_module(factory, weights)
        check_batchnorm(module)
        data = _export(module, draft)
    except ModelError as error:
        raise ModelError(f"{factory}: {error}") from error
    exported = {
        "factory": factory,
        "weights": digest_file(weights) if weights is not None else "from the factory",
        "torch": str(torch.__version__),
    }
    card = draft.model_copy(update={"sha256": hashlib.sha256(data).hexdigest(), "exported": exported})
    write_atomically(output, data)  # a kill after this line leaves a card that refuses the new model
    write_atomically(card_path(output), card.to_yaml().encode())
    return card


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: the model cannot be read: {error.strerror}") from error


def _versions(card: ModelCard) -> str:
    exporter = card.exported.get("torch", "of unknown version")
    return f"(exported by torch {exporter}, this is {torch.__version__}: the exporting one must not be newer)"


def _load_card(path: Path) -> ModelCard:
    beside = card_path(path)
    if not beside.exists():
        raise ModelError(f"{beside}: the model card is missing: `recald export` writes it beside the model")
    return load_document(beside, ModelCard)


def _draft_card(
    name: str,
    input_shape: tuple[int, int, int],
    mean: Sequence[float],
    std: Sequence[float],
    classes: Sequence[str] | None,
) -> ModelCard:
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
        said = (f"{'.'.join(map(str, e['loc']))} {e['msg']}".strip() for e in error.errors())
        raise ModelError("; ".join(said).replace("Value error, ", "")) from error


def _export(module: nn.Module, card: ModelCard) -> bytes:
    images = torch.randn(CHECK_IMAGES, *card.input.shape, generator=torch.Generator().manual_seed(0))
    expected = run_once(module, images)
    _check_output(expected, card)
    data = save_program(export_program(module, images))
    error = relative_error(run_once(load_program(data), images), expected)
    if not error <= EXPORT_TOLERANCE:
        raise ModelError(
            f"the exported program differs from the network by {error:.1e}: its forward must depend on "
            "nothing but the images (no random numbers, no Python state)"
        )
    return data


def _check_output(output: torch.Tensor, card: ModelCard) -> None:
    if card.classes is not None and output.shape[1:] != (len(card.classes),):
        raise ModelError(
            f"the card names {len(card.classes)} classes, but an image gives {tuple(output.shape[1:])} "
            "values: correct the list of classes"
        )
