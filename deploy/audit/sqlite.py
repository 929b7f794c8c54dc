"""The SQLite file of the audit log: open it, begin it if it is missing, set it aside if it is damaged."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import secrets
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import astuple
from functools import partial
from pathlib import Path

from deploy.audit.chain import LOG_BEGUN, NO_PREVIOUS_DIGEST, AuditRecord, canonical_json, next_record
from deploy.files import digest_file, open_regular, write_atomically

AUDIT_FORMAT = 1
BUSY_TIMEOUT_S = 5.0  # an append takes milliseconds; a longer wait is for a process that hangs
LOCK_RETRY_S = 0.02
DATABASE_SUFFIXES = ("", "-wal", "-shm", "-journal")  # of the files that SQLite keeps for one database
CREATE_TABLE = (
    "CREATE TABLE record (number INTEGER PRIMARY KEY, at TEXT NOT NULL, sensor TEXT NOT NULL,"
    " event TEXT NOT NULL, details TEXT NOT NULL, previous TEXT NOT NULL, digest TEXT NOT NULL)"
)
# The write version is one byte of the header (sqlite.org/fileformat.html, section 1.3.3).
WRITE_VERSION_OFFSET = 18
ROLLBACK_JOURNAL, WRITE_AHEAD_LOG = 1, 2

log = logging.getLogger(__name__)


def open_database(path: Path, at: str) -> sqlite3.Connection:
    """Open the log for writing. A damaged log is set aside, a missing one begun with a first record of time `at`.

    Raises OSError, sqlite3.Error.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _exclusive_lock(path):
        _refuse_irregular(path)
        if path.exists() and not os.access(path, os.W_OK):
            path.open("r+b").close()  # raises: before the long check of the file, as the daemon retries each second
        damage = _damage(path)
        if damage:
            log.error("%s: damaged, set aside as %s: %s", path, _set_aside(path), damage)
        if not path.exists():
            _begin(path, at)
        return _make_durable(_connect(path, "rwc"))


def open_read_only(path: Path) -> sqlite3.Connection:
    """Open the log for reading, on a read-only disk too. Raises OSError, sqlite3.Error."""
    _refuse_irregular(path)
    connection = _connect(path, "ro")
    try:
        connection.execute("PRAGMA schema_version")  # the first access to the file
        return connection
    except sqlite3.OperationalError:
        connection.close()
        # SQLite writes a -shm file beside the database. If it cannot, it reads the database only with immutable=1, the
        # promise that nobody writes to it.
        if _with_suffix(path, "-wal").exists() or os.access(path.parent, os.W_OK) or not os.access(path, os.R_OK):
            raise
    return _connect(path, "ro&immutable=1")


def open_shared(path: Path) -> sqlite3.Connection:
    """Open the log of another process for appending: nothing is begun, checked or set aside.

    Raises OSError, sqlite3.Error.
    """
    _refuse_irregular(path)
    return _make_durable(_connect(path, "rw"))


def _refuse_irregular(path: Path) -> None:
    """Raise OSError where SQLite would open a FIFO, which waits for a writer, or a device."""
    for file in map(partial(_with_suffix, path), DATABASE_SUFFIXES):
        with suppress(FileNotFoundError):
            open_regular(file).close()


def insert(connection: sqlite3.Connection, record: AuditRecord) -> None:
    """Write a record to the table. Raises sqlite3.Error."""
    connection.execute("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(record))


def database_files(path: Path) -> list[Path]:
    """List the files that hold records while the log is open: the database and its write-ahead log."""
    return [path, _with_suffix(path, "-wal")]


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, uri=True)
    # Bytes that are not text must reach the check that reports them.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def _make_durable(connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns
        # Fails now if the connection can only read. Otherwise every later append would fail.
        connection.execute("DELETE FROM record WHERE false")
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _damage(path: Path) -> str | None:
    """Say why the log cannot be used; None if it can. Raises sqlite3.OperationalError for a fault of the disk."""
    if not path.exists():  # a write-ahead log without its database: setting it aside was interrupted by a kill
        return "its database is gone" if _with_suffix(path, "-wal").exists() else None
    try:
        with closing(_connect(path, "ro")) as connection:  # a connection that may write changes the file on closing
            return _damage_inside(connection) or _write_version_fault(path)
    except sqlite3.OperationalError as error:
        if str(error) == "unsupported file format":
            return str(error)
        raise  # full, locked or not allowed: this says nothing about the content of the file
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the second: damaged text quoted in the first
        return str(error)


def _damage_inside(connection: sqlite3.Connection) -> str | None:
    ((check,),) = connection.execute("PRAGMA quick_check(1)")
    if check != "ok":
        return str(check)
    if connection.execute("SELECT sql FROM sqlite_master").fetchall() != [(CREATE_TABLE,)]:
        return "its table is not the one that was made"
    row = connection.execute("SELECT * FROM record ORDER BY number DESC LIMIT 1").fetchone()
    return None if row and AuditRecord(*row).is_intact() else "its newest record is not what was written"


def _write_version_fault(path: Path) -> str | None:
    """Check the write version. With an unknown one SQLite reports a read-only disk at the first write."""
    with path.open("rb") as file:
        version = file.read(WRITE_VERSION_OFFSET + 1)[WRITE_VERSION_OFFSET]
    return None if version in (ROLLBACK_JOURNAL, WRITE_AHEAD_LOG) else f"its header has write version {version}"


def _set_aside(path: Path) -> Path:
    names = (_with_suffix(path, f".damaged-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not any(_with_suffix(name, part).exists() for part in DATABASE_SUFFIXES))
    for part in DATABASE_SUFFIXES:
        with suppress(FileNotFoundError):
            _with_suffix(path, part).rename(_with_suffix(aside, part))
    return aside


def _begin(path: Path, at: str) -> None:
    """Write a log with its first record.

    That record names every file that was ever set aside, so that a kill before it was written loses none of them.
    """
    damaged = {file.name: digest_file(file) for file in sorted(path.parent.glob(f"{path.name}.damaged-*"))}
    details = {"format": AUDIT_FORMAT, "install": secrets.token_hex(16), "damaged": damaged}
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft"
        with closing(_connect(draft, "rwc")) as connection:
            connection.execute("PRAGMA synchronous=OFF")  # for the draft; write_atomically syncs the log itself
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(CREATE_TABLE)
            insert(connection, next_record((0, NO_PREVIOUS_DIGEST), at, "", LOG_BEGUN, canonical_json(details)))
        write_atomically(path, draft.read_bytes())


def _with_suffix(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


@contextmanager
def _exclusive_lock(path: Path) -> Iterator[None]:
    """Let one process at a time open the log: two would set aside what the other one has just begun."""
    # A file of its own: a running daemon keeps the folder locked, and the database file is replaced.
    descriptor = os.open(_with_suffix(path, ".lock"), os.O_RDONLY | os.O_CREAT | os.O_NONBLOCK, 0o644)
    try:
        _wait_for_lock(descriptor)
        yield
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int) -> None:
    """Take the lock within the time that SQLite waits for its own locks. Raises BlockingIOError."""
    end = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(LOCK_RETRY_S)
