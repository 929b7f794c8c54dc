"""The dossiers in a state directory: one sealed file for each recalibration, with some of its frames beside it.

A dossier lies at `root`/recalibrations/SENSOR/DIGEST.json, where DIGEST is the SHA-256 of its bytes. The audit log
uses this digest too. The frames are DIGEST-0.png, DIGEST-1.png and so on, and the dossier holds their SHA-256. A frame
may be missing: frames are kept only if the configuration asks for it, and may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deploy.files import read_regular, seal, sweep, unseal, write_atomically
from deploy.store.artefacts import StoreError, check_sensor_id
from deploy.store.dossier import Dossier, read_dossier

# With a fit each hour these are the last eight days, some 20 kB for each dossier. The audit log keeps the decisions.
MAX_DOSSIERS_PER_SENSOR = 200

log = logging.getLogger(__name__)


class StoredDossier(NamedTuple):
    """A dossier, its digest and its file."""

    digest: str
    dossier: Dossier
    path: Path


class DossierArchive:
    """The dossiers below `root`/recalibrations. The worker writes them, any process reads them.

    Every file is checked when it is read.
    """

    def __init__(self, root: Path) -> None:
        self.folder = root / "recalibrations"

    def put(self, dossier: Dossier, frames: Sequence[bytes] = (), quota: int = 0) -> str:
        """Write a dossier and its frames, each a PNG file; returns the digest of the dossier.

        Then the oldest dossiers of the sensor are removed, and the oldest frames of all sensors until all frames
        together take at most `quota` bytes. Raises OSError if the dossier cannot be written. Frames that cannot be
        written cost a warning: they are only examples.
        """
        kept = [hashlib.sha256(frame).hexdigest() for frame in frames]
        dossier = dossier.model_copy(update={"frames": dossier.frames.model_copy(update={"kept": kept})})
        data = seal(dossier.model_dump(mode="json"))
        digest = hashlib.sha256(data).hexdigest()
        path = self.path(dossier.sensor, digest)
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # frames are private: no access for other users
        self._remove_oldest(dossier.sensor, MAX_DOSSIERS_PER_SENSOR - 1)  # before writing, since a disk may be full
        write_atomically(path, data)
        try:
            for number, frame in enumerate(frames):
                write_atomically(frame_path(path, number), frame)
            self._limit_frames(quota)
        except OSError as error:
            log.warning("%s: not all of its frames are kept: %s", path, error)
        return digest

    def path(self, sensor: str, digest: str) -> Path:
        """Where the dossier with this digest lies. Raises StoreError for what is not a sensor id."""
        return self._sensor_folder(sensor) / f"{digest}.json"

    def paths(self, sensor: str | None = None) -> list[Path]:
        """List the files of all dossiers, damaged ones too. Raises StoreError for what is not a sensor id."""
        return sorted(self._sensor_folder(sensor).glob("*.json") if sensor else self.folder.glob("*/*.json"))

    def read_all(self, sensor: str | None = None) -> list[StoredDossier]:
        """Read the dossiers of one sensor or of all, the newest first.

        A damaged dossier costs a warning and is left out; `recald verify` reports it.
        """
        found = []
        for path in self.paths(sensor):
            try:
                found.append(self.read(path))
            except StoreError as error:
                log.warning("%s", error)
        return sorted(found, key=lambda stored: (stored.dossier.at, stored.digest), reverse=True)

    def read(self, path: Path) -> StoredDossier:
        """Read and check one dossier. Raises StoreError."""
        try:
            data = read_regular(path)
            if hashlib.sha256(data).hexdigest() != path.stem:
                raise ValueError("its SHA-256 is not the one it is named by")
            return StoredDossier(path.stem, read_dossier(unseal(data)), path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise StoreError(f"{path}: damaged: {error}") from error

    def frames(self, stored: StoredDossier) -> list[bytes]:
        """Read and check those frames of a dossier that still exist. Raises StoreError, OSError."""
        found = []
        for number, digest in enumerate(stored.dossier.frames.kept):
            path = frame_path(stored.path, number)
            if not path.exists():
                continue
            found.append(read_regular(path))
            if hashlib.sha256(found[-1]).hexdigest() != digest:
                raise StoreError(f"{path}: damaged: its SHA-256 is not the one that its dossier names")
        return found

    def purge(self, sensor: str | None = None) -> int:
        """Remove all kept frames, of one sensor or of all, and the files of killed writers.

        Returns the number of frames. Raises OSError, and StoreError for what is not a sensor id.
        """
        paths = list(self._kept_frames(sensor))
        for path in paths:
            path.unlink(missing_ok=True)
        sweep(self._sensor_folder(sensor) if sensor else self.folder)
        return len(paths)

    def missing(self, sensor: str, named: Sequence[str]) -> list[str]:
        """List the dossiers of a sensor that should exist and do not.

        `named`: the digests that the audit log names, newest first. The newest MAX_DOSSIERS_PER_SENSOR dossiers are
        kept. Some of those may not be named: the daemon was killed before it could write their record.
        """
        existing = {path.stem for path in self.paths(sensor)}
        unnamed = len(existing - {*named})
        return [digest for digest in named[: max(0, MAX_DOSSIERS_PER_SENSOR - unnamed)] if digest not in existing]

    def _remove_oldest(self, sensor: str, keep: int) -> None:
        """Remove all dossiers of a sensor but the newest `keep`.

        Their frames go first: without its dossier nobody knows what a frame is.
        """
        for stored in self.read_all(sensor)[keep:]:
            for path in stored.path.parent.glob(f"{stored.digest}-*.png"):
                path.unlink(missing_ok=True)
            stored.path.unlink(missing_ok=True)

    def _limit_frames(self, quota: int) -> None:
        """Remove the oldest kept frames until all of them together take at most `quota` bytes."""
        found = []
        for path in self._kept_frames():
            with suppress(FileNotFoundError):  # a purge may run at the same time
                found.append((path.stat().st_mtime_ns, path, path.stat().st_size))
        excess = sum(size for _, _, size in found) - quota
        for _, path, size in sorted(found):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= size

    def _kept_frames(self, sensor: str | None = None) -> Iterator[Path]:
        return self._sensor_folder(sensor).glob("*.png") if sensor else self.folder.glob("*/*.png")

    def _sensor_folder(self, sensor: str) -> Path:
        check_sensor_id(sensor)
        return self.folder / sensor


def frame_path(dossier: Path, number: int) -> Path:
    """Where the frame with this number lies: beside its dossier."""
    return dossier.with_name(f"{dossier.stem}-{number}.png")
