"""Pictures of a report: frames as they came and as the network saw them, and the kernels of ρ; all as data: URLs."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from deploy.model.card import Normalisation
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError
from deploy.store.dossier import Number
from deploy.store.dossier_archive import DossierArchive, Filed

SHOWN_SIDE = 128  # pixels, about: a frame of 32x32 is enlarged, pixel by pixel
LARGEST_SIDE = 640  # of a picture on the page; the kept file is whole
KERNEL_SIDE = 105


class Pair(NamedTuple):
    """before: as the frame came, after: as the network would see it; None where ρ is not stored."""

    before: str
    after: str | None


class Gallery(NamedTuple):
    """pairs: of the frames that are still here. said: what there is to say of them."""

    pairs: list[Pair]
    said: str


def gallery(filed: Filed, archive: DossierArchive, store: ArtefactStore) -> Gallery:
    """The kept frames of a recalibration, with what the candidate makes of them."""
    kept = filed.dossier.frames.kept
    if not kept:
        return Gallery([], "Frames are not kept: recalibrate.keep_frames was 0.")
    try:
        frames = archive.frames(filed)
    except StoreError as error:
        return Gallery([], f"The kept frames are not shown: {error}.")
    if not frames:
        return Gallery(
            [], f"The {len(kept)} frame(s) that were kept are deleted, by `recald purge` or for their space."
        )
    images = np.stack([_pixels(frame) for frame in frames])  # (n, h, w, C)
    after, said = _through(filed, store, images)
    lost = f" {len(kept) - len(frames)} of {len(kept)} kept frames are deleted." if len(frames) < len(kept) else ""
    return Gallery([Pair(url(b), None if after is None else url(after[n])) for n, b in enumerate(images)], said + lost)


def _through(filed: Filed, store: ArtefactStore, images: np.ndarray) -> tuple[np.ndarray | None, str]:
    """The images after the candidate, if it is stored, and what there is to say of it."""
    dossier = filed.dossier
    held_out = "Of the frames that judged, as they came"
    if dossier.candidate is None:
        return None, f"{held_out}. A candidate that does not pass is not stored, so there is nothing to apply to them."
    if dossier.candidate == FACTORY:
        return None, f"{held_out}, which is how the network is to see them: without ρ."
    try:
        homogenizer = store.get(dossier.candidate, dossier.model).homogenizer
    except StoreError as error:
        return None, f"{held_out}. ρ cannot be applied to them: {error}."
    said = f"{held_out}, and as ρ makes them: computed anew from the stored weights, whose SHA-256 is the version."
    return _apply(homogenizer, images, dossier.normalisation), said


def _apply(homogenizer: nn.Module, images: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
    frames = (torch.from_numpy(images).float() / 255 - mean) / std
    with torch.no_grad():
        restored = homogenizer(frames.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    grey: np.ndarray = ((restored * std + mean) * 255).round().clamp(0, 255).byte().numpy()
    return grey


def kernel_picture(kernel: Sequence[Sequence[Number]]) -> str:
    """A kernel (k, k): orange adds, blue takes away, by the root of the weight, so that small ones show."""
    weights = np.nan_to_num(np.array(kernel, dtype=float))
    strength = np.sqrt(np.abs(weights) / max(np.abs(weights).max(), 1e-9))[..., None]
    colour = np.where(weights[..., None] > 0, (201.0, 88.0, 12.0), (25.0, 92.0, 173.0))
    return url((255 + strength * (colour - 255)).round().astype(np.uint8), KERNEL_SIDE)


def url(image: np.ndarray, side: int = SHOWN_SIDE) -> str:
    """An image (h, w, C) uint8 as a data: URL of a PNG file, small ones enlarged and large ones reduced."""
    height, width = image.shape[:2]
    scale = min(max(1, round(side / min(height, width))), LARGEST_SIDE / max(height, width))
    size = round(scale * width), round(scale * height)
    method = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    shown = cv2.resize(np.ascontiguousarray(image[:, :, ::-1]), size, interpolation=method)
    done, data = cv2.imencode(".png", shown)
    assert done
    return f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"


def _pixels(png: bytes) -> np.ndarray:
    """(h, w, C) uint8, as it was kept: its SHA-256 is checked, so it is a picture that can be read."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image[:, :, None] if image.ndim == 2 else image[:, :, ::-1]
