"""What the audit log tells of one recalibration: what led to it, what followed, and whether the log itself holds."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

from daemon.operator.history import dossiers_named
from deploy.audit.chain import Record
from deploy.audit.log import AuditError, AuditLog

MOST_BEFORE = 8  # records that are shown of what led to a fit
MOST_AFTER = 60  # and of what followed it


class Chronicle:
    """The audit log as it is read once; problems: what is wrong with it, or why it could not be read."""

    def __init__(self, records: list[Record], problems: list[str]):
        self._records = records
        self._fits = dossiers_named(records)
        self.problems = problems

    @classmethod
    def read(cls, path: Path) -> Chronicle:
        """Of the log in this file; an empty one, with the problem, where there is none that can be read."""
        if not path.exists():
            return cls([], [f"{path}: there is no audit log"])
        try:
            with closing(AuditLog(path, look_only=True)) as audit:
                return cls(audit.records(), audit.verify())
        except AuditError as error:
            return cls([], [str(error)])

    def fit(self, digest: str) -> Record | None:
        """The record that names this dossier."""
        return self._fits.get(digest)

    def digest(self, number: int) -> str:
        """Of the dossier that the record of this number names. Raises ValueError."""
        for digest, record in self._fits.items():
            if record.number == number:
                return digest
        raise ValueError(f"record {number} of the audit log names no recalibration; `recald report --list` shows them")

    def before(self, fit: Record) -> list[Record]:
        """What led to a fit: records of its sensor since the fit before, the newest MOST_BEFORE."""
        earlier = [r for r in self._records if r.sensor == fit.sensor and r.number < fit.number]
        since = max((r.number for r in earlier if r.event == "fit"), default=0)
        return [r for r in earlier if r.number > since][-MOST_BEFORE:]

    def after(self, fit: Record, version: str | None) -> list[Record]:
        """What followed: all of the sensor until its next fit, later what names the version, and who ordered that."""
        later = [r for r in self._records if r.sensor == fit.sensor and r.number > fit.number]
        until = next((place for place, r in enumerate(later) if r.event == "fit"), len(later))
        followed = later[:until]
        for record in later[until:]:
            ordered = record.event == "order" and followed and followed[-1].event == "rollback"
            if ordered or (version and version in details(record).values()):
                followed.append(record)
        return followed

    def mode(self, fit: Record) -> str | None:
        """Who was to decide then, by the start of the daemon before it: a recalibrate.mode."""
        starts = [r for r in self._records if r.event == "start" and r.number < fit.number]
        mode = details(starts[-1]).get("mode") if starts else None
        return mode if isinstance(mode, str) else None


def details(record: Record) -> dict[str, Any]:
    """Of a record; none where somebody made something else of them, which `problems` tells."""
    content = record.content()
    return content if isinstance(content, dict) else {}


def of_event(records: Iterable[Record], event: str, **wanted: Any) -> Record | None:
    """The first record of this event with these details."""
    return next((r for r in records if r.event == event and wanted.items() <= details(r).items()), None)
