"""Files that are whole or absent: atomic writes, and JSON that carries its own checksum."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from contextlib import suppress
from pathlib import Path
from typing import Any

SEAL = "seal"  # the key under which a sealed document keeps the SHA-256 of the rest


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that a crash at any point leaves at `path` what it held before or all of `data`."""
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # held until the rename: tells sweep() that the writer lives
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # only there if something above raised
    _sync_folder(path.parent)


def sweep(folder: Path) -> int:
    """Remove the temporary files that killed writers left below `folder`; returns how many.

    One that cannot be removed, as on a read-only disk, stays: it harms nobody.
    """
    return sum(_remove_if_abandoned(path) for path in folder.rglob(".*.tmp"))


def seal(document: dict[str, Any]) -> bytes:
    """JSON text with the checksum of its content; ValueError for what JSON cannot hold, such as NaN."""
    assert SEAL not in document
    return json.dumps({**document, SEAL: _digest(document)}, indent=2, sort_keys=True).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """The document inside; ValueError when any part of it has changed since it was sealed."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict) or document.pop(SEAL, None) != _digest(document):
        raise ValueError("its content is not what was written: the checksum differs")
    return document


def _digest(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _remove_if_abandoned(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:  # gone, in use, or not to be removed
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel drops the lock of a killed writer
        path.unlink()
        return True
    return False


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)  # or the folder itself may be gone after a power cut


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def digest_file(path: Path) -> str:
    """SHA-256 of the file, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
