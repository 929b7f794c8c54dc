"""The SQLite file under the audit log: opened, begun where there is none, set aside where it is damaged."""

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
from pathlib import Path

from deploy.audit.chain import BEGUN, START, Record, canonical, chained
from deploy.files import write_atomically

FORMAT = 1
WRITE_VERSION = 18  # where it stands in the header, by SQLite's file format
ROLLBACK_JOURNAL, WRITE_AHEAD_LOG = 1, 2
BUSY_S = 5.0  # an append takes milliseconds, so who waits longer waits for something stuck
LOCK_PAUSE_S = 0.02  # between two tries
PARTS = ("", "-wal", "-shm", "-journal")  # the files that SQLite keeps for one database
TABLE = (
    "CREATE TABLE record (number INTEGER PRIMARY KEY, at TEXT NOT NULL, sensor TEXT NOT NULL,"
    " event TEXT NOT NULL, details TEXT NOT NULL, previous TEXT NOT NULL, digest TEXT NOT NULL)"
)
log = logging.getLogger(__name__)


def open_database(path: Path, at: str) -> sqlite3.Connection:
    """A connection to a usable log at `path`; the first record of one that had to be begun is of `at`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _alone(path):
        _refuse_read_only(path)
        damage = _damage(path)
        if damage:
            log.error("%s: damaged, set aside as %s: %s", path, _set_aside(path), damage)
        if not path.exists():
            _begin(path, at)
        return _connect(path)


def _refuse_read_only(path: Path) -> None:
    """Raises OSError: told before the file is checked from end to end, since it is tried again every second."""
    if path.exists() and not os.access(path, os.W_OK):
        path.open("r+b").close()


def look_into(path: Path) -> sqlite3.Connection:
    """A connection that cannot write, to a log on a read-only disk as well."""
    connection = _sqlite(path, "ro")
    try:
        connection.execute("PRAGMA schema_version")  # the first look at the file
        return connection
    except sqlite3.OperationalError:
        connection.close()
        # Where SQLite may not put its -shm beside the file it reads it only when told that nobody else writes.
        if _part(path, "-wal").exists() or os.access(path.parent, os.W_OK) or not os.access(path, os.R_OK):
            raise
    return _sqlite(path, "ro&immutable=1")


def join(path: Path) -> sqlite3.Connection:
    """A connection that adds to the log of another process: nothing is begun, looked through or set aside."""
    return _durable(_sqlite(path, "rw"))


def insert(connection: sqlite3.Connection, record: Record) -> None:
    connection.execute("INSERT INTO record VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(record))


def _connect(path: Path) -> sqlite3.Connection:
    return _durable(_sqlite(path, "rwc"))


def _durable(connection: sqlite3.Connection) -> sqlite3.Connection:
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")  # a commit is on the disk when it returns
        connection.execute("DELETE FROM record WHERE false")  # or one that can only read would fail for ever
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _sqlite(path: Path, mode: str) -> sqlite3.Connection:
    address = f"{path.absolute().as_uri()}?mode={mode}"
    connection = sqlite3.connect(address, BUSY_S, isolation_level=None, check_same_thread=False, uri=True)
    # Bytes that are no text must get as far as the check that tells of them.
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def _damage(path: Path) -> str | None:
    if not path.exists():  # a write-ahead log alone: whoever set the file aside was killed on the way
        return "its database is gone" if _part(path, "-wal").exists() else None
    try:
        with closing(_sqlite(path, "ro")) as connection:  # closing any other would write to the file
            return _damage_inside(connection) or _damage_to_writing(path)
    except sqlite3.OperationalError as error:
        if str(error) == "unsupported file format":
            return str(error)
        raise  # full, locked, not allowed: says nothing about what the file holds
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # the second: damage quoted in the first
        return str(error)


def _damage_inside(connection: sqlite3.Connection) -> str | None:
    ((check,),) = connection.execute("PRAGMA quick_check(1)")
    if check != "ok":
        return str(check)
    if connection.execute("SELECT sql FROM sqlite_master").fetchall() != [(TABLE,)]:
        return "its table is not the one that was made"
    row = connection.execute("SELECT * FROM record ORDER BY number DESC LIMIT 1").fetchone()
    return None if row and Record(*row).holds() else "its newest record is not what was written"


def _damage_to_writing(path: Path) -> str | None:
    """Whether the header of a file that may be written forbids it, which SQLite would tell as it does of the disk."""
    with path.open("rb") as file:
        version = file.read(WRITE_VERSION + 1)[WRITE_VERSION]
    return None if version in (ROLLBACK_JOURNAL, WRITE_AHEAD_LOG) else f"its header has write version {version}"


def _set_aside(path: Path) -> Path:
    names = (_part(path, f".damaged-{number}") for number in itertools.count(1))
    aside = next(name for name in names if not any(_part(name, part).exists() for part in PARTS))
    for part in PARTS:
        with suppress(FileNotFoundError):
            _part(path, part).rename(_part(aside, part))
    return aside


def _part(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _begin(path: Path, at: str) -> None:
    """Begin a chain; the random id makes it unlike any other from its first record on."""
    details = {"format": FORMAT, "install": secrets.token_hex(16), "damaged": _damaged_files(path)}
    with tempfile.TemporaryDirectory() as folder:
        draft = Path(folder) / "draft"
        with closing(_sqlite(draft, "rwc")) as connection:
            connection.execute("PRAGMA synchronous=OFF")  # of the draft; the file itself is synced below
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(TABLE)
            insert(connection, chained((0, START), at, "", BEGUN, canonical(details)))
        write_atomically(path, draft.read_bytes())


def _damaged_files(path: Path) -> dict[str, str]:
    """Every file that was ever set aside, with its SHA-256: so a kill before this was written loses none."""
    found = sorted(path.parent.glob(f"{path.name}.damaged-*"))
    if not found:
        return {}
    from deploy.files import digest_file

    return {file.name: digest_file(file) for file in found}


def _lock(descriptor: int) -> None:
    """Wait for it as long as SQLite waits for its own. Raises BlockingIOError."""
    end = time.monotonic() + BUSY_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > end:
                raise
        time.sleep(LOCK_PAUSE_S)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time, or two would set aside what each other began."""
    # Not the folder, which a running daemon keeps locked; not the database, which is replaced.
    descriptor = os.open(_part(path, ".lock"), os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        _lock(descriptor)
        yield
    finally:
        os.close(descriptor)
