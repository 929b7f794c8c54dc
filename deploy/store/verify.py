"""Verify a state directory: is every byte as it was written?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from deploy.backends.engine_cache import is_intact
from deploy.backends.protocol import Backend, BackendUnavailable, open_backend, same_backend_version
from deploy.files import read_regular, unseal
from deploy.model.program import ModelError
from deploy.store.artefacts import FACTORY, Artefact, ArtefactStore, StoreError
from deploy.store.compiled import open_compiled
from deploy.store.dossier_archive import DossierArchive, frame_path

CONTENT_NAMED_SUFFIXES = (".safetensors", ".compiled")  # such a file is named by the SHA-256 of its content


class CompiledCheck:
    """Compares compiled homogenizers with their weights. skipped: the versions that this machine cannot compare."""

    def __init__(self) -> None:
        self.skipped: list[str] = []
        self._backends: dict[str, Backend | None] = {}  # by name; None where this machine cannot run it

    def problems(self, artefact: Artefact) -> Iterator[str]:
        """Give one line if the compiled form of an artefact computes something else than its weights."""
        if artefact.compiled is None:  # it is built again when it is needed
            return
        backend = self._backend(str(artefact.manifest["compiled"].get("backend")))
        if backend is None or not same_backend_version(backend, artefact.manifest):
            self.skipped.append(artefact.version)
            return
        try:
            open_compiled(backend, artefact, artefact.compiled).close()
        except (ModelError, StoreError) as error:
            yield str(error)

    def _backend(self, name: str) -> Backend | None:
        if name not in self._backends:
            try:
                self._backends[name] = open_backend(name)
            except BackendUnavailable:
                self._backends[name] = None
        return self._backends[name]


def store_problems(store: ArtefactStore, check: CompiledCheck | None = None) -> Iterator[str]:
    """Check artefacts, compiled models, pointers and dossiers; gives one line for each problem. Raises OSError.

    check: says afterwards which compiled homogenizers could not be compared with their weights.
    """
    check = check or CompiledCheck()
    for path in sorted((store.root / "objects" / "sha256").glob("*/*")):
        yield from _object_problems(store, path, check)
    for path in sorted((store.root / "compiled").glob("*.compiled")):
        yield from _cache_problems(path)
    for folder in sorted((store.root / "sensors").glob("*")):
        yield from _sensor_problems(store, folder.name)
    yield from _dossier_problems(DossierArchive(store.root))


def _object_problems(store: ArtefactStore, path: Path, check: CompiledCheck) -> Iterator[str]:
    version = path.parent.name + path.stem
    try:
        if path.suffix in CONTENT_NAMED_SUFFIXES:
            if hashlib.sha256(read_regular(path)).hexdigest() != version:
                yield f"{path}: damaged: its SHA-256 is not the one it is named by"
        elif path.suffix == ".json":
            yield from check.problems(store.get(version, str(unseal(read_regular(path)).get("model"))))
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
        if not is_intact(read_regular(path)):
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
