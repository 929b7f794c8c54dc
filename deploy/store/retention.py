"""Which stored homogenizers of a sensor are kept: the newest, and whatever a pointer names."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from deploy.files import unseal
from deploy.store.artefacts import ArtefactStore, StoreError


class Stored(NamedTuple):
    """One manifest on the disk; `written`: s since the epoch."""

    version: str
    sensor: str
    model: str
    compiled: str
    written: float
    path: Path


def stored(store: ArtefactStore) -> list[Stored]:
    """All whole manifests, the newest first; damaged ones are left out."""
    paths = (store.root / "objects" / "sha256").glob("*/*.json")
    found = [one for path in paths if (one := _read(path)) is not None]
    return sorted(found, key=lambda one: one.written, reverse=True)


def earlier_versions(store: ArtefactStore, sensor: str, model: str, most: int) -> list[str]:
    """The newest versions that were fitted for this sensor and model."""
    return [one.version for one in stored(store) if (one.sensor, one.model) == (sensor, model)][:most]


def retain(store: ArtefactStore, sensor: str, keep: int, spare: Collection[str] = ()) -> list[str]:
    """Remove all of a sensor but the newest `keep`, those that pointers name and those to `spare`.

    Returns the versions removed. A manifest goes first: without it the rest is not believed.
    """
    everything, named = stored(store), {*spare, *_pointed(store)}
    older = [one for one in everything if one.sensor == sensor][keep:]
    removed = [one for one in older if one.version not in named]
    still_used = {one.compiled for one in everything if one not in removed}
    for one in removed:
        one.path.unlink(missing_ok=True)
        one.path.with_suffix(".safetensors").unlink(missing_ok=True)
        if one.compiled not in still_used:
            store.compiled_path(one.compiled).unlink(missing_ok=True)
    return [one.version for one in removed]


def _read(path: Path) -> Stored | None:
    try:
        manifest, written = unseal(path.read_bytes()), path.stat().st_mtime
        version, sensor, model = (str(manifest.get(name)) for name in ("version", "sensor", "model"))
        return Stored(version, sensor, model, str(manifest["compiled"]["sha256"]), written, path)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _pointed(store: ArtefactStore) -> Iterator[str]:
    for path in (store.root / "sensors").glob("*/current.json"):
        with suppress(StoreError):
            pointer = store.current(path.parent.name)
            if pointer is not None:
                yield from filter(None, (pointer.homogenizer, pointer.previous))
