"""Whether every byte of a state directory is as it was written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from deploy.backends.engine_cache import is_whole
from deploy.files import unseal
from deploy.store.artefacts import FACTORY, ArtefactStore, StoreError
from deploy.store.dossier_archive import DossierArchive, frame_path

NAMED_BY_CONTENT = (".safetensors", ".compiled")


def problems(store: ArtefactStore) -> Iterator[str]:
    """What is wrong with artefacts, pointers and dossiers, a line each; nothing where all is as it was written."""
    for path in sorted((store.root / "objects" / "sha256").glob("*/*")):
        yield from _of_object(store, path)
    for path in sorted((store.root / "compiled").glob("*.compiled")):
        yield from _of_cached(path)
    for folder in sorted((store.root / "sensors").glob("*")):
        yield from _of_sensor(store, folder.name)
    yield from _of_dossiers(DossierArchive(store.root))


def _of_object(store: ArtefactStore, path: Path) -> Iterator[str]:
    try:
        if path.suffix in NAMED_BY_CONTENT:
            if hashlib.sha256(path.read_bytes()).hexdigest() != _version(path):
                yield f"{path}: damaged: its SHA-256 is not the one it is named by"
        elif path.suffix == ".json":
            store.get(_version(path), str(unseal(path.read_bytes()).get("model")))
        elif path.suffix != ".tmp":  # that of a writer that lives, or was killed
            yield f"{path}: not of recald's making"
    except OSError as error:
        yield f"{path}: cannot be read: {error.strerror}"
    except StoreError as error:
        yield str(error)
    except ValueError as error:
        yield f"{path}: damaged: {error}"


def _of_sensor(store: ArtefactStore, sensor: str) -> Iterator[str]:
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


def _of_dossiers(archive: DossierArchive) -> Iterator[str]:
    known = set()  # every file that a dossier vouches for
    for path in archive.paths():
        known.add(path)
        try:
            filed = archive.read(path)
            known.update(frame_path(path, number) for number in range(len(filed.dossier.frames.kept)))
            archive.frames(filed)
        except OSError as error:
            yield f"{path}: its frames cannot be read: {error.strerror}"
        except StoreError as error:
            yield str(error)
            known.update(path.parent.glob(f"{path.stem}-*.png"))  # nobody can tell what they were
    for path in sorted(archive.folder.glob("*/*")):
        if path not in known and path.suffix != ".tmp":
            yield f"{path}: not of recald's making, or what it belongs to is gone"


def _of_cached(path: Path) -> Iterator[str]:
    try:
        if not is_whole(path.read_bytes()):
            yield f"{path}: damaged; the frozen model is compiled again at the next start"
    except OSError as error:
        yield f"{path}: cannot be read: {error.strerror}"


def _version(path: Path) -> str:
    return path.parent.name + path.stem
