"""Clean-frame measurements beside the model: a safetensors file that the card names by its SHA-256.

The model file is not touched. The card is replaced after the file is written and before others are deleted: a kill at
any point leaves a card that names a whole file, at worst beside one that nothing names, until the next exchange.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from calibrate.features.taps import Taps
from calibrate.source.commissioned import CleanData
from deploy.files import write_atomically
from deploy.model.card import CommissionCard, ModelCard, card_path
from deploy.model.document import load_document
from deploy.model.frozen import FrozenModel, ModelError

AGAIN = "restore it, measure again with `recald commission`, or do without with its --remove"


def clean_data_path(model: Path, digest: str) -> Path:
    """Named after its content, so that a new one never replaces the one that the card still names."""
    return model.with_name(f"{model.stem}.clean-{digest[:12]}.safetensors")


def save_clean_data(frozen: FrozenModel, clean: dict[str, Tensor], frames: int) -> None:
    """Write the measurements, taken of so many frames, and name them in the model's card."""
    data = safetensors.torch.save(clean)
    digest = hashlib.sha256(data).hexdigest()
    write_atomically(clean_data_path(frozen.path, digest), data)
    _exchange(frozen, CommissionCard(frames=frames, sha256=digest))


def remove_clean_data(frozen: FrozenModel) -> None:
    """Let the card name no measurements any more, and delete them."""
    _exchange(frozen, None)


def read_clean_tensors(frozen: FrozenModel) -> dict[str, Tensor] | None:
    """The measurements that the card names; None where it names none.

    Raises ModelError where the file is missing or is not the one the card names.
    """
    named = frozen.card.commissioned
    if named is None:
        return None
    path = clean_data_path(frozen.path, named.sha256)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}: {AGAIN}") from error
    if hashlib.sha256(data).hexdigest() != named.sha256:
        raise ModelError(f"{path}: is not the file that the model card names: {AGAIN}")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ModelError(f"{path}: holds no measurements ({error}): {AGAIN}") from error
    return tensors


def _exchange(frozen: FrozenModel, commissioned: CommissionCard | None) -> None:
    """Replace the card, if it is still that of this model, and then delete the measurements that it does not name."""
    card = load_document(card_path(frozen.path), ModelCard)
    if card.sha256 != frozen.digest:
        raise ModelError(f"{frozen.path}: the model was exchanged meanwhile; measure again")
    card = card.model_copy(update={"commissioned": commissioned})
    write_atomically(card_path(frozen.path), card.to_yaml().encode())
    kept = commissioned and clean_data_path(frozen.path, commissioned.sha256)
    for path in list(frozen.path.parent.iterdir()):
        if path.name.startswith(f"{frozen.path.stem}.clean-") and path.suffix == ".safetensors" and path != kept:
            path.unlink(missing_ok=True)


def load_clean_data(frozen: FrozenModel, taps: Taps) -> CleanData | None:
    """What was measured on clean frames, where it was; ModelError where it is damaged or of another model."""
    tensors, card = read_clean_tensors(frozen), frozen.card
    if tensors is None or card.commissioned is None:
        return None
    try:
        return CleanData.of_tensors(tensors, card.commissioned.frames, taps.reference, card.input.channels)
    except ValueError as error:
        raise ModelError(
            f"{frozen.path}: its clean-frame measurements are of another model: {error}: {AGAIN}"
        ) from error
