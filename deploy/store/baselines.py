"""Keep what was learned of a sensor's healthy frames: a file for each homogenizer that served it, named by its hash."""

from __future__ import annotations

import errno
import hashlib
from contextlib import suppress
from pathlib import Path

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from deploy.files import read_regular, write_atomically
from deploy.store.artefacts import FACTORY, StoreError

MAX_BASELINE_BYTES = 256 << 20  # the statistics of pictures of 1000x1000 pixels
MAX_BASELINES = 16  # of a sensor: a homogenizer that is recalled finds its own again
DIGEST_DIGITS = 16  # of the SHA-256 of a file, in its name: it detects damage


class BaselineStore:
    """The baselines of one frozen model, below `root`/sensors/ID.

    reading: what decides on how frames become the model's input, beside its digest `model`; what was learned while they
    were read in another way is not used. kept: keys of baselines that are never removed, whatever else is saved.
    """

    def __init__(self, root: Path, model: str, reading: str = "", kept: tuple[str, ...] = (FACTORY,)) -> None:
        self._root = root
        self._prefix = f"baseline-{hashlib.sha256(f'{model} {reading}'.encode()).hexdigest()[:12]}-"
        self._kept = tuple(self._stem(key) for key in kept)

    def save(self, sensor: str, homogenizer: str, tensors: dict[str, Tensor]) -> None:
        """Replace the baseline of a sensor while `homogenizer` (a version) serves.

        Raises OSError, also for more than MAX_BASELINE_BYTES.
        """
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        if len(data) > MAX_BASELINE_BYTES:
            raise OSError(errno.EFBIG, f"larger than {MAX_BASELINE_BYTES} bytes", sensor)
        folder, stem = self._root / "sensors" / sensor, self._stem(homogenizer)
        path = folder / f"{stem}{hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS]}.safetensors"
        write_atomically(path, data)
        self._retain(folder, stem, path)

    def load(self, sensor: str, homogenizer: str) -> dict[str, Tensor] | None:
        """Return the tensors of a sensor's baseline; None if there is none. Raises StoreError for a damaged file."""
        paths = (self._root / "sensors" / sensor).glob(f"{self._stem(homogenizer)}*.safetensors")
        newest = max(paths, key=_modified, default=None)
        return _read(newest) if newest else None

    def remove(self, sensor: str) -> None:
        """Remove all baselines of a sensor that are of this model, read as now. Raises OSError."""
        for path in (self._root / "sensors" / sensor).glob(f"{self._prefix}*.safetensors"):
            path.unlink(missing_ok=True)

    def _stem(self, homogenizer: str) -> str:
        return f"{self._prefix}{homogenizer[:12]}-"

    def _retain(self, folder: Path, stem: str, written: Path) -> None:
        """Remove what the written file replaces, the files of other models, and the oldest."""
        newest_first = sorted(folder.glob("baseline-*.safetensors"), key=_modified, reverse=True)
        own = [path for path in newest_first if path.name.startswith(self._prefix)]
        others = [path for path in own if not path.name.startswith((stem, *self._kept))]
        kept = [path for path in own if path.name.startswith(self._kept) and not path.name.startswith(stem)]
        kept += others[: MAX_BASELINES - 1]
        for path in newest_first:
            if path not in (*kept, written):
                with suppress(OSError):  # it does no harm
                    path.unlink()


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _read(path: Path) -> dict[str, Tensor]:
    try:
        data = read_regular(path, MAX_BASELINE_BYTES)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest()[:DIGEST_DIGITS] != path.stem.rpartition("-")[2]:
        raise StoreError(f"{path}: damaged: its content is not what its name says")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(data)
    except SafetensorError as error:
        raise StoreError(f"{path}: holds no baseline: {error}") from error
    return tensors
