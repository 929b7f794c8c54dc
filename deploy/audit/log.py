"""The audit log: what was done and why, in a file that can only grow and that shows when it was changed."""

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

from deploy.audit.chain import BEGUN, PRUNED, Anchor, Record, canonical, chained, problems
from deploy.audit.sqlite import BUSY_S, insert, join, look_into, open_database

CLOCK_SET = "2020"  # an earlier time comes from a device that had not yet learnt the date
PROBLEMS_KEPT = 10  # in the record of what was pruned; the first few show what happened
ADVICE = {  # by words in the message: before Python 3.11 nothing else tells one error from another
    "full": "free some space on its disk",
    "no space": "free some space on its disk",
    "readonly": "make its disk and folder writable",
    "read-only": "make its disk and folder writable",
    "denied": "make its disk and folder writable",
    "unable to open": "make its disk and folder writable",
    "locked": f"another process held it for {BUSY_S:.0f} s: end that one",
    "malformed": "restart recald, which sets a damaged log aside and begins another",
    "not a database": "restart recald, which sets a damaged log aside and begins another",
}


class AuditError(OSError):
    """The log cannot be read or written; the message says which, why and what to do."""


class AuditLog:
    """The log in the SQLite file `path`, begun where there is none; any thread, any number of processes.

    A file that SQLite cannot use, or whose newest record does not hold, is set aside as
    `path`.damaged-N. Any other change is left where it is, for verify() to tell.
    """

    def __init__(
        self,
        path: Path,
        clock: Callable[[], float] = time.time,
        *,
        look_only: bool = False,
        guest: bool = False,
    ) -> None:
        """look_only: for another process than the one that writes; nothing is begun or set aside.

        guest: the same, but it may append: a daemon may be writing to the log at the same time.
        """
        self.path = path
        self._clock = clock
        self._lock = threading.Lock()
        with _told(path):
            if look_only or guest:
                self._connection = join(path) if guest else look_into(path)
            else:
                self._connection = open_database(path, _utc(clock()))

    def append(self, sensor: str, event: str, details: dict[str, Any], at: float | None = None) -> Record:
        """Add a record of now, or of `at`, s since the epoch.

        Once this returns, no crash and no power cut takes it back.

        AuditError where it could not be written; ValueError for details that JSON cannot hold.
        """
        if event in (BEGUN, PRUNED):
            raise ValueError(f"{event!r} is said by the log itself alone")
        text = canonical(details)
        with self._transaction() as connection:
            return self._follow(connection, sensor, event, text, at)

    def records(self, sensor: str | None = None, limit: int | None = None, without: Sequence[str] = ()) -> list[Record]:
        """The newest `limit` records, of one sensor or of all, but for the events in `without`; the newest last."""
        marks = ", ".join("?" * len(without))
        query = (
            f"SELECT * FROM record WHERE (? IS NULL OR sensor = ?) AND event NOT IN ({marks})"
            " ORDER BY number DESC LIMIT ?"
        )
        with self._reading() as connection:
            given = (sensor, sensor, *without, -1 if limit is None else limit)
            rows = connection.execute(query, given).fetchall()
        return [Record(*row) for row in reversed(rows)]

    def newest(self, sensor: str, event: str, limit: int | None = None) -> list[Record]:
        """The newest `limit` records of this event of this sensor, the newest last."""
        query = "SELECT * FROM record WHERE sensor = ? AND event = ? ORDER BY number DESC LIMIT ?"
        with self._reading() as connection:
            rows = connection.execute(query, (sensor, event, -1 if limit is None else limit)).fetchall()
        return [Record(*row) for row in reversed(rows)]

    def verify(self, anchor: Anchor | None = None) -> list[str]:
        """What is wrong with the log; empty where it is intact, AuditError where it cannot be read.

        `anchor` is of a record that was noted elsewhere (Record.anchor): without one, a log whose newest
        records are gone, or that was made anew from its first record on, cannot be told from an intact one.
        """
        with self._reading() as connection:
            rows = connection.execute("SELECT * FROM record ORDER BY number")
            return problems(itertools.starmap(Record, rows), anchor)

    def prune(self, keep_since: float, keep: int = 0) -> Record | None:
        """Remove the oldest records, up to the first of `keep_since` (s since the epoch) or later.

        The newest `keep` stay in any case: a clock that is years ahead makes all of them look old.
        Returns the record that says so; None where there was nothing to remove.
        """
        since = _utc(keep_since)
        known = self.verify()[:PROBLEMS_KEPT]  # or removing what was tampered with would clear it of that
        with self._transaction() as connection:
            removed, number, digest = _prunable(connection, since, keep)
            if not removed:
                return None
            end = {"removed": removed, "number": number, "digest": digest}
            details = canonical({**end, "keep_since": since, "problems": known})
            record = self._follow(connection, "", PRUNED, details)
            connection.execute("DELETE FROM record WHERE number BETWEEN 2 AND ?", (number,))
            return record

    def damaged_before(self) -> dict[str, str]:
        """Name and SHA-256 of each damaged log that was set aside before this one was begun."""
        with self._reading() as connection:
            row = connection.execute("SELECT * FROM record ORDER BY number LIMIT 1").fetchone()
        content = Record(*row).content() if row else None
        damaged = content.get("damaged") if isinstance(content, dict) else None
        return damaged if isinstance(damaged, dict) else {}

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _follow(
        self, connection: sqlite3.Connection, sensor: str, event: str, details: str, at: float | None = None
    ) -> Record:
        newest = "SELECT number, digest FROM record ORDER BY number DESC LIMIT 1"
        number, digest = connection.execute(newest).fetchone()
        # Whatever was made of that digest, it can be followed, and verify() tells of it.
        last = number, str(digest).encode("ascii", "replace").decode()
        record = chained(last, _utc(self._clock() if at is None else at), sensor, event, details)
        insert(connection, record)
        return record

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        with self._lock, _told(self.path):
            yield self._connection

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._reading() as connection:
            connection.execute("BEGIN IMMEDIATE")  # before reading what the new record has to follow
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")


def _prunable(connection: sqlite3.Connection, since: str, keep: int) -> tuple[int, int, str]:
    """How many records may go, and the number and digest of the last of them.

    One from before the clock was set is as old as the next one that knew the date, so it goes with that.
    """
    query = (
        "SELECT (SELECT count(*) FROM record AS older WHERE older.number BETWEEN 2 AND record.number),"
        " number, digest FROM record WHERE number > 1 AND at >= ?1 AND number <"
        " (SELECT coalesce(min(number), 9e18) FROM record WHERE number > 1 AND at >= ?2)"
        " AND number <= (SELECT max(number) FROM record) - ?3"
        " ORDER BY number DESC LIMIT 1"
    )
    return connection.execute(query, (CLOCK_SET, since, keep)).fetchone() or (0, 0, "")


def _utc(seconds: float) -> str:
    text = datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")
    return text.replace("+00:00", "Z")


@contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or str(error)
        advice = next((text for words, text in ADVICE.items() if words in reason.lower()), "see the kernel's log")
        raise AuditError(f"{path}: {reason}: {advice}") from error


def audit_path(state: Path) -> Path:
    return state / "audit.sqlite"
