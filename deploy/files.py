"""Write files atomically, seal JSON documents with a checksum, and hash files."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

SHA256_PATTERN = "^[0-9a-f]{64}$"
SEAL_KEY = "seal"  # the key of a sealed document that holds the SHA-256 of all other keys
READ_CHUNK_BYTES = 1 << 20
FileIdentity = tuple[int, int]  # device and inode: the same as long as it is the same file, whatever its path


def read_regular(path: Path, max_bytes: int | None = None) -> bytes:
    """Read a whole file. Raises OSError, also for what is no regular file, or holds more than `max_bytes`.

    To open a FIFO waits for a writer, and a device never ends. Either would hang a start.
    """
    with open_regular(path) as file:
        data = file.read() if max_bytes is None else file.read(max_bytes + 1)
    if max_bytes is not None and len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"larger than {max_bytes} bytes", str(path))
    return data


def open_regular(path: Path) -> BinaryIO:
    """Open a file for reading. Raises OSError, also for what is no regular file; never waits for another process."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    kind = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(kind):
        os.close(descriptor)
        number = errno.EISDIR if stat.S_ISDIR(kind) else errno.EINVAL
        raise OSError(number, os.strerror(number) if stat.S_ISDIR(kind) else "not a regular file", str(path))
    return os.fdopen(descriptor, "rb")


def write_atomically(path: Path, data: bytes) -> None:
    """Write `data` to `path`; after a crash at any point the file holds its old content or all of `data`.

    Creates missing folders. Raises OSError.
    """
    _make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("xb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # held until the rename: shows sweep() that the writer is alive
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # it still exists only after an exception
    _sync_folder(path.parent)


def sweep(folder: Path) -> int:
    """Remove the temporary files that killed writers left below `folder`; returns their number.

    A file that cannot be removed stays, for example on a read-only disk. It does no harm.
    """
    return sum(_remove_if_abandoned(path) for path in folder.rglob(".*.tmp"))


def seal(document: dict[str, Any]) -> bytes:
    """Convert to JSON text that carries the checksum of its own content.

    Raises ValueError for NaN and infinity, TypeError for other values that JSON cannot hold.
    """
    assert SEAL_KEY not in document
    return json.dumps({**document, SEAL_KEY: _checksum(document)}, indent=2, sort_keys=True).encode()


def unseal(data: bytes) -> dict[str, Any]:
    """Read a sealed document. Raises ValueError if any part of it has changed since it was sealed."""
    try:
        document = json.loads(data)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(document, dict) or document.pop(SEAL_KEY, None) != _checksum(document):
        raise ValueError("its content is not what was written: the checksum differs")
    return document


def digest_file(path: Path) -> str:
    """Compute the SHA-256 of a file, as 64 hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(READ_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def identity(path: Path) -> FileIdentity | None:
    """Tell which file or folder a path leads to now; None if to none. Raises OSError."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _checksum(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _remove_if_abandoned(path: Path) -> bool:
    with suppress(OSError), open_regular(path) as file:  # the file is gone, in use, or cannot be removed
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the kernel releases the lock of a killed writer
        path.unlink()
        return True
    return False


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    _sync_folder(folder.parent)  # without it a power cut may remove the new folder


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
