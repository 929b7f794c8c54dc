"""Homogenizer artefacts by content hash, and for each sensor the pointer to the one that serves."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch

from calibrate.errors import RecaldError
from calibrate.homogenizer import Homogenizer
from deploy.files import seal, sweep, unseal, write_atomically

FACTORY = "factory"  # the version of the identity: nothing stored, always there
FORMAT = 1
DIGEST = re.compile("[0-9a-f]{64}")
SENSOR = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,64}")  # no separator, and neither "." nor ".."
T = TypeVar("T")


class StoreError(RecaldError):
    """A stored file that cannot be believed: which, and why."""


@dataclass(frozen=True)
class Artefact:
    """A fitted ρ as stored. `compiled` is None where the compiled form is gone and must be built again."""

    version: str
    homogenizer: Homogenizer
    manifest: dict[str, Any]
    compiled: bytes | None


@dataclass(frozen=True)
class Pointer:
    """Which ρ serves a sensor, the one to fall back to, Φ's digest, and since when (s since the epoch)."""

    homogenizer: str
    previous: str | None
    model: str
    since: float


class ArtefactStore:
    """Artefacts below `root`/objects/sha256, pointers below `root`/sensors; nothing is believed unchecked."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, homogenizer: Homogenizer, manifest: dict[str, Any], compiled: bytes, backend: str) -> str:
        """Store ρ with its compiled form; returns its version. `manifest` must name Φ's digest under "model".

        The version is the SHA-256 of the weights alone: the same weights again replace the manifest.
        """
        _field(Path("manifest"), manifest, "model", str)
        parameters = homogenizer.state_dict().items()
        state = {name: tensor.detach().cpu().contiguous() for name, tensor in parameters}
        if not _finite(state):
            raise StoreError("the homogenizer has weights that are not finite: it is not stored")
        weights = safetensors.torch.save(state)
        version = hashlib.sha256(weights).hexdigest()
        compiled_digest = hashlib.sha256(compiled).hexdigest()
        sealed = _seal(
            {
                **manifest,
                "v": FORMAT,
                "version": version,
                "architecture": homogenizer.architecture(),
                "compiled": {"backend": backend, "sha256": compiled_digest},
            }
        )
        _write_once(self._object(compiled_digest, ".compiled"), compiled)
        _write_once(self._object(version, ".safetensors"), weights)
        _write_once(self._object(version, ".json"), sealed)  # last: it vouches for the other two
        return version

    def get(self, version: str, model: str) -> Artefact:
        """The artefact `version`, checked to its last byte, for the frozen model with digest `model`."""
        path = self._object(version, ".json")
        manifest = _unseal(path, _read(path))
        _expect(path, "format", _field(path, manifest, "v", int), FORMAT)
        _expect(path, "version", _field(path, manifest, "version", str), version)
        _expect(path, "frozen model", _field(path, manifest, "model", str), model)
        architecture = _field(path, manifest, "architecture", dict)
        compiled = _field(path, _field(path, manifest, "compiled", dict), "sha256", str)
        homogenizer = self._rebuild(version, architecture)
        return Artefact(version, homogenizer, manifest, self._read_compiled(compiled))

    def current(self, sensor: str) -> Pointer | None:
        """The pointer of `sensor`, None where it never had one; StoreError where it cannot be read."""
        path = self._pointer(sensor)
        data = _read(path)
        if data is None:
            return None
        try:
            return Pointer(**_unseal(path, data))
        except TypeError as error:
            raise StoreError(f"{path}: not a pointer this release knows: {error}") from error

    def point(self, sensor: str, version: str, model: str, now: float) -> None:
        """Make `version` (or FACTORY) the one that serves `sensor`, from `now` on (s since the epoch)."""
        if version != FACTORY and not (manifest := self._object(version, ".json")).exists():
            raise StoreError(f"{manifest}: there is no such artefact to point to")
        pointer = Pointer(version, self._fallback(sensor, version, model), model, now)
        write_atomically(self._pointer(sensor), _seal(asdict(pointer)))

    def withdraw(self, sensor: str, versions: list[str]) -> None:
        """Remember the versions that shall not be tried again for `sensor`."""
        write_atomically(self._pointer(sensor).with_name("withdrawn.json"), _seal({"versions": versions}))

    def withdrawn(self, sensor: str) -> set[str]:
        """The versions that were taken back; StoreError where the file cannot be read."""
        path = self._pointer(sensor).with_name("withdrawn.json")
        data = _read(path)
        return set() if data is None else set(_field(path, _unseal(path, data), "versions", list))

    def load_current(self, sensor: str, model: str) -> tuple[str, Artefact | None, list[str]]:
        """The last good ρ of `sensor`: the current one, else the one before, else FACTORY with no artefact.

        Never raises for what it finds on the disk; the list says what was wrong with each passed over.
        """
        try:
            pointer = self.current(sensor)
        except StoreError as error:
            return FACTORY, None, [str(error)]
        problems: list[str] = []
        for version in (pointer.homogenizer, pointer.previous) if pointer else ():
            if version is None or version == FACTORY:
                break
            try:
                return version, self.get(version, model), problems
            except StoreError as error:
                problems.append(str(error))
        return FACTORY, None, problems

    def compiled_path(self, digest: str) -> Path:
        """Where the compiled form with this SHA-256 lies."""
        return self._object(digest, ".compiled")

    def load_before(self, sensor: str, version: str, model: str) -> Artefact | None:
        """The one that the pointer names before `version`, None where there is none that can be believed."""
        try:
            pointer = self.current(sensor)
            if pointer is None or pointer.homogenizer != version or pointer.previous in (None, FACTORY):
                return None
            return self.get(str(pointer.previous), model)
        except StoreError:
            return None

    def sweep(self) -> int:
        """Remove what killed writers left half-written; returns how many files."""
        return sweep(self.root)

    def _fallback(self, sensor: str, version: str, model: str) -> str | None:
        """What the new pointer names as `previous`."""
        try:
            before = self.current(sensor)
        except StoreError:  # it is being replaced, and load_current has reported it
            return None
        if before is None or before.model != model:
            return None
        if version == before.homogenizer:
            return before.previous
        # A step back: what is left behind was found wanting, so it is no fallback.
        return None if version == before.previous else before.homogenizer

    def _rebuild(self, version: str, architecture: dict[str, int]) -> Homogenizer:
        path = self._object(version, ".safetensors")
        data = _verified(path, _read(path), version)
        try:
            state = safetensors.torch.load(data)
            homogenizer = Homogenizer(**architecture)
            homogenizer.load_state_dict(state)
        except (safetensors.SafetensorError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{path}: not the weights its manifest describes: {reason}") from error
        if not _finite(state):
            raise StoreError(f"{path}: holds weights that are not finite")
        return homogenizer.eval().requires_grad_(False)

    def _read_compiled(self, digest: str) -> bytes | None:
        path = self._object(digest, ".compiled")
        data = _read(path)
        return None if data is None else _verified(path, data, digest)

    def _object(self, digest: str, suffix: str) -> Path:
        if not DIGEST.fullmatch(digest):
            raise StoreError(f"{digest[:80]!r} is not a version: expected 64 hexadecimal digits")
        return self.root / "objects" / "sha256" / digest[:2] / (digest[2:] + suffix)

    def _pointer(self, sensor: str) -> Path:
        if not SENSOR.fullmatch(sensor):
            raise StoreError(f"{sensor[:80]!r} is not a sensor id: letters, digits and _ . - only")
        return self.root / "sensors" / sensor / "current.json"


def _finite(state: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def _write_once(path: Path, data: bytes) -> None:
    if not path.exists() or path.read_bytes() != data:  # spares the flash; a damaged file is replaced
        write_atomically(path, data)


def _seal(document: dict[str, Any]) -> bytes:
    try:
        return seal(document)
    except (TypeError, ValueError) as error:
        raise StoreError(f"the manifest cannot be stored as JSON: {error}") from error


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def _unseal(path: Path, data: bytes | None) -> dict[str, Any]:
    if data is None:
        raise StoreError(f"{path}: missing")
    try:
        return unseal(data)
    except ValueError as error:
        raise StoreError(f"{path}: damaged: {error}") from error


def _verified(path: Path, data: bytes | None, digest: str) -> bytes:
    if data is None:
        raise StoreError(f"{path}: missing")
    if hashlib.sha256(data).hexdigest() != digest:
        raise StoreError(f"{path}: damaged: its SHA-256 is not the one it is named by")
    return data


def _field(path: Path, document: dict[str, Any], name: str, kind: type[T]) -> T:
    value = document.get(name)
    if not isinstance(value, kind):
        raise StoreError(f"{path}: {name!r} is missing or of the wrong type")
    return value


def _expect(path: Path, what: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise StoreError(f"{path}: of {what} {str(found)[:12]}, not of {str(wanted)[:12]}")
