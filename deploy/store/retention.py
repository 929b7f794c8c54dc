"""Decide which stored homogenizers of a sensor are kept: the newest, and those that a pointer names."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deploy.files import read_regular, unseal
from deploy.store.artefacts import ArtefactStore, StoreError


class StoredHomogenizer(NamedTuple):
    """What the manifest of a stored homogenizer says.

    compiled: SHA-256 of the compiled form. written: s since the epoch. path: the manifest.
    """

    version: str
    sensor: str
    model: str
    compiled: str
    written: float
    path: Path


def stored_homogenizers(store: ArtefactStore) -> list[StoredHomogenizer]:
    """List all stored homogenizers, the newest first, without those whose manifest is damaged."""
    paths = (store.root / "objects" / "sha256").glob("*/*.json")
    found = [stored for path in paths if (stored := _read_manifest(path)) is not None]
    return sorted(found, key=lambda stored: stored.written, reverse=True)


def newest_versions(store: ArtefactStore, sensor: str, model: str, limit: int) -> list[str]:
    """List the newest `limit` versions that were fitted for this sensor and this model."""
    found = stored_homogenizers(store)
    return [stored.version for stored in found if (stored.sensor, stored.model) == (sensor, model)][:limit]


def retain(store: ArtefactStore, sensor: str, keep: int, protected: Collection[str] = ()) -> list[str]:
    """Remove homogenizers of a sensor; returns the removed versions.

    The newest `keep` of the sensor stay, and so do those that a pointer names and the `protected` ones. A manifest is
    removed first: without it the other files are not used. Raises OSError.
    """
    everything, spared = stored_homogenizers(store), {*protected, *_pointed_versions(store)}
    older = [stored for stored in everything if stored.sensor == sensor][keep:]
    removed = [stored for stored in older if stored.version not in spared]
    still_used = {stored.compiled for stored in everything if stored not in removed}
    for stored in removed:
        stored.path.unlink(missing_ok=True)
        stored.path.with_suffix(".safetensors").unlink(missing_ok=True)
        if stored.compiled not in still_used:
            store.compiled_path(stored.compiled).unlink(missing_ok=True)
    return [stored.version for stored in removed]


def remove_orphans(store: ArtefactStore) -> int:
    """Remove weights and compiled forms that belong to no manifest; returns their number.

    A killed writer leaves them: it writes the manifest last, and removes it first. Only for a start, before anybody
    writes. Where a manifest is damaged, nothing tells what belongs to it, and nothing is removed.
    """
    manifests = {path: _read_manifest(path) for path in (store.root / "objects" / "sha256").glob("*/*.json")}
    if None in manifests.values():
        return 0
    used = {path.with_suffix(".safetensors") for path in manifests}
    used |= {store.compiled_path(stored.compiled) for stored in manifests.values() if stored is not None}
    removed = 0
    for path in (store.root / "objects" / "sha256").glob("*/*"):
        if path.suffix in (".safetensors", ".compiled") and path not in used:
            with suppress(OSError):  # a read-only disk: it does no harm
                path.unlink()
                removed += 1
    return removed


def _read_manifest(path: Path) -> StoredHomogenizer | None:
    try:
        manifest, written = unseal(read_regular(path)), path.stat().st_mtime
        version, sensor, model = (str(manifest.get(name)) for name in ("version", "sensor", "model"))
        return StoredHomogenizer(version, sensor, model, str(manifest["compiled"]["sha256"]), written, path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _pointed_versions(store: ArtefactStore) -> set[str]:
    versions: set[str] = set()
    for path in (store.root / "sensors").glob("*/current.json"):
        with suppress(StoreError):
            pointer = store.current(path.parent.name)
            if pointer is not None:
                versions.update(filter(None, (pointer.homogenizer, pointer.previous)))
    return versions
