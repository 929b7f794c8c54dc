"""Clean-frame measurements beside the model: a safetensors file that the card names by its SHA-256.

The model file is not touched. The card is replaced last, so that a kill at any point leaves what was there before.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from deploy.card import CommissionCard, card_path
from deploy.files import write_atomically
from deploy.frozen import FrozenModel, ModelError

AGAIN = "restore it, measure again with `recald commission`, or do without with its --remove"


def clean_path(model: Path, digest: str) -> Path:
    """Named after its content, so that a new one never replaces the one that the card still names."""
    return model.with_name(f"{model.stem}.clean-{digest[:12]}.safetensors")


def save_clean(frozen: FrozenModel, clean: dict[str, Tensor], frames: int) -> None:
    """Write the measurements, taken of so many frames, and name them in the model's card."""
    data = safetensors.torch.save(clean)
    digest = hashlib.sha256(data).hexdigest()
    write_atomically(clean_path(frozen.path, digest), data)
    _exchange(frozen, CommissionCard(frames=frames, sha256=digest))


def remove_clean(frozen: FrozenModel) -> None:
    """Let the card name no measurements any more, and delete them."""
    _exchange(frozen, None)


def load_clean(frozen: FrozenModel) -> dict[str, Tensor] | None:
    """The measurements that the card names; None where it names none.

    Raises ModelError where the file is missing or is not the one the card names.
    """
    named = frozen.card.commissioned
    if named is None:
        return None
    path = clean_path(frozen.path, named.sha256)
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
    before = frozen.card.commissioned
    card = frozen.card.model_copy(update={"commissioned": commissioned})
    write_atomically(card_path(frozen.path), card.to_yaml().encode())
    if before is not None and before != commissioned:
        clean_path(frozen.path, before.sha256).unlink(missing_ok=True)
