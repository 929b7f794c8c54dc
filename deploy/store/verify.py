"""Verify a state directory: is every byte as it was written?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from deploy.backends.engine_cache import is_intact
from deploy.files import unseal
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError
from deploy.store.dossier_archive import DossierArchive, frame_path

CONTENT_NAMED_SUFFIXES = (".safetensors", ".compiled")  # such a file is named by the SHA-256 of its content


def store_problems(store: ArtefactStore) -> Iterator[str]:
    """Check artefacts, compiled models, pointers and dossiers; gives one line for each problem. Raises OSError."""
    for path in sorted((store.root / "objects" / "sha256").glob("*/*")):
        yield from _object_problems(store, path)
    for path in sorted((store.root / "compiled").glob("*.compiled")):
        yield from _cache_problems(path)
    for folder in sorted((store.root / "sensors").glob("*")):
        yield from _sensor_problems(store, folder.name)
    yield from _dossier_problems(DossierArchive(store.root))


def _object_problems(store: ArtefactStore, path: Path) -> Iterator[str]:
    version = path.parent.name + path.stem
    try:
        if path.suffix in CONTENT_NAMED_SUFFIXES:
            if hashlib.sha256(path.read_bytes()).hexdigest() != version:
                yield f"{path}: damaged: its SHA-256 is not the one it is named by"
        elif path.suffix == ".json":
            store.get(version, str(unseal(path.read_bytes()).get("model")))
        elif path.suffix != ".tmp":  # such a file belongs to a writer, which is alive or was killed
            yield f"{path}: not written by recald"
    except OSError as error:
        yield f"{path}: cannot be read: {error.strerror}"
    except StoreError as error:
        yield str(error)
    except ValueError as error:
        yield f"{path}: damaged: {error}"


def _cache_problems(path: Path) -> Iterator[str]:
    try:
        if not is_intact(path.read_bytes()):
            yield f"{path}: damaged; the frozen model is compiled again at the next start"
    except OSError as error:
        yield f"{path}: cannot be read: {error.strerror}"


def _sensor_problems(store: ArtefactStore, sensor: str) -> Iterator[str]:
    for check in (_check_pointer, ArtefactStore.withdrawn):
        try:
            check(store, sensor)
        except StoreError as error:
            yield f"sensor {sensor}: {error}"


def _check_pointer(store: ArtefactStore, sensor: str) -> None:
    pointer = store.current(sensor)
    if pointer is not None:
        for version in {pointer.homogenizer, pointer.previous} - {None, FACTORY}:
            store.get(str(version), pointer.model)


def _dossier_problems(archive: DossierArchive) -> Iterator[str]:
    known = set()  # every file that a dossier vouches for
    for path in archive.paths():
        known.add(path)
        try:
            stored = archive.read(path)
            known.update(frame_path(path, number) for number in range(len(stored.dossier.frames.kept)))
            archive.frames(stored)
        except OSError as error:
            yield f"{path}: its frames cannot be read: {error.strerror}"
        except StoreError as error:
            yield str(error)
            known.update(path.parent.glob(f"{path.stem}-*.png"))  # nobody can say what these frames were
    for path in sorted(archive.folder.glob("*/*")):
        if path not in known and path.suffix != ".tmp":
            yield f"{path}: not written by recald, or what it belongs to is gone"
