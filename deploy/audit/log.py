"""The audit log: what was done and why, in an append-only file in which every later change can be seen."""

from __future__ import annotations

import itertools
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.audit.chain import (
    LOG_BEGUN,
    LOG_PRUNED,
    Anchor,
    AuditRecord,
    canonical_json,
    chain_problems,
    next_record,
)
from deploy.audit.sqlite import BUSY_TIMEOUT_S, database_files, insert, open_database, open_read_only, open_shared
from deploy.files import identity

EARLIEST_CREDIBLE_TIME = "2020"  # a record with an earlier time was written before the device had set its clock
MAX_PROBLEMS_IN_RECORD = 10  # in the record of a pruning; the first few show what happened
ADVICE_BY_WORDS = {  # words of the error message; before Python 3.11 an error carries nothing else to tell it by
    "full": "free some space on its disk",
    "no space": "free some space on its disk",
    "readonly": "make its disk and folder writable",
    "read-only": "make its disk and folder writable",
    "denied": "make its disk and folder writable",
    "unable to open": "make its disk and folder writable",
    "not a regular file": "remove it; recald then begins another log",
    "locked": f"another process held it for {BUSY_TIMEOUT_S:.0f} s: stop that process",
    "malformed": "restart recald, which sets a damaged log aside and begins another",
    "not a database": "restart recald, which sets a damaged log aside and begins another",
}


class AuditError(OSError):
    """The log cannot be read or written. The message says which log, why, and what to do."""


def audit_path(state: Path) -> Path:
    """Where the audit log of a state directory lies."""
    return state / "audit.sqlite"


class AuditLog:
    """The audit log in the SQLite file `path`. Any thread and any number of processes may use it.

    A missing log is begun. A file that SQLite cannot use, or whose newest record is not intact, is renamed to
    `path`.damaged-N, and a new log is begun. Any other change stays in the file, and verify() reports it.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        *,
        read_only: bool = False,
        shared: bool = False,
    ) -> None:
        """Open the log. Raises AuditError.

        read_only: for a process that only reads. No log is begun, none is set aside.
        shared: like `read_only`, but this process may append. A daemon may write to the log at the same time.
        """
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        with _audit_errors(path):
            if shared:
                self._connection = open_shared(path)
            elif read_only:
                self._connection = open_read_only(path)
            else:
                self._connection = open_database(path, _utc(clock()))
            self._opened = {file: identity(file) for file in database_files(path)}

    def append(self, sensor: str, event: str, details: dict[str, Any], at: float | None = None) -> AuditRecord:
        """Add a record with the time `at` (s since the epoch), or with the present time.

        After the return, neither a crash nor a power cut can remove the record. Raises AuditError if it cannot be
        written, ValueError for details that JSON cannot hold and for the events that only the log itself writes.
        """
        if event in (LOG_BEGUN, LOG_PRUNED):
            raise ValueError(f"only the log itself writes the event {event!r}")
        text = canonical_json(details)
        with self._transaction() as connection:
            return self._append_next(connection, sensor, event, text, at)

    def check_place(self) -> None:
        """Check that the open files still lie at their paths. Raises AuditError.

        SQLite goes on writing to a file that was removed, and reports success.
        """
        with _audit_errors(self.path):
            moved = [file for file, opened in self._opened.items() if identity(file) != opened]
        if moved:
            raise AuditError(f"{moved[0]}: removed or replaced while recald writes it: put it back, or restart recald")

    def records(
        self, sensor: str | None = None, limit: int | None = None, exclude: Sequence[str] = ()
    ) -> list[AuditRecord]:
        """Read the newest `limit` records, of one sensor or of all, without the events in `exclude`; the newest last.

        Raises AuditError.
        """
        marks = ", ".join("?" * len(exclude))
        query = (
            f"SELECT * FROM record WHERE (? IS NULL OR sensor = ?) AND event NOT IN ({marks})"
            " ORDER BY number DESC LIMIT ?"
        )
        return self._newest(query, (sensor, sensor, *exclude), limit)

    def newest(self, sensor: str, event: str, limit: int | None = None) -> list[AuditRecord]:
        """Read the newest `limit` records of one event of one sensor; the newest last. Raises AuditError."""
        query = "SELECT * FROM record WHERE sensor = ? AND event = ? ORDER BY number DESC LIMIT ?"
        return self._newest(query, (sensor, event), limit)

    def verify(self, anchor: Anchor | None = None) -> list[str]:
        """Check the whole log; returns one line for each problem, none if it is intact. Raises AuditError.

        `anchor` is that of a record which was noted outside of the log (AuditRecord.anchor). Without an anchor two
        changes cannot be found: the newest records were removed, or the log was made anew from its first record on.
        """
        with self._reading() as connection:
            rows = connection.execute("SELECT * FROM record ORDER BY number")
            return chain_problems(itertools.starmap(AuditRecord, rows), anchor)

    def prune(self, keep_since: float, keep: int = 0) -> AuditRecord | None:
        """Remove the oldest records, up to the first one of `keep_since` (s since the epoch) or later.

        The newest `keep` records stay in any case, because a clock that is years ahead makes all records look old.
        Returns the record that was written about the pruning, None if there was nothing to remove. Raises AuditError.
        """
        since = _utc(keep_since)
        problems = self.verify()[:MAX_PROBLEMS_IN_RECORD]  # removing changed records must not hide that they changed
        with self._transaction() as connection:
            removed, number, digest = _prunable(connection, since, keep)
            if not removed:
                return None
            end = {"removed": removed, "number": number, "digest": digest}
            details = canonical_json({**end, "keep_since": since, "problems": problems})
            record = self._append_next(connection, "", LOG_PRUNED, details)
            connection.execute("DELETE FROM record WHERE number BETWEEN 2 AND ?", (number,))
            return record

    def damaged_before(self) -> dict[str, str]:
        """Read from the first record which damaged logs had been set aside before: name and SHA-256 of each file.

        Raises AuditError.
        """
        with self._reading() as connection:
            row = connection.execute("SELECT * FROM record ORDER BY number LIMIT 1").fetchone()
        content = AuditRecord(*row).content() if row else None
        damaged = content.get("damaged") if isinstance(content, dict) else None
        return damaged if isinstance(damaged, dict) else {}

    def close(self) -> None:
        """Close the file. Later calls raise AuditError."""
        with self._lock:
            self._opened = {}  # SQLite removes the write-ahead log
            self._connection.close()

    def _newest(self, query: str, arguments: tuple[str | None, ...], limit: int | None) -> list[AuditRecord]:
        """Run a query for the newest records first, whose last argument is the limit; returns the newest last."""
        with self._reading() as connection:
            rows = connection.execute(query, (*arguments, -1 if limit is None else limit)).fetchall()
        return [AuditRecord(*row) for row in reversed(rows)]

    def _append_next(
        self, connection: sqlite3.Connection, sensor: str, event: str, details: str, at: float | None = None
    ) -> AuditRecord:
        newest = "SELECT number, digest FROM record ORDER BY number DESC LIMIT 1"
        number, digest = connection.execute(newest).fetchone()
        # Somebody may have changed that digest to anything. The chain goes on behind it, and verify() reports it.
        last = number, str(digest).encode("ascii", "replace").decode()
        record = next_record(last, _utc(self._clock() if at is None else at), sensor, event, details)
        insert(connection, record)
        return record

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _audit_errors(self.path):
            yield self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        self.check_place()
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")  # before the newest record is read, so that no other can follow it
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")


def _prunable(connection: sqlite3.Connection, since: str, keep: int) -> tuple[int, int, str]:
    """Find how many records may be removed, and the number and digest of the last of them.

    A record from before the clock was set is as old as the next record with a credible time, and goes with it.
    """
    query = (
        "SELECT (SELECT count(*) FROM record AS older WHERE older.number BETWEEN 2 AND record.number),"
        " number, digest FROM record WHERE number > 1 AND at >= ?1 AND number <"
        " (SELECT coalesce(min(number), 9e18) FROM record WHERE number > 1 AND at >= ?2)"
        " AND number <= (SELECT max(number) FROM record) - ?3"
        " ORDER BY number DESC LIMIT 1"
    )
    return connection.execute(query, (EARLIEST_CREDIBLE_TIME, since, keep)).fetchone() or (0, 0, "")


def _utc(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


@contextmanager
def _audit_errors(path: Path) -> Iterator[None]:
    """Turn every error of SQLite and of the disk into an AuditError with advice."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        advice = next((text for words, text in ADVICE_BY_WORDS.items() if words in reason.lower()), None)
        raise AuditError(f"{path}: {reason}: {advice or 'see the log of the kernel'}") from error
