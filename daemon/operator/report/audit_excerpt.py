"""The records of the audit log that belong to one recalibration: what led to it, and what followed."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from calibrate.errors import RecaldError
from daemon.operator.history import fit_records
from deploy.audit.chain import AuditRecord
from deploy.audit.log import AuditError, AuditLog

MAX_RECORDS_BEFORE = 8  # on the page, of what led to a fit


class AuditExcerpt:
    """The audit log, read once. problems: what is wrong with it, or why it could not be read."""

    def __init__(self, records: list[AuditRecord], problems: list[str]):
        self._records = records
        self._fits = fit_records(records)
        self.problems = problems

    @classmethod
    def read(cls, path: Path) -> AuditExcerpt:
        """Read the log in this file. One that is missing or cannot be read becomes an empty log with a problem."""
        if not path.exists():
            return cls([], [f"{path}: there is no audit log"])
        try:
            with closing(AuditLog(path, read_only=True)) as audit:
                return cls(audit.records(), audit.verify())
        except AuditError as error:
            return cls([], [str(error)])

    def fit_record(self, dossier: str) -> AuditRecord | None:
        """Return the record that names the dossier with this digest."""
        return self._fits.get(dossier)

    def dossier_digest(self, number: int) -> str:
        """Return the digest of the dossier that this record names. Raises ValueError when it names none."""
        for digest, record in self._fits.items():
            if record.number == number:
                return digest
        raise RecaldError(f"record {number} of the audit log names no recalibration; `recald report --list` shows them")

    def before(self, fit: AuditRecord) -> list[AuditRecord]:
        """Return what led to a fit: the newest records of its sensor since the fit before."""
        earlier = [r for r in self._records if r.sensor == fit.sensor and r.number < fit.number]
        fit_before = max((r.number for r in earlier if r.event == "fit"), default=0)
        return [r for r in earlier if r.number > fit_before][-MAX_RECORDS_BEFORE:]

    def after(self, fit: AuditRecord, version: str | None) -> list[AuditRecord]:
        """Return what followed a fit: all records of its sensor until the next fit, and later those about `version`.

        An order that stands directly behind a rollback of the version belongs to it, and tells who gave it.
        """
        later = [r for r in self._records if r.sensor == fit.sensor and r.number > fit.number]
        next_fit = next((index for index, r in enumerate(later) if r.event == "fit"), len(later))
        followed = later[:next_fit]
        for record in later[next_fit:]:
            ordered = record.event == "order" and followed and followed[-1].event == "rollback"
            if ordered or (version and version in details(record).values()):
                followed.append(record)
        return followed

    def mode(self, fit: AuditRecord) -> str | None:
        """Return the recalibrate.mode at a fit, as the start of the daemon before it recorded it."""
        starts = [r for r in self._records if r.event == "start" and r.number < fit.number]
        mode = details(starts[-1]).get("mode") if starts else None
        return mode if isinstance(mode, str) else None


def details(record: AuditRecord) -> dict[str, Any]:
    """Return the details of a record; none when somebody has changed them to something else, see `problems`."""
    content = record.content()
    return content if isinstance(content, dict) else {}


def find_record(records: Iterable[AuditRecord], event: str, **wanted: Any) -> AuditRecord | None:
    """Return the first record of this event with these details."""
    return next((r for r in records if r.event == event and wanted.items() <= details(r).items()), None)
