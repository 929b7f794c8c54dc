"""Load the frozen model Φ, if its bytes are those that its card names."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from deploy.files import read_regular
from deploy.model.card import ModelCard, OutputKind, card_path
from deploy.model.document import load_document
from deploy.model.output import assumed_output, check_stated_output
from deploy.model.program import ModelError, load_program, run_once


@dataclass(frozen=True)
class FrozenModel:
    """Φ as loaded. `digest` is the SHA-256 of the file's bytes, and equal to the one on the card.

    output: what Φ's output is, by the card, or found out for a card that does not say it. class_count: how many classes
    it tells apart; None where it is no classifier.
    """

    module: nn.Module
    digest: str
    card: ModelCard
    path: Path
    output: OutputKind
    class_count: int | None = None


def load_frozen(path: Path, pinned: str | None = None) -> FrozenModel:
    """Load the model file `path` and the card beside it.

    Nothing in the file is interpreted before its digest is known to be `pinned`, if that is given, and that of the
    card. Raises ModelError, and DocumentError for a card with mistakes.
    """
    data = _read(path)
    digest = hashlib.sha256(data).hexdigest()
    if pinned is not None and digest != pinned:
        raise ModelError(
            f"{path}: its SHA-256 is {digest}, model.sha256 in the configuration pins {pinned}: deploy the certified "
            "model, or change the pin on purpose"
        )
    card = _load_card(path)
    if digest != card.sha256:
        raise ModelError(
            f"{path}: its SHA-256 is {digest[:12]}…, its card says {card.sha256[:12]}…: "
            "the file was damaged or exchanged; restore it, or export it again"
        )
    try:
        module = load_program(data)
    except ModelError as error:
        exporter = card.exported.get("torch", "of unknown version")
        raise ModelError(
            f"{path}: {error} (exported by torch {exporter}, this is {torch.__version__}: the exporting one must not "
            "be newer)"
        ) from error
    try:
        output = run_once(module, torch.zeros(1, *card.input.shape))
        check_class_count(output, card)
        check_stated_output(card.output, output)
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error
    kind = card.output or assumed_output(card.classes is not None, output)
    return FrozenModel(module, digest, card, path, kind, None if kind == "none" else output.shape[1])


def check_class_count(output: torch.Tensor, card: ModelCard) -> None:
    """Check that Φ's output (N, classes) has one value for each class on the card. Raises ModelError."""
    if card.classes is not None and output.shape[1:] != (len(card.classes),):
        raise ModelError(
            f"the card names {len(card.classes)} classes, but an image gives {tuple(output.shape[1:])} "
            "values: correct the list of classes (names that hold commas: --classes-file, one name a line)"
        )


def _read(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise ModelError(f"{path}: the model cannot be read: {error.strerror}") from error


def _load_card(path: Path) -> ModelCard:
    card = card_path(path)
    if not card.exists():
        raise ModelError(f"{card}: the model card is missing: `recald export` writes it beside the model")
    return load_document(card, ModelCard)
