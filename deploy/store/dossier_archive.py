"""The dossiers of a state directory: one sealed file for each recalibration, and frames beside it where asked for.

A dossier is named by the SHA-256 of its bytes, `root`/recalibrations/SENSOR/DIGEST.json, and the audit log names it so
too. Its frames are DIGEST-0.png and so on: the dossier names their SHA-256, and any of them may be gone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deploy.files import seal, sweep, unseal, write_atomically
from deploy.store.artefacts import SENSOR, StoreError
from deploy.store.dossier import Dossier, read_dossier

# Of a sensor: at a fit an hour those of the last eight days, some 20 kB each. What was decided stays in the audit log.
KEPT = 200

log = logging.getLogger(__name__)


class Filed(NamedTuple):
    """A dossier as it lies on the disk."""

    digest: str
    dossier: Dossier
    path: Path


class DossierArchive:
    """Written by the worker, read by anybody; nothing is believed unchecked."""

    def __init__(self, root: Path) -> None:
        self.folder = root / "recalibrations"

    def put(self, dossier: Dossier, frames: Sequence[bytes] = (), quota: int = 0) -> str:
        """Write a dossier, then its frames, each a PNG file; returns its digest.

        quota: bytes for all kept frames together; the oldest go. The oldest dossiers of the sensor go too.
        OSError where the dossier could not be written. Frames that could not are told to the log: they are examples.
        """
        kept = [hashlib.sha256(frame).hexdigest() for frame in frames]
        dossier = dossier.model_copy(update={"frames": dossier.frames.model_copy(update={"kept": kept})})
        data = seal(dossier.model_dump(mode="json"))
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(dossier.sensor, digest)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # frames may lie in it
        self._retain(dossier.sensor, KEPT - 1)  # first: a disk may be full
        write_atomically(path, data)
        try:
            for number, frame in enumerate(frames):
                write_atomically(frame_path(path, number), frame)
            self._bound(quota)
        except OSError as error:
            log.warning("%s: not all of its frames are kept: %s", path, error)
        return digest

    def path(self, sensor: str, digest: str) -> Path:
        """Where the dossier with this digest lies."""
        return self._of(sensor) / f"{digest}.json"

    def paths(self, sensor: str | None = None) -> list[Path]:
        """Every file of dossiers, whole or not."""
        return sorted(self._of(sensor).glob("*.json") if sensor else self.folder.glob("*/*.json"))

    def filed(self, sensor: str | None = None) -> list[Filed]:
        """All whole dossiers, the newest first; `recald verify` tells of those that are damaged."""
        found = []
        for path in self.paths(sensor):
            try:
                found.append(self.read(path))
            except StoreError as error:
                log.warning("%s", error)
        return sorted(found, key=lambda one: (one.dossier.at, one.digest), reverse=True)

    def read(self, path: Path) -> Filed:
        """The dossier in a file; StoreError where it is not as it was written."""
        try:
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() != path.stem:
                raise ValueError("its SHA-256 is not the one it is named by")
            return Filed(path.stem, read_dossier(unseal(data)), path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise StoreError(f"{path}: damaged: {error}") from error

    def frames(self, filed: Filed) -> list[bytes]:
        """Those of its frames that are still here; StoreError where one is not as it was written."""
        there = [(frame_path(filed.path, n), kept) for n, kept in enumerate(filed.dossier.frames.kept)]
        return [_whole(path, digest) for path, digest in there if path.exists()]

    def purge(self, sensor: str | None = None) -> int:
        """Remove all kept frames, of one sensor or of all, and what a killed writer left of any; returns how many."""
        paths = list(self._kept(sensor))
        for path in paths:
            path.unlink(missing_ok=True)
        sweep(self._of(sensor) if sensor else self.folder)
        return len(paths)

    def missing(self, sensor: str, named: Sequence[str]) -> list[str]:
        """Of the digests that the audit log names for a sensor, newest first, those that should be here and are not.

        The newest KEPT are kept, among them those that the log does not name: a daemon was killed before it could.
        """
        here = {path.stem for path in self.paths(sensor)}
        return [digest for digest in named[: max(0, KEPT - len(here - {*named}))] if digest not in here]

    def _retain(self, sensor: str, keep: int) -> None:
        """Remove the oldest of a sensor; frames go first, for without its dossier nobody knows what a frame is."""
        for one in self.filed(sensor)[keep:]:
            for path in one.path.parent.glob(f"{one.digest}-*.png"):
                path.unlink(missing_ok=True)
            one.path.unlink(missing_ok=True)

    def _bound(self, quota: int) -> None:
        """Remove the oldest kept frames until all of them together take at most `quota` bytes."""
        found = []
        for path in self._kept():
            with suppress(FileNotFoundError):  # somebody purges them
                found.append((path.stat().st_mtime_ns, path, path.stat().st_size))
        excess = sum(size for _, _, size in found) - quota
        for _, path, size in sorted(found):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _kept(self, sensor: str | None = None) -> Iterator[Path]:
        return self._of(sensor).glob("*.png") if sensor else self.folder.glob("*/*.png")

    def _of(self, sensor: str) -> Path:
        if not SENSOR.fullmatch(sensor):
            raise StoreError(f"{sensor[:80]!r} is not a sensor id: letters, digits and _ . - only")
        return self.folder / sensor


def frame_path(dossier: Path, number: int) -> Path:
    """Where the frame of this number lies, beside its dossier."""
    return dossier.with_name(f"{dossier.stem}-{number}.png")


def _whole(path: Path, digest: str) -> bytes:
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != digest:
        raise StoreError(f"{path}: damaged: its SHA-256 is not the one that its dossier names")
    return data
