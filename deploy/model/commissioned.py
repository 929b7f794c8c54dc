"""The measurement of clean frames beside the model: a safetensors file that the card names by its SHA-256.

The model file is never touched. A new measurement is written first, then the card is replaced, then old files are
deleted. After a kill at any point the card names a whole file. A file that no card names may then be left over; the
next measurement deletes it.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from calibrate.baseline.baseline import BASELINE_PREFIX, Baseline
from calibrate.baseline.frames import MAX_CHANNELS
from calibrate.estimate.estimator import AccuracyEstimator
from calibrate.features.taps import Taps
from calibrate.readouts.picture_statistics import PictureStatistics
from calibrate.source.commissioned import CleanData
from deploy.files import read_regular, write_atomically
from deploy.model.card import CommissionCard, ModelCard, card_path
from deploy.model.document import load_document
from deploy.model.frozen import FrozenModel
from deploy.model.program import ModelError

PICTURES = "pictures."  # leads the names of the tensors that describe the clean pictures themselves
CLEAN_DATA_ADVICE = "restore it, measure again with `recald commission`, or do without with its --remove"

log = logging.getLogger(__name__)


def clean_data_path(model: Path, digest: str) -> Path:
    """Where a measurement with this SHA-256 lies.

    The digest is part of the name, so that a new file never replaces the one that the card still names.
    """
    return model.with_name(f"{model.stem}.clean-{digest[:12]}.safetensors")


def save_clean_data(frozen: FrozenModel, tensors: dict[str, Tensor], frames: int) -> None:
    """Write a measurement of `frames` clean frames, and name it in the model's card.

    Raises OSError, DocumentError for a damaged card, ModelError if the model was exchanged meanwhile.
    """
    data = safetensors.torch.save(tensors)
    digest = hashlib.sha256(data).hexdigest()
    write_atomically(clean_data_path(frozen.path, digest), data)
    card = frozen.card
    named = CommissionCard(frames=frames, sha256=digest, input=card.input, normalisation=card.normalisation)
    _replace_card(frozen, named)


def remove_clean_data(frozen: FrozenModel) -> None:
    """Remove the measurement from the model's card, and delete its file. Raises like save_clean_data."""
    _replace_card(frozen, None)


def load_clean_data(frozen: FrozenModel, taps: Taps) -> CleanData | None:
    """Load the measurement that the card names; None if it names none.

    Raises ModelError if the file is missing, damaged, or belongs to another model, or the card now reads frames in
    another way than the measurement did.
    """
    tensors, card = read_clean_tensors(frozen), frozen.card
    if tensors is None or card.commissioned is None:
        return None
    if differences := card.commissioned.differences(card):
        raise ModelError(
            f"{card_path(frozen.path)}: changed since clean frames were measured: {'; '.join(differences)}: "
            f"{CLEAN_DATA_ADVICE}"
        )
    load_estimator(frozen)  # a file of which a part is damaged is refused as a whole
    if load_baseline(frozen, taps) is None and any(name.startswith(BASELINE_PREFIX) for name in tensors):
        log.warning("%s: an earlier recald commissioned its baseline, which is not used: commission again", frozen.path)
    load_pictures(frozen)
    try:
        return CleanData.of_tensors(tensors, card.commissioned.frames, taps.reference, card.input.channels)
    except ValueError as error:
        raise ModelError(
            f"{frozen.path}: its clean-frame measurements are of another model: {error}: {CLEAN_DATA_ADVICE}"
        ) from error


def load_estimator(frozen: FrozenModel) -> AccuracyEstimator | None:
    """Load the accuracy estimate that was learned with the measurement; None if there is none.

    Raises ModelError if the file is missing, damaged, or belongs to another model.
    """
    try:
        estimator = AccuracyEstimator.of_tensors(read_clean_tensors(frozen) or {})
        if estimator is not None and estimator.classes != frozen.class_count:
            raise ValueError(f"the accuracy estimate is for {estimator.classes} classes")
    except ValueError as error:
        raise ModelError(
            f"{frozen.path}: its clean-frame measurements are of another model: {error}: {CLEAN_DATA_ADVICE}"
        ) from error
    return estimator


def load_baseline(frozen: FrozenModel, taps: Taps) -> Baseline | None:
    """Load the baseline of healthy frames that was learned with the measurement; None if there is none.

    Raises ModelError if the file is missing, damaged, or belongs to another model.
    """
    channels = min(sum(map(len, taps.reference.means)), MAX_CHANNELS)
    try:
        return Baseline.of_tensors(read_clean_tensors(frozen) or {}, channels, frozen.class_count or 0)
    except ValueError as error:
        raise ModelError(
            f"{frozen.path}: its clean-frame measurements are of another model: {error}: {CLEAN_DATA_ADVICE}"
        ) from error


def load_pictures(frozen: FrozenModel) -> PictureStatistics | None:
    """Load the statistics of the clean pictures themselves; None if there are none.

    Raises ModelError if the file is missing or damaged.
    """
    stored = read_clean_tensors(frozen) or {}
    own = {name.removeprefix(PICTURES): tensor for name, tensor in stored.items() if name.startswith(PICTURES)}
    try:
        return PictureStatistics.of_tensors(own) if own else None
    except ValueError as error:
        raise ModelError(f"{frozen.path}: its clean-frame measurements: {error}: {CLEAN_DATA_ADVICE}") from error


def picture_tensors(statistics: PictureStatistics) -> dict[str, Tensor]:
    """Return the statistics of clean pictures by the names under which the file stores them."""
    return {PICTURES + name: tensor for name, tensor in statistics.tensors().items()}


def read_clean_tensors(frozen: FrozenModel) -> dict[str, Tensor] | None:
    """Read the file that the card names; None if it names none. Raises ModelError if it is missing or damaged."""
    named = frozen.card.commissioned
    if named is None:
        return None
    path = clean_data_path(frozen.path, named.sha256)
    try:
        data = read_regular(path)
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}: {CLEAN_DATA_ADVICE}") from error
    if hashlib.sha256(data).hexdigest() != named.sha256:
        raise ModelError(f"{path}: is not the file that the model card names: {CLEAN_DATA_ADVICE}")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except SafetensorError as error:
        raise ModelError(f"{path}: holds no measurements ({error}): {CLEAN_DATA_ADVICE}") from error
    return tensors


def _replace_card(frozen: FrozenModel, commissioned: CommissionCard | None) -> None:
    """Replace the card, if it is still the card of this model. Then delete the measurements it does not name."""
    card = load_document(card_path(frozen.path), ModelCard)
    if card.sha256 != frozen.digest:
        raise ModelError(f"{frozen.path}: the model was exchanged meanwhile; measure again")
    card = card.model_copy(update={"commissioned": commissioned})
    write_atomically(card_path(frozen.path), card.to_yaml().encode())
    kept = commissioned and clean_data_path(frozen.path, commissioned.sha256)
    for path in list(frozen.path.parent.iterdir()):
        if path.name.startswith(f"{frozen.path.stem}.clean-") and path.suffix == ".safetensors" and path != kept:
            path.unlink(missing_ok=True)
