"""The pictures of a report as data: URLs: frames as they came and after ρ, and the kernels of ρ."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import nn

from daemon.levels import to_depth, to_levels
from deploy.model.card import Normalisation
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError
from deploy.store.dossier import NumberOrNone
from deploy.store.dossier_archive import DossierArchive, StoredDossier

FRAME_SIDE_PX = 128  # about: a frame of 32x32 is enlarged by a whole factor, pixel by pixel
MAX_PICTURE_SIDE_PX = 640  # on the page; the kept file is whole
KERNEL_SIDE_PX = 105


class FramePair(NamedTuple):
    """A frame as it came, and as the network would see it; None when ρ is not stored."""

    before: str
    after: str | None


class Gallery(NamedTuple):
    """The kept frames that still exist, and a text about them."""

    pairs: list[FramePair]
    text: str


def gallery(stored: StoredDossier, archive: DossierArchive, store: ArtefactStore) -> Gallery:
    """Return the kept frames of a recalibration, each as it came and after the candidate."""
    kept = stored.dossier.frames.kept
    if not kept:
        return Gallery([], "Frames are not kept: recalibrate.keep_frames was 0.")
    try:
        frames = archive.frames(stored)
    except StoreError as error:
        return Gallery([], f"The kept frames are not shown: {error}.")
    if not frames:
        text = f"The {len(kept)} frame(s) that were kept are deleted, by `recald purge` or for their space."
        return Gallery([], text)
    images = np.stack([_decode(frame) for frame in frames])  # (n, h, w, C)
    restored, text = _apply_candidate(stored, store, images)
    if len(frames) < len(kept):
        text += f" {len(kept) - len(frames)} of {len(kept)} kept frames are deleted."
    before = [png_url(image) for image in images]
    after = [None] * len(images) if restored is None else [png_url(image) for image in restored]
    return Gallery([FramePair(*pair) for pair in zip(before, after, strict=True)], text)


def _apply_candidate(stored: StoredDossier, store: ArtefactStore, images: np.ndarray) -> tuple[np.ndarray | None, str]:
    """Return the images after the candidate, None when it is not stored, and a text about them."""
    dossier = stored.dossier
    held_out = "Of the frames that judged, as they came"
    if dossier.candidate is None:
        return None, f"{held_out}. A candidate that does not pass is not stored, so there is nothing to apply to them."
    if dossier.candidate == FACTORY:
        return None, f"{held_out}, which is how the network is to see them: without ρ."
    try:
        homogenizer = store.get(dossier.candidate, dossier.model).homogenizer
    except StoreError as error:
        return None, f"{held_out}. ρ cannot be applied to them: {error}."
    text = f"{held_out}, and as ρ makes them: computed anew from the stored weights, whose SHA-256 is the version."
    return _apply(homogenizer, images, dossier.normalisation), text


def _apply(homogenizer: nn.Module, images: np.ndarray, normalisation: Normalisation) -> np.ndarray:
    """Apply ρ to images (n, h, w, C); return what it makes of them as uint8, which a page can show."""
    mean, std = torch.tensor(normalisation.mean), torch.tensor(normalisation.std)
    frames = (torch.from_numpy(to_levels(images)) / 255 - mean) / std
    with torch.no_grad():
        restored = homogenizer(frames.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    levels: np.ndarray = ((restored * std + mean) * 255).round().clamp(0, 255).byte().numpy()
    return levels


def kernel_picture(kernel: Sequence[Sequence[NumberOrNone]]) -> str:
    """Draw a kernel (k, k): orange adds, blue takes away; by the root of the weight, so that small weights show."""
    weights = np.nan_to_num(np.array(kernel, dtype=float))
    strength = np.sqrt(np.abs(weights) / max(np.abs(weights).max(), 1e-9))[..., None]
    colour = np.where(weights[..., None] > 0, (201.0, 88.0, 12.0), (25.0, 92.0, 173.0))
    return png_url((255 + strength * (colour - 255)).round().astype(np.uint8), KERNEL_SIDE_PX)


def png_url(image: np.ndarray, side: int = FRAME_SIDE_PX) -> str:
    """Encode an image (h, w, C) as a data: URL of a PNG file, 8 bits; small ones are enlarged, large ones reduced."""
    image = to_depth(image, np.dtype(np.uint8))
    height, width = image.shape[:2]
    scale = min(max(1, round(side / min(height, width))), MAX_PICTURE_SIDE_PX / max(height, width))
    size = round(scale * width), round(scale * height)
    interpolation = cv2.INTER_NEAREST if scale >= 1 else cv2.INTER_AREA
    scaled = cv2.resize(np.ascontiguousarray(image[:, :, ::-1]), size, interpolation=interpolation)
    done, data = cv2.imencode(".png", scaled)
    assert done
    return f"data:image/png;base64,{base64.b64encode(data.tobytes()).decode()}"


def _decode(png: bytes) -> np.ndarray:
    """Decode a kept frame to (h, w, C), uint8 or uint16. Its SHA-256 was checked, so it is readable."""
    image = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image is not None
    return image[:, :, None] if image.ndim == 2 else image[:, :, ::-1]
