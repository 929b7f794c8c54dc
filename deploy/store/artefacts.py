"""Store homogenizers by their hash, and for each sensor a pointer to the one that serves."""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch

from calibrate.errors import RecaldError
from calibrate.split import AnyHomogenizer, rebuild
from deploy.files import SHA256_PATTERN, read_regular, seal, sweep, unseal, write_atomically

FACTORY = "factory"  # version of the identity homogenizer, which is always available and never stored
MANIFEST_FORMAT = 1
SENSOR_ID_PATTERN = re.compile(r"(?!\.+$)[A-Za-z0-9_.-]{1,64}")  # a file name: no separator, not "." and not ".."
FieldT = TypeVar("FieldT")


class StoreError(RecaldError):
    """A stored file cannot be used. The message says which file and why."""


@dataclass(frozen=True)
class Artefact:
    """A fitted ρ as stored. `compiled` is None if the compiled form is lost and must be built again."""

    version: str
    homogenizer: AnyHomogenizer
    manifest: dict[str, Any]
    compiled: bytes | None


@dataclass(frozen=True)
class Pointer:
    """Which ρ serves a sensor.

    `previous`: the version to fall back to. `model`: the digest of Φ. `since`: s since the epoch.
    """

    homogenizer: str
    previous: str | None
    model: str
    since: float


class ArtefactStore:
    """The artefacts below `root`/objects/sha256 and the pointers below `root`/sensors.

    Every file is checked when it is read.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._existed = root.is_dir()

    def put(self, homogenizer: AnyHomogenizer, manifest: dict[str, Any], compiled: bytes, backend: str) -> str:
        """Store ρ and its compiled form; returns its version. `manifest` must name Φ's digest as "model".

        The version is the SHA-256 of the weights alone: storing the same weights again replaces the manifest. Raises
        StoreError for weights that are not finite and for an unusable manifest, OSError if the disk refuses.
        """
        self._check_root()
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
                "v": MANIFEST_FORMAT,
                "version": version,
                "architecture": homogenizer.architecture(),
                "compiled": {"backend": backend, "sha256": compiled_digest},
            }
        )
        _write_once(self.compiled_path(compiled_digest), compiled)
        _write_once(self._object(version, ".safetensors"), weights)
        _write_once(self._object(version, ".json"), sealed)  # last, because it vouches for the other two
        return version

    def get(self, version: str, model: str) -> Artefact:
        """Read the artefact `version` for the frozen model with the digest `model`, and check every byte of it.

        Raises StoreError.
        """
        path = self._object(version, ".json")
        manifest = _unseal(path, _read(path))
        _expect(path, "format", _field(path, manifest, "v", int), MANIFEST_FORMAT)
        _expect(path, "version", _field(path, manifest, "version", str), version)
        _expect(path, "frozen model", _field(path, manifest, "model", str), model)
        architecture = _field(path, manifest, "architecture", dict)
        compiled_digest = _field(path, _field(path, manifest, "compiled", dict), "sha256", str)
        homogenizer = self._rebuild(version, architecture)
        return Artefact(version, homogenizer, manifest, self._read_compiled(compiled_digest))

    def compiled_path(self, digest: str) -> Path:
        """Where the compiled form with this SHA-256 lies. Raises StoreError for what is not a SHA-256."""
        return self._object(digest, ".compiled")

    def point(self, sensor: str, version: str, model: str, now: float) -> None:
        """Write the pointer: `version` (or FACTORY) serves `sensor` from `now` on (s since the epoch).

        Raises StoreError if there is no such artefact, OSError if the disk refuses.
        """
        self._check_root()
        if version != FACTORY and not (manifest := self._object(version, ".json")).exists():
            raise StoreError(f"{manifest}: there is no such artefact to point to")
        pointer = Pointer(version, self._previous_version(sensor, version, model), model, now)
        write_atomically(self._pointer_path(sensor), _seal(asdict(pointer)))

    def current(self, sensor: str) -> Pointer | None:
        """Read the pointer of `sensor`; None if the sensor never had one. Raises StoreError."""
        path = self._pointer_path(sensor)
        data = _read(path)
        if data is None:
            return None
        try:
            return Pointer(**_unseal(path, data))
        except TypeError as error:
            raise StoreError(f"{path}: not a pointer this release knows: {error}") from error

    def load_current(self, sensor: str, model: str) -> tuple[str, Artefact | None, list[str]]:
        """Load the last good ρ of `sensor`: the current one, else the previous one, else FACTORY without artefact.

        Raises nothing for what it finds on the disk. The returned list says what was wrong with each ρ passed over.
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

    def load_previous(self, sensor: str, version: str, model: str) -> Artefact | None:
        """Load the artefact that the pointer names as the one before `version`; None if it cannot be used."""
        try:
            pointer = self.current(sensor)
            if pointer is None or pointer.homogenizer != version or pointer.previous in (None, FACTORY):
                return None
            return self.get(str(pointer.previous), model)
        except StoreError:
            return None

    def withdraw(self, sensor: str, versions: list[str]) -> None:
        """Write down the versions that must not be tried again for `sensor`. Raises StoreError, OSError."""
        self._check_root()
        write_atomically(self._withdrawn_path(sensor), _seal({"versions": versions}))

    def withdrawn(self, sensor: str) -> set[str]:
        """Read the versions that must not be tried again for `sensor`. Raises StoreError."""
        path = self._withdrawn_path(sensor)
        data = _read(path)
        return set() if data is None else set(_field(path, _unseal(path, data), "versions", list))

    def sweep(self) -> int:
        """Remove the half-written files that killed writers left; returns their number."""
        return sweep(self.root)

    def _check_root(self) -> None:
        """Refuse to write where the directory was removed: to make it anew would hide the loss."""
        if self._existed and not self.root.is_dir():
            raise StoreError(f"{self.root}: removed while recald uses it: put it back, or restart recald")

    def _previous_version(self, sensor: str, version: str, model: str) -> str | None:
        """Choose what a new pointer to `version` names as `previous`."""
        try:
            before = self.current(sensor)
        except StoreError:  # the damaged pointer is being replaced, and load_current has reported it
            return None
        if before is None or before.model != model:
            return None
        if version == before.homogenizer:
            return before.previous
        # A rollback: the version that served until now was found wanting, so nothing may fall back to it.
        return None if version == before.previous else before.homogenizer

    def _rebuild(self, version: str, architecture: dict[str, int]) -> AnyHomogenizer:
        path = self._object(version, ".safetensors")
        data = _read(path)
        if data is None:
            raise StoreError(f"{path}: missing")
        _check_digest(path, data, version)
        try:
            state = safetensors.torch.load(data)
            homogenizer = rebuild(architecture)
            homogenizer.load_state_dict(state)
        except (safetensors.SafetensorError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{path}: not the weights its manifest describes: {reason}") from error
        if not _finite(state):
            raise StoreError(f"{path}: holds weights that are not finite")
        return homogenizer.eval().requires_grad_(False)

    def _read_compiled(self, digest: str) -> bytes | None:
        path = self.compiled_path(digest)
        data = _read(path)
        if data is not None:
            _check_digest(path, data, digest)
        return data

    def _object(self, digest: str, suffix: str) -> Path:
        if not re.fullmatch(SHA256_PATTERN, digest):
            raise StoreError(f"{digest[:80]!r} is not a version: expected 64 hexadecimal digits")
        return self.root / "objects" / "sha256" / digest[:2] / (digest[2:] + suffix)

    def _pointer_path(self, sensor: str) -> Path:
        check_sensor_id(sensor)
        return self.root / "sensors" / sensor / "current.json"

    def _withdrawn_path(self, sensor: str) -> Path:
        return self._pointer_path(sensor).with_name("withdrawn.json")


def check_sensor_id(sensor: str) -> None:
    """Check that a sensor id can be the name of a folder. Raises StoreError."""
    if not SENSOR_ID_PATTERN.fullmatch(sensor):
        raise StoreError(f"{sensor[:80]!r} is not a sensor id: letters, digits and _ . - only")


def _finite(state: dict[str, torch.Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in state.values())


def _write_once(path: Path, data: bytes) -> None:
    with suppress(OSError):
        if read_regular(path) == data:  # saves a write to flash
            return
    write_atomically(path, data)  # replaces a damaged file, too


def _seal(document: dict[str, Any]) -> bytes:
    try:
        return seal(document)
    except (TypeError, ValueError) as error:
        raise StoreError(f"the manifest cannot be stored as JSON: {error}") from error


def _read(path: Path) -> bytes | None:
    try:
        return read_regular(path)
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


def _check_digest(path: Path, data: bytes, digest: str) -> None:
    if hashlib.sha256(data).hexdigest() != digest:
        raise StoreError(f"{path}: damaged: its SHA-256 is not the one it is named by")


def _field(path: Path, document: dict[str, Any], name: str, kind: type[FieldT]) -> FieldT:
    value = document.get(name)
    if not isinstance(value, kind):
        raise StoreError(f"{path}: {name!r} is missing or of the wrong type")
    return value


def _expect(path: Path, name: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise StoreError(f"{path}: of {name} {str(found)[:12]}, not of {str(wanted)[:12]}")
